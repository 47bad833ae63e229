"""Candidates for completion: files, checkpoints, presets, and the keys of the configuration.

Each public function is the `autocompletion` of a parameter: it gets the part of a word that is typed and
returns (candidate, help) pairs; `shells.py` brings them to the shell. A candidate that ends in `=`, `.` or `/`
is not complete. Nothing here imports torch or runs what a configuration names. A configuration that cannot be
read is skipped silently, since a prompt must not show errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from automodel_cli.engine.config.config import Config
    from automodel_cli.engine.config.keys import Key

Candidate = tuple[str, str]

_YAML_SUFFIXES = (".yaml", ".yml")
_TEXT_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt", ".md", ".gz", ".zst", ".bz2")

# Limits, so that the tab key does not wait for a huge directory.
_MOST_ENTRIES = 1000
_MOST_DIRECTORIES = 20
_LOOK_AHEAD = 2  # levels: `runs/` is offered if there is `runs/wide/step_000200`


def config_files(incomplete: str) -> list[Candidate]:
    """YAML files and directories, since a directory may be a checkpoint."""
    return _paths(incomplete, _YAML_SUFFIXES)


def sources(incomplete: str) -> list[Candidate]:
    """Sources of `amcli prep`: presets, text files, and directories."""
    from automodel_cli.engine.prep.presets import PRESETS

    named = [(preset.name, preset.description) for preset in PRESETS.values()]
    return _starting(incomplete, named) + _paths(incomplete, _TEXT_SUFFIXES)


def presets(incomplete: str) -> list[Candidate]:
    """Presets of `amcli config init`."""
    from automodel_cli.engine.config.template import PRESETS

    return _starting(incomplete, [(preset, "") for preset in PRESETS])


def tokenizers(incomplete: str) -> list[Candidate]:
    """The embedded tokenizers, and directories, which may hold a tokenizer."""
    embedded = [("bytes", "one token per byte, 257 with BOS"), ("gpt2", "the tokens of GPT-2, 50,257")]
    return _starting(incomplete, embedded) + _paths(incomplete, ())


def checkpoints(incomplete: str) -> list[Candidate]:
    """Checkpoints, the links LATEST and BEST, and the directories that lead to them."""
    from automodel_cli.engine.checkpoint.layout import BEST, LATEST, is_complete, step_of

    links = {LATEST: "the newest", BEST: "the one with the lowest validation loss"}
    found: list[Candidate] = []
    others: list[Candidate] = []
    for path in _entries(incomplete, tuple(links)):
        place = Path(path)
        step = step_of(place.name)
        if place.name in links:
            found.append((str(place), links[place.name]))
        elif step is not None:
            found.append((str(place), f"after step {step}" if is_complete(place) else "incomplete"))
        elif _leads_to_checkpoint(path):
            found.append((path, "checkpoints are in it"))
        else:
            others.append((path, ""))
    return found or others


def assignments(context: typer.Context, incomplete: str) -> list[Candidate]:
    """After `--set`: keys of the configuration, and likely values after the `=`."""
    key, equals, typed = incomplete.partition("=")
    known = _known_keys(context, key)
    if not equals:
        return _next_parts(incomplete, known, "=")
    if key not in known:
        return []
    values = _starting(typed, list(known[key].suggestions()))
    if known[key].is_path and not (values and not typed):
        values += _paths(typed)
    return [(f"{key}={value}", meaning) for value, meaning in values]


def keys(context: typer.Context, incomplete: str) -> list[Candidate]:
    """Keys of the configuration."""
    return _next_parts(incomplete, _known_keys(context, incomplete), "")


def _starting(incomplete: str, candidates: list[Candidate]) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate[0].startswith(incomplete)]


def _next_parts(incomplete: str, known: dict[str, Key], end: str) -> list[Candidate]:
    """The keys that start with the typed text, up to the next dot: 15 sections are easier to read than 60 keys."""
    start = incomplete.rfind(".") + 1
    found: list[Candidate] = []
    sections: dict[str, list[str]] = {}
    for key, facts in known.items():
        if key.startswith(incomplete):
            dot = key.find(".", start)
            if dot < 0:
                found.append((f"{key}{end}", facts.meaning))
            else:
                sections.setdefault(key[: dot + 1], []).append(key[dot + 1 :])
    return found + [(section, ", ".join(names)) for section, names in sections.items()]


def _known_keys(context: typer.Context, typed: str) -> dict[str, Key]:
    from automodel_cli.engine.config.keys import known_keys

    return known_keys(_configuration(context), typed.rpartition(".")[0])


def _configuration(context: typer.Context) -> Config:
    """The configuration of the line so far: its files (else the checkpoint's, else the built-in ones) and overrides."""
    from automodel_cli.engine.config.config import Config, apply_overrides, read_configs
    from automodel_cli.engine.config.load import builtin_config
    from automodel_cli.errors import AmcliError

    config = Config({})
    for path in context.params.get("config") or _of_checkpoint(context):
        # Only regular files: reading a pipe would wait for its writer.
        if any(place.is_file() for place in (Path(path), Path(path) / "config.yaml")):
            with suppress(AmcliError):
                config = config.merged(read_configs([Path(path)]))
    if not config.values:
        config = builtin_config()
    for assignment in context.params.get("set_") or ():
        with suppress(AmcliError):
            config = apply_overrides(config, [assignment])
    return config


def _of_checkpoint(context: typer.Context) -> list[Path]:
    """The checkpoint that the command reads, if it reads one."""
    from automodel_cli.engine.checkpoint.layout import resolve
    from automodel_cli.errors import AmcliError

    if "checkpoint" in context.params:
        with suppress(AmcliError):
            return [resolve(context.params["checkpoint"])]
    return []


def _paths(incomplete: str, suffixes: tuple[str, ...] = ("",)) -> list[Candidate]:
    return [(path, "") for path in _entries(incomplete, suffixes)]


def _entries(incomplete: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Directories, with a slash, and files with one of the suffixes; `~/` is left to the shell."""
    if incomplete.startswith("~"):
        return
    start = incomplete.rfind("/") + 1
    head, typed = incomplete[:start], incomplete[start:]
    for entry in _scan(head or "."):
        if not entry.name.startswith(typed) or (entry.name.startswith(".") and not typed.startswith(".")):
            continue
        if entry.is_dir():
            yield f"{head}{entry.name}/"
        elif entry.name.endswith(suffixes):
            yield f"{head}{entry.name}"


def _scan(directory: str) -> list[os.DirEntry[str]]:
    """The entries with printable names, sorted; none if the directory cannot be read."""
    try:
        with os.scandir(directory) as entries:
            shown = [entry for entry in islice(entries, _MOST_ENTRIES) if entry.name.isprintable()]
    except OSError:
        return []
    return sorted(shown, key=lambda entry: entry.name)


def _leads_to_checkpoint(path: str) -> bool:
    from automodel_cli.engine.checkpoint.layout import step_of

    level = [path]
    for _ in range(_LOOK_AHEAD):
        below = [entry for directory in level for entry in _scan(directory) if entry.is_dir(follow_symlinks=False)]
        if any(step_of(entry.name) is not None for entry in below):
            return True
        level = [entry.path for entry in below[:_MOST_DIRECTORIES]]
    return False
