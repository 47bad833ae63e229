"""What engine parts expect of the user's code, and what they make of its exceptions."""

from __future__ import annotations

import pytest

from automodel_cli.engine.protocols import in_users_code


@pytest.mark.parametrize(
    ("raised", "told"), [(SystemExit(0), r"sys\.exit\(0\)"), (StopIteration(), "the code raised StopIteration")]
)
def test_an_exception_with_a_meaning_of_its_own_is_an_error_of_the_users_code(raised, told):
    """Neither ends the process, nor a generator that reads samples; the note says which code it was."""
    with pytest.raises(RuntimeError, match=told) as caught, in_users_code(lambda: "while reading sample 3"):
        raise raised

    assert caught.value.__notes__ == ["while reading sample 3"]
