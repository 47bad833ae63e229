"""Ranks: how they start, what they send each other, and how a model is split over them.

Which file says what:

- starting ranks: `launch_plan`, `agent` (the launcher), `environment` (which rank a process is)
- watching them: `heartbeat`, `watch`, `rank_report`
- the ranks: `rank_group` (a process alone is a group of one), `distributed_group`
- the model: `parallel_model`, `distributed_model` (start here), `fsdp2`, `ddp`, `tensor_parallel`,
  `context_parallel`
- tensors: `module_tree` (of a module), `region`, `sharded_tensors` (this rank's part of one)
"""
