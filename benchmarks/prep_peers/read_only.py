"""The floor: decode the text column with pyarrow and do nothing with it.

python read_only.py OUT PARQUET...
"""

from __future__ import annotations

import sys

import pyarrow.parquet as pq

for path in sys.argv[2:]:
    with pq.ParquetFile(path) as file:
        for _ in file.iter_batches(1024, columns=["text"]):
            pass
