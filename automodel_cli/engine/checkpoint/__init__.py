"""Checkpoints: written whole or not at all, checked before they are used, and read without running anything in them.

Which file says what:

- a checkpoint on disk: `layout` (names, places, links), `manifest` (sizes and hashes), `run_directory` (lock, removals)
- in memory: `snapshot`
- saving: `save` (start here), `rank_files` (what one rank writes), `rank_records` (how ranks meet), `write_tensors`
- loading: `load_checkpoint`, `read_tensors` (with torch), `stored_tensors` (headers), `tensor_index` (JSON files)
- files of other tools: `foreign`, `inert_pickle`
- for `amcli inspect-ckpt`: `inspect`, `checkpoint_report`, `tensor_values`
"""
