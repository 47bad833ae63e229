"""Beyond 2^31 and 2^32: bytes in a file, tokens in a data set, samples in an epoch. The files are sparse."""

from __future__ import annotations

import numpy as np
import pytest

from automodel_cli.engine.data.megatron_dataset import MegatronPretraining
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.shards.directory import SplitDocuments
from automodel_cli.engine.shards.megatron import build_index
from automodel_cli.engine.shards.shard_format import bos_index_path
from automodel_cli.engine.shards.tokens import HEADER_BYTES, MAX_SHARD_TOKENS, build_header


def sparse(path, num_bytes, pieces):
    """A file of zeros with some bytes at some places."""
    with path.open("wb") as file:
        file.truncate(num_bytes)
        for place, content in pieces.items():
            file.seek(place)
            file.write(content)


@pytest.fixture(params=["<u2", "<u4"])
def largest_shard(request, tmp_path):
    """As many tokens as a header can count; the last six of them, and two around 2^31 bytes, are not zero."""
    dtype = np.dtype(request.param)
    path = tmp_path / "train_000000.bin"
    last = np.array([7, 1, 2, 3, 4, 5], dtype)
    sparse(
        path,
        HEADER_BYTES + MAX_SHARD_TOKENS * dtype.itemsize,
        {
            0: build_header(MAX_SHARD_TOKENS, dtype),
            HEADER_BYTES + 2**31: np.array([8, 9], dtype).tobytes(),
            HEADER_BYTES + (MAX_SHARD_TOKENS - 6) * dtype.itemsize: last.tobytes(),
        },
    )
    return path


def test_the_largest_shard_is_read_to_its_last_token(largest_shard):
    """4.3 and 8.6 GB: bytes beyond 2^31 and 2^32 are those that were written."""
    dataset = NanogptDataset(str(largest_shard), 5, shuffle=False)
    itemsize = dataset.shards[0].dtype.itemsize
    across = 2**31 // itemsize

    assert len(dataset) == (MAX_SHARD_TOKENS - 1) // 5
    tokens = np.concatenate([dataset[index]["input_ids"] for index in (across // 5, across // 5 + 1)])
    assert tokens[across % 5 : across % 5 + 2].tolist() == [8, 9]
    tail = dict(enumerate([7, 1, 2, 3, 4, 5], start=MAX_SHARD_TOKENS - 6))
    begin = (len(dataset) - 1) * 5 + 1
    assert dataset[len(dataset) - 1]["labels"].tolist() == [tail.get(begin + place, 0) for place in range(5)]
    assert tail[begin + 4] in (3, 4, 5)


def test_documents_at_the_end_of_the_largest_shard_are_found(largest_shard):
    """By the index: its offsets count tokens, which an int32 holds, where bytes would not fit."""
    begin = MAX_SHARD_TOKENS - 6
    bos_index_path(largest_shard).write_bytes(np.array([begin], "<i4").tobytes())

    aligned = NanogptDataset(str(largest_shard), 5, align_to_bos=True, bos_token=7)
    document = SplitDocuments([largest_shard], 7).document(0)

    assert aligned[0]["input_ids"].tolist() == [7, 1, 2, 3, 4]
    assert aligned.locate(0) == (str(largest_shard), begin)
    assert document.tokens.tolist() == [7, 1, 2, 3, 4, 5]


def test_more_samples_than_32_bits_count(tmp_path):
    """Three of the largest shards, one input a sample: ids, offsets and the order reach beyond 2^32."""
    for number in range(3):
        sparse(
            tmp_path / f"train_{number}.bin",
            HEADER_BYTES + MAX_SHARD_TOKENS * 2,
            {
                0: build_header(MAX_SHARD_TOKENS, np.dtype("<u2")),
                HEADER_BYTES + (MAX_SHARD_TOKENS - 1) * 2: bytes([number + 1, 0]),
            },
        )
    dataset = NanogptDataset(str(tmp_path / "*.bin"), 1)
    per_shard = MAX_SHARD_TOKENS - 1

    order = dataset.sample_order(3).order(np.arange(2000) + 2**33)

    assert len(dataset) == 3 * per_shard > 2**32
    assert [dataset[(number + 1) * per_shard - 1]["labels"].item() for number in range(3)] == [1, 2, 3]
    assert dataset.locate(len(dataset) - 1)[1] == per_shard - 1
    assert len(set(order.tolist())) == 2000
    assert order.max() > 2**32 > order.min() >= 0


def test_megatron_pointers_beyond_32_bits(tmp_path):
    """Documents whose bytes begin beyond 2^32."""
    lengths = np.array([2**30, 2**30, 2**30, 6], dtype=np.int64)
    num_tokens = int(lengths.sum())
    (tmp_path / "web.idx").write_bytes(build_index(lengths, np.dtype("<u2")))
    sparse(
        tmp_path / "web.bin",
        2 * num_tokens,
        {2 * (num_tokens - 6): np.array([7, 1, 2, 3, 4, 5], "<u2").tobytes()},
    )

    last = MegatronPretraining(tmp_path / "web", 5, split="3,1,0", splits_to_build="validation")
    whole = MegatronPretraining(tmp_path / "web", 5, split="1,0,0")

    assert last.gather(np.array([0]))["input_ids"].tolist() == [[7, 1, 2, 3, 4]]
    assert whole.num_tokens == num_tokens
    assert SplitDocuments([tmp_path / "web.bin"], None).document(3).tokens.tolist() == [7, 1, 2, 3, 4, 5]
