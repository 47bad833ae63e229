"""Values that must not be printed, saved or sent: keys that hold secrets, and what stands in their place.

A key is judged by its last name alone: `api_key`, `password`, `client_secret`, `hf_token` hold secrets;
`tokenizer`, `num_tokens`, `bos_token` do not. A reference `${VAR}` is no secret, since it stays
unresolved in everything that is written; a reference with a default is, since the default is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MASK = "***"

_SECRET = re.compile(
    r"(?:.*[_-])?(?:api_?key|access_?key|private_?key|secret|passw(?:or)?d|passphrase|credentials?|authorization)"
    r"|secret[_-].*"
    r"|token|(?:.*[_-])?(?:hf|hub|auth|access|api|bearer|refresh|github|wandb)[_-]token",
    re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
# `key: ` of a YAML line or `key=` of an option, dotted or quoted.
_ASSIGNMENT = re.compile(r"""(?P<key>[A-Za-z_][A-Za-z0-9_-]*+)["']?(?:\s*:\s+|\s*=)(?=\S)""")


def is_secret(key: str) -> bool:
    """Whether a key of this name holds a secret; of a dotted key the last name counts.

    >>> [is_secret(key) for key in ("wandb.api_key", "hf_token", "tokenizer", "num_tokens", "bos_token")]
    [True, True, False, False, False]
    """
    return _SECRET.fullmatch(key.rpartition(".")[2]) is not None


def masked_value(key: str, value: Any) -> Any:
    """The value as it may be shown: below a secret key `***`, except for null, truth values and `${VAR}`."""
    if isinstance(value, Mapping):
        return {name: masked_value(name if not is_secret(key) else key, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [masked_value(key, inner) for inner in value]
    if not is_secret(key) or value is None or isinstance(value, bool):
        return value
    return value if isinstance(value, str) and _REFERENCE.fullmatch(value) else MASK


def masked_text(line: str) -> str:
    """A line of YAML or of a command line with what follows a secret key replaced; its length is unchanged.

    Everything to the end of the line goes, since where a value ends is not for a pattern to decide. The
    length stays because carets point into the line.

    >>> masked_text("  api_key: abc def")
    '  api_key: *******'
    """
    for found in _assignments(line):
        start = found.end()
        if is_secret(found["key"]) and not _REFERENCE.fullmatch(line[start:].strip()):
            return line[:start] + "*" * (len(line) - start)
    return line


def _assignments(line: str) -> Iterator[re.Match[str]]:
    """Every place of the line that could assign a value; one may lie inside the value of another."""
    for name in _NAME.finditer(line):
        if found := _ASSIGNMENT.match(line, name.start()):
            yield found
