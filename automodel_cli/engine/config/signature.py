"""What a callable takes by keyword, and what is wrong with the keywords that a section gives it.

The one place that phrases unknown and missing arguments: the check that reads source and the
call itself (`instantiate.py`) say the same about the same mistake.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from automodel_cli.engine.config.config import MAX_PROBLEMS, TARGET, Config
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.suggest import hint
from automodel_cli.errors import ConfigError

_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


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
        signature: Of the callable.
        target: The callable as the user wrote it.
        given: Names that the section gives.
        config: Locates the errors.
        path: Of the section.
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
