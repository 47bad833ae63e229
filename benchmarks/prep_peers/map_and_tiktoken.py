"""nanoGPT's way, written afresh: `datasets.map` with tiktoken in two processes, then the arrays joined into one file.

python map_and_tiktoken.py OUT PARQUET...
"""

from __future__ import annotations

import sys

import numpy as np
from datasets import load_dataset
from gpt2 import BOS_ID, for_tiktoken

_encoding = None


def encode(row: dict) -> dict:
    global _encoding
    _encoding = _encoding or for_tiktoken()
    ids = [BOS_ID, *_encoding.encode_ordinary(row["text"])]
    return {"ids": ids, "length": len(ids)}


def main() -> None:
    rows = load_dataset("parquet", data_files=sys.argv[2:], split="train", cache_dir=sys.argv[1] + ".cache")
    tokens = rows.map(encode, remove_columns=rows.column_names, num_proc=2)
    out = np.memmap(sys.argv[1], dtype=np.uint16, mode="w+", shape=(sum(tokens["length"]),))
    num_parts, at = min(64, len(tokens)), 0
    for part in range(num_parts):
        batch = tokens.shard(num_parts, part, contiguous=True).with_format("numpy")
        joined = np.concatenate(batch["ids"][:])
        out[at : at + len(joined)] = joined
        at += len(joined)
    out.flush()


if __name__ == "__main__":
    main()
