"""The usual way of data processors such as NeMo AutoModel's: rows of a stream, chunks to a process pool, lists back.

Written afresh for the comparison: `datasets` gives one row at a time, a `ProcessPoolExecutor` tokenizes chunks with
a `transformers` tokenizer and hands back lists of Python integers, and the parent writes them as uint16.

python rows_and_processes.py OUT PARQUET...
"""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import load_dataset
from gpt2 import BOS_ID, for_transformers

CHUNK = 1000
WORKERS = 2
_tokenizer = None


def load() -> None:
    global _tokenizer
    _tokenizer = for_transformers()


def tokenize(texts: list[str]) -> list[list[int]]:
    ids = _tokenizer(texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
    return [[BOS_ID, *document] for document in ids["input_ids"]]


def main() -> None:
    rows = iter(load_dataset("parquet", data_files=sys.argv[2:], split="train", streaming=True))
    with ProcessPoolExecutor(WORKERS, initializer=load) as pool, Path(sys.argv[1]).open("wb") as out:
        waiting: deque = deque()
        while True:
            texts = [row["text"] for row in islice(rows, CHUNK)]
            if texts:
                waiting.append(pool.submit(tokenize, texts))
            if waiting and (not texts or len(waiting) > 2 * WORKERS):
                for document in waiting.popleft().result():
                    out.write(np.array(document, dtype=np.uint16).tobytes())
            if not texts and not waiting:
                return


if __name__ == "__main__":
    main()
