"""A commented YAML to start from: the values of a preset, and of every key its meaning and default.

The comments come from the tables behind `config show --explain`, so that the two never disagree.
A key that the preset leaves alone stands there as a comment, with its default; reading the text
gives the preset's values, and those only.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.arguments import Callables
from automodel_cli.engine.config.config import TARGET, Config, from_parsed
from automodel_cli.engine.config.emit import to_yaml
from automodel_cli.engine.config.keys import REQUIRED, UNKNOWN, Explanation, explain, own_key
from automodel_cli.engine.config.load import BUILTIN_PATH
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.sections import SECTIONS, General, section_fields
from automodel_cli.engine.config.suggest import command, hint
from automodel_cli.engine.config.target_sections import PURPOSES
from automodel_cli.engine.config.yaml_reader import read_yaml
from automodel_cli.errors import UsageError

_FILES = {"quickstart": BUILTIN_PATH} | {
    name: Path(__file__).parent / f"{name}.yaml" for name in ("nanogpt-124m", "hf-llama")
}
PRESETS = tuple(_FILES)

_WIDTH = 110
_DEFAULT = re.compile(r"\s*\(default: [^()]*(?:\([^()]*\))?\)")  # torch's own word on it, which would stand there twice


def preset_config(preset: str) -> Config:
    """The values of a preset.

    Raises:
        UsageError: There is no such preset.
    """
    if preset not in _FILES:
        raise UsageError(f"there is no preset `{preset}`", help=hint(preset, PRESETS, noun="presets"))
    return from_parsed(read_yaml(_FILES[preset]))


def template(preset: str, *, name: str = "my.yaml") -> str:
    """The text of a configuration file.

    Args:
        preset: One of `PRESETS`.
        name: What the file will be called, for the commands in its first lines.
    """
    config = preset_config(preset)
    lines = [
        *_comment(_title(preset), ""),
        "#",
        "# Each key stands below its meaning. What begins with # and no space is a key at its default.",
        f"#   {command('config', 'show', '-c', Path(name), '--check')}                     is it sound?",
        f"#   {command('config', 'show', '-c', Path(name), '--explain', 'optimizer.lr')}      what does a key mean?",
        f"#   {command('pretrain', '-c', Path(name))}",
        "",
        *_own_section(General, config),
    ]
    built = _Described(config, _notes(preset))
    for section, value in config.values.items():
        if isinstance(value, Mapping) and TARGET in value:
            lines += ["", *_comment(PURPOSES.get(section, ""), ""), *built.section((section,))]
    for own in SECTIONS:
        if keys := list(_own_section(own, config)):
            lines += ["", *_comment((own.__doc__ or "").partition("\n")[0], ""), f"{own.name}:", *keys]
    return "\n".join(lines) + "\n"


def write_template(path: Path, preset: str, *, overwrite: bool = False) -> None:
    """Writes the template to a file.

    Raises:
        UsageError: There is no such preset, the file exists, or it cannot be written.
    """
    text = template(preset, name=str(path))
    try:
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        help_ = "give another name, or --force to overwrite it"
        raise UsageError("this file exists", where=str(path), help=help_) from error
    except OSError as error:
        raise UsageError(f"cannot write the configuration: {error.strerror}", where=str(path)) from error


def _title(preset: str) -> str:
    """The first comment of the preset's file, up to the commands in it."""
    words: list[str] = []
    for line in _FILES[preset].read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        words.append(line.removeprefix("# ").strip())
    return " ".join(words).partition(". ")[0].rstrip(".") + "."


def _notes(preset: str) -> dict[int, str]:
    """The comment at the end of each line of the preset's file."""
    lines = enumerate(_FILES[preset].read_text(encoding="utf-8").splitlines(), start=1)
    return {number: note for number, line in lines if (note := line.partition(" # ")[2].strip())}


def _own_section(section: type[Any], config: Config) -> Iterator[str]:
    indent = "  " if section.name else ""
    for name, item in section_fields(section).items():
        explanation = own_key(section, name, config)
        is_set = config.has(explanation.key)
        if item.metadata["quiet"] and not is_set:
            continue
        yield from _comment(_described(explanation), indent)
        yield f"{indent}{name}: {explanation.value}" if is_set else f"{indent}#{name}: {explanation.default}"


class _Described:
    """The sections with a `_target_` of a preset; a callable is described where it is named first.

    Args:
        config: The preset.
        notes: The preset's own word on a line, for keys that their callable does not describe.
    """

    def __init__(self, config: Config, notes: Mapping[int, str]) -> None:
        self._config = config
        self._notes = notes
        self._callables = Callables(config)
        self._seen: set[str] = set()

    def section(self, path: KeyPath) -> Iterator[str]:
        """The preset's arguments, then the documented ones that it leaves alone."""
        section, indent = self._config.at(path), "  " * len(path)
        is_new = section[TARGET] not in self._seen
        self._seen.add(section[TARGET])
        yield f"{'  ' * (len(path) - 1)}{path[-1]}:"
        for name, value in section.items():
            here = (*path, name)
            if isinstance(value, Mapping) and TARGET in value:
                yield from self.section(here)
                continue
            if name != TARGET and is_new:
                note = self._notes.get(self._config.origin(here).line or 0, "")
                yield from _comment(_described(self._explain(here), note), indent)
            yield from (indent + line for line in to_yaml(Config({name: value}), origins=False).splitlines())
        for name in self._explain(path).keys if is_new else ():
            explanation = self._explain((*path, name))
            if name not in section and explanation.meaning != UNKNOWN and explanation.default is not None:
                yield from _comment(_described(explanation), indent)
                yield f"{indent}#{name}: {explanation.default}"

    def _explain(self, path: KeyPath) -> Explanation:
        return explain(self._config, dotted(path), self._callables)


def _described(explanation: Explanation, note: str = "") -> str:
    """Meaning, or else the note, range and default; nothing where nothing is known."""
    meaning = explanation.meaning if explanation.meaning != UNKNOWN else note
    facts = [explanation.allowed] if explanation.allowed else []
    if explanation.default not in (None, REQUIRED):
        facts.append(f"default {explanation.default}")
    # The first sentence: what follows is for --explain, which has the room.
    first = _DEFAULT.sub("", meaning).partition(". ")[0].rstrip(".")
    return " ".join([*([first] if first else []), *([f"[{'; '.join(facts)}]"] if facts else [])])


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ") if text else []
