"""Headers of safetensors files are read as the format means them, and hostile ones are refused."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from automodel_cli.engine.checkpoint import tensor_values as stats_module
from automodel_cli.engine.checkpoint.rank_files import files_of_parts
from automodel_cli.engine.checkpoint.read_tensors import LazyTensors
from automodel_cli.engine.checkpoint.stored_tensors import MAX_HEADER_BYTES, SHARDING_KEY, read_header, stored_tensors
from automodel_cli.engine.checkpoint.tensor_values import relative_change, tensor_stats
from automodel_cli.engine.checkpoint.write_tensors import write_tensors
from automodel_cli.engine.distributed.region import Part, Region
from automodel_cli.errors import CheckpointError
from tests.engine.distributed.test_region import tilings

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def written(path: Path, header: Any, data_bytes: int = 0, claimed_bytes: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if claimed_bytes is None else claimed_bytes) + raw + bytes(data_bytes))
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
def test_what_safetensors_writes_is_read_back(kinds: dict[str, tuple[str, list[int]]]) -> None:
    """Names, dtypes, shapes and sizes, for scalars and empty tensors as well."""
    tensors = {name: torch.zeros(shape).to(DTYPES[dtype]) for name, (dtype, shape) in kinds.items()}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})

        found = read_header(path).tensors

    assert {name: (info.dtype, list(info.shape)) for name, info in found.items()} == kinds
    assert {name: info.num_bytes for name, info in found.items()} == {
        name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()
    }


HOSTILE: dict[str, Any] = {
    "not an object": [1, 2],
    "too deep": b"[" * 200_000,
    "not JSON": b"{'a': 1}",
    "not text": b"\xff" * 10,
    "a name twice": b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": {}}',
    "a number as entry": {"a": 3},
    "a key too many": {"a": {**entry(), "pickle": "cos"}},
    "a key too few": {"a": {"dtype": "F32", "shape": [2]}},
    "unknown dtype": {"a": entry(dtype="F31")},
    "dtype that cannot be hashed": {"a": entry(dtype=[])},
    "negative dimension": {"a": entry(shape=[-2, -1])},
    "fractional dimension": {"a": entry(shape=[2.0])},
    "boolean dimension": {"a": entry(shape=[True, 2])},
    "dimensions whose product is absurd": {"a": entry(shape=[2**62] * 64)},
    "too many dimensions": {"a": entry(shape=[1] * 10_000)},
    "number of absurd length": b'{"a": {"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,8]}}',
    "offsets backwards": {"a": entry(offsets=[8, 0])},
    "three offsets": {"a": entry(offsets=[0, 8, 8])},
    "offsets of another size": {"a": entry(offsets=[0, 4])},
    "overlap": {"a": entry(), "b": entry(offsets=[4, 12])},
    "the same bytes twice": {"a": entry(), "b": entry()},
    "gap": {"a": entry(), "b": entry(offsets=[12, 20])},
    "not from the beginning": {"a": entry(offsets=[4, 12])},
    "beyond the end": {"a": entry(shape=[4], offsets=[0, 16])},
    "bytes that belong to nobody": {},
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_refused(tmp_path: Path, header: Any) -> None:
    """Each breaks one rule of the format; the error names the file and is short."""
    path = written(tmp_path / "x.safetensors", header, data_bytes=8)

    with pytest.raises(CheckpointError, match="not a sound safetensors header") as caught:
        read_header(path)

    assert caught.value.where == str(path)
    assert len(caught.value.message) < 2000


@pytest.mark.parametrize("claimed_bytes", [2**64 - 1, 2**63, MAX_HEADER_BYTES + 1, 3])
def test_a_claimed_size_is_never_allocated(tmp_path: Path, claimed_bytes: int) -> None:
    """More than the file or the format allows is refused by its number."""
    path = written(tmp_path / "x.safetensors", b"{}", claimed_bytes=claimed_bytes)

    with pytest.raises(CheckpointError, match="at most 2 are possible"):
        read_header(path)


def test_the_limit_holds_in_a_file_that_is_long_enough(tmp_path: Path) -> None:
    """A sparse file of a terabyte does not make a header of a gigabyte readable."""
    path = written(tmp_path / "x.safetensors", b"{}", claimed_bytes=2**30)
    with path.open("rb+") as file:
        file.truncate(2**40)

    with pytest.raises(CheckpointError, match="at most 33,554,432 are possible"):
        read_header(path)


@pytest.mark.parametrize("num_bytes", range(9))
def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path, num_bytes: int) -> None:
    """From nothing at all to a header length without a header."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(num_bytes))

    with pytest.raises(CheckpointError):
        read_header(path)


