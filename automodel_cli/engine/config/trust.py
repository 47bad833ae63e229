"""Whose code a configuration may run.

A configuration that the user names with -c is code, like a script: whatever it names runs. One that came
along with weights is data. Without consent it may name only classes of the kinds that amcli builds (models,
their configurations, optimizers, our own data sets and losses) and the class methods `from_config` and
`from_pretrained`, by public names of packages that amcli knows; and it may ask for nothing that would run
code beside that: code of a repository, pickles, kernels. Text is judged before anything is imported
(`trust_problems`, also in the parent process); what counts is the object that was found (`is_buildable`).

Consent is -c, `--trust-config`, or that the same user started the same code in the same directory before
(`started.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.config import MAX_PROBLEMS, TARGET, Config
from automodel_cli.engine.config.emit import absolute_target
from automodel_cli.engine.config.origin import KeyPath, Origin, dotted
from automodel_cli.engine.config.secrets import is_secret, masked_value
from automodel_cli.engine.config.source_modules import Module, Sources, Undecided
from automodel_cli.engine.config.source_names import Definition, lookup
from automodel_cli.engine.config.started import Code, code_started_in, remember
from automodel_cli.engine.config.target_errors import Place
from automodel_cli.engine.config.target_sections import CALLED_SECTIONS
from automodel_cli.engine.config.values import resolve_env, variables_in
from automodel_cli.errors import ConfigError

TRUST_OPTION = "--trust-config"
_SECTIONS: tuple[KeyPath, ...] = tuple((name,) for name in CALLED_SECTIONS)

# Packages whose classes a checkpoint may name.
_OURS = tuple(f"automodel_cli.engine.{package}." for package in ("models", "loss", "optim", "data"))
_KNOWN = (*_OURS, "torch.nn.", "torch.optim.", "transformers.models.")
_BUILDERS = re.compile(r"automodel_cli\.engine\.models\.\w+\.build_\w+")
_CLASS_METHODS = ("from_config", "from_pretrained")
# Base classes of what amcli builds, and of what has those two methods, by name: torch need not be imported for them.
MODEL = "torch.nn.modules.module.Module"
_BUILT = {
    MODEL,
    "torch.optim.optimizer.Optimizer",
    *(f"transformers.configuration_utils.{name}" for name in ("PreTrainedConfig", "PretrainedConfig")),
}
_LOADED = {
    *_BUILT,
    "transformers.tokenization_utils_base.PreTrainedTokenizerBase",
    "transformers.models.auto.auto_factory._BaseAutoModelClass",
    "transformers.models.auto.configuration_auto.AutoConfig",
    "transformers.models.auto.tokenization_auto.AutoTokenizer",
}
# Our data sets and losses have no base class; they are known by what they offer.
_OFFERED = ({"__len__", "__getitem__"}, {"__iter__"}, {"__call__"}, {"of_hidden"})

REMOTE_CODE = "trust_remote_code"
# Arguments by which a call would run more than its target: the values that a checkpoint may give, and what others do.
_ARGUMENTS: dict[str, tuple[tuple[Any, ...], str]] = {
    REMOTE_CODE: ((None, False), "runs code that lies beside the weights or is downloaded"),
    "weights_only": ((None, True), "unpickles weights, and so runs what the file says"),
    "use_safetensors": ((None, True), "reads pickled weights"),
    **dict.fromkeys(("use_kernels", "allow_all_kernels"), ((None, False), "runs kernels that are downloaded")),
    "kernel_config": ((None,), "runs kernels that are downloaded"),
    **dict.fromkeys(("code_revision", "custom_generate"), ((None,), "names code that is downloaded")),
    **dict.fromkeys(("quantization_config", "fusion_config"), ((None,), "chooses code that rewrites the model")),
    **dict.fromkeys(("adapter_kwargs", "gguf_file", "state_dict"), ((None,), "reads weights from elsewhere")),
    **dict.fromkeys(("cache_dir", "offload_folder"), ((None,), "chooses where files are written")),
    "proxies": ((None,), "chooses where files are downloaded from"),
}
_IMPLEMENTATION = re.compile(r".*(?:attn|attention|experts|kernels?)_implementation.*")
_MAX_PARTS = 32  # of an import path that is looked up
_BUILT_IN = re.compile(r"\w+(?:\|\w+)?")  # `sdpa`, `paged|eager`; a repository of kernels has a `/` in its name


def is_known_name(target: str) -> bool:
    """Whether a checkpoint may name this, judged by the text alone; then only public modules are imported.

    >>> is_known_name("torch.optim.AdamW"), is_known_name("transformers.LlamaConfig")
    (True, True)
    >>> is_known_name("torch.nn.attention._registry.f"), is_known_name("transformers.modeling_utils.f")
    (False, False)
    """
    parts = target.split(".")
    if not all(part.isidentifier() and not part.startswith("_") for part in parts):
        return False
    # Only classes of transformers itself: its other names are modules, and a look-up would import them.
    is_class = parts[0] == "transformers" and len(parts) > 1 and parts[1][0].isupper()
    return is_class or resolved(target).startswith(_KNOWN)


def is_known_below(names: list[str]) -> bool:
    """Whether below a module stand one name, or a class and one of the two methods: more leads to other modules."""
    return len(names) == 1 or (len(names) == 2 and _public(names[1]) in _CLASS_METHODS)


def is_buildable(found: Any) -> bool:
    """Whether a checkpoint may have this object called: judged by what it is, not by its name."""
    owner = getattr(found, "__self__", None)
    if isinstance(owner, type):
        is_method = _public(getattr(found, "__name__", "")) in _CLASS_METHODS
        return is_method and _is_known_module(owner.__module__) and not base_names(owner).isdisjoint(_LOADED)
    if isinstance(found, type):
        offered = {name for base in found.__mro__ for name in vars(base)}
        is_part = found.__module__.startswith(_OURS) and any(names <= offered for names in _OFFERED)
        return is_part or (_is_known_module(found.__module__) and not base_names(found).isdisjoint(_BUILT))
    name = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    return _BUILDERS.fullmatch(name) is not None


def is_known_definition(definition: Definition) -> bool:
    """What `is_buildable` will say, judged by source; the bases of a class are checked when it is imported."""
    if definition.is_class:
        return _is_known_module(definition.module.name)
    return _BUILDERS.fullmatch(f"{definition.module.name}.{definition.name}") is not None


def _is_known_module(module: str) -> bool:
    return f"{module}.".startswith(_KNOWN)


def base_names(kind: type) -> set[str]:
    """The full names of a class and of all its bases."""
    return {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}


def consent_notes(config: Config) -> list[str]:
    """What a configuration that is only shown would ask consent for, a line each."""
    return [f"{problem.where}: {problem.message.splitlines()[0]}" for problem in trust_problems(config)]


def untrusted(target: str, place: Place, sources: Sources | None = None) -> ConfigError:
    """A checkpoint names code that amcli would not build by itself; with the files that would run."""
    code = _code_of(target, place.origin, sources or Sources())
    files = "".join(f"\n    {one.file}, SHA-256 {one.sha256}" for one in code if one.file)
    message = f"a checkpoint's configuration names `{target}`, which is code that amcli does not know"
    started = code_started_in(_run_of(place.origin))
    changed = any(one.what == old.what and one.file == old.file for one in code for old in started)
    why = "; it changed since this run was started here" if changed else ""
    return place.error(f"{message}{why}{files}", _HELP)


_HELP = f"{TRUST_OPTION} runs it, if you trust where the checkpoint comes from; or name your own file with -c"


def is_started_here(target: str, origin: Origin, sources: Sources | None = None) -> bool:
    """Whether the user started the run of this checkpoint with the same target, in files of the same content."""
    started = code_started_in(_run_of(origin))
    code = _code_of(target, origin, sources or Sources()) if started else ()
    return bool(code) and started.issuperset(code)


def trust_problems(
    config: Config, paths: Iterable[KeyPath] = _SECTIONS, sources: Sources | None = None
) -> list[ConfigError]:
    """What a checkpoint's own values at and below these paths ask for without consent; nothing is imported."""
    sources = sources or Sources()
    found: list[ConfigError] = []
    for path, value in _values(config, paths):
        origin = config.origin(path)
        if origin.kind != "checkpoint" or len(found) > MAX_PROBLEMS:
            continue
        place = Place(origin, dotted(path))
        if path[-1] == TARGET:
            is_refused = isinstance(value, str) and not is_known_name(value)
            if is_refused and not is_started_here(value, origin, sources):
                found.append(untrusted(value, place, sources))
        elif (danger := _danger(config, path, value)) and not _is_argument_started_here(config, path):
            # As it stands there: the values of its variables are no part of a message.
            shown = masked_value(dotted(path), config.at(path))
            message = f"a checkpoint's configuration sets it to {shown!r}, which {danger}"
            found.append(place.error(message, f"{TRUST_OPTION} consents, or --set {dotted(path)}=null"))
    return found


