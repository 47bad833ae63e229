"""What would work: the nearest right name for a mistyped one, and command lines that run when they are pasted."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path, PurePath

# Where runs save, and where commands look for one, unless told otherwise.
DEFAULT_ROOT = Path("checkpoints")


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` was most likely meant to be, or None.

    >>> nearest("n_layers", ["n_layer", "n_head"]), nearest("ste", ["set"]), nearest("plot", ["import"])
    ('n_layer', 'set', None)
    """
    for match in difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.6):
        # Of what has 60 % in common, much only shares a few letters.
        is_close = difflib.SequenceMatcher(None, match, name).ratio() >= 0.7
        if is_close or sorted(match) == sorted(name) or match in name or name in match:
            return match
    return None


def hint(name: str, candidates: Iterable[str], *, noun: str = "keys") -> str:
    """A help line: the nearest name if there is one, else the names that exist."""
    names = sorted(candidates)
    match = nearest(name, names)
    if match:
        return f"did you mean `{match}`?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"the {noun} are: {shown}" if names else f"there are no {noun} here"


def command(*words: object) -> str:
    """A command line of amcli for a message; every one that holds a name or a value is made here.

    >>> command("sample", PurePath("my runs"), "--seed", 3)
    "amcli sample 'my runs' --seed 3"
    """
    return " ".join(["amcli", *map(quoted, words)])


def on_run(name: str, root: Path, *words: object) -> str:
    """The command line of `amcli name` about the run in `root`, which is named unless it is the default.

    >>> on_run("resume", Path("checkpoints")), on_run("resume", Path("my runs"))
    ('amcli resume', "amcli resume 'my runs'")
    """
    return command(name, *([root] if root != DEFAULT_ROOT else []), *words)


def quoted(word: object) -> str:
    r"""A word as a shell reads it back, whatever it holds; a path is never taken for an option.

    >>> print(quoted("$HOME"), quoted(PurePath("-runs")), quoted("two\nlines"))
    '$HOME' ./-runs $'two\x0alines'
    """
    text = f"./{word}" if isinstance(word, PurePath) and str(word).startswith("-") else str(word)
    if text.isprintable():
        return shlex.quote(text)
    # A control character could steer the terminal, and bytes that are no text cannot be printed.
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(character: str) -> str:
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
