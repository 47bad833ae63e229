"""YAML to values, each with its origin; overrides, sections, checks and `_target_`. Torch-free."""
