"""The composition root: a checked configuration becomes a run, and the run is trained.

`pretrain` starts at step 0, or at the step of a checkpoint. Both kinds of run build the same parts in the same order,
so that a resumed run draws the same numbers and sees the same samples.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from automodel_cli.engine.checkpoint.save import Saving
from automodel_cli.engine.checkpoint.snapshot import Snapshot, TrainState
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.emit import to_yaml
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.config.suggest import command
from automodel_cli.engine.data.stream_loader import StreamLoader
from automodel_cli.engine.distributed.heartbeat import Phase, enter
from automodel_cli.engine.distributed.rank_group import SOLO, RankGroup
from automodel_cli.engine.observe.metrics import Sink
from automodel_cli.engine.optim.lr_schedule import schedule_of
from automodel_cli.engine.train.batches import loader_of, validation_of
from automodel_cli.engine.train.build import RunParts, build_parts
from automodel_cli.engine.train.checkpoint_content import LiveParts, begin_saving, load_optimizer
from automodel_cli.engine.train.checkpoint_manager import CheckpointManager
from automodel_cli.engine.train.device import Placement, place, threads_of
from automodel_cli.engine.train.elastic import elastic_of
from automodel_cli.engine.train.generators import own_generators, restore_generators
from automodel_cli.engine.train.local_batch import with_local_batch
from automodel_cli.engine.train.loop import Run, train
from automodel_cli.engine.train.out_of_memory import Situation, explained
from automodel_cli.engine.train.resume_rules import order_key_of
from automodel_cli.engine.train.run_facts import speed_of, start_facts
from automodel_cli.engine.train.signals import StopSignal
from automodel_cli.engine.train.step_scheduler import StepScheduler
from automodel_cli.errors import InterruptedTrainingError

OpenSink = Callable[[], AbstractContextManager[Sink]]


@dataclass(frozen=True)
class RunSummary:
    """What a run ended with. Losses in nats per token; None where nothing was measured."""

    step: int
    loss: float | None
    val_loss: float | None
    unigram_entropy_nats: float | None
    tokens_seen: int
    tokens_per_second: float
    seconds: float
    checkpoint: Path | None
    has_tokenizer: bool = False


def pretrain(
    config: Config,
    settings: Settings,
    root: Path,
    open_sink: OpenSink,
    group: RankGroup = SOLO,
    stop_at: float | None = None,
    snapshot: Snapshot | None = None,
) -> RunSummary:
    """Trains a new model, or continues a run, bit for bit where the configuration is the same; returns how it ended.

    Args:
        config: The final configuration; sections with `_target_` are built from it.
        settings: The checked sections of the same configuration.
        root: Directory of the run's checkpoints.
        open_sink: Opens the sink of reports, once everything is built; a run that is refused writes nothing.
        group: The ranks of the run.
        stop_at: Moment of `time.monotonic()` to save and stop at; None for no limit.
        snapshot: The checkpoint that is continued; None for a new run.

    Raises:
        AmcliError: See `errors.py`; `InterruptedTrainingError` after a signal or at `stop_at`, with the run saved.
    """
    with explained(config, root, group) as situation:
        return _run(config, settings, root, open_sink, snapshot, group, stop_at, situation)


def _run(
    config: Config,
    settings: Settings,
    root: Path,
    open_sink: OpenSink,
    snapshot: Snapshot | None,
    group: RankGroup,
    stop_at: float | None,
    situation: Situation,
) -> RunSummary:
    began = time.perf_counter()
    enter(Phase.BUILDING)
    state = TrainState() if snapshot is None else TrainState.from_dict(snapshot.train_state)
    general = settings.general
    is_elastic = general.deterministic == "elastic"
    num_threads = general.num_threads or threads_of(state.num_threads, group, is_elastic=is_elastic)
    placement = place(
        general.device,
        general.precision,
        num_threads,
        deterministic=bool(general.deterministic),
        gathers_bf16=settings.distributed.mp_policy == "bf16",
        cpu_matmul=general.cpu_matmul,
    )
    situation.state, situation.placement = state, placement
    parts = build_parts(config, settings, placement, root, snapshot, group)
    state.order_key = order_key_of(parts.dataset, general.seed, state.order_key)
    state.num_threads = torch.get_num_threads()
    # From the operating system: a seeded generator would give every run of a sweep the same name.
    state.run_id = state.run_id or secrets.token_hex(4)
    manifest = getattr(parts.dataset, "manifest", None)  # of our shards; a user's dataset needs none
    if snapshot is not None:
        load_optimizer(parts.optimizer, parts.model, snapshot)
        restore_generators(snapshot, group, general.seed)
    else:
        own_generators(group, general.seed)
    config, settings = with_local_batch(config, settings, placement, parts, snapshot)
    situation.config = config
    if snapshot is None and manifest is not None:
        state.tokenizer = {"name": manifest.tokenizer.name, "bos_id": manifest.tokenizer.bos_id}

    with open_sink() as sink, StopSignal(stop_at) as stop:
        run = _assemble(parts, config, settings, state, placement, root, sink)
        sink.on_start(start_facts(parts.model, parts.dataset, parts.how, settings, placement, state, root))
        if run.loader.note:
            sink.on_message(f"note: {run.loader.note}")
        train(run, state, stop)
    saved = settings.checkpoint.enabled and state.step > 0
    if stop.requested and not run.steps.is_last(state.step):
        what = f"saved; `{command('resume', root)}` continues there" if saved else "nothing is saved"
        raise InterruptedTrainingError(f"{stop.reason}: stopped after step {state.step}, {what}")
    return RunSummary(
        step=state.step,
        loss=state.loss,
        val_loss=state.val_loss,
        unigram_entropy_nats=manifest.unigram_entropy_nats.get("train") if manifest else None,
        tokens_seen=state.tokens_seen,
        tokens_per_second=state.tokens_seen / state.train_seconds if state.train_seconds else 0.0,
        seconds=time.perf_counter() - began,
        checkpoint=root / "LATEST" if saved else None,
        has_tokenizer=bool(state.tokenizer),
    )


def _assemble(
    parts: RunParts,
    config: Config,
    settings: Settings,
    state: TrainState,
    placement: Placement,
    root: Path,
    sink: Sink,
) -> Run:
    """The parts and the schedule as the loop takes them."""
    section, group = settings.step_scheduler, parts.model.group
    schedule = schedule_of(config, settings)
    loader = loader_of(parts, settings, state)
    live = LiveParts(state, parts.model, parts.optimizer, to_yaml(config.masked(), absolute_targets=True))

    def begin_save(is_best: bool) -> Saving | None:
        if isinstance(loader, StreamLoader):
            state.stream = loader.state_at(state.samples_consumed)
        return begin_saving(
            root,
            live,
            settings.checkpoint,
            lr=schedule.lr(state.step - 1),
            placement=placement,
            is_best=is_best,
            is_last=state.step >= section.max_steps,
        )

    steps = StepScheduler(section.max_steps, section.val_every_steps, section.ckpt_every_steps)
    return Run(
        model=parts.model,
        loss_fn=parts.loss_fn,
        optimizer=parts.optimizer,
        schedule=schedule,
        loader=loader,
        validation=validation_of(parts, settings),
        steps=steps,
        max_norm=settings.clip_grad_norm.max_norm,
        placement=placement,
        sink=sink,
        speed=speed_of(
            parts.model.module,
            parts.dataset,
            placement.name,
            max_steps=section.max_steps,
            num_devices=group.world_size,
            peak_tflops=settings.mfu.peak_tflops,
        ),
        checkpoints=CheckpointManager(root, state, begin_save, settings.checkpoint, steps, sink.on_message, group),
        samples_per_step=section.global_batch_size,
        guard=parts.guard,
        elastic=elastic_of(settings, placement, parts.model),
    )
