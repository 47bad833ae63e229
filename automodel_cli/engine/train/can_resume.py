"""Whether a run can be resumed from a checkpoint with a configuration and a number of ranks. Torch-free.

Answers as `amcli resume` would, by the same rules, and changes nothing. Only a start can show whether there is enough
memory, and whether a user's own dataset is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from automodel_cli.engine.checkpoint.layout import TRAIN_STATE_FILE, is_weights_only, later_steps, resolve, step_of
from automodel_cli.engine.checkpoint.manifest import examine, read_manifest
from automodel_cli.engine.checkpoint.tensor_index import json_object
from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import TARGET
from automodel_cli.engine.config.instantiate import instantiate
from automodel_cli.engine.data.packed_dataset import pack_documents
from automodel_cli.engine.train.continuation import Continuation, plan_resume
from automodel_cli.engine.train.resume_rules import order_key_of
from automodel_cli.errors import AmcliError


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
