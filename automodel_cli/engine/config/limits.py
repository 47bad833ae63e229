"""Bounds that keep a configuration from taking long, whoever wrote it; those of YAML are in `yaml_reader.py`."""

from __future__ import annotations

# Of what is wrong, so many are listed; nobody reads more before mending them.
MAX_PROBLEMS = 50
# Of the `_target_`s, so many are looked up in source; the others are checked when they are called.
MAX_TARGETS = 100
# Of the patterns of a data set, so many are searched; the others are left to the data set.
MAX_SEARCHES = 64
# Modules of a model: twice those of the largest that keep each expert as a module of its own.
MAX_MODULES = 200_000
