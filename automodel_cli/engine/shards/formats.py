"""The formats that preparation writes, by the name that users give them."""

from __future__ import annotations

from automodel_cli.engine.shards.legacy_writer import LegacyWriter
from automodel_cli.engine.shards.megatron_writer import MegatronWriter
from automodel_cli.engine.shards.writer import ShardWriter

DEFAULT_FORMAT = "bin"
WRITERS: dict[str, type[ShardWriter]] = {
    DEFAULT_FORMAT: ShardWriter,
    "legacy": LegacyWriter,
    "megatron": MegatronWriter,
}
