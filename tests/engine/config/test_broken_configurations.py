"""Broken configurations, each with the message, the place and the suggestion that it must get.

Rows of two kinds: written by hand in `broken_configurations.yaml`, and made by rule from the examples
and presets: each of their keys misspelt, repeated, or given a value of a wrong type, each target misspelt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from automodel_cli.engine.config import check_targets
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.config.source_modules import Sources
from automodel_cli.engine.config.template import PRESETS, template
from automodel_cli.errors import AmcliError

ROOT = Path(__file__).parents[3]
MARK = "¦"
BASES = {name: template(name) for name in PRESETS} | {
    name: (ROOT / f"examples/{name}.yaml").read_text() for name in ("quickstart", "fineweb")
}
KEY_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<rest>.*)")
# Sections that amcli itself reads: a list is of no type that any key there takes.
OWN = ("step_scheduler", "lr_scheduler", "clip_grad_norm", "checkpoint", "dataloader")


@dataclass(frozen=True)
class Broken:
    """A file, and what is said about it; `line` and `column` are None where the place is not one of the file."""

    name: str
    text: str
    says: str
    help: str = ""
    line: int | None = None
    column: int | None = None


def changed(name: str, base: str, old: str, new: str, says: str, help_: str = "", *, at: bool = True) -> Broken:
    """The base with `old` replaced once by `new`, in which the mark stands where the message points."""
    assert old in BASES[base], f"{old!r} is not in {base}"
    text = BASES[base].replace(old, new, 1)
    before, _, after = text.partition(MARK)
    place = (before.count("\n") + 1, len(before) - before.rfind("\n")) if at else (None, None)
    return Broken(name, before + after, says, help_, *place)


def by_hand():
    for row in yaml.safe_load((Path(__file__).parent / "broken_configurations.yaml").read_text()):
        base, at = row.get("base", "quickstart"), row.get("at") != "none"
        name = f"{base}: {row['to'] or 'without ' + row['from']}"
        yield changed(name, base, row["from"], row["to"], row["says"], row.get("help", ""), at=at)


def keys_of(base: str):
    """(line number, indent, section, key, rest of the line) of every key that is set in a base."""
    section = ""
    for number, line in enumerate(BASES[base].splitlines(), start=1):
        found = KEY_LINE.fullmatch(line)
        if found is None:
            continue
        section = section if found["indent"] else found["key"]
        yield number, len(found["indent"]), section, found["key"], found["rest"]


def with_line(base: str, number: int, line: str) -> str:
    lines = BASES[base].splitlines()
    lines[number - 1] = line
    return "\n".join(lines) + "\n"


def by_rule():
    for base in BASES:
        for number, indent, section, key, rest in keys_of(base):
            name, pad = f"{base}: {section}.{key}", " " * indent
            value = rest.split(" #")[0].strip()
            if key == "_target_":
                wrong = value[:-1] + "q" + value[-1]
                text = with_line(base, number, f"{pad}{key}: {wrong}")
                leaf, right = wrong.rpartition(".")[2], value.rpartition(".")[2]
                yield Broken(f"{name} misspelt", text, f"has no `{leaf}`", f"`{right}`?", number, indent + 11)
                continue
            misspelt = key[:2] + key[1:]  # the second letter twice
            text = with_line(base, number, f"{pad}{misspelt}:{rest}")
            yield Broken(f"{name} misspelt", text, f"{misspelt}`", f"did you mean `{key}`?", number, indent + 1)
            if value:
                text = with_line(base, number, f"{pad}{key}:{rest}\n{pad}{key}:{rest}")
                says = f"the key `{key}` stands here and in line {number}"
                yield Broken(f"{name} twice", text, says, "", number + 1, indent + 1)
            if value and section in OWN:
                text = with_line(base, number, f"{pad}{key}: [1]")
                column = indent + len(key) + 3
                yield Broken(f"{name} a list", text, f"{section}.{key} is [1], but it must be", "", number, column)


TABLE = [*by_hand(), *by_rule()]


@pytest.fixture(scope="module")
def sources():
    """What was read of torch once serves all rows."""
    return Sources(is_bounded=False)


@pytest.fixture
def problems_of(named_shards, sources, monkeypatch):
    """The exit code, and what is wrong with a file of this text; no error but those of amcli passes."""
    monkeypatch.setattr(check_targets, "Sources", lambda: sources)

    def check(text):
        Path("run.yaml").write_text(text)
        try:
            checked(load_config([Path("run.yaml")]))
        except AmcliError as error:
            return error.exit_code, error.problems or (error,)
        return 0, ()

    return check


@pytest.mark.parametrize("name", BASES)
def test_the_configurations_that_are_broken_below_are_sound(problems_of, name):
    """Else their rows would say nothing about the one change that each makes."""
    assert problems_of(BASES[name]) == (0, ())


def test_the_table_is_as_long_as_promised():
    """At least 150 rows, none of them twice."""
    assert len({row.text for row in TABLE} - set(BASES.values())) >= 150


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_broken_configuration_gets_its_message(problems_of, row):
    """The message, at the line and column of the mistake, with the suggestion where there is one."""
    code, problems = problems_of(row.text)

    fitting = [problem for problem in problems if row.says in problem.message]
    assert code in (2, 3)
    assert fitting, [str(problem) for problem in problems]
    assert row.help in (fitting[0].help or "")
    if row.line is not None:
        assert fitting[0].where.endswith(f"run.yaml:{row.line}:{row.column}")
