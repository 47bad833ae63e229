"""What a checked configuration gives to the rest of amcli."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from automodel_cli.engine.config.origin import KeyPath
from automodel_cli.engine.config.sections import (
    ActivationCheckpointingSection,
    CheckpointSection,
    ClipGradNormSection,
    CompileSection,
    DataloaderSection,
    DistEnvSection,
    DistributedSection,
    General,
    LRSchedulerSection,
    MfuSection,
    PackedSequenceSection,
    StepSchedulerSection,
    TensorboardSection,
    WandbSection,
)

# Reports a problem: the dotted key at which it stands, what is wrong, what would work.
Refuse = Callable[[str, str, str | None], None]


@dataclass(frozen=True)
class Unchecked:
    """Something that source does not show, with the reason.

    Args:
        what: Names it, in words that follow "not checked: ".
        why: The reason.
        path: The section whose keywords could be checked by importing the target; None if they could not.
    """

    what: str
    why: str
    path: KeyPath | None = None


@dataclass(frozen=True)
class Settings:
    """The sections of amcli itself, typed; what has a `_target_` stays in the `Config`.

    Args:
        notes: For the user: replaced names, code that runs, settings that have no effect or a surprising one.
        num_checks: Number of values, keywords and files that passed.
        unchecked: What could not be checked without running code, for `check_for_certain`.
    """

    general: General
    step_scheduler: StepSchedulerSection
    lr_scheduler: LRSchedulerSection
    clip_grad_norm: ClipGradNormSection
    dataloader: DataloaderSection
    compile: CompileSection
    activation_checkpointing: ActivationCheckpointingSection
    checkpoint: CheckpointSection
    distributed: DistributedSection
    dist_env: DistEnvSection
    packed_sequence: PackedSequenceSection
    wandb: WandbSection
    tensorboard: TensorboardSection
    mfu: MfuSection
    notes: tuple[str, ...] = ()
    num_checks: int = 0
    unchecked: tuple[Unchecked, ...] = ()
