"""The validation sets of a configuration: one, or several by name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.origin import KeyPath

SECTION = "validation_dataset"
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def validation_sets(config: Config) -> dict[str, KeyPath]:
    """The path of each set by its name; the name of one that stands alone is empty.

    >>> validation_sets(Config({"validation_dataset": {"web": {"_target_": "a.B"}}}))
    {'web': ('validation_dataset', 'web')}
    >>> validation_sets(Config({"validation_dataset": {"_target_": "a.B"}}))
    {'': ('validation_dataset',)}
    """
    section = config.get(SECTION)
    if not isinstance(section, Mapping):
        return {}
    return {"": (SECTION,)} if TARGET in section else {str(name): (SECTION, str(name)) for name in section}


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
