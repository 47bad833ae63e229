"""The configuration that `amcli pretrain` uses when none is named."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.engine.config.config import Config, from_parsed
from automodel_cli.engine.config.yaml_reader import parse_yaml

BUILTIN_PATH = Path(__file__).parent / "quickstart.yaml"
BUILTIN_SOURCE = "built-in quickstart.yaml"


def builtin_config() -> Config:
    """A small GPT-2 on the embedded corpus; the same text as `examples/quickstart.yaml`."""
    return from_parsed(parse_yaml(BUILTIN_PATH.read_text(encoding="utf-8"), source=BUILTIN_SOURCE, kind="file"))


def embedded_corpus_directory(config: Config) -> Path | None:
    """Where `pretrain` puts the embedded text if it is not there yet; None for a configuration with data of its own."""
    pattern = config.get("dataset.file_pattern")
    is_builtin = config.origin(("dataset", "file_pattern")).source == BUILTIN_SOURCE
    return Path(pattern).parent if is_builtin and isinstance(pattern, str) else None
