"""Builds what a section with `_target_` describes, inner sections first.

Before anything of a section is built, what a checkpoint asks for in it without consent is refused, all at once
(`trust.py`); and what is built must offer what its section is used for.
"""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.origin import KeyPath, Origin, dotted
from automodel_cli.engine.config.secrets import is_masked
from automodel_cli.engine.config.target import resolve_target
from automodel_cli.engine.config.target_errors import Place, keyword_problems, signature_of
from automodel_cli.engine.config.target_sections import ENGINE_KEYS, validation_sets
from automodel_cli.engine.config.trust import MODEL, REMOTE_CODE, base_names, is_buildable, trust_problems
from automodel_cli.engine.config.values import resolve_env
from automodel_cli.errors import AmcliError, ConfigError

# Modules of a model: twice those of the largest that keep each expert as a module of its own.
MAX_MODULES = 200_000
# These have a length and elements, or lines, but no samples.
_NO_DATASETS = (str, bytes, bytearray, tuple, Mapping, io.IOBase, type)


def instantiate(config: Config, path: str, runtime: Mapping[str, Any] | None = None) -> Any:
    """Calls the `_target_` of the section at `path` with its other keys as keyword arguments.

    Args:
        config: The whole configuration; origins in it locate errors.
        path: Dotted path of the section.
        runtime: Values that only the engine knows (`device`, `dp_rank`, ...); each is passed
            if the callable's signature names it and the section does not.

    Raises:
        ConfigError: The target cannot be found or does not take these keywords.
        Exception: What the callable itself raises, unchanged, with a note of key, file and line.
    """
    factory, arguments = bind(config, path, runtime)
    return call(factory, arguments, config, tuple(path.split(".")))


