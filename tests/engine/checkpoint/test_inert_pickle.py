"""What a pickle describes is read without running it, and within bounds that each hostile pickle meets."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from automodel_cli.engine.checkpoint.foreign import pickled_tensors
from automodel_cli.engine.checkpoint.inert_pickle import MAX_OPCODES, Record, read_inert
from automodel_cli.engine.checkpoint.read_tensors import read_weights
from automodel_cli.errors import CheckpointError

HEAD = b"\x80\x02"
MAX_PEAK_BYTES = 450 * 2**20


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def tensor(shape: bytes = b"K\x02K\x04\x86", strides: bytes = b"K\x04K\x01\x86", elements: int = 8) -> bytes:
    storage = text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"K" + bytes([elements])
    made = named("torch._utils", "_rebuild_tensor_v2") + b"((" + storage + b"tQK\x00" + shape + strides + b"\x89"
    return made + named("collections", "OrderedDict") + b")RtR"


def saved(directory: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED, more: int = 0) -> Path:
    """A file as `torch.save` would lay it out around a pickle, with the storage of 8 numbers."""
    path = directory / "x.bin"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", bytes(32))
        for number in range(more):
            archive.writestr(f"a/data/{number:040}", b"")
    return path


def doubled(times: int, first: bytes = b")") -> bytes:
    """A tuple of twice a tuple of twice ...: few bytes, and 2**times values for whoever visits each place."""
    return first + b"".join(b"q%ch%c\x86" % (index, index) for index in range(times))


SOUND = HEAD + b"}" + text("w") + tensor() + b"s."
HOSTILE = {
    "a place of the memo beyond all others": (b"]r" + struct.pack("<I", 2**31 - 1) + b".", "keeps a value at place"),
    "a place of the memo of many digits": (b"]p" + b"9" * 100 + b"\n.", "keeps a value at place"),
    "a number of a million digits": (b"I" + b"9" * 1_000_000 + b"\n.", "cannot be read"),
    "too many opcodes": (b"(" + b"}" * 2_000_000 + b"l.", f"more than the {MAX_OPCODES:,} opcodes"),
    "a list in a list in a list": (b"]" * 100_000 + b"a" * 99_999 + b".", "more than the 1,000 characters"),
    "a key whose hash takes for ever": (b"}" + doubled(60) + b"Ns.", "a key holds more than the 100 values"),
    "a key so deep that its hash overflows": (b"}" + b")" + b"\x85" * 200_000 + b"Ns.", "a key holds more than"),
    "a text of 4 GB": (b"X" + struct.pack("<I", 2**32 - 1) + b"abc.", "cannot be read"),
    "bytes of an exabyte": (b"\x8e" + struct.pack("<Q", 2**62) + b"abc.", "cannot be read"),
    "one tensor at too many places": (
        b"}("
        + text("w")
        + tensor()
        + b"q\x01"
        + b"".join(b"M" + struct.pack("<H", i % 65_536) + b"h\x01" for i in range(9))
        + b"u"
        b"q\x02](" + b"h\x02" * 1 + b"h\x01" * 100_001 + b"e.",
        "more than the 100,000 tensors",
    ),
    "a shape that is shared and long": (
        b"("
        + b"K\x01" * 500_000
        + b"tq\x05}("
        + b"".join(text(f"{i}") + tensor(b"h\x05", b"h\x05") for i in range(9))
        + b"u.",
        "more than 64 dimensions",
    ),
    "a size of a million bytes": (
        b"}" + text("w") + tensor(b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b"\x85", b"K\x01\x85") + b"s.",
        "is not a list of at most 64 sizes",
    ),
    "a tensor beyond its storage": (
        b"}" + text("w") + tensor(b"J\xff\xff\xff\x7f\x85", b"K\x01\x85") + b"s.",
        "goes beyond the end of its storage",
    ),
    "a storage beyond the file": (b"}" + text("w") + tensor(elements=9) + b"s.", "takes 36 bytes, and the file has 32"),
    "a call of nothing": (b"R.", "cannot be read"),
    "an item of a number": (b"K\x01K\x01K\x01s.", "cannot be read"),
    "no end": (b"}", "cannot be read"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("program", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_pickle_meets_a_bound_that_is_said(program, reason, tmp_path):
    """One message with the bound; before torch allocates anything for it, too."""
    path = saved(tmp_path, HEAD + program)

    for read in (pickled_tensors, read_weights):
        with pytest.raises(CheckpointError, match=reason) as caught:
            read(path)
        assert caught.value.where == str(path)
        assert len(caught.value.message) < 1_000


HARMLESS = {
    "shared lists": b"]" + b"".join(b"q%c](" % index + b"h%c" % index * 9 + b"e" for index in range(60)) + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "an object in itself under an empty name": b"}q\x00" + text("") + b"h\x00s.",
    "shared tuples in the place of a storage": b"}" + text("w") + doubled(60) + b"s.",
    "a text of a megabyte": b"}" + text("n") + text("\U0001f600" + "a" * 1_000_000) + b"s.",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "program",
    [
        *(pytest.param(program, id=name) for name, program in HARMLESS.items()),
        pytest.param(b"(" + b"}\x94" * (MAX_OPCODES // 2 - 10) + b"l.", id="all objects", marks=pytest.mark.slow),
    ],
)
def test_what_is_shared_or_circular_is_visited_once(program, tmp_path):
    """There is no tensor in it, and that is found out soon, in little memory."""
    tracemalloc.start()
    try:
        assert pickled_tensors(saved(tmp_path, b"\x80\x04" + program)) == {}
        assert tracemalloc.get_traced_memory()[1] < MAX_PEAK_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, "compressed or overlap"),
        ({"more": 60_000}, "lists its members in .* bytes, and at most"),
    ],
)
def test_a_hostile_archive_meets_a_bound_that_is_said(options, reason, tmp_path):
    """Small files that become large, and lists of members without end."""
    path = saved(tmp_path, HEAD + b"(" + b"N" * 1_000_000 + b"l.", **options)

    for read in (pickled_tensors, read_weights):
        with pytest.raises(CheckpointError, match=reason):
            read(path)


def test_one_element_that_stands_for_many_is_described_and_not_made(tmp_path):
    """A tensor that repeats one number may be larger than any memory: it is described, but no weights are read."""
    path = saved(tmp_path, HEAD + b"}" + text("w") + tensor(b"J\xff\xff\xff\x7f\x85", b"K\x00\x85") + b"s.")

    assert pickled_tensors(path)["w"].shape == (2**31 - 1,)
    with pytest.raises(CheckpointError, match="would take 8,589,934,588 bytes, and the file has"):
        read_weights(path)


def test_an_archive_behind_something_else_is_not_taken_for_it(tmp_path):
    """By the first bytes, as torch decides: what is looked at must be what it would load."""
    archive = saved(tmp_path, SOUND).read_bytes()
    path = tmp_path / "y.bin"
    path.write_bytes(b"\x80\x02]" + b"(N1" * 10 + b"." + archive)

    with pytest.raises(CheckpointError, match="neither an archive"):
        pickled_tensors(path)


@pytest.mark.parametrize("is_archive", [True, False])
def test_what_torch_saves_is_described(is_archive, tmp_path):
    """In both of its forms: views, tied weights, parameters, other types and optimizer states."""
    model = torch.nn.Linear(3, 4)
    state = {**model.state_dict(), "view": torch.arange(12.0)[2:6], "half": torch.ones(2, 2, dtype=torch.bfloat16)}
    whole = {"model": {**state, "tied": state["weight"]}, "more": [OrderedDict(p=model.bias)], "step": 3}
    path = tmp_path / "x.pt"
    torch.save(whole, path, _use_new_zipfile_serialization=is_archive)

    found = {name: (info.dtype, info.shape) for name, info in pickled_tensors(path).items()}

    assert found == {
        "model.weight": ("F32", (4, 3)),
        "model.bias": ("F32", (4,)),
        "model.view": ("F32", (4,)),
        "model.half": ("BF16", (2, 2)),
        "model.tied": ("F32", (4, 3)),
        "more.0.p": ("F32", (4,)),
    }
    assert set(read_weights(path)) == {"weight", "bias", "view", "half", "tied"}


def test_what_is_named_is_a_record(tmp_path):
    """With what it would have been called with; nothing is imported."""
    program = HEAD + named("os", "system") + text("touch x") + b"\x85R" + b"}" + text("a") + b"K\x01s" + b"b."

    value = read_inert(io.BytesIO(program), tmp_path)

    assert isinstance(value, Record)
    assert (value.path, value.args, value.attribute("a")) == ("os.system", ("touch x",), 1)
