"""What a run that does not fit could change, and how many bytes each change saves on a device; torch-free.

Only a change whose configuration passes every check on the same ranks is named. What it saves is the difference of two
estimates by `memory.py`; a part that is not known counts as zero in both.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import Config, apply_overrides
from automodel_cli.engine.config.declared_facts import DEFAULT_LOSS
from automodel_cli.engine.config.parallel_layout import divisors
from automodel_cli.engine.plan.derive import Derived, derive, memory_of_batch
from automodel_cli.engine.plan.memory import Memory
from automodel_cli.engine.plan.run_sizes import RunSizes
from automodel_cli.errors import AmcliError

# It keeps one tensor of state for each matrix.
_MUON = "automodel_cli.engine.optim.muon.MuonWithAdamW"


@dataclass(frozen=True)
class Saving:
    """One change.

    Args:
        options: As they are typed behind `amcli pretrain` and `amcli resume`.
        note: Its cost, or what else it changes.
        saved_bytes: Bytes saved on one device; None where the model is not known without building it.
    """

    options: str
    note: str
    saved_bytes: int | None


class Candidate(NamedTuple):
    """A change that may help. Only the best change of each topic is named."""

    topic: str
    assignments: tuple[str, ...]
    note: str
    world_size: int | None = None


def savings(config: Config, world_size: int, *, num_gpus: int = 0) -> list[Saving]:
    """The changes that help, the best first.

    Args:
        config: Configuration of the run, with the actual precision in place of `auto`.
        world_size: Ranks of the run.
        num_gpus: GPUs of this machine, if the run uses no other; 0 for a run on CPUs, whose ranks share the memory.
    """
    now = derive(config, world_size)
    before = _known_bytes(now)
    found: dict[str, Saving] = {}
    for candidate in _candidates(now.sizes, num_gpus):
        after = _bytes_after(candidate, config, world_size)
        if after is None:
            continue
        saved = None if before is None or after == 0 else before - after
        if saved is not None and saved <= 0:
            continue
        kept = found.get(candidate.topic)
        if kept is None or (saved or 0) > (kept.saved_bytes or 0):
            found[candidate.topic] = Saving(_as_typed(candidate), candidate.note, saved)
    return sorted(found.values(), key=lambda saving: -(saving.saved_bytes or 0))


def needed(config: Config, world_size: int) -> Memory | None:
    """The estimate for the configuration as it is; None for a model that is not known."""
    derived = derive(config, world_size)
    needs, batch = memory_of_batch(derived), derived.sizes.local_batch_size
    return needs(batch, (derived.sizes.accumulation or 2) > 1) if needs and batch else None


def _known_bytes(derived: Derived) -> int | None:
    needs, batch = memory_of_batch(derived), derived.sizes.local_batch_size
    if needs is None or batch is None:
        return None
    parts = dataclasses.asdict(needs(batch, (derived.sizes.accumulation or 2) > 1)).values()
    return sum(int(part) for part in parts if part is not None)


def _bytes_after(candidate: Candidate, config: Config, world_size: int) -> int | None:
    """Known bytes after a change, 0 if none is known; None for a change that the checks refuse."""
    try:
        changed = apply_overrides(config, candidate.assignments)
        ranks = candidate.world_size or world_size
        checked(changed, ranks)
    except AmcliError:
        return None
    return _known_bytes(derive(changed, ranks)) or 0


def _as_typed(candidate: Candidate) -> str:
    ranks = ["--nproc-per-node", str(candidate.world_size)] if candidate.world_size else []
    return shlex.join([*ranks, *(word for assignment in candidate.assignments for word in ("--set", assignment))])


def _candidates(sizes: RunSizes, num_gpus: int) -> Iterator[Candidate]:
    """Candidates, smallest change first: the order in which they are named if nothing can be computed."""
    yield from _of_batch(sizes)
    if sizes.recompute != "full":
        time = "blocks are computed again in the backward pass, about a third more time"
        yield Candidate("recompute", ("activation_checkpointing.mode=full",), time)
    if sizes.recompute is None:
        cheap = "all but matrix products is computed again in the backward pass"
        yield Candidate("recompute", ("activation_checkpointing.mode=selective",), cheap)
    if sizes.recompute and sizes.recompute_every > 1:
        yield Candidate("recompute", ("activation_checkpointing.every=1",), "every block is computed again")
    if not sizes.has_chunked_loss:
        yield Candidate("loss", (f"loss_fn._target_={DEFAULT_LOSS}",), "never holds all logits")
    yield from _of_precision(sizes)
    yield from _of_layout(sizes, num_gpus)
    if sizes.optimizer is not None and sizes.optimizer.per_matrix > 1:
        yield Candidate("optimizer", (f"optimizer._target_={_MUON}",), "half the state; another optimizer")


def _of_batch(sizes: RunSizes) -> Iterator[Candidate]:
    batch, samples = sizes.local_batch_size, sizes.global_batch_size
    if not batch or not samples or batch == 1 or samples % sizes.degrees.dp:
        return
    smaller = [size for size in divisors(samples // sizes.degrees.dp) if 2 * size <= batch]
    if smaller:
        half = max(smaller)
        passes = samples // sizes.degrees.dp // half
        note = f"{batch} now; {passes} passes a step, the same {samples} samples"
        yield Candidate("batch", (f"step_scheduler.local_batch_size={half}",), note)


def _of_precision(sizes: RunSizes) -> Iterator[Candidate]:
    if not sizes.is_bf16:
        yield Candidate("precision", ("precision=bf16",), "matrix products in bf16, weights stay fp32")
    elif sizes.weight_bytes > 2:
        yield Candidate("precision", ("precision=bf16-params",), "weights and optimizer in bf16, too; less exact")
    if sizes.uses_fsdp and sizes.distributed.mp_policy is None:
        yield Candidate("policy", ("distributed.mp_policy=bf16",), "gathers and computes with bf16 weights")


def _of_layout(sizes: RunSizes, num_gpus: int) -> Iterator[Candidate]:
    section, world = sizes.distributed, sizes.degrees.world
    if section.chosen_strategy() == "ddp":
        yield Candidate("layout", ("distributed.strategy=fsdp2",), "each rank holds a part of the model")
        return
    if section.dp_replicate_size and section.dp_replicate_size > 1:
        yield Candidate("layout", ("distributed.dp_replicate_size=1",), "one group of ranks holds the model")
    if sizes.uses_fsdp and not section.reshard_after_forward:
        yield Candidate("reshard", ("distributed.reshard_after_forward=true",), "gathers each block once more")
    if sizes.uses_fsdp and section.defer_fsdp_grad_sync:
        yield Candidate("sync", ("distributed.defer_fsdp_grad_sync=false",), "sums gradients after every pass")
    if num_gpus and section.offload_policy is None:
        yield Candidate(
            "offload", ("distributed.offload_policy=cpu",), "weights and optimizer on the host; much slower"
        )
    if num_gpus > world:
        yield Candidate("ranks", (), "shards the model over all GPUs here", num_gpus)
