"""From token shards to batches: samples, their order as arithmetic, and the loader."""
