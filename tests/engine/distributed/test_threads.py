"""The way of waiting is chosen once, and never against the user."""

from __future__ import annotations

import pytest

from automodel_cli.engine.distributed.threads import wait_without_spinning


def test_threads_sleep_by_default():
    """An environment without a choice gets one."""
    environment: dict[str, str] = {}

    wait_without_spinning(environment)

    assert environment == {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_the_users_own_choice_stands(name):
    """Whichever variable it was made with."""
    environment = {name: "7"}

    wait_without_spinning(environment)

    assert environment == {name: "7"}
