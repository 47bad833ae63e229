"""What is known of each key: `explain` for `config show --explain` and `config init`, `known_keys` for completion.

The keys of our own sections come from the table in `sections.py`, the arguments of a `_target_` from the
source of its callable, which is read and never imported, and the rest from the configuration itself.
What no source says is called unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from automodel_cli.engine.bounded import MAX_WHOLE
from automodel_cli.engine.config.arguments import Argument, CallableFacts, Callables
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.emit import flat, inline, label
from automodel_cli.engine.config.load import all_keys
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.secrets import is_secret, masked_value
from automodel_cli.engine.config.sections import allowed_types, is_required, own_sections, section_fields, type_words
from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.config.target_sections import (
    ENGINE_KEYS,
    PURPOSES,
    RUNTIME,
    SUPPLIED,
    TARGET_MEANING,
    TARGET_SECTIONS,
    sections_with_target,
    top_level_names,
)
from automodel_cli.errors import ConfigError

_SAFE_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
# Wider than `is_secret`: a suggestion that is missing costs nothing, a secret in a shell's history does.
_SECRET_NAME = re.compile(r"key|token|passw|secret|credential", re.IGNORECASE)
_PATH_NAME = re.compile(r"(?:.*_)?(?:path|file|dir|pattern)")
UNKNOWN = "unknown"
REQUIRED = "none: it must be given"


@dataclass(frozen=True)
class Key:
    """What is known of one key.

    Args:
        meaning: One line; empty if unknown.
        values: YAML of every value, if there are few, or of the words that may stand for one.
        present: YAML of the value that it has, `None` without one.
        default: YAML of the default, `None` if unknown.
        is_path: Whether its value is the name of a file or a directory, judged by its name.
    """

    meaning: str = ""
    values: tuple[str, ...] = ()
    present: str | None = None
    default: str | None = None
    is_path: bool = False

    def suggestions(self) -> Iterator[tuple[str, str]]:
        """Values to choose from, each with a word on it.

        All of a few, or all words, and the one that holds now; no other numbers beside it: a shell would insert what
        two have in common, and `0.00` of `0.004` and `0.001` is neither.
        """
        notes = {self.default: "the default", self.present: "as it is now"}
        holds = self.default if self.present is None else self.present
        for value in dict.fromkeys((*self.values, holds)):
            if value is not None:
                yield value, notes.get(value, "")


def known_keys(config: Config, section: str | None = None) -> dict[str, Key]:
    """Every key that a configuration has or could have, by dotted name, those of our own sections first.

    Keys that a shell could take for something else than text are left out.

    Args:
        config: Gives the keys and their present values.
        section: The only one whose callable is read, to save time; None reads all. Of the others the
            keys that the configuration gives are known.
    """
    found = dict(_own_keys(config))
    callables = Callables(config)
    for path, _ in sections_with_target(config.values):
        # No present value: completion should not offer to change what a section builds.
        found[dotted((*path, TARGET))] = Key(TARGET_MEANING)
        if section in (None, dotted(path)):
            found.update(_keys_of_callable(config, path, callables.of(path)))
    for owner, keys in ENGINE_KEYS.items():
        found |= {f"{owner}.{name}": Key(meaning) for name, meaning in keys.items()}
    for name in TARGET_SECTIONS:
        found.setdefault(f"{name}.{TARGET}", Key(TARGET_MEANING))
    for key, value, _ in flat(config):
        if value != {}:
            found.setdefault(key, Key(present=_suggested(config, key), is_path=_names_path(key, value)))
    return {key: facts for key, facts in found.items() if _SAFE_KEY.fullmatch(key)}


def _own_keys(config: Config) -> Iterator[tuple[str, Key]]:
    for section in own_sections(config.values):
        for name, item in section_fields(section).items():
            key = f"{section.name}.{name}" if section.name else name
            types = allowed_types(section, name)
            values = item.metadata["choices"] or ((True, False) if bool in types else item.metadata["words"])
            if type(None) in types and None not in values:
                values = (*values, None)
            yield (
                key,
                Key(
                    meaning=item.metadata["meaning"],
                    values=tuple(map(inline, values)),
                    present=_suggested(config, key),
                    default=None if is_required(item) else inline(item.default),
                    is_path=str in types and _names_path(key),
                ),
            )


def _keys_of_callable(config: Config, path: KeyPath, facts: CallableFacts | None) -> Iterator[tuple[str, Key]]:
    for name, argument in (facts.arguments if facts else {}).items():
        key = dotted((*path, name))
        value = config.get(key)
        if not isinstance(value, Mapping) and name not in SUPPLIED.get(dotted(path), ()):
            meaning, present = argument.meaning or "", _suggested(config, key)
            default = None if is_secret(key) else argument.default_yaml()
            yield key, Key(meaning, argument.values(), present, default, _names_path(name, value))


def _suggested(config: Config, key: str) -> str | None:
    """YAML of the present value, if a shell may show it."""
    value = config.get(key)
    hides = _SECRET_NAME.search(key.rpartition(".")[2]) is not None or masked_value(key, value) != value
    return inline(value) if config.has(key) and not hides else None


def _names_path(key: str, value: Any = "") -> bool:
    return isinstance(value, str | None) and _PATH_NAME.fullmatch(key.rpartition(".")[2]) is not None


@dataclass(frozen=True)
class Explanation:
    """One key, in words; `None` where something does not apply.

    Args:
        key: Dotted.
        meaning: What it is for, or `unknown`.
        type: The types of the values that it takes.
        default: YAML of the default, or that there is none.
        allowed: Range or choices.
        value: YAML of the present value; `None` where the key is not set.
        origin: Where the present value came from.
        used_by: The callable that takes it, and where that stands; `None` for keys of amcli itself.
        keys: What may stand below it, if it is a section.
    """

    key: str
    meaning: str
    type: str | None = None
    default: str | None = None
    allowed: str | None = None
    value: str | None = None
    origin: str | None = None
    used_by: str | None = None
    keys: tuple[str, ...] = ()


def explain(config: Config, key: str, callables: Callables | None = None) -> Explanation:
    """What `key` means, and what it is in this configuration.

    Args:
        config: The configuration.
        key: Dotted.
        callables: The configuration's callables; pass the same object to explain several keys.

    Raises:
        ConfigError: Neither amcli, nor the callable of the section, nor the configuration knows this key.
    """
    section, _, name = key.rpartition(".")
    for owner in own_sections(config.values):
        if owner.name == section and name in section_fields(owner):
            return own_key(owner, name, config)
        if owner.name == key:
            return Explanation(key, _first_line(owner), keys=tuple(section_fields(owner)))
    path: KeyPath = tuple(key.split("."))
    if name in ENGINE_KEYS.get(section, {}):
        return _present(config, path, ENGINE_KEYS[section][name], default="null")
    built = _enclosing_target(config, path)
    if built is not None:
        return _of_callable(config, path, built, (callables or Callables(config)).of(built))
    if key in TARGET_SECTIONS:
        return Explanation(key, PURPOSES.get(key, UNKNOWN), default=None if TARGET_SECTIONS[key] else "null")
    if config.has(key):
        return _present(config, path, UNKNOWN)
    raise _unknown(config, key)


def own_key(section: type[Any], name: str, config: Config | None = None) -> Explanation:
    """A key of one of our own sections; with the present value, if there is a configuration."""
    item = section_fields(section)[name]
    key = f"{section.name}.{name}" if section.name else name
    present = config is not None and config.has(key)
    return Explanation(
        key=key,
        meaning=item.metadata["meaning"],
        type=type_words(allowed_types(section, name)),
        default=REQUIRED if is_required(item) else inline(item.default),
        allowed=allowed_words(item.metadata),
        value=inline(config.get(key)) if config is not None and present else None,
        origin=label(config, key, config.get(key)) if config is not None and present else None,
    )


def allowed_words(rule: Mapping[str, Any]) -> str | None:
    """Range or choices of a key in words.

    >>> allowed_words({"choices": ("auto", "cpu", None)})
    'auto, cpu or null'
    >>> allowed_words({"choices": None, "minimum": 1, "maximum": 8, "above": None})
    'from 1 to 8'
    """
    if rule["choices"] is not None:
        *first, last = map(inline, rule["choices"])
        return f"{', '.join(first)} or {last}" if first else last
    if rule["minimum"] is not None and rule["maximum"] != MAX_WHOLE:
        return f"from {rule['minimum']:g} to {rule['maximum']}"
    if rule["minimum"] is not None:
        return f"at least {rule['minimum']:g}"
    return f"above {rule['above']:g}" if rule["above"] is not None else None


def _of_callable(config: Config, path: KeyPath, built: KeyPath, found: CallableFacts | None) -> Explanation:
    """A key at or below the section at `built`, which has a `_target_`."""
    if path == built:
        names = found.arguments if found else config.get(dotted(built))
        passed = (*SUPPLIED.get(dotted(built), ()), *RUNTIME.get(str(built[0]), ()))  # by the run itself
        keys = tuple(name for name in names if name not in {TARGET, *passed})
        meaning = (found and found.summary) or PURPOSES.get(dotted(built), UNKNOWN)
        return Explanation(dotted(path), meaning, used_by=_callable_name(config, built, found), keys=keys)
    name = str(path[len(built)])
    if name == TARGET:
        return _present(config, path, TARGET_MEANING, type="text", default=REQUIRED)
    argument = found.arguments.get(name) if found else None
    if argument is None and not config.has(dotted(path)):
        raise _unknown(config, dotted(path), [f"{dotted(built)}.{known}" for known in found.arguments] if found else ())
    return _present(
        config,
        path,
        (argument and argument.meaning) or UNKNOWN,
        type=argument.annotation if argument else None,
        default=_default_words(argument, dotted(path)) if argument else None,
        used_by=_callable_name(config, built, found),
    )


def _default_words(argument: Argument, key: str) -> str | None:
    """YAML of a default, or the expression in the source that gives it; a secret is masked."""
    if argument.is_required:
        return REQUIRED
    found = argument.default_yaml() or argument.default
    return found if found is None or found == "null" else masked_value(key, found)


def _present(config: Config, path: KeyPath, meaning: str, **facts: str | None) -> Explanation:
    """An explanation with the value and the origin that the key has here."""
    key = dotted(path)
    if not config.has(key):
        return Explanation(key, meaning, **facts)  # type: ignore[arg-type]  # no fact given so is `keys`
    value = config.get(key)
    return Explanation(key, meaning, value=inline(value), origin=label(config, key, value), **facts)  # type: ignore[arg-type]


def _enclosing_target(config: Config, path: KeyPath) -> KeyPath | None:
    """The innermost section with a `_target_` at or around `path`."""
    for length in range(len(path), 0, -1):
        node = config.at(path[:length])
        if isinstance(node, Mapping) and isinstance(node.get(TARGET), str):
            return path[:length]
    return None


def _callable_name(config: Config, built: KeyPath, found: CallableFacts | None) -> str:
    target = str(config.get(dotted((*built, TARGET))))
    return f"{target} ({found.place})" if found else f"{target} (not found in source)"


def _first_line(section: type[Any]) -> str:
    return (section.__doc__ or UNKNOWN).partition("\n")[0]


def _unknown(config: Config, key: str, more: Any = ()) -> ConfigError:
    known = {*all_keys(config), *top_level_names(), *more}
    return ConfigError(f"there is no key `{key}` to explain", help=hint(key, known))
