"""Reads what a pickle describes without running anything in it: every global becomes an inert record.

The danger of a pickle is that it names what is imported and called. `pickletools` of the standard library only splits
it into its opcodes; what they build is built here, from plain values and records that keep what they were made from,
so no name of any module is ever looked up. The number of opcodes is bounded, and with it time and memory: each of
them makes one small object at most, texts beyond `MAX_TEXT` and numbers beyond 512 bits are left out, and a key is
never so deeply nested that its hash takes long. A value may contain itself, or one list many times: a walk through it
must visit each object once.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from automodel_cli.errors import CheckpointError

MAX_PICKLE_BYTES = 32 * 2**20
MAX_OPCODES = 1_000_000
MAX_TEXT = 1_000  # characters, or bytes; what is longer is no name
_MAX_KEY_VALUES = 100
_MAX_NAME = 200
_MAX_BITS = 512
_OMITTED = "omitted"


class Record:
    """Takes the place of an object that a pickle would make, or of a global that it names.

    Attributes:
        path: The global, such as `torch._utils._rebuild_tensor_v2`.
        args: Arguments that it would be called with.
        state: The object's attributes; None without.
        items: Its members by key; None without.
    """

    __slots__ = ("args", "items", "path", "state")

    def __init__(self, path: str, args: tuple[Any, ...] = ()) -> None:
        self.path = path
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"<{self.path}>"

    def attribute(self, name: str) -> Any:
        """An attribute from the state; None where there is none."""
        return self.state.get(name) if isinstance(self.state, dict) else None


def read_inert(content: io.BytesIO, source: Path) -> Any:
    """The value of a pickle, with a `Record` in the place of everything that is not plain data.

    Args:
        content: At the beginning of the pickle; afterwards at its end.
        source: The file, for errors.

    Raises:
        CheckpointError: It is no pickle, or beyond a bound.
    """
    try:
        return _Machine().value_of(content)
    # A broken pickle is a program for a machine without checks: it takes from an empty stack, or appends to a number.
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, struct.error) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"its description cannot be read: {reason}", where=str(source)) from error


class _Machine:
    """The stack machine that a pickle is a program for, without the two instructions that reach outside of it."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def value_of(self, content: io.BytesIO) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count >= MAX_OPCODES:
                raise ValueError(f"it has more than the {MAX_OPCODES:,} opcodes that are read")
            _ACTIONS[opcode.name](self, argument)
        return self.stack.pop()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def text(self, value: Any) -> None:
        self.stack.append(value if len(value) <= MAX_TEXT else Record(_OMITTED))

    def whole(self, value: int) -> None:
        self.stack.append(value if value.bit_length() <= _MAX_BITS else Record(_OMITTED))

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        members, self.stack = self.stack, self.below.pop()
        return members

    def last(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        members = tuple(self.stack[-count:])
        del self.stack[-count:]
        return members

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def put(self, index: int) -> None:
        if not 0 <= index < MAX_OPCODES:
            raise ValueError(f"it keeps a value at place {index:,}, and places are from 0 to {MAX_OPCODES - 1:,}")
        self.memo[index] = self.stack[-1]

    def extend(self, members: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target += members
        elif not isinstance(target, Record):  # what a record would hold as a list or set is of no interest
            raise TypeError(f"{type(target).__name__} has no members")

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.items = {} if target.items is None else target.items
            target = target.items
        if type(target) is not dict or len(flat) % 2:
            raise TypeError(f"{type(target).__name__} has no items, or a key has no value")
        for index in range(0, len(flat), 2):
            target[_key(flat[index])] = flat[index + 1]

    def dictionary(self, _: Any) -> None:
        flat = self.since_mark()
        self.push({})
        self.set_items(flat)

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or max(len(module), len(name)) > _MAX_NAME:
            raise ValueError(f"it names something by more than {_MAX_NAME} characters, or by no text")
        self.stack.append(Record(f"{module}.{name}"))

    def call(self, called: Any, args: Any) -> None:
        args = args if type(args) is tuple else (args,)
        self.stack.append(Record(called.path if isinstance(called, Record) else "", args))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, Record):
            raise TypeError(f"{type(target).__name__} has no attributes")
        target.state = state


def _key(key: Any) -> Any:
    """The key, if its hash takes no longer than that of a hundred plain values."""
    if type(key) is tuple:
        level, count = list(key), len(key)
        while level:
            if count > _MAX_KEY_VALUES:
                raise ValueError(f"a key holds more than the {_MAX_KEY_VALUES} values that are read")
            level = [item for inner in level if type(inner) is tuple for item in inner]
            count += len(level)
    return key


_TEXTS = "STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES "
_TEXTS += "BINBYTES8 BYTEARRAY8"
_WHOLES = "INT BININT BININT1 BININT2 LONG LONG1 LONG4"

_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(_TEXTS.split(), _Machine.text),
    **dict.fromkeys(_WHOLES.split(), _Machine.whole),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP", "READONLY_BUFFER"), lambda machine, _: None),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4", "NEXT_BUFFER"), lambda machine, _: machine.push(Record(_OMITTED))),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_SET": lambda machine, _: machine.push(Record("builtins.set")),
    "MARK": _Machine.mark,
    "POP": lambda machine, _: machine.stack.pop() if machine.stack else machine.since_mark(),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": _Machine.duplicate,
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.since_mark()),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.last(3)),
    "FROZENSET": lambda machine, _: machine.push(Record("builtins.frozenset", (machine.since_mark(),))),
    "SETITEM": lambda machine, _: machine.set_items([*machine.last(2)]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "DICT": _Machine.dictionary,
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.last(2)),
    "REDUCE": lambda machine, _: machine.call(*machine.last(2)),
    "NEWOBJ": lambda machine, _: machine.call(*machine.last(2)),
    "NEWOBJ_EX": lambda machine, _: machine.call(*machine.last(3)[:2]),
    "INST": lambda machine, names: machine.push(Record(names.replace(" ", ".")[:_MAX_NAME], (machine.since_mark(),))),
    "OBJ": lambda machine, _: machine.call(*(lambda made: (made[0], tuple(made[1:])))(machine.since_mark())),
    "PERSID": _Machine.text,
    "BINPERSID": lambda machine, _: None,  # the identity stands for what it names
    "BUILD": _Machine.build,
}
