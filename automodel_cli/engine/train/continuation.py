"""How a run goes on: which checkpoint, which configuration, what has changed. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.engine.checkpoint.layout import resolve
from automodel_cli.engine.config.check import Settings, checked, with_defaults
from automodel_cli.engine.config.config import Config, apply_overrides, read_configs
from automodel_cli.engine.config.diff import Change, differences


@dataclass(frozen=True)
class Continuation:
    """A checkpoint and the configuration to go on with.

    Args:
        directory: The checkpoint that will be read first.
        root: Where the run goes on saving: around the checkpoint, or where `checkpoint_dir` now points.
        named: Whether the user named this very checkpoint; then no other stands in for it.
        changes: Keys that differ from the configuration in the checkpoint.
    """

    directory: Path
    root: Path
    named: bool
    config: Config
    settings: Settings
    changes: list[Change]


def plan_resume(path: Path | None, config_paths: Sequence[Path] | None, overrides: Sequence[str]) -> Continuation:
    """Finds the checkpoint and checks the configuration, before anything heavy is imported.

    Args:
        path: A checkpoint, a run's directory, or None for `checkpoints/LATEST`.
        config_paths: The run's own YAML files; without them the checkpoint's configuration is used.
        overrides: `key=value` assignments over either.

    Raises:
        CheckpointError: There is no checkpoint.
        ConfigError: The configuration is not sound.
    """
    directory = resolve(path)
    saved = with_defaults(read_configs([directory]))
    base = read_configs(config_paths) if config_paths else saved
    config = with_defaults(apply_overrides(base, overrides))
    named = path is not None and path.resolve() == directory.resolve() and not path.is_symlink()
    settings = checked(config)
    changes = differences(saved, config)
    moved = any(change.key == "checkpoint.checkpoint_dir" for change in changes)
    # The saved checkpoint_dir may be relative to another working directory, so it counts only if changed.
    root = Path(settings.checkpoint.checkpoint_dir) if moved else directory.parent
    return Continuation(directory, root, named, config, settings, changes)
