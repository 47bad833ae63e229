"""The table of token formats, by the name that `prep --format` gives them. A new format gets its line here."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.engine.shards.megatron import MegatronFormat
from automodel_cli.engine.shards.shard_format import LegacyFormat, ShardFormat
from automodel_cli.engine.shards.tokens import ShardInfo

DEFAULT_FORMAT = ShardFormat.name
FORMATS: dict[str, ShardFormat] = {
    ShardFormat.name: ShardFormat(),
    LegacyFormat.name: LegacyFormat(),
    MegatronFormat.name: MegatronFormat(),
}


def format_of(info: ShardInfo) -> ShardFormat:
    """The format of a file that was read."""
    return FORMATS[info.format]


def read_shard(path: Path, dataset: str | None = None) -> ShardInfo:
    """The header of a file of any format, checked against the size of the file.

    Args:
        path: The file.
        dataset: Only formats that this class trains on.

    Raises:
        DataError: The file cannot be read, is of no known format, or does not match its header.
    """
    allowed = (known for known in FORMATS.values() if dataset in (None, known.dataset))
    return next((known for known in allowed if known.claims(path)), FORMATS[DEFAULT_FORMAT]).read(path)
