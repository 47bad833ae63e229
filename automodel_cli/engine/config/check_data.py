"""Whether the data that a configuration names is there, whole, and fits the model and itself, without numpy or torch.

Looks at the sections that are built by our own datasets; what `file_pattern` means to a user's dataset is the user's.
Reads names, sizes, headers and `manifest.json`, never a token. Patterns that go through many directories can take
long, so they are left to the dataset.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from automodel_cli.engine.bounded import parse_json, read_bytes
from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.file_pattern import (
    MEGATRON_SPLITS,
    matching_files,
    megatron_files,
    pattern_parts,
    vocabulary_error,
)
from automodel_cli.engine.config.load import BUILTIN_SOURCE, embedded_corpus_directory
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.settings import Unchecked
from automodel_cli.engine.config.shard_header import megatron_tokens, shard_tokens
from automodel_cli.engine.config.target_sections import validation_sets
from automodel_cli.engine.config.values import resolve_env
from automodel_cli.errors import AmcliError, ConfigError, DataError

OUR_DATASET = "automodel_cli.engine.data.nanogpt_dataset.NanogptDataset"
MEGATRON_DATASET = "automodel_cli.engine.data.megatron_dataset.MegatronPretraining"
TRAINING: KeyPath = ("dataset",)

# As `engine.shards.manifest` writes it; that package lies above this one, and needs numpy.
_MANIFEST = ("manifest.json", "amcli-token-shards")
_MANIFEST_VERSIONS = (1, 2, 3)
_MAX_WILD_PARTS = 2  # data/*/train_*.bin
MAX_SEARCHES = 64  # patterns that are searched for in one configuration; the others are left to the dataset
_MAX_HEADERS = 5_000  # some 50 microseconds each


class _Kind(NamedTuple):
    """One of our datasets: the argument that names its files, what it means, and the tokens of one whole file."""

    key: str
    find: Callable[[Path], list[Path]]
    num_tokens: Callable[[Path], int]


_KINDS = {
    OUR_DATASET: _Kind("file_pattern", matching_files, shard_tokens),
    MEGATRON_DATASET: _Kind("paths", megatron_files, megatron_tokens),
}


@dataclass
class DataCheck:
    """What was found about the data.

    Args:
        problems: What is wrong.
        unchecked: What could not be checked.
        num_checks: Files that were found whole.
        num_tokens: Tokens of each shard of the training data; None if unknown.
    """

    problems: list[AmcliError] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    num_checks: int = 0
    num_tokens: list[int] | None = None


def check_data(config: Config) -> DataCheck:
    """Checks the data of a run, as far as names, sizes and headers show it."""
    found = DataCheck()
    tokenizers: dict[str, tuple[KeyPath, str]] = {}
    for section in (TRAINING, *validation_sets(config).values()):
        values = config.get(dotted(section))
        if not isinstance(values, Mapping) or _will_be_prepared(config, section):
            continue
        target = values.get(TARGET)
        kind = _KINDS.get(resolved(target)) if isinstance(target, str) else None
        if kind is not None:
            found.problems += _problems_of(config, section, kind, found, tokenizers)
        elif isinstance(target, str):
            found.unchecked.append(Unchecked(f"the data of `{dotted(section)}`", f"`{target}` reads it in its own way"))
    if len(tokenizers) > 1:
        (first, name), (second, other), *_ = tokenizers.values()
        message = f"{dotted(second)} was made with the tokenizer {other!r}, but {dotted(first)} with {name!r}"
        found.problems.append(
            DataError(
                f"{message}: the same id means different text",
                where=str(config.origin(second)),
                help="prepare all data of a run with one tokenizer: amcli prep SOURCE --tokenizer NAME",
            )
        )
    return found


def _will_be_prepared(config: Config, section: KeyPath) -> bool:
    """Whether `pretrain` makes these shards itself, from the embedded corpus."""
    directory = embedded_corpus_directory(config)
    is_builtin = config.origin((*section, "file_pattern")).source == BUILTIN_SOURCE
    return is_builtin and directory is not None and not (directory / _MANIFEST[0]).exists()


def _problems_of(
    config: Config, section: KeyPath, kind: _Kind, found: DataCheck, tokenizers: dict[str, tuple[KeyPath, str]]
) -> Iterator[AmcliError]:
    paths: list[Path] = []
    is_complete = True
    key_path = (*section, kind.key)
    try:
        patterns = list(_patterns(key_path, config.get(dotted(key_path))))
    except ConfigError as error:
        yield ConfigError(f"{dotted(key_path)}: {error.message}", where=str(config.origin(key_path)), help=error.help)
        return
    for number, (path, raw) in enumerate(patterns):
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
        if _is_wide(pattern) or number >= MAX_SEARCHES:
            is_complete = False
            continue
        try:
            files = kind.find(Path(pattern))
            for directory in {file.parent for file in files}:
                tokenizer = _manifest_in(directory).get("tokenizer")
                if isinstance(tokenizer, Mapping) and isinstance(tokenizer.get("sha256"), str):
                    tokenizers.setdefault(tokenizer["sha256"], (path, str(tokenizer.get("name"))))
            paths += files
        except DataError as error:
            yield DataError(f"{dotted(path)} is {pattern}: {error.message}", where=str(origin), help=error.help)
            is_complete = False
        except (OSError, ValueError, NotImplementedError) as error:
            yield DataError(f"{dotted(path)} is {pattern}, which cannot be searched: {error}", where=str(origin))
            return
    num_tokens: list[int] = []
    for file in paths[:_MAX_HEADERS]:
        try:
            num_tokens.append(kind.num_tokens(file))
            found.num_checks += 1
        except DataError as error:
            message = f"{dotted(key_path)}: {file}: {error.message}"
            yield DataError(message, where=str(config.origin(key_path)), help=error.help)
            return
    if not is_complete or len(paths) > _MAX_HEADERS:
        reason = f"more than {_MAX_HEADERS:,} files, or a pattern through many directories"
        found.unchecked.append(Unchecked(f"all files of `{dotted(key_path)}`", reason))
    elif section == TRAINING and kind is _KINDS[OUR_DATASET]:
        found.num_tokens = num_tokens
    vocab_size, where = _vocab_size(config)
    largest = largest_token_id(paths) if is_complete else None
    if vocab_size is not None and largest is not None and largest >= vocab_size:
        yield vocabulary_error(dotted(section), largest, vocab_size, where)


def _is_wide(pattern: str) -> bool:
    """Whether searching may go through more directories than a check has time for."""
    wild = [part for part in Path(pattern).parts if any(sign in part for sign in "*?[")]
    return "**" in pattern or len(wild) > _MAX_WILD_PARTS


def _patterns(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    """The place of each pattern, and the pattern; those of all splits in a mapping by split."""
    if value is None:  # that it is missing is said where the arguments are checked
        return
    if isinstance(value, Mapping) and not set(value) - MEGATRON_SPLITS:
        for split, patterns in value.items():
            yield from _patterns((*path, split), patterns)
    else:
        yield from (((*path, *part.key), part.pattern) for part in pattern_parts(value))


def _vocab_size(config: Config) -> tuple[int | None, str]:
    """The model's vocabulary where it is a plain number, and where that stands."""
    for path in (("model", "vocab_size"), ("model", "config", "vocab_size")):
        value = config.at(path)
        if type(value) is int:
            return value, str(config.origin(path))
    return None, ""


