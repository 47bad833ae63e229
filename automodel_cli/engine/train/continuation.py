"""The plan of a resumed run: which checkpoint, which configuration, what has changed; and whether it can be resumed.

`can_resume` answers as `amcli resume` would, by the same rules, and changes nothing. Only a start can show whether
there is enough memory, and whether a user's own dataset is the same. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from automodel_cli.engine.checkpoint.layout import (
    CONFIG_FILE,
    LATEST,
    TRAIN_STATE_FILE,
    is_checkpoint,
    is_complete,
    is_weights_only,
    later_steps,
    list_steps,
    resolve,
    step_of,
)
from automodel_cli.engine.checkpoint.manifest import NewerFormatError, examine, read_manifest, sha256_of, use_earlier
from automodel_cli.engine.checkpoint.tensor_index import json_object
from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import TARGET, Config, apply_overrides, read_configs
from automodel_cli.engine.config.emit import Change, differences
from automodel_cli.engine.config.instantiate import instantiate
from automodel_cli.engine.config.load import apply_unsets, with_defaults
from automodel_cli.engine.config.sections import AUTO
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.data.packed_dataset import pack_documents
from automodel_cli.engine.optim.lr_schedule import change_after, schedule_of
from automodel_cli.engine.train.resume_rules import check_changes, order_key_of
from automodel_cli.errors import AmcliError, CheckpointError

# Where a run is restored from has no influence on how it trains.
_REQUEST = "checkpoint.restore_from"
# With `auto` the saved number stays, or the run reports why it does not.
_LOCAL_BATCH = "step_scheduler.local_batch_size"


@dataclass(frozen=True)
class Continuation:
    """A checkpoint and the configurations so far and from here on.

    Args:
        directory: The checkpoint that will be read first.
        root: Where the resumed run saves: beside the checkpoint, or where `checkpoint_dir` now points.
        named: Whether the user named this very checkpoint; then no other replaces it.
        changes: Keys that differ from the configuration in the checkpoint.
        saved: The configuration in the checkpoint.
        consented: Keys that the user lets change, although the run is then another one.
    """

    directory: Path
    root: Path
    named: bool
    config: Config
    settings: Settings
    changes: list[Change]
    saved: Config
    consented: tuple[str, ...] = ()

    def schedule_change(self, step: int) -> str | None:
        """One line on how the learning rate after `step` differs from the saved plan; None if it does not."""
        try:
            before = schedule_of(self.saved, checked(self.saved))
        except AmcliError:
            return None  # of another version, or its data has moved: the saved plan is not known
        after = schedule_of(self.config, self.settings)
        return change_after(step, before, after, self.settings.step_scheduler.max_steps)


def plan_resume(
    path: Path | None,
    config_paths: Sequence[Path] | None,
    overrides: Sequence[str],
    unset: Sequence[str] = (),
    consented: Sequence[str] = (),
    *,
    trust: bool = False,
) -> Continuation:
    """Finds the checkpoint and checks the configuration, before anything heavy is imported.

    Args:
        path: A checkpoint, a run's directory, or None for `checkpoints/LATEST`.
        config_paths: The run's own YAML files; without them the checkpoint's configuration is used.
        overrides: `key=value` assignments over either.
        unset: Keys taken out after that.
        consented: Keys of `resume_rules.py` that may change.
        trust: Whether the user consents to run the code that the checkpoint's own configuration names.

    Raises:
        CheckpointError: There is no checkpoint, or something changed that needs consent.
        ConfigError: The configuration is not sound.
    """
    directory = resolve(path)
    named = _is_named(path)
    saved = with_defaults(_saved_config(directory, named, trust))
    base = read_configs(config_paths, trust=trust) if config_paths else saved
    config = with_defaults(apply_unsets(apply_overrides(base, overrides), unset))
    settings = checked(config)
    changes = _changes(saved, config, consented)
    moved = any(change.key == "checkpoint.checkpoint_dir" for change in changes)
    # The saved checkpoint_dir may be relative to another working directory, so it counts only if changed.
    root = Path(settings.checkpoint.checkpoint_dir) if moved else directory.parent
    return Continuation(directory, root, named, config, settings, changes, saved, tuple(consented))


def plan_restore(
    config: Config, settings: Settings, consented: Sequence[str] = (), *, trust: bool = False
) -> Continuation | None:
    """The plan of `checkpoint.restore_from`: that checkpoint, this configuration, this `checkpoint_dir`.

    A number, a name such as `step_000200`, `LATEST` and `BEST` mean one in `checkpoint_dir`; anything else is a path,
    as `amcli resume` takes it.

    Args:
        config: The final configuration.
        settings: The same, checked; `checkpoint.restore_from` is set.
        consented: Keys of `resume_rules.py` that may change.
        trust: Whether the user consents to run the code that the checkpoint's own configuration names.

    Returns:
        None for `LATEST` where `checkpoint_dir` is still empty: then the run is a new one.

    Raises:
        CheckpointError: There is no such checkpoint, the directory holds another run, or something changed that
            needs consent.
    """
    root, wanted = Path(settings.checkpoint.checkpoint_dir), str(settings.checkpoint.restore_from)
    if wanted == LATEST and not any(is_complete(path) for _, path in list_steps(root)):
        return None
    path = Path(wanted).expanduser()
    if path.name == wanted and (wanted == LATEST or not path.exists()):
        path = root / wanted if not wanted.isdecimal() else path
    directory = resolve(path, root)
    _check_room(root, directory)
    named = _is_named(path)
    saved = with_defaults(_saved_config(directory, named, trust))
    changes = _changes(saved, config, consented)
    return Continuation(directory, root, named, config, settings, changes, saved, tuple(consented))


def _is_named(path: Path | None) -> bool:
    """Whether a path means one checkpoint, rather than the newest of a run."""
    return path is not None and path.name != LATEST and (not path.is_dir() or is_checkpoint(path))


def _changes(saved: Config, config: Config, consented: Sequence[str]) -> list[Change]:
    changes = [
        change
        for change in differences(saved, config.masked())
        if change.key != _REQUEST and (change.key, change.new) != (_LOCAL_BATCH, AUTO)
    ]
    check_changes(changes, consented)
    return changes


def _check_room(root: Path, directory: Path) -> None:
    """Refuses to mix the checkpoints, `BEST` and metrics of two runs in one directory."""
    there = [path.name for _, path in list_steps(root) if is_complete(path)]
    if there and directory.parent.resolve() != root.resolve():
        raise CheckpointError(
            f"there is a run here already, up to {there[-1]}, and {directory} is not part of it",
            where=str(root),
            help="--resume auto continues the run that is here;\n"
            f"        --set checkpoint.checkpoint_dir=DIR continues {directory.name} beside it",
        )


def _saved_config(directory: Path, named: bool, trust: bool) -> Config:
    """The configuration of a checkpoint; of one before it where it is damaged and was not asked for by name.

    Weights are verified, and broken checkpoints set aside, later, when the checkpoint is opened with torch.
    """
    step = step_of(directory.name)
    earlier = [] if named or step is None else [path for found, path in list_steps(directory.parent) if found < step]
    for candidate in (directory, *reversed(earlier)):
        try:
            return _config_as_saved(candidate, trust)
        except NewerFormatError:
            raise
        except (CheckpointError, OSError):
            continue
    # None is sound: raise the error of the newest.
    return _config_as_saved(directory, trust)


def _config_as_saved(directory: Path, trust: bool) -> Config:
    """The `config.yaml` of a checkpoint, after comparing its bytes with the manifest."""
    record = read_manifest(directory).files.get(CONFIG_FILE)
    path = directory / CONFIG_FILE
    is_plain = record is not None and path.is_file() and not path.is_symlink()
    # The size first: a file of terabytes would be read to its end.
    if record is None or not is_plain or path.stat().st_size != record.num_bytes or sha256_of(path) != record.sha256:
        raise CheckpointError(
            "the configuration in this checkpoint is missing or not as it was saved",
            where=str(path),
            help=use_earlier(directory),
        )
    return read_configs([directory], trust=trust)


@dataclass(frozen=True)
class ResumeAnswer:
    """The answer.

    Args:
        path: The checkpoint.
        changes: Each `key: old -> new` that may change freely, and the change of the learning rate.
        reasons: Why not; empty for yes.
    """

    path: str
    world_size: int
    changes: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """`yes`, `yes, but` something changes, or `no`."""
        return "no" if self.reasons else "yes, but" if self.changes else "yes"

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        return {"verdict": self.verdict, **asdict(self)}


def can_resume(
    path: Path | None, config_paths: Sequence[Path] | None, world_size: int | None = None, *, verify: bool = False
) -> ResumeAnswer:
    """Applies the rules of `amcli resume`.

    Args:
        path: A checkpoint, a run's directory, or None for `checkpoints/LATEST`.
        config_paths: The configuration to resume with; without it, the checkpoint's own.
        world_size: Number of ranks; None for the number that saved the checkpoint.
        verify: Also compare every byte of the checkpoint with its manifest, as resuming does.

    Raises:
        CheckpointError: There is no checkpoint to ask about.
    """
    directory = resolve(path)
    broken = examine(directory, hashes=verify).broken
    if broken:
        return ResumeAnswer(str(directory), world_size or 1, (), tuple(broken))
    manifest = read_manifest(directory)
    saved_ranks = int(manifest.facts.get("ranks") or 1)
    ranks = saved_ranks if world_size is None else world_size
    if is_weights_only(manifest):
        return ResumeAnswer(
            str(directory), ranks, (), ("it holds weights only, and nothing that a run could go on from",)
        )
    try:
        plan = plan_resume(path, config_paths, ())
        checked(plan.config, ranks)
    except AmcliError as error:
        return ResumeAnswer(str(directory), ranks, (), tuple(str(one) for one in error.problems or (error,)))
    changes = [str(change) for change in plan.changes]
    step = step_of(directory.name)
    if plan.changes and step is not None and (schedule := plan.schedule_change(step)) is not None:
        changes.append(schedule)
    if ranks != saved_ranks:
        changes.append(f"ranks: {saved_ranks} -> {ranks}")
    later = later_steps(plan.root, manifest.step)
    reasons = [f"the run went on after step {manifest.step}, up to {later[-1].name}"] if later else []
    if (other_data := _other_data(plan)) is not None:
        reasons.append(other_data)
    return ResumeAnswer(str(directory), ranks, tuple(changes), tuple(reasons))


def _other_data(plan: Continuation) -> str | None:
    """What is wrong with the data of the configuration, or how they differ from the run's; None for nothing."""
    if not resolved(str(plan.config.get(f"dataset.{TARGET}"))).startswith("automodel_cli."):
        return None  # building it would run the user's code, which only a start may do
    state = json_object(plan.directory / TRAIN_STATE_FILE)
    settings = plan.settings
    seed = settings.general.seed
    try:
        dataset = instantiate(plan.config, "dataset", {"seed": seed, "dp_rank": 0, "dp_world_size": 1})
        if settings.packed_sequence.packed_sequence_size:
            dataset = pack_documents(dataset, settings.packed_sequence.packed_sequence_size)
        order_key_of(dataset, seed, str(state.get("order_key", "")))
    except AmcliError as error:
        return str(error)
    return None
