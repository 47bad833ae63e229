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
    """What source does not tell of one target.

    Args:
        what: Names it, in words that follow "not checked: ".
        why: The reason.
        path: Of the section whose keywords importing the target would show; None where that would not help.
    """

    what: str
    why: str
    path: KeyPath | None = None


@dataclass(frozen=True)
class Settings:
    """The sections of amcli itself, typed; what has a `_target_` stays in the `Config`.

    Args:
        notes: For the user: what stands in for what, whose code runs, what has no effect or another than it seems.
        num_checks: Values, keywords and files that were looked at, and found sound.
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
