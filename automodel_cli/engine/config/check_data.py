"""Whether the data that a configuration names is there and fits the model, without numpy or torch.

Looks at the sections that are built by our own dataset; what `file_pattern` means to a user's
dataset is the user's. Reads names, sizes and `manifest.json`, never a token. Patterns that go
through many directories can take long, so they are left to the dataset.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.builtin import BUILTIN_SOURCE, embedded_corpus_directory
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.env import resolve_env
from automodel_cli.engine.config.file_pattern import matching_files, vocabulary_error
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.errors import AmcliError, ConfigError, DataError

OUR_DATASET = "automodel_cli.engine.data.nanogpt_dataset.NanogptDataset"
DATASETS = ("dataset", "validation_dataset")

# As `engine.shards.manifest` writes it; that package lies above this one, and needs numpy.
_MANIFEST = ("manifest.json", "amcli-token-shards", 1)
_MAX_MANIFEST_BYTES = 16_000_000
_MAX_WILD_PARTS = 2  # data/*/train_*.bin


def data_problems(config: Config) -> list[AmcliError]:
    """What is wrong with the data of a run; empty where it fits or cannot be told."""
    problems: list[AmcliError] = []
    for name in DATASETS:
        section = config.get(name)
        if isinstance(section, Mapping) and _is_ours(section) and not _will_be_prepared(config, name):
            problems += _problems_of(config, name, section.get("file_pattern"))
    return problems


def _is_ours(section: Mapping[str, Any]) -> bool:
    target = section.get(TARGET)
    return isinstance(target, str) and resolved(target) == OUR_DATASET


def _will_be_prepared(config: Config, name: str) -> bool:
    """Whether `pretrain` makes these shards itself, from the embedded corpus."""
    directory = embedded_corpus_directory(config)
    is_builtin = config.origin((name, "file_pattern")).source == BUILTIN_SOURCE
    return is_builtin and directory is not None and not (directory / _MANIFEST[0]).exists()


def _problems_of(config: Config, name: str, file_pattern: Any) -> Iterator[AmcliError]:
    paths: list[Path] = []
    is_complete = True
    for path, raw in _patterns((name, "file_pattern"), file_pattern):
        origin = config.origin(path)
        try:
            pattern = resolve_env(raw, origin)
        except ConfigError as error:
            yield error
            return
        if not isinstance(pattern, str) or not pattern:
            message = f"{dotted(path)} is {pattern!r}, but it must be a path, a pattern, or a list of them"
            yield ConfigError(message, where=str(origin))
            return
        if _is_wide(pattern):
            is_complete = False
            continue
        try:
            paths += matching_files(Path(pattern))
        except DataError as error:
            yield DataError(f"{dotted(path)} is {pattern}: {error.message}", where=str(origin), help=error.help)
            is_complete = False
        except (OSError, ValueError, NotImplementedError) as error:
            yield DataError(f"{dotted(path)} is {pattern}, which cannot be searched: {error}", where=str(origin))
            return
    vocab_size, where = _vocab_size(config)
    largest = largest_token_id(paths) if is_complete else None
    if vocab_size is not None and largest is not None and largest >= vocab_size:
        yield vocabulary_error(name, largest, vocab_size, where)


def _is_wide(pattern: str) -> bool:
    """Whether searching may go through more directories than a check has time for."""
    wild = [part for part in Path(pattern).parts if any(sign in part for sign in "*?[")]
    return "**" in pattern or len(wild) > _MAX_WILD_PARTS


def _patterns(path: KeyPath, file_pattern: Any) -> Iterator[tuple[KeyPath, Any]]:
    if file_pattern is None:  # that it is missing is said where the arguments are checked
        return
    if isinstance(file_pattern, list):
        yield from (((*path, index), item) for index, item in enumerate(file_pattern))
    else:
        yield path, file_pattern


def _vocab_size(config: Config) -> tuple[int | None, str]:
    """The model's vocabulary where it is a plain number, and where that stands."""
    for path in (("model", "vocab_size"), ("model", "config", "vocab_size")):
        value = config.at(path)
        if type(value) is int:
            return value, str(config.origin(path))
    return None, ""


def largest_token_id(shards: list[Path]) -> int | None:
    """The largest token id in these shards according to their manifest; None where none describes them all."""
    directories = {path.parent for path in shards}
    if len(directories) != 1:
        return None
    records = _records(directories.pop() / _MANIFEST[0])
    try:
        found = [records[path.name] for path in shards]
        # Of another length than its record, a shard was replaced, and the manifest describes other data.
        is_same = all(path.stat().st_size == record["num_bytes"] for path, record in zip(shards, found, strict=True))
        ids = [int(record["max_token_id"]) for record in found]
    except (KeyError, TypeError, ValueError, OSError):
        return None
    return max(ids) if is_same else None


def _records(manifest: Path) -> dict[str, Any]:
    """The record of each shard by name; empty where the file is missing, damaged or of another format."""
    try:
        if not manifest.is_file() or manifest.stat().st_size > _MAX_MANIFEST_BYTES:
            return {}
        raw = json.loads(manifest.read_bytes())
        if (raw["format"], raw["format_version"]) != _MANIFEST[1:]:
            return {}
        return {shard["name"]: shard for split in raw["splits"].values() for shard in split["shards"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
