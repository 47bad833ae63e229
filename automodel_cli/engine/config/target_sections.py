"""The sections whose `_target_` names what is built, and what stands in them beside its arguments.

There may be several validation sets, each in a section by its name inside `validation_dataset`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.origin import KeyPath
from automodel_cli.engine.config.sections import REPLACEABLE, SECTIONS, General, section_fields

# Built from `_target_`; True where a run cannot do without.
TARGET_SECTIONS = {"model": True, "dataset": True, "validation_dataset": False, "loss_fn": False, "optimizer": True}
# All sections in which a `_target_` names code that runs.
CALLED_SECTIONS = (*TARGET_SECTIONS, *REPLACEABLE)
# What the engine passes by itself: always, or where the callable names it and the section does not.
SUPPLIED: dict[str, tuple[str, ...]] = {"optimizer": ("params",), "lr_scheduler": ("step",)}
RUNTIME: dict[str, tuple[str, ...]] = {
    "model": ("device",),
    "dataset": ("seed", "dp_rank", "dp_world_size"),
    "optimizer": ("hidden_names",),
    "lr_scheduler": ("max_steps",),
}
# Keys beside a `_target_` that the engine acts on itself and its callable never sees, with their meaning.
ENGINE_KEYS: dict[str, dict[str, str]] = {
    "optimizer": {
        "param_groups": "a list of {pattern, lr_mult, weight_decay, ...}: what holds for the parameters of a pattern, "
        "such as `wte*|lm_head*`; the first that fits counts"
    }
}

PURPOSES = {
    "model": "the network: what `_target_` names is called with the other keys and returns an nn.Module",
    "dataset": "the training samples, by number or as an iterable: mappings of input_ids and labels",
    "validation_dataset": "the samples of val_loss, or several such sections by name; without it nothing is validated",
    "loss_fn": "labels and logits, or the input of the head, to a loss; without it, the best that the model allows",
    "lr_scheduler": "a function that is called with the step and the other keys; returns a multiplier of optimizer.lr",
    "optimizer": "called with the model's parameter groups and the other keys; `lr` is where the schedule starts",
}
TARGET_MEANING = "what is built: package.module.name, or path/file.py:name relative to the file that says so"

VALIDATION = "validation_dataset"
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def top_level_names() -> list[str]:
    """Every key that may stand at the top level of a configuration."""
    return [*section_fields(General), *(section.name for section in SECTIONS), *TARGET_SECTIONS]


def validation_sets(config: Config) -> dict[str, KeyPath]:
    """The path of each set by its name; the name of one that stands alone is empty.

    >>> validation_sets(Config({"validation_dataset": {"web": {"_target_": "a.B"}}}))
    {'web': ('validation_dataset', 'web')}
    >>> validation_sets(Config({"validation_dataset": {"_target_": "a.B"}}))
    {'': ('validation_dataset',)}
    """
    section = config.get(VALIDATION)
    if not isinstance(section, Mapping):
        return {}
    return {"": (VALIDATION,)} if TARGET in section else {str(name): (VALIDATION, str(name)) for name in section}


def is_named_sets(section: object) -> bool:
    """Whether this is a mapping of names to sections that each have a `_target_`."""
    return (
        isinstance(section, Mapping)
        and bool(section)
        and all(
            _NAME.fullmatch(str(name)) and isinstance(part, Mapping) and isinstance(part.get(TARGET), str)
            for name, part in section.items()
        )
    )


def metric_keys(config: Config) -> list[str]:
    """The losses that a validation reports."""
    return ["val_loss", *(f"val_loss/{name}" for name in validation_sets(config) if name)]


def sections_with_target(node: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """Every section with a `_target_` at and below `node`, which stands at `path`; outer ones first."""
    if isinstance(node, Mapping):
        if TARGET in node:
            yield path, node
        for name, inner in node.items():
            yield from sections_with_target(inner, (*path, name))
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from sections_with_target(inner, (*path, index))