def bind(
    config: Config, path: str, runtime: Mapping[str, Any] | None = None, *, supplied: tuple[str, ...] = ()
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The callable of a section and its checked keyword arguments, not yet called.

    Args:
        config: The whole configuration.
        path: Dotted path of the section.
        runtime: As in `instantiate`.
        supplied: Parameters that the engine will pass itself later (`params` of an optimizer).
    """
    key_path = tuple(path.split("."))
    problems = trust_problems(config, [key_path])
    if len(problems) == 1:
        raise problems[0]
    if problems:
        message = f"a checkpoint's configuration asks for {len(problems)} things that need consent"
        raise ConfigError(message, problems=problems)
    return _bind(config, key_path, dict(runtime or {}), supplied)


def _bind(
    config: Config, path: KeyPath, runtime: dict[str, Any], supplied: tuple[str, ...] = ()
) -> tuple[Callable[..., Any], dict[str, Any]]:
    section = config.at(path)
    target_path = (*path, TARGET)
    origin = config.origin(target_path)
    target = resolve_env(section[TARGET], origin)
    if not isinstance(target, str):
        raise ConfigError(f"{dotted(target_path)} is {target!r}, but it must be text", where=str(origin))
    factory = resolve_target(target, origin, dotted(target_path))
    reserved = {TARGET, *ENGINE_KEYS.get(dotted(path), ())}
    arguments = {
        name: _build(config, (*path, name), value, runtime) for name, value in section.items() if name not in reserved
    }
    _check_keywords(factory, target, arguments, supplied, runtime, config, path)
    _never_ask(factory, arguments)
    return factory, arguments


def _build(config: Config, path: KeyPath, value: Any, runtime: dict[str, Any]) -> Any:
    if isinstance(value, Mapping):
        if TARGET in value:
            factory, arguments = _bind(config, path, runtime)
            return call(factory, arguments, config, path)
        return {name: _build(config, (*path, name), inner, runtime) for name, inner in value.items()}
    if isinstance(value, list):
        return [_build(config, (*path, index), inner, runtime) for index, inner in enumerate(value)]
    origin = config.origin(path)
    if is_masked(dotted(path), value):
        message = f"{dotted(path)} holds a secret, which a saved configuration does not keep"
        help_ = f"give it again: --set {dotted(path)}=..., better '${{VAR}}' in the run's own file, named with -c"
        raise ConfigError(message, where=str(origin), help=help_)
    return resolve_env(value, origin)


def call(factory: Callable[..., Any], arguments: dict[str, Any], config: Config, path: KeyPath) -> Any:
    """What a callable makes of its arguments, both from `bind`.

    Raises:
        ConfigError: A model has too many modules, or a checkpoint describes what a known class cannot be built with.
        Exception: As `instantiate`.
    """
    origin, key = config.origin((*path, TARGET)), dotted((*path, TARGET))
    is_part = path in (("model",), ("dataset",), ("loss_fn",), *validation_sets(config).values())
    if is_part and _makes_its_own_kind(factory):
        _check_kind(str(path[0]), factory, key, origin)
    with building(factory, arguments, config, path), _bounded_modules(Place(origin, key)):
        built = factory(**arguments)
    if is_part:
        _check_kind(str(path[0]), type(built), key, origin, built=built)
    return built


@contextmanager
def building(
    factory: Callable[..., Any], arguments: Mapping[str, Any], config: Config, path: KeyPath
) -> Iterator[None]:
    """Around a call of the target of a section: what it raises is given its place.

    Args:
        factory: The callable.
        arguments: Its keyword arguments.
        config: The whole configuration.
        path: Of the section that describes it.

    Raises:
        ConfigError: The target ends the process, or a checkpoint describes what a known class cannot be built with.
        Exception: As `instantiate`.
    """
    origin, key = config.origin((*path, TARGET)), dotted((*path, TARGET))
    try:
        yield
    except AmcliError as error:
        if error.where is None:
            error.where = _where_of_argument(error, arguments, config, path, origin)
        raise
    except SystemExit as error:
        message = f"it ended the process (SystemExit: {error}) instead of returning what it builds"
        raise Place(origin, key).error(message) from error
    except Exception as error:
        # The file came along with weights: this is no error in the user's own code, which has another exit code.
        if origin.kind == "checkpoint" and is_buildable(factory) and not _is_out_of_memory(error):
            message = f"it cannot be built from a checkpoint's configuration: {type(error).__name__}: {error}"
            raise Place(origin, key).error(message) from error
        error.add_note(f"while building `{dotted(path)}` from {origin}")
        raise


@contextmanager
def _bounded_modules(place: Place) -> Iterator[None]:
    """Refuses a model of more than `MAX_MODULES` modules while it is built: a wrong number of layers has no end.

    Raises:
        ConfigError: From within the call.
    """
    torch = sys.modules.get("torch.nn.modules.module")
    if torch is None:  # then nothing builds a model
        yield
        return
    count = 0

    def register(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODULES:
            raise place.error(
                f"the model has more than {MAX_MODULES:,} modules, which are as many as are built",
                "lower the number of its layers or experts",
            )

    handle = torch.register_module_module_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def _is_out_of_memory(error: Exception) -> bool:
    """Whether building met the end of the memory, which is reported with what would save some."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or "alloc" in str(error) or "out of memory" in str(error)


def _check_kind(section: str, kind: type, key: str, origin: Origin, *, built: Any = None) -> None:
    """Refuses what a section cannot use, before it is used; a class that is called, before it is.

    Raises:
        ConfigError: What is returned, and what is wanted.
    """
    offered = {name for base in kind.__mro__ if base is not object for name in vars(base)}
    if section == "model":
        is_fit, wanted = MODEL in base_names(kind), "an nn.Module"
    elif section == "loss_fn":
        is_fit, wanted = bool(offered & {"__call__", "of_hidden"}) and kind is not type, "a loss that can be called"
    else:
        is_fit = {"__len__", "__getitem__"} <= offered or "__iter__" in offered
        is_fit = is_fit and not issubclass(kind, _NO_DATASETS)
        wanted = "a dataset: an object with __len__ and __getitem__, or an iterable of samples"
    if is_fit:
        return
    what, help_ = kind.__name__, None
    if isinstance(built, tuple):
        what = f"a tuple ({', '.join(type(one).__name__ for one in built[:4])})"
        help_ = f"return {wanted} alone"
    elif isinstance(built, type):
        what, help_ = f"the class {built.__name__}", "return an object of it"
    raise ConfigError(f"{key} returned {what}, not {wanted}", where=str(origin), help=help_)


def _makes_its_own_kind(factory: Any) -> TypeGuard[type]:
    """Whether calling a class gives an object of it: no `__new__` or metaclass of its own says otherwise."""
    if not isinstance(factory, type):
        return False
    return issubclass(factory, _NO_DATASETS) or (
        factory.__new__ is object.__new__ and type(factory).__call__ is type.__call__
    )


def _where_of_argument(
    error: AmcliError, arguments: Mapping[str, Any], config: Config, path: KeyPath, origin: Origin
) -> str:
    """The line of the argument that the message names first, else that of the target."""
    named = [name for name in arguments if name in error.message]
    first = min(named, key=error.message.index) if named else None
    return str(config.origin((*path, first))) if first else str(origin)


def _check_keywords(
    factory: Callable[..., Any],
    target: str,
    arguments: dict[str, Any],
    supplied: tuple[str, ...],
    runtime: dict[str, Any],
    config: Config,
    path: KeyPath,
) -> None:
    """Adds the runtime values that the signature names; refuses unknown and missing keywords."""
    signature = signature_of(factory)
    if signature is None:  # the call itself will show it
        return
    arguments.update({n: value for n, value in runtime.items() if n in signature.names and n not in arguments})
    problems = keyword_problems(signature, target, arguments, config, path, supplied=supplied)
    if problems:
        raise problems[0]


def _never_ask(factory: Any, arguments: dict[str, Any]) -> None:
    """Answers no, in the arguments of a call, where transformers would ask on standard input whether to run code."""
    owner, name = getattr(factory, "__self__", None), getattr(factory, "__name__", "")
    if isinstance(owner, type) and owner.__module__.startswith("transformers."):
        is_auto = owner.__module__.startswith("transformers.models.auto.")
        if (name == "from_pretrained" or (name == "from_config" and is_auto)) and not arguments.get(REMOTE_CODE):
            arguments[REMOTE_CODE] = False
    # Calls within transformers do not all pass that on: without time for an answer it refuses.
    if module := sys.modules.get("transformers.dynamic_module_utils"):
        vars(module)["TIME_OUT_REMOTE_CODE"] = 0
