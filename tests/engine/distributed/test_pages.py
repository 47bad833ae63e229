"""Huge pages are asked for, unless somebody has chosen."""

from __future__ import annotations

import pytest

from automodel_cli.engine.distributed.pages import ask_for_huge_pages


@pytest.mark.parametrize(("before", "after"), [({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")])
def test_torch_is_asked_for_huge_pages_unless_the_user_has_chosen(before, after):
    """The variable that torch reads when it allocates first; a choice in the environment stands."""
    environment = dict(before)

    ask_for_huge_pages(environment)

    assert environment == {"THP_MEM_ALLOC_ENABLE": after}
