"""Every key that a configuration has or could have, and the values that suggest themselves for it.

The keys of our own sections come from the table in `sections.py`, the arguments of a `_target_` from the
source of its callable, which is read and never imported, and the rest from the configuration itself.
Keys that a shell could take for something else than text are left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from automodel_cli.engine.config.arguments import Argument, arguments_of
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.emit import flat, inline
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.secrets import is_secret, masked_value
from automodel_cli.engine.config.sections import allowed_types, is_required, own_sections, section_fields
from automodel_cli.engine.config.target_sections import ENGINE_KEYS, SUPPLIED, TARGET_MEANING, TARGET_SECTIONS

_SAFE_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
# Generous on purpose: a value that is not suggested costs nothing, a secret on a screen and in a shell's history does.
_SECRET_NAME = re.compile(r"key|token|passw|secret|credential", re.IGNORECASE)
_PATH_NAME = re.compile(r"(?:.*_)?(?:path|file|dir|pattern)")


@dataclass(frozen=True)
class Key:
    """What is known of one key.

    Args:
        meaning: One line; empty where no source tells.
        values: YAML of every value, if there are few, or of the words that may stand for one.
        present: YAML of the value that it has, `None` without one.
        default: YAML of the value that holds if nobody sets it, `None` if unknown.
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
    """The keys by dotted name, those of our own sections first.

    Args:
        config: Whose keys, and their present values.
        section: The only one whose callable is read, to save time; None reads all. Of the others the
            keys that the configuration gives are known.
    """
    found = dict(_own_keys(config))
    for path in _built_sections(config, ()):
        # No present value: `_target_` is what a section is, and not changed by pressing a key.
        found[dotted((*path, TARGET))] = Key(TARGET_MEANING)
        if section in (None, dotted(path)):
            found.update(_keys_of_callable(config, path))
    for owner, keys in ENGINE_KEYS.items():
        found |= {f"{owner}.{name}": Key(meaning) for name, meaning in keys.items()}
    for name in TARGET_SECTIONS:
        found.setdefault(f"{name}.{TARGET}", Key(TARGET_MEANING))
    for key, value, _ in flat(config):
        if value != {}:
            found.setdefault(key, Key(present=_present(config, key), is_path=_names_path(key, value)))
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
                    present=_present(config, key),
                    default=None if is_required(item) else inline(item.default),
                    is_path=str in types and _names_path(key),
                ),
            )


def _built_sections(config: Config, path: KeyPath) -> Iterator[KeyPath]:
    """Every section with a `_target_`, inner ones included."""
    node = config.values if not path else config.at(path)
    if isinstance(node, Mapping):
        if isinstance(node.get(TARGET), str):
            yield path
        for name in node:
            yield from _built_sections(config, (*path, name))


def _keys_of_callable(config: Config, path: KeyPath) -> Iterator[tuple[str, Key]]:
    facts = arguments_of(config, path)
    for name, argument in (facts.arguments if facts else {}).items():
        key = dotted((*path, name))
        value = config.get(key)
        if not isinstance(value, Mapping) and name not in SUPPLIED.get(dotted(path), ()):
            default = None if is_secret(key) else argument.default_yaml()
            yield key, _of_argument(argument, _present(config, key), default, _names_path(name, value))


def _of_argument(argument: Argument, present: str | None, default: str | None, is_path: bool) -> Key:
    values = _values_of(argument.annotation)
    return Key(argument.meaning or "", values, present, default, is_path)


def _values_of(annotation: str | None) -> tuple[str, ...]:
    """The values of a type that has few, as YAML.

    >>> _values_of("Literal['sum', 'mean'] | None"), _values_of("bool"), _values_of("int")
    (('sum', 'mean', 'null'), ('true', 'false'), ())
    """
    try:
        tree = ast.parse((annotation or "").strip("'\""), mode="eval")
    except SyntaxError:
        return ()
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    values: list[Any] = [True, False] if "bool" in names else []
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value is not None]
    values += constants if "Literal" in names else []
    is_optional = "Optional" in names or any(isinstance(n, ast.Constant) and n.value is None for n in ast.walk(tree))
    return tuple(map(inline, [*values, None] if is_optional else values))


def _present(config: Config, key: str) -> str | None:
    value = config.get(key)
    hides = _SECRET_NAME.search(key.rpartition(".")[2]) is not None or masked_value(key, value) != value
    return inline(value) if config.has(key) and not hides else None


def _names_path(key: str, value: Any = "") -> bool:
    return isinstance(value, str | None) and _PATH_NAME.fullmatch(key.rpartition(".")[2]) is not None
