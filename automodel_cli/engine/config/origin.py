"""Where a configuration value came from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["file", "option", "default", "checkpoint"]

# A key in a nested configuration: mapping keys are strings, list elements are integers.
KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """The place that set a value.

    Args:
        kind: `file` and `checkpoint` carry a position; `option` is the command line;
            `default` is a default of amcli. A value of a `checkpoint` is data, not code:
            its `_target_` is resolved only inside packages that amcli knows.
        source: The file's path, or the option as the user typed it.
        line: Line in the file, counted from 1.
        column: Column in the file, counted from 1.
    """

    kind: Kind
    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        """The full position, for errors: `nanogpt.yaml:7:22`."""
        return f"{self.short()}:{self.column}" if self.line is not None else self.short()

    def short(self) -> str:
        """The position without its column, for comments: `nanogpt.yaml:7`."""
        if self.line is None:
            return self.source
        return f"{_shortest(self.source)}:{self.line}"

    def directory(self) -> Path:
        """The directory that relative file targets of this value start from."""
        return Path(self.source).resolve().parent if self.line is not None else Path.cwd()


DEFAULT = Origin("default", "default")


def dotted(path: KeyPath) -> str:
    """`("optimizer", "betas", 0)` as the user writes it after `--set`.

    >>> dotted(("optimizer", "betas", 0))
    'optimizer.betas.0'
    """
    return ".".join(str(part) for part in path)


def _shortest(source: str) -> str:
    """The path relative to the working directory where that is shorter."""
    try:
        relative = os.path.relpath(source)
    except ValueError:  # another drive on Windows
        return source
    return relative if len(relative) < len(source) else source
