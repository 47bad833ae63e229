"""Tensors that are cut into blocks over several files are the whole tensors, for every reader."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from automodel_cli.engine.checkpoint import tensor_stats as stats_module
from automodel_cli.engine.checkpoint.lazy_tensors import LazyTensors
from automodel_cli.engine.checkpoint.shard_file import write_tensors
from automodel_cli.engine.checkpoint.share import files_of_parts
from automodel_cli.engine.checkpoint.stored import stored_tensors
from automodel_cli.engine.checkpoint.tensor_header import SHARDING_KEY
from automodel_cli.engine.checkpoint.tensor_stats import relative_change, tensor_stats
from automodel_cli.engine.distributed.region import Part, Region
from automodel_cli.errors import CheckpointError
from tests.engine.distributed.test_region import tilings


def written(directory, tensor, regions):
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
    files = written(directory / "cut", tensor, regions)
    alone = written(directory / "whole", tensor, [Region.whole(shape)])
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
    files = written(tmp_path / "x", torch.arange(8.0), [Region((0,), (5,)), Region((5,), (3,))])
    found = LazyTensors(files)["w"]

    for file in files:
        file.write_bytes(b"")

    assert found.tolist() == list(range(8))


def test_a_missing_or_doubled_block_is_refused_by_name(tmp_path):
    files = written(tmp_path / "x", torch.arange(8.0), [Region((0,), (3,)), Region((3,), (3,)), Region((6,), (2,))])

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
