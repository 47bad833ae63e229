"""Files that anybody may have changed are read within bounds, and what is unsound in them is one kind of error."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from automodel_cli.engine.bounded import MAX_JSON_DEPTH, UnsoundError, parse_json, read_bytes, read_object, typed
from automodel_cli.errors import CheckpointError, DataError

UNSOUND = {
    "nothing": b"",
    "no JSON": b"{'a': 1}",
    "cut short": b'{"a": [1, 2',
    "two values": b"{} {}",
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NaN": b'{"a": NaN}',
    "Infinity": b"[-Infinity]",
    "beyond every double": b"[1e999]",
    "a number of absurd length": b"[" + b"9" * 5_000 + b"]",
    "a fraction of absurd length": b"[0." + b"9" * 5_000 + b"]",
    "a key twice": b'{"a": 1, "a": 2}',
    "half of a surrogate pair": b'["\\ud800"]',
    "half of a surrogate pair as a key": b'{"\\udfff": 1}',
    "too deep": b"[" * 100_000 + b"]" * 100_000,
    "just too deep": b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1),
    "too many values": b"[" + b"0," * 1_000_001 + b"0]",
}


@pytest.mark.parametrize("content", UNSOUND.values(), ids=UNSOUND.keys())
def test_unsound_json_is_refused_with_a_short_reason(content):
    """Each breaks one rule; nothing else than an `UnsoundError` comes out."""
    with pytest.raises(UnsoundError) as caught:
        parse_json(content)

    assert 0 < len(str(caught.value)) < 300


def test_what_json_writes_is_read_back():
    """Up to the greatest depth, with a byte order mark, and with a real pair of surrogates."""
    deep = json.loads("[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH)
    value = {"a": [1, -2.5, None, True], "\U0001f600": "é", "deep": deep[0]}

    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(b"\xef\xbb\xbf{}") == {}


def directory_at(path: Path) -> None:
    path.mkdir()


def pipe_at(path: Path) -> None:
    os.mkfifo(path)


def device_at(path: Path) -> None:
    path.symlink_to("/dev/zero")


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("make", [directory_at, pipe_at, device_at, socket_at])
def test_what_is_no_file_is_refused_without_waiting(make, tmp_path, monkeypatch):
    """A pipe that nobody writes to, a device without end, a directory and a socket in the place of a file."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.json")

    with pytest.raises(UnsoundError, match="not a regular file"):
        read_bytes(tmp_path / "x.json")


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    """By its size, which may be a terabyte."""
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(2**40)

    with pytest.raises(UnsoundError, match=r"1,099,511,627,776 bytes, and at most 1,000 are read"):
        read_bytes(tmp_path / "x.json", max_bytes=1_000)


@pytest.mark.parametrize("content", [None, b"[1]", b"null", b"{"])
def test_the_caller_chooses_the_error_and_the_file_is_named(content, tmp_path):
    """Missing, of another kind, broken: the error is the one that was asked for."""
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)

    for kind in (CheckpointError, DataError):
        with pytest.raises(kind, match="the list of shards") as caught:
            read_object(path, kind, what="the list of shards")
        assert caught.value.where == str(path)


@dataclass
class Inner:
    name: str
    size: int = 0


@dataclass
class Outer:
    loss: float | None
    parts: tuple[Inner, ...]
    by_name: dict[str, Inner]
    flag: bool = False
    more: dict[str, object] | None = None
    free: list = field(default_factory=list)


SOUND = asdict(Outer(1.5, (Inner("a", 3),), {"b": Inner("c")}))


def test_a_dataclass_is_read_back_as_it_was():
    """Nested ones in lists and objects, a whole number for a fraction, defaults for what is missing."""
    sound = {key: value for key, value in json.loads(json.dumps(SOUND)).items() if key in ("loss", "parts", "by_name")}

    assert typed(Outer, sound) == Outer(1.5, (Inner("a", 3),), {"b": Inner("c")})
    assert typed(Outer, {**sound, "loss": None}).loss is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"loss": "1.5"}, "loss is '1.5', but it must be a number"),
        ({"loss": True}, "loss is true, but"),
        ({"loss": 10**80}, "loss is 1000"),
        ({"parts": {}}, "parts is an object, but it must be a list"),
        ({"parts": [3]}, r"parts\[0\] is 3, but it must be an object"),
        ({"parts": [{"name": "a", "size": -1}]}, r"parts\[0\].size is -1, but it must be a whole number from 0"),
        ({"parts": [{"name": "a", "size": True}]}, r"parts\[0\].size is true"),
        ({"parts": [{"name": "a", "size": 2**63}]}, r"parts\[0\].size is 9223"),
        ({"parts": [{"name": "a", "size": 1.0}]}, r"parts\[0\].size is 1.0"),
        ({"parts": [{"size": 1}]}, r"parts\[0\].name is missing"),
        ({"by_name": []}, "by_name is a list, but it must be an object"),
        ({"by_name": {"b": {"name": None}}}, "by_name.b.name is null, but it must be a text"),
        ({"flag": 1}, "flag is 1, but it must be true or false"),
        ({"another": 1}, "another is unknown"),
    ],
)
def test_a_field_of_another_kind_is_named(change, reason):
    """By its dotted name, with what was found and what the rule is."""
    with pytest.raises(UnsoundError, match=reason):
        typed(Outer, {**SOUND, "parts": [], "by_name": {}, "free": [], **change})
