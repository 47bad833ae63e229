"""Reads what a pickle describes without running anything in it: every global becomes an inert record.

The danger of a pickle is `find_class`, which imports and later calls whatever is named. Here it
imports nothing: each name gives a class that only keeps its arguments. So a hostile pickle yields a
tree of records, and no name of any module is ever looked up.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

from automodel_cli.errors import CheckpointError

MAX_PICKLE_BYTES = 256 * 2**20


class Record:
    """What a pickle wanted to make.

    Attributes:
        path: The global that it named, such as `torch._utils._rebuild_tensor_v2`.
        args: What it would have been called with.
        state: What would have become its attributes; None without.
        items: What would have been set by key.
        members: What would have been appended.
    """

    path = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        """Made in both of the ways that a pickle has: by a call, or by `__new__` alone."""
        made = super().__new__(cls)
        made.args, made.state, made.items, made.members = args, None, {}, []
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any
        self.items: dict[Any, Any]
        self.members: list[Any]

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, member: Any) -> None:
        """Keeps a member."""
        self.members.append(member)

    def extend(self, members: Any) -> None:
        """Keeps several members."""
        self.members.extend(members)

    def attribute(self, name: str) -> Any:
        """An attribute from the state; None where there is none."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Hashable, since enum members and sizes stand as keys; by identity, which is all that is needed.
        return type("Record", (Record,), {"path": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_inert(file: IO[bytes], source: Path, num_bytes: int) -> Any:
    """The value of a pickle, with a `Record` in the place of everything that is not plain data.

    Args:
        file: Open at the pickle's beginning.
        source: Named in errors.
        num_bytes: Size of the pickle; bounded before it is read.

    Raises:
        CheckpointError: It is too large, or no pickle.
    """
    if num_bytes > MAX_PICKLE_BYTES:
        message = f"its description has {num_bytes:,} bytes, and at most {MAX_PICKLE_BYTES:,} are read"
        raise CheckpointError(message, where=str(source))
    try:
        return _InertUnpickler(file).load()
    # A broken pickle raises nearly anything: it is a program for a machine without checks.
    except Exception as error:
        raise CheckpointError(f"its description cannot be read: {error}", where=str(source)) from error