@given(st.binary(max_size=200).filter(lambda content: content.strip() != b"{}"))  # a file without tensors is sound
def test_random_bytes_give_one_kind_of_error(content: bytes) -> None:
    """Whatever follows a plausible length, nothing but a CheckpointError comes out."""
    with tempfile.TemporaryDirectory() as directory:
        path = written(Path(directory) / "x.safetensors", content)

        with pytest.raises(CheckpointError):
            read_header(path)


def in_blocks(directory, tensor, regions):
    """A tensor in blocks: one file for each, as further blocks of one rank."""
    directory.mkdir()
    whole = Region.whole(tensor.shape)
    parts = [Part("w", region, tensor[region.within(whole)]) for region in regions]
    files = files_of_parts("optim/optimizer.safetensors", 0, parts)
    for file in files:
        write_tensors(directory / file.name.replace("/", "-"), file.tensors, file.offsets)
    return sorted(directory.iterdir())


@given(tilings(), st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_part_of_a_tensor_is_read_from_whatever_blocks_hold_it(tmp_path_factory, tiling, data):
    """However it was cut, and whatever is asked for; its numbers are those of one file, too."""
    shape, regions = tiling
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(len(regions)))
    directory = tmp_path_factory.mktemp("blocks")
    files = in_blocks(directory / "cut", tensor, regions)
    alone = in_blocks(directory / "whole", tensor, [Region.whole(shape)])
    begins = [data.draw(st.integers(0, size)) for size in shape]
    ends = [data.draw(st.integers(begin, size)) for begin, size in zip(begins, shape, strict=True)]
    wanted = Region(tuple(begins), tuple(end - begin for begin, end in zip(begins, ends, strict=True)))

    found = LazyTensors(files)

    assert torch.equal(found["w"], tensor)
    assert torch.equal(found.region("w", wanted), tensor[wanted.within(Region.whole(shape))])
    assert found.without_content("w").shape == shape
    cut, one = (stored_tensors(paths)["w"] for paths in (files, alone))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats_module, "_PIECE", data.draw(st.integers(1, 12)))
        assert tensor_stats("w", cut) == tensor_stats("w", one)
        assert relative_change(cut, one) == 0.0


def test_what_is_read_outlives_its_file(tmp_path):
    """Old checkpoints are removed while a run goes on that began with them."""
    files = in_blocks(tmp_path / "x", torch.arange(8.0), [Region((0,), (5,)), Region((5,), (3,))])
    found = LazyTensors(files)["w"]

    for file in files:
        file.write_bytes(b"")

    assert found.tolist() == list(range(8))


def test_a_missing_or_doubled_block_is_refused_by_name(tmp_path):
    files = in_blocks(tmp_path / "x", torch.arange(8.0), [Region((0,), (3,)), Region((3,), (3,)), Region((6,), (2,))])

    for those in (files[1:], [*files, files[0]]):
        with pytest.raises(CheckpointError, match=r"the tensor 'w', of \d blocks, \(8,\) is not covered exactly once"):
            stored_tensors(those)


def test_blocks_of_several_types_are_refused(tmp_path):
    write_tensors(tmp_path / "a", {"w": torch.zeros(2)}, {"w": (0,)})
    write_tensors(tmp_path / "b", {"w": torch.zeros(2, dtype=torch.float16)}, {"w": (2,)})

    with pytest.raises(CheckpointError, match="several types"):
        stored_tensors([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    "places",
    ["not json", "[]", "{}", '{"w": 3}', '{"w": {"saved_offsets": [0, 0]}}', '{"w": {"saved_offsets": [-1]}}'],
)
def test_places_that_mean_nothing_are_refused(tmp_path, places):
    """The header is data of a stranger: whatever stands there is an error, never a crash."""
    header = {"__metadata__": {SHARDING_KEY: places}, "w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + np.zeros(4, np.uint8).tobytes())

    with pytest.raises(CheckpointError, match="not a sound safetensors header"):
        stored_tensors([tmp_path / "x"])