def largest_token_id(shards: list[Path]) -> int | None:
    """The largest token id in these shards as far as manifests tell; None where none of them is described.

    Args:
        shards: In one directory or several; a manifest counts if it describes all that are in its directory.
    """
    directories = dict.fromkeys(path.parent for path in shards)
    found = [_largest_in(directory, [path for path in shards if path.parent == directory]) for directory in directories]
    return max((largest for largest in found if largest is not None), default=None)


def _largest_in(directory: Path, shards: list[Path]) -> int | None:
    records = _records(directory / _MANIFEST[0])
    try:
        found = [records[path.name] for path in shards]
        # A shard whose length differs from its record was replaced: the manifest describes other data.
        is_same = all(path.stat().st_size == record["num_bytes"] for path, record in zip(shards, found, strict=True))
        ids = [int(record["max_token_id"]) for record in found]
    except (KeyError, TypeError, ValueError, OSError):
        return None
    return max(ids) if is_same else None


def training_tokens(config: Config) -> int | None:
    """Tokens of the section `dataset`; None where no manifest describes all of its shards, or a blend weighs them.

    Args:
        config: With environment variables put in.
    """
    pattern = config.get("dataset.file_pattern")
    target = config.get(f"dataset.{TARGET}")
    if not isinstance(target, str) or resolved(target) != OUR_DATASET:
        return None
    try:
        parts = pattern_parts(pattern)
        if any(part.weight is not None or _is_wide(str(part.pattern)) for part in parts[:MAX_SEARCHES]):
            return None
        shards = {path for part in parts[:MAX_SEARCHES] for path in matching_files(Path(part.pattern))}
        records = {directory: _records(directory / _MANIFEST[0]) for directory in {path.parent for path in shards}}
        found = [records[path.parent][path.name] for path in shards]
        is_same = all(path.stat().st_size == record["num_bytes"] for path, record in zip(shards, found, strict=True))
        return sum(int(record["num_tokens"]) for record in found) if is_same else None
    except (AmcliError, KeyError, TypeError, ValueError, OSError, NotImplementedError):
        return None


def _records(manifest: Path) -> dict[str, Any]:
    """The record of each shard by name; empty where the file is missing, damaged or of another format."""
    try:
        splits = _manifest_in(manifest.parent)["splits"]
        return {shard["name"]: shard for split in splits.values() for shard in split["shards"]}
    except (KeyError, TypeError, AttributeError):
        return {}


@functools.lru_cache(maxsize=8)
def _manifest_of(manifest: Path, _changed_ns: int) -> dict[str, Any]:
    raw = parse_json(read_bytes(manifest), allow_surrogates=True)
    is_ours = raw["format"] == _MANIFEST[1] and raw["format_version"] in _MANIFEST_VERSIONS
    return dict(raw) if is_ours else {}


def _manifest_in(directory: Path) -> dict[str, Any]:
    """What `manifest.json` says; empty where the file is missing, damaged or of another format."""
    manifest = directory / _MANIFEST[0]
    try:
        return _manifest_of(manifest.resolve(), manifest.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
