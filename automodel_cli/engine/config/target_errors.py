"""The messages about a `_target_` that names nothing that can be called.

Shared by the search in source and the import itself (`target.py`), so that the parent process and the run say the
same about the same mistake.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from automodel_cli.engine.config.aliases import own_module
from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.config.suggest import hint, nearest
from automodel_cli.errors import ConfigError

# Packages that configurations name, and what `pip` calls those that amcli does without.
_COMMON = ("torch", "transformers", "automodel_cli", "nemo_automodel")
_TO_INSTALL = {
    "apex": "apex",
    "bitsandbytes": "bitsandbytes",
    "came_pytorch": "came-pytorch",
    "deepspeed": "deepspeed",
    "flash_attn": "flash-attn",
    "fla": "flash-linear-attention",
    "galore_torch": "galore-torch",
    "heavyball": "heavyball",
    "liger_kernel": "liger-kernel",
    "lion_pytorch": "lion-pytorch",
    "mamba_ssm": "mamba-ssm",
    "pytorch_optimizer": "pytorch-optimizer",
    "schedulefree": "schedulefree",
    "timm": "timm",
    "torch_optimizer": "torch-optimizer",
    "torchao": "'amcli[fp8]'",
    "transformer_engine": "transformer-engine[pytorch]",
    "xformers": "xformers",
}
_ALIKE = 0.75


class Place(NamedTuple):
    """Where a target stands: its origin, and its key such as `model._target_`."""

    origin: Origin
    key: str

    def error(self, message: str, help: str | None = None) -> ConfigError:
        """A `ConfigError` at this place."""
        return ConfigError(f"{self.key}: {message}", where=str(self.origin), help=help)


def malformed(target: str, place: Place) -> ConfigError:
    """Neither of the two forms of a target."""
    return place.error(f"`{target}` is neither an import path (package.module.object) nor file.py:object")


def not_installed(package: str, place: Place) -> ConfigError:
    """The first word of an import path is not there: a package to install, or a misspelt one."""
    known = _TO_INSTALL.get(package)
    installed = [found.name for found in pkgutil.iter_modules() if not found.name.startswith("_")]
    match = nearest(package, [*_COMMON, *_TO_INSTALL, *installed], _ALIKE)
    if known is not None:
        help_ = f"pip install {known}, in the environment of {sys.executable}"
    elif match is not None:
        help_ = f"did you mean `{match}`?"
    else:
        help_ = f"is it installed here, or is a word missing before it? python: {sys.executable}"
    return place.error(f"the package `{package}` is not installed", help_)


def no_attribute(kind: str, owner: str, name: str, public: Iterable[str], place: Place) -> ConfigError:
    """A module, class or other object has no such name; `public` are those that it has."""
    return place.error(f"the {kind} `{owner}` has no `{name}`", hint(name, public, noun="names in it"))


def not_callable(target: str, type_name: str, place: Place) -> ConfigError:
    """What was found is a value."""
    return place.error(f"`{target}` is a {type_name}, which cannot be called")


def no_file(file: Path, name: str, place: Place) -> ConfigError:
    """The file of `file.py:object` is not there; its neighbours are offered, or what amcli has instead."""
    ours = own_module(file)
    if ours is not None:
        return place.error(f"there is no file {file}", f"amcli has its own: {ours}.{name}")
    neighbours = sorted(item.name for item in file.parent.glob("*.py")) if file.parent.is_dir() else []
    return place.error(f"there is no file {file}", hint(file.name, neighbours, noun=f"Python files in {file.parent}"))
