"""How ranks are divided into data-, context- and tensor-parallel groups, and the rules of that.

`check_layout` refuses what does not fit the ranks, the batch or the model, and what amcli cannot do yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from automodel_cli.engine.config.aliases import STRATEGIES
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.config.settings import Refuse, Settings


@dataclass(frozen=True)
class Degrees:
    """The sizes of the four dimensions of a run's ranks, outermost first.

    Args:
        dp_replicate: Groups that each hold the whole model.
        dp_shard: Ranks that one copy of the model is sharded over.
        cp: Ranks that share a sample, each with a part of the sequence.
        tp: Ranks that share a layer, each with a part of its matrices.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def dp(self) -> int:
        """Ranks that read different samples."""
        return self.dp_replicate * self.dp_shard

    @property
    def world(self) -> int:
        """All ranks."""
        return self.dp * self.cp * self.tp


def degrees_of(section: DistributedSection, world_size: int) -> Degrees:
    """The degrees of a section that `check_layout` has passed for this number of ranks.

    DDP is the layout in which every data-parallel rank holds the whole model.
    """
    dp = section.dp_size or world_size // (section.tp_size * section.cp_size)
    replicate = dp if section.chosen_strategy() == "ddp" else section.dp_replicate_size or 1
    return Degrees(replicate, dp // replicate, section.cp_size, section.tp_size)


def is_sharded(section: DistributedSection, degrees: Degrees) -> bool:
    """Whether a rank holds a part of the model only."""
    return degrees.tp > 1 or (section.chosen_strategy() != "ddp" and degrees.dp_shard * degrees.cp > 1)


def filled_batch(local_batch_size: int, global_batch_size: int, dp_size: int) -> int:
    """Samples of a forward pass: the smaller of what is allowed and what a rank has of a step.

    >>> filled_batch(16, 16, 2)
    8
    """
    return min(local_batch_size, max(1, global_batch_size // dp_size))


def divisors(number: int) -> list[int]:
    """All divisors, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [n for n in range(1, number + 1) if number % n == 0]


def check_layout(config: Config, settings: Settings, world_size: int | None, refuse: Refuse) -> None:
    """Refuses degrees that do not divide what they split, and a second place for the precision.

    Args:
        config: For the numbers of the model and the dataset, where they stand in it.
        settings: The typed sections.
        world_size: Ranks of the run; None if unknown, and then only rules for any number of ranks are checked.
        refuse: Takes the problems.
    """
    _check_strategy(settings, refuse)
    if _divides_the_world(settings, world_size, refuse):
        _check_batch(settings, world_size, refuse)
    _check_model(config, settings, refuse)
    if settings.general.precision == "fp8" and settings.distributed.tp_size > 1:
        refuse(
            "precision",
            f"precision is fp8, but distributed.tp_size is {settings.distributed.tp_size}: layers that multiply in 8 "
            "bits are not split over tensor-parallel ranks",
            "set distributed.tp_size to 1, or precision to bf16",
        )
    precision = {"float32": "fp32", "bfloat16": "bf16"}.get(settings.distributed.dtype or "")
    if precision is not None and settings.general.precision != precision:
        refuse(
            "distributed.dtype",
            f"distributed.dtype is {settings.distributed.dtype}, but the precision of amcli is set at the top level, "
            f"where it is {settings.general.precision}",
            f"write `precision: {precision}` there",
        )


def _check_strategy(settings: Settings, refuse: Refuse) -> None:
    section = settings.distributed
    by_manager = STRATEGIES.get(section._target_ or "")
    if section.strategy and by_manager and section.strategy != by_manager:
        refuse(
            "distributed.strategy",
            f"distributed.strategy is {section.strategy}, but distributed._target_ is the manager of {by_manager}",
            "keep one of the two",
        )
    if section.pp_size != 1:
        refuse(
            "distributed.pp_size",
            f"distributed.pp_size is {section.pp_size}, but amcli has no pipeline parallelism",
            "set it to 1; fsdp2 and tp_size split a model that is too large for one device",
        )
    if section.chosen_strategy() == "ddp" and (
        section.dp_replicate_size or section.mp_policy or section.offload_policy
    ):
        name = next(
            name for name in ("dp_replicate_size", "mp_policy", "offload_policy") if getattr(section, name) is not None
        )
        refuse(
            f"distributed.{name}",
            f"distributed.{name} is {getattr(section, name)}, but with ddp every rank holds the whole model",
            "leave it out, or take strategy fsdp2",
        )


def _divides_the_world(settings: Settings, world_size: int | None, refuse: Refuse) -> bool:
    """Checks the degrees against the ranks; True if they fit, or the number of ranks is unknown."""
    section = settings.distributed
    ranks_per_model = section.tp_size * section.cp_size
    if section.dp_size and section.dp_replicate_size and section.dp_size % section.dp_replicate_size:
        return _refuse_replicas(section.dp_replicate_size, section.dp_size, refuse)
    if world_size is None:
        return True
    ranks = f"{world_size} rank{'' if world_size == 1 else 's'}"
    if world_size % ranks_per_model:
        name, other = ("tp_size", "cp_size") if section.tp_size > 1 else ("cp_size", "tp_size")
        free = world_size // getattr(section, other) if world_size % getattr(section, other) == 0 else world_size
        works = ", ".join(map(str, divisors(free)))
        refuse(
            f"distributed.{name}",
            f"distributed.tp_size x cp_size = {section.tp_size} x {section.cp_size} = {ranks_per_model}, "
            f"but the run has {ranks}, which is no multiple of it",
            f"`--nproc-per-node {ranks_per_model}` starts {ranks_per_model} of them, or set {name} to {works}",
        )
        return False
    dp_size = world_size // ranks_per_model
    if section.dp_size is not None and section.dp_size != dp_size:
        needed = section.dp_size * ranks_per_model
        refuse(
            "distributed.dp_size",
            f"distributed.dp_size x tp_size x cp_size = {section.dp_size} x {section.tp_size} x {section.cp_size} "
            f"= {needed}, but the run has {ranks}",
            f"set dp_size to {dp_size}, or to null, which takes what remains; or start {needed} ranks",
        )
        return False
    if section.dp_replicate_size and dp_size % section.dp_replicate_size:
        return _refuse_replicas(section.dp_replicate_size, dp_size, refuse)
    return True


def _refuse_replicas(replicas: int, dp_size: int, refuse: Refuse) -> bool:
    refuse(
        "distributed.dp_replicate_size",
        f"distributed.dp_replicate_size is {replicas}, but it must divide the {dp_size} data-parallel "
        f"rank{'' if dp_size == 1 else 's'}",
        f"{', '.join(map(str, divisors(dp_size)))} would work",
    )
    return False


def _check_batch(settings: Settings, world_size: int | None, refuse: Refuse) -> None:
    """The batch of a step is split into whole micro-batches; a rank whose share is smaller than one takes its share."""
    steps, section = settings.step_scheduler, settings.distributed
    dp_size = (section.dp_size or 1) if world_size is None else degrees_of(section, world_size).dp
    samples, local = steps.global_batch_size, steps.local_batch_size
    # Elastic sums are those of one size of micro-batch; and one beyond the step is a mistake on any number of ranks.
    is_fixed = settings.general.deterministic == "elastic" or (isinstance(local, int) and local > samples)
    has_own_size = isinstance(local, int) and (local * dp_size <= samples or is_fixed)
    if has_own_size:
        unit = steps.micro_batch_size * dp_size
        named = f"local_batch_size x data-parallel ranks = {local} x {dp_size} = {unit}."
    else:
        unit, named = dp_size, f"the {dp_size} data-parallel ranks."
    if samples % unit == 0:
        return
    below = samples // unit * unit
    works = " or ".join(str(size) for size in (below, below + unit) if size)
    help_ = f"{works} would work"
    if has_own_size and samples % dp_size == 0:
        best = max(size for size in divisors(samples // dp_size) if size <= steps.micro_batch_size)
        help_ = f"local_batch_size {best} keeps this global batch; a global batch of {works} would work, too"
    refuse(
        "step_scheduler.global_batch_size",
        f"step_scheduler.global_batch_size is {samples}, but it must be a multiple of\n{named}",
        help_,
    )


def _check_model(config: Config, settings: Settings, refuse: Refuse) -> None:
    """What tensor and context parallelism split must be divisible, where the number stands in the configuration."""
    tp, cp = settings.distributed.tp_size, settings.distributed.cp_size
    for path in ("model.n_head", "model.config.num_attention_heads", "model.config.num_key_value_heads"):
        heads = config.get(path)
        if type(heads) is int and heads % tp:
            works = ", ".join(map(str, divisors(heads)))
            refuse(
                "distributed.tp_size",
                f"distributed.tp_size is {tp}, but it must divide {path} = {heads}: a head is not split",
                f"{works} would work",
            )
    if config.get("model.n_head") is not None and settings.distributed.sequence_parallel and tp > 1:
        cp *= tp  # sequence parallelism splits the sequence once more
    for name in ("dataset", "validation_dataset"):
        length = config.get(f"{name}.seq_len")
        if type(length) is int and length % cp:
            refuse(
                f"{name}.seq_len",
                f"{name}.seq_len is {length}, but it must be a multiple of the {cp} ranks that share a sequence",
                f"{length // cp * cp or cp} or {(length // cp + 1) * cp} would work",
            )
