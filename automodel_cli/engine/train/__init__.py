"""Training, from a checked configuration to a finished run.

Which file says what:

- before torch is imported: `start` (new or continued: start here), `preflight`, `continuation` (the plan of a resumed
  run, and whether it can be resumed), `resume_rules`
- building a run: `recipe`, `build`, `objective`, `weights`, `batches`, `local_batch`, `dry_run`, `run_facts`
- one step: `loop`, `step`, `step_numbers`, `reported_metrics`, `step_scheduler`, `elastic`, `signals`
- saving and resuming: `checkpoint_manager` (when), `checkpoint_content` (what), `generators`, `verify_resume`
- the machine: `device`, `out_of_memory`
- for `amcli plan`: `traced_model`
"""
