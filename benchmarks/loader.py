"""Tokens per second and core from token shards to int64 batches, beside the ways that others have.

    python benchmarks/loader.py            # about a minute; needs 200 MB in the temporary directory
    python benchmarks/loader.py --tokens 1e9 --seconds 5

Every way reads random samples of the same shards in one process and one thread and gives `input_ids` and
`labels` as int64 of shape (B, T); CPU time is counted, so a busy machine disturbs less. The peers are
written afresh after their design:

- memcpy: copies as many bytes as a batch has; nothing that makes new arrays can be faster.
- nanoGPT: `get_batch`, one slice and one cast for each sample, twice, and a stack.
- lists: NeMo AutoModel's way, samples as Python lists from an iterable dataset, stacked by a torch DataLoader.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.engine.data.loader import BatchLoader
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.data.packed_dataset import PackedDataset
from automodel_cli.engine.shards.tokens import read_shard_header
from automodel_cli.engine.shards.writer import ShardWriter

VOCAB = 50_257
BOS = 50_256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=1e8)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way and shape")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        pattern = write_shards(Path(directory), int(arguments.tokens))
        print("| batch | way | Mtokens/s |\n|---|---|---|")
        for batch_size, seq_len in ((32, 1024), (8, 1024), (64, 256)):
            for name, batches in ways(pattern, batch_size, seq_len).items():
                speed = measure(batches, batch_size * seq_len, arguments.seconds)
                print(f"| {batch_size} x {seq_len} | {name} | {speed:,.1f} |", flush=True)
        plan(pattern)


def write_shards(directory: Path, num_tokens: int) -> str:
    """Random tokens in documents of about 600 tokens."""
    rng = np.random.default_rng(0)
    with ShardWriter(directory, "train", np.dtype("<u2"), max(num_tokens // 4, 1), BOS) as writer:
        for begin in range(0, num_tokens, 1 << 22):
            tokens = rng.integers(0, VOCAB - 1, min(1 << 22, num_tokens - begin), dtype=np.uint16)
            tokens[rng.integers(0, len(tokens), len(tokens) // 600)] = BOS
            writer.write(tokens)
        writer.close()
    return str(directory / "train_*.bin")


def ways(pattern: str, batch_size: int, seq_len: int) -> dict[str, Callable[[], object]]:
    """Functions that each make one batch."""
    source = np.zeros((2, batch_size, seq_len), dtype=np.int64)
    loader = iter_loader(NanogptDataset(pattern, seq_len), batch_size)
    masked = iter_loader(NanogptDataset(pattern, seq_len, document_mask=True, bos_token=BOS), batch_size)
    packed = iter_loader(PackedDataset(NanogptDataset(pattern, seq_len, bos_token=BOS), seq_len), batch_size)
    lists = iter(lists_loader(pattern, batch_size, seq_len))
    return {
        "memcpy": source.copy,
        "amcli": lambda: next(loader),
        "amcli, document_mask": lambda: next(masked),
        "amcli, packed": lambda: next(packed),
        "nanoGPT's get_batch": get_batch(pattern, batch_size, seq_len),
        "lists through a DataLoader": lambda: next(lists),
    }


def iter_loader(dataset: NanogptDataset | PackedDataset, batch_size: int) -> Iterator[object]:
    """As a run reads: in its order, with the ids checked against the vocabulary."""
    loader = BatchLoader(
        dataset, dataset.sample_order(1), global_batch_size=batch_size, local_batch_size=batch_size, vocab_size=VOCAB
    )
    return loader.iter_steps()


def get_batch(pattern: str, batch_size: int, seq_len: int) -> Callable[[], object]:
    import torch

    shard = sorted(Path(pattern).parent.glob(Path(pattern).name))[0]
    tokens = mapped(shard)

    def batch() -> object:
        starts = torch.randint(len(tokens) - seq_len, (batch_size,)).tolist()
        x = torch.stack([torch.from_numpy(tokens[i : i + seq_len].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + seq_len].astype(np.int64)) for i in starts])
        return x, y

    return batch


def mapped(shard: Path) -> Any:
    """The tokens of a shard through a memory map, as the peers read them."""
    info = read_shard_header(shard)
    return np.memmap(info.path, info.dtype, "r", info.begin_bytes, (info.num_tokens,))


def lists_loader(pattern: str, batch_size: int, seq_len: int) -> Iterator[object]:
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    shards = [mapped(path) for path in sorted(Path(pattern).parent.glob(Path(pattern).name))]

    class Lists(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[dict[str, list[int]]]:
            while True:
                for tokens in shards:
                    for begin in range(0, len(tokens) - seq_len - 1, seq_len + 1):
                        window = torch.from_numpy(np.asarray(tokens[begin : begin + seq_len + 1]).astype(np.int32))
                        yield {"input_ids": window[:-1].tolist(), "labels": window[1:].tolist()}

    def stack(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([sample[name] for sample in samples]) for name in samples[0]}

    return iter(DataLoader(Lists(), batch_size=batch_size, collate_fn=stack))


def measure(batch: Callable[[], object], num_tokens: int, seconds: float) -> float:
    """Millions of tokens per second of CPU time, after a warm-up."""
    for _ in range(10):
        batch()
    count, began = 0, time.process_time()
    while (spent := time.process_time() - began) < seconds:
        batch()
        count += 1
    return count * num_tokens / spent / 1e6


def plan(pattern: str) -> None:
    """How long the plan of the packs takes, and how full they are."""
    dataset = NanogptDataset(pattern, 1024, bos_token=BOS)
    began = time.process_time()
    packed = PackedDataset(dataset, 1024)
    spent = time.process_time() - began
    filled = 1 - packed.num_padded / (len(packed) * 1024)
    print(f"\nplan of {len(packed):,} packs of {dataset.num_tokens:,} tokens: {spent:.2f} s, {filled:.2%} filled")


if __name__ == "__main__":
    main()