def remember_code(config: Config, root: Path) -> str | None:
    """Records on the user's side what this run was started with, so that it resumes without a question.

    Args:
        config: The checked configuration of a run that is about to start.
        root: The directory of its checkpoints.

    Returns:
        One line if that is not possible; the run works without it.
    """
    sources = Sources()
    code: set[Code] = set()
    for path, value in _values(config, _SECTIONS):
        origin = config.origin(path)
        is_data = origin.kind == "checkpoint"
        if path[-1] == TARGET and isinstance(value, str):
            _, definition = _located(resolved(value), sources)
            is_known = is_known_name(value) and (definition is None or is_known_definition(definition))
            # A checkpoint adds nothing: its own names are not the user's consent.
            if not is_known and (not is_data or is_started_here(value, origin, sources)):
                code |= set(_code_of(value, origin, sources))
        elif (
            path[-1] != TARGET
            and _danger(config, path, value)
            and (not is_data or _is_argument_started_here(config, path))
        ):
            code.add(_argument(config, path))
    return remember(root, code)


def _values(config: Config, paths: Iterable[KeyPath]) -> Iterator[tuple[KeyPath, Any]]:
    """Every scalar, and every section, at and below the paths, variables put in."""

    def walk(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
        if isinstance(value, str):
            try:
                value = resolve_env(value, config.origin(path))
            except ConfigError:  # reported where the value is used
                return
        yield path, value
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield from walk(inner, (*path, key))

    for path in paths:
        yield from walk(config.at(path), path)


def _danger(config: Config, path: KeyPath, value: Any) -> str | None:
    """What an argument does beyond calling its target; None for all that it may be."""
    raw = config.at(path)
    if isinstance(raw, str) and not is_secret(dotted(path)) and any(map(is_secret, variables_in(raw))):
        return "hands a secret of the environment to what is called"
    names = [str(part).lstrip("_") for part in path]
    allowed, what = _ARGUMENTS.get(names[-1], ((value,), ""))
    if not any(value is one for one in allowed):
        return what
    is_implementation = any(map(_IMPLEMENTATION.fullmatch, names))
    if is_implementation and isinstance(value, str) and not _BUILT_IN.fullmatch(value):
        return "runs kernels that are downloaded"
    return None


def _public(name: str) -> str:
    return name.removeprefix("_")  # transformers has `from_config` of its model classes under a private name


def _run_of(origin: Origin) -> Path:
    """The directory of the run whose checkpoint holds the configuration that a value comes from."""
    return Path(origin.source).resolve().parent.parent


def _code_of(target: str, origin: Origin, sources: Sources) -> tuple[Code, ...]:
    """The files that a target runs, as far as source shows: the module that is named, and that of the definition."""
    try:
        named = absolute_target(target, origin)
    except (OSError, ValueError, RuntimeError):  # a null byte, a circle of links
        return ()
    path, colon, _ = named.rpartition(":")
    if colon and path.endswith(".py"):
        return (Code.of(named, Path(path)),)
    module, definition = _located(resolved(target), sources)
    modules = dict.fromkeys((module, definition.module if definition else module))
    return tuple(Code.of(named, one.path) for one in modules if one is not None)


def _located(target: str, sources: Sources) -> tuple[Module | None, Definition | None]:
    """The innermost module of an import path, and the definition of its next name, found in source."""
    parts = target.split(".")
    for length in range(min(len(parts), _MAX_PARTS), 0, -1):
        module = sources.module(".".join(parts[:length]))
        if module is not None:
            try:
                found = lookup(sources, module, parts[length]) if length < len(parts) else None
            except (Undecided, OSError):
                found = None
            return module, found if isinstance(found, Definition) else None
    return None, None


def _is_argument_started_here(config: Config, path: KeyPath) -> bool:
    started = code_started_in(_run_of(config.origin(path)))
    return bool(started) and _argument(config, path) in started


def _argument(config: Config, path: KeyPath) -> Code:
    """An argument and its value, bound to all others of the same section, such as the directory to load from."""
    sections = (path[:length] for length in range(len(path) - 1, 0, -1))
    section = next((one for one in sections if config.has(dotted((*one, TARGET)))), path[:1])
    values = {
        dotted(below): absolute_target(str(value), config.origin(below)) if below[-1] == TARGET else value
        for below, value in _values(Config(config.masked().values, config.origins), [section])
        if not isinstance(value, Mapping | list)
    }
    return Code(dotted(path), "", hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest())
