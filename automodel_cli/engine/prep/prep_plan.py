"""What one preparation will do: options resolved against the source's defaults and the tokenizer."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from automodel_cli import __version__
from automodel_cli.engine.prep.corpus.corpus import Corpus
from automodel_cli.engine.prep.corpus.files import stem_of
from automodel_cli.engine.prep.corpus.open_source import open_source
from automodel_cli.engine.prep.corpus.own_source import names_code
from automodel_cli.engine.prep.framing import Framing
from automodel_cli.engine.prep.hold_out import HoldOut
from automodel_cli.engine.prep.load_tokenizer import load_tokenizer
from automodel_cli.engine.prep.prep_options import OverLength, PrepOptions
from automodel_cli.engine.prep.presets import LOCAL_FILES, PRESETS, Preset
from automodel_cli.engine.prep.tokenizer import Tokenizer
from automodel_cli.engine.shards.formats import FORMATS
from automodel_cli.engine.shards.manifest import DataManifest, TokenizerRecord
from automodel_cli.engine.shards.tokens import token_dtype
from automodel_cli.errors import UsageError

# Signs of a glob pattern, which in the name of a directory would make a pattern of the shards' names.
_PATTERN = re.compile(r"[*?\[\]]+")


@dataclass(frozen=True)
class Plan:
    """Everything that decides about the result.

    Attributes:
        source: What is read: the part, if only one is prepared.
        tokenizer: Text to ids.
        framing: Ids to documents.
        hold_out: Documents to splits.
        manifest: What will be written last, without its splits.
    """

    options: PrepOptions
    directory: Path
    source: Corpus
    tokenizer: Tokenizer
    framing: Framing
    hold_out: HoldOut
    manifest: DataManifest


def make_plan(options: PrepOptions, revision: str | None = None) -> Plan:
    """Resolve the options.

    Args:
        options: What the user asks for.
        revision: Version of the source that lies in the directory already, finished or not; see
            `SourceOptions.pinned_revision`.

    Raises:
        UsageError: An option is out of range, or contradicts the tokenizer or the source.
        DataError: The tokenizer or the source cannot be loaded.
    """
    options.check()
    reading = replace(options.reading, pinned_revision=revision)
    source = open_source(reading)
    if options.partition is not None:
        source = source.partition(options.partition.index, options.partition.count)
    preset = preset_of(options)
    tokenizer = load_tokenizer(options.tokenizer or preset.tokenizer)
    framing = _framing(options, tokenizer)
    directory = output_directory(options)
    if options.format not in FORMATS:
        raise UsageError(f"--format is {options.format!r}, but must be one of {', '.join(FORMATS)}")
    FORMATS[options.format].stored_dtype(framing.dtype, framing.bos_id)
    totals = HoldOut(
        preset.val_share,
        options.val_tokens,
        preset.max_tokens if options.max_tokens is None else options.max_tokens,
    )
    manifest = DataManifest(
        source=source.record,
        tokenizer=TokenizerRecord(
            tokenizer.name, tokenizer.vocab_size, framing.bos_id, tokenizer.sha256, framing.eos_id
        ),
        settings=_settings(options, totals),
        splits={},
        amcli_version=__version__,
        versions={"python": platform.python_version()},
    )
    return Plan(options, directory, source, tokenizer, framing, _hold_out(options, totals), manifest)


def preset_of(options: PrepOptions) -> Preset:
    """The preset that is read, with its defaults; what is none has those of files."""
    sources = options.reading.sources
    return PRESETS.get(sources[0], LOCAL_FILES) if len(sources) == 1 else LOCAL_FILES


def output_directory(options: PrepOptions) -> Path:
    """Where the shards of these options go; each part of a source has a directory of its own."""
    directory = options.output_dir or default_output_dir(options)
    if options.partition is None:
        return directory
    return directory / f"part-{options.partition.index:05d}-of-{options.partition.count:05d}"


def default_output_dir(options: PrepOptions) -> Path:
    """Where a source goes when the user names no directory.

    >>> [default_output_dir(PrepOptions(source)).as_posix() for source in ("my/v1.5.jsonl.gz", "a-*.csv", "b/c.py:d")]
    ['data/v1.5', 'data/a', 'data/c-d']
    """
    reading = options.reading
    if reading.dataset is not None:
        return Path("data") / reading.dataset.split("/")[-1]
    name = reading.sources[0] if reading.sources else "text"
    if names_code(name):
        name = Path(name).name.replace(".py:", "-").replace(":", "-")
    elif name not in PRESETS:
        name = _PATTERN.sub("_", stem_of(Path(name).name)).strip("._-") or "text"
    return Path("data") / name


def _framing(options: PrepOptions, tokenizer: Tokenizer) -> Framing:
    bos_id = _bos_id(options, tokenizer)
    if options.eos and tokenizer.eos_id is None:
        raise UsageError(
            f"--eos needs an end-of-text token, but the tokenizer {tokenizer.name!r} has none",
            help="leave --eos out: the BOS token of the next document ends this one",
        )
    framing = Framing(
        dtype=token_dtype(tokenizer.vocab_size),
        vocab_size=tokenizer.vocab_size,
        bos_id=bos_id,
        eos_id=tokenizer.eos_id if options.eos else None,
        max_length=options.max_length,
        split=options.over_length is OverLength.SPLIT,
    )
    if options.max_length is not None and options.max_length <= framing.num_boundary_tokens:
        raise UsageError(
            f"--max-length is {options.max_length}, which leaves no room for text beside "
            f"{framing.num_boundary_tokens} boundary tokens"
        )
    return framing


def _bos_id(options: PrepOptions, tokenizer: Tokenizer) -> int | None:
    if not options.bos:
        if options.bos_token is not None:
            raise UsageError("--no-bos and --bos-token contradict each other")
        return None
    if options.bos_token is not None:
        bos_id = tokenizer.token_id(options.bos_token)
        if bos_id is None:
            raise UsageError(f"--bos-token {options.bos_token!r} is no entry of the tokenizer {tokenizer.name!r}")
        return bos_id
    if tokenizer.bos_id is None:
        raise UsageError(
            f"the tokenizer {tokenizer.name!r} has no BOS token, with which each document begins",
            help="--bos-token TOKEN uses another entry of its vocabulary, such as its end-of-text token; "
            "--no-bos puts nothing between documents",
        )
    return tokenizer.bos_id


def _hold_out(options: PrepOptions, totals: HoldOut) -> HoldOut:
    """The rule for what is prepared here: a part has its share of the tokens."""
    part = options.partition
    if part is None:
        return totals
    max_tokens, val_tokens = (
        None if tokens is None else part.share(tokens) for tokens in (totals.max_tokens, totals.val_tokens)
    )
    if max_tokens == 0:
        raise UsageError(f"--max-tokens leaves nothing for part {part}", help="make fewer parts")
    return HoldOut(totals.share, val_tokens, max_tokens)


def _settings(options: PrepOptions, totals: HoldOut) -> dict[str, Any]:
    reading = options.reading
    return {
        # Those of the whole source, so that all of its parts have the same settings.
        "max_tokens": totals.max_tokens,
        "val_tokens": totals.val_tokens,
        "val_share": totals.share,
        "shard_tokens": options.shard_tokens,
        "format": options.format,
        "text_column": reading.text_column or "text",
        "text_documents": None if reading.text_documents is None else str(reading.text_documents),
        "max_document_bytes": reading.max_document_bytes,
        "bos": options.bos,
        "bos_token": options.bos_token,
        "eos": options.eos,
        "max_length": options.max_length,
        "over_length": None if options.max_length is None else str(options.over_length),
        "shuffle_buffer": options.shuffle_buffer if options.shuffle_buffer > 1 else 0,
        "seed": options.seed if options.shuffle_buffer > 1 else None,
        "partition": None if options.partition is None else str(options.partition),
    }
