"""`step_scheduler.local_batch_size: auto`: the most samples of a forward pass that fit, found before a run reads data.

Only numbers that divide a rank's samples of a step are tried, so the global batch does not change. On a GPU, trial
steps are made and undone (`dry_run.py`). On a CPU, where the system kills a process without memory, the estimate of
`amcli plan` decides, with a cap above which a larger batch is no faster. All ranks use the smallest number of any.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.origin import DEFAULT, Origin
from automodel_cli.engine.config.parallel_layout import divisors, filled_batch
from automodel_cli.engine.config.sections import AUTO
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.config.yaml_reader import parse_value
from automodel_cli.engine.data.loader import eval_batches
from automodel_cli.engine.data.stream_loader import is_stream
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.plan.derive import RESERVED_SHARE, derive, memory_of_batch
from automodel_cli.engine.train.build import RunParts
from automodel_cli.engine.train.device import Placement, device_memory
from automodel_cli.engine.train.dry_run import DryRun, undone
from automodel_cli.errors import ConfigError, OutOfMemoryError

KEY = ("step_scheduler", "local_batch_size")
# With more tokens than this in a forward pass, a CPU is no faster: its cores are busy already.
CPU_TOKENS = 4096
# Share of the free memory: the estimate counts tensors only, and other processes need memory, too.
_CPU_SHARE = 0.5

Fits = Callable[[int], bool]


def with_local_batch(
    config: Config, settings: Settings, placement: Placement, parts: RunParts, snapshot: Snapshot | None
) -> tuple[Config, Settings]:
    """The configuration and the settings with a number instead of `auto`, at most a rank's samples of a step.

    If a rank has fewer samples of a step than the given number, it takes all of them at once. The configuration then
    keeps the number, for a resumed run with fewer ranks.

    Args:
        config: The final configuration, which is saved with every checkpoint.
        settings: The same, checked.
        placement: Device and types.
        parts: The parts of the run; the number is added to its facts.
        snapshot: The checkpoint to resume from; its number stays unless the number of ranks has changed.

    Raises:
        OutOfMemoryError: Not even one sample fits.
        ConfigError: The length of a stream's samples is not known.
    """
    section = settings.step_scheduler
    group = parts.model.group
    dp_size = group.degrees.dp
    if section.local_batch_size != AUTO:
        allowed = section.micro_batch_size
        taken = filled_batch(allowed, section.global_batch_size, dp_size)
        if taken == allowed:
            return config, settings
        parts.how["local batch"] = f"{taken}, a rank's samples of a step; local_batch_size allows {allowed}"
        return config, replace(settings, step_scheduler=replace(section, local_batch_size=taken))
    per_rank = section.global_batch_size // dp_size
    saved, why = _saved(snapshot, group)
    if saved is not None and per_rank % saved == 0:
        found, reason = saved, "as in the checkpoint"
    elif placement.device.type == "cuda":
        trial = _trial(config, placement, parts)
        limit = int(_limit(placement) * (1 - RESERVED_SHARE))
        found = _by_trial(trial, per_rank, limit, group, compiles=settings.compile.enabled)
        reason = f"the largest that fits, with {RESERVED_SHARE:.0%} of the memory kept free{why}"
    else:
        found, reason = _by_estimate(config, placement, per_rank, group)
        reason += why
    parts.how["local batch"] = f"{found} of {per_rank} samples, {reason}"
    origin = Origin("option", f"found for {config.origin(KEY)}")
    section = replace(section, local_batch_size=found)
    return config.with_value(KEY, found, origin), replace(settings, step_scheduler=section)


def _saved(snapshot: Snapshot | None, group: RankGroup) -> tuple[int | None, str]:
    """The number of the saved run, or None with the reason, for users."""
    if snapshot is None:
        return None, ""
    then, now = 1 + len(snapshot.peer_rng_tensors), group.world_size
    if then != now:
        return None, f"; found anew, since the run was saved by {then} rank{'s'[: then > 1]} and goes on with {now}"
    section = parse_value(snapshot.config_yaml, source="config.yaml").get(KEY[0])
    value = section.get(KEY[1]) if isinstance(section, Mapping) else None
    return (value, "") if type(value) is int else (None, "")


def largest_that_fits(sizes: Sequence[int], fits: Fits) -> int | None:
    """The largest of some sizes that fits, or None; found by doubling, then by bisection.

    Args:
        sizes: Ascending.
        fits: Whether a size fits; if one does, so do all smaller ones.

    >>> largest_that_fits([1, 2, 3, 4, 6, 12], lambda size: size <= 5)
    4
    """
    good, bad = -1, len(sizes)
    while good < bad - 1:
        doubled = [index for index in range(good + 1, bad) if good < 0 or sizes[index] >= 2 * sizes[good]]
        is_bounded = bad < len(sizes)
        tried = (good + bad) // 2 if is_bounded else doubled[0] if doubled else bad - 1
        if fits(sizes[max(tried, good + 1)]):
            good = max(tried, good + 1)
        else:
            bad = max(tried, good + 1)
    return sizes[good] if good >= 0 else None


def fits_by_line(peak: Callable[[int], int | None], limit: int, agreed: Callable[[bool], bool]) -> Fits:
    """Tests sizes by trials, except those that will not fit: memory grows linearly, so earlier trials predict it.

    If a trial failed on one rank only, the others would wait for it in a collective.

    Args:
        peak: Peak memory of a step with that many samples in bytes; None if it ran out of memory.
        limit: Allowed peak in bytes.
        agreed: Whether a statement is true on all ranks.
    """
    seen: dict[int, int] = {}

    def predicted(size: int) -> int:
        if len(seen) < 2:
            return 0
        (size_0, bytes_0), (size_1, bytes_1) = sorted(seen.items())[-2:]
        return bytes_1 + max(0, bytes_1 - bytes_0) * (size - size_1) // (size_1 - size_0)

    def fits(size: int) -> bool:
        if not agreed(predicted(size) <= limit):
            return False
        used = peak(size)
        if not agreed(used is not None and used <= limit) or used is None:
            return False
        seen[size] = used
        return True

    return fits


def _by_trial(trial: DryRun, per_rank: int, limit: int, group: RankGroup, *, compiles: bool) -> int:
    """The largest by trial steps, which leave nothing behind but compiled programs on the disk."""
    with undone(trial.model.module, trial.optimizer):
        fits = fits_by_line(lambda size: trial.peak(size, passes=min(2, per_rank // size)), limit, group.all)
        found = largest_that_fits(divisors(per_rank), fits)
    if compiles:
        torch.compiler.reset()  # or torch, having seen several sizes, would compile for dynamic shapes
    gc.collect()
    if trial.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(trial.device)
    if found is None:
        raise OutOfMemoryError(
            "not even a local batch of one sample fits", help="`amcli plan` says what needs how much"
        )
    return found


def _by_estimate(config: Config, placement: Placement, per_rank: int, group: RankGroup) -> tuple[int, str]:
    """The largest number below the cap whose estimate fits into a share of the free memory; and the reason."""
    world = group.world_size
    precision = "bf16" if placement.autocast_dtype is not None else "fp32"
    if config.get("precision", AUTO) != AUTO:
        precision = config.get("precision")
    exact = config.with_value(("precision",), precision, DEFAULT).with_value(("device",), "cpu", DEFAULT)
    derived = derive(exact, world)
    needs, seq_len = memory_of_batch(derived), derived.sizes.seq_len
    free = int(device_memory(placement.device).free * _CPU_SHARE) // group.place.local_world_size

    def fits(size: int) -> bool:
        if seq_len is not None and size * seq_len > CPU_TOKENS and size > 1:
            return False
        total = needs(size, size < per_rank).total if needs else None
        return total is None or total <= free

    found = largest_that_fits(divisors(per_rank), lambda size: group.all(fits(size))) or 1
    known = needs is not None and needs(1, True).total is not None
    why = f"the most up to {CPU_TOKENS:,} tokens" + ("" if seq_len else ", as the length of a sample is not known")
    return found, why + (
        " whose estimate fits half of the free memory" if known else "; its memory cannot be estimated"
    )


def _limit(placement: Placement) -> int:
    """Bytes that this process can use of the GPU, beside other processes."""
    found = device_memory(placement.device)
    return found.used + found.free


def _peak_of_gpu(device: torch.device) -> Callable[[], int]:
    def peak() -> int:
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most

    return peak


def _trial(config: Config, placement: Placement, parts: RunParts) -> DryRun:
    return DryRun(
        model=parts.model,
        objective=parts.loss_fn,
        optimizer=parts.optimizer,
        sample=_sample(config, parts),
        device=placement.device,
        autocast_dtype=placement.autocast_dtype,
        peak_bytes=_peak_of_gpu(placement.device),
    )


def _sample(config: Config, parts: RunParts) -> dict[str, Any]:
    """One sample as the model gets it: the first of a dataset; for a stream, which must not be read, zeros."""
    if not is_stream(parts.dataset):
        batch = next(eval_batches(parts.dataset, 1, 1, section=parts.sections["dataset"]))
    else:
        length = derive(config, 1).sizes.seq_len
        if length is None:
            raise ConfigError(
                "step_scheduler.local_batch_size is auto, but the length of the stream's samples is not known",
                where=str(config.origin(KEY)),
                help="give the dataset a seq_len, or local_batch_size a number",
            )
        ids = np.zeros((1, length), dtype=np.int64)
        batch = {"input_ids": ids, "labels": ids}
    return parts.model.group.part_of_sequence(batch)
