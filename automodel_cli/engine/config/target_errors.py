"""What is wrong with a `_target_`, or with the keywords that its section gives it, as errors.

Shared by the check that reads source and by the import and the call themselves (`target.py`, `instantiate.py`), so that
the parent process and the run say the same about the same mistake.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from automodel_cli.engine.config.aliases import own_module
from automodel_cli.engine.config.config import MAX_PROBLEMS, TARGET, Config
from automodel_cli.engine.config.origin import KeyPath, Origin, dotted
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
_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


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


@dataclass(frozen=True)
class Parameter:
    """Annotation and default of a parameter, as they stand in source; without a default it is required."""

    annotation: str | None = None
    default: str | None = None


@dataclass(frozen=True)
class Signature:
    """Parameters that can be given by keyword.

    Args:
        names: In the order in which they are declared.
        required: Those without a default.
        takes_any: Whether other keywords are taken too (`**kwargs`).
    """

    names: tuple[str, ...]
    required: frozenset[str] = frozenset()
    takes_any: bool = False


def signature_of(factory: Callable[..., Any]) -> Signature | None:
    """The signature of an object; None for the builtins that state none."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return None
    named = [parameter for parameter in parameters if parameter.kind in _BY_KEYWORD]
    return Signature(
        names=tuple(parameter.name for parameter in named),
        required=frozenset(parameter.name for parameter in named if parameter.default is inspect.Parameter.empty),
        takes_any=any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters),
    )


def keyword_problems(
    signature: Signature,
    target: str,
    given: Collection[str],
    config: Config,
    path: KeyPath,
    *,
    supplied: Collection[str] = (),
    runtime: Collection[str] = (),
) -> list[ConfigError]:
    """Every unknown keyword, and one error for all that are missing.

    Args:
        signature: What the callable takes.
        target: The callable as the user wrote it.
        given: Names that the section gives.
        config: Locates the errors.
        path: The section.
        supplied: Names that the engine passes itself, and that are therefore not offered as corrections.
        runtime: Names that the engine passes where the section does not.
    """
    problems = []
    if not signature.takes_any:
        free = [name for name in signature.names if name not in supplied]
        unknown = [name for name in given if name not in signature.names]
        for name in unknown[:MAX_PROBLEMS]:
            where = str(config.key_origin((*path, name)))
            message = f"{dotted(path)}: `{target}` takes no `{name}`"
            problems.append(ConfigError(message, where=where, help=hint(name, free, noun="arguments")))
    passed = {*given, *supplied, *runtime}
    missing = [name for name in signature.names if name in signature.required and name not in passed]
    if missing:
        listed = ", ".join(f"`{name}`" for name in missing)
        where = str(config.origin((*path, TARGET)))
        message = f"{dotted(path)}: `{target}` needs {listed}, which the section does not give"
        problems.append(ConfigError(message, where=where))
    return problems
