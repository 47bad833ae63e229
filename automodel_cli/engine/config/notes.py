"""What a user should know about a configuration that passes every check."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.aliases import resolved, substitution_note
from automodel_cli.engine.config.check_data import OUR_DATASET, DataCheck
from automodel_cli.engine.config.check_targets import TargetCheck
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.sections import SECTIONS, CheckpointSection, section_fields
from automodel_cli.engine.config.settings import Settings, Unchecked
from automodel_cli.engine.config.target_sections import validation_sets
from automodel_cli.engine.config.values import in_steps, tokens_per_step


def notes_on(config: Config, settings: Settings, targets: TargetCheck, data: DataCheck) -> tuple[str, ...]:
    """Replaced names, code that runs, and settings that do nothing or less than they seem to; one line each."""
    named = [*targets.targets, str(config.get("distributed._target_")), str(config.get("dataloader.collate_fn"))]
    notes = [
        substitution_note(named),
        *_foreign_code(targets.foreign),
        *_idle_intervals(config, settings),
        *_idle_settings(config, settings),
        _short_of_samples(config, settings, data),
    ]
    return tuple(note for note in notes if note)


def unchecked_words(unchecked: Sequence[Unchecked]) -> str:
    """The end of a verdict: what was not checked; empty if everything was."""
    return f"; not checked: {', '.join(dict.fromkeys(each.what for each in unchecked))}" if unchecked else ""


def unchecked_notes(settings: Settings) -> tuple[str, ...]:
    """What was not checked, each with the reason."""
    return tuple(f"{each.what} not checked: {each.why}" for each in settings.unchecked)


def _foreign_code(files: Mapping[Path, Sequence[str]]) -> Iterator[str]:
    """A line for each file that the targets run, with a hash to compare it by."""
    for path, targets in files.items():
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            digest = f"not known: {error.strerror}"
        yield f"{', '.join(targets)}: runs code of {path}, SHA-256 {digest}"


def _idle_intervals(config: Config, settings: Settings) -> Iterator[str]:
    """Intervals that are longer than the run."""
    steps = settings.step_scheduler
    last = steps.max_steps
    for name, every, what in (
        ("val_every_steps", steps.val_every_steps, "validates"),
        ("ckpt_every_steps", steps.ckpt_every_steps, "saves"),
    ):
        if every is not None and every > last:
            yield f"step_scheduler.{name} is {every}, beyond max_steps = {last}: the run {what} only at its end"
    if validation_sets(config) and steps.val_every_steps is None:
        yield "step_scheduler.val_every_steps is null: the run validates only at its end"
    if not settings.checkpoint.enabled:
        yield "checkpoint.enabled is false: nothing is saved, and the run cannot be resumed"
    warmup = settings.lr_scheduler.lr_warmup_steps
    num_steps = in_steps(warmup, tokens_per_step(config))
    if num_steps >= last and num_steps:
        length = f"{warmup} ({num_steps:,} steps)" if isinstance(warmup, str) else f"{warmup}"
        yield f"lr_scheduler.lr_warmup_steps is {length}, and max_steps is {last}: the whole run is warm-up"


def _idle_settings(config: Config, settings: Settings) -> Iterator[str]:
    """Values that are set, but have no effect because of another one."""
    schedule, layout = settings.lr_scheduler, settings.distributed
    is_ddp = layout.chosen_strategy() == "ddp"
    decays = schedule.lr_decay_style != "constant"
    activation, section = settings.activation_checkpointing, settings.checkpoint
    no_validation = not validation_sets(config)
    rules: dict[str, tuple[bool, str]] = {
        "lr_scheduler.min_lr": (not decays, "lr_decay_style is constant"),
        "lr_scheduler.lr_decay_steps": (not decays, "lr_decay_style is constant"),
        "lr_scheduler.lr_wsd_decay_steps": (schedule.lr_decay_style != "WSD", "lr_decay_style is not WSD"),
        "lr_scheduler.lr_wsd_decay_style": (schedule.lr_decay_style != "WSD", "lr_decay_style is not WSD"),
        "step_scheduler.val_tokens": (no_validation, "there is no validation_dataset"),
        "checkpoint.save_best": (no_validation, "there is no validation_dataset"),
        "activation_checkpointing.every": (activation.mode is None, "activation_checkpointing.mode is null"),
        "distributed.sequence_parallel": (layout.tp_size == 1, "tp_size is 1"),
        "distributed.reshard_after_forward": (is_ddp, "the strategy is ddp"),
    }
    if schedule._target_:
        rules = {key: rule for key, rule in rules.items() if not key.startswith("lr_scheduler.")}
    rules |= {
        f"compile.{name}": (not settings.compile.enabled, "compile.enabled is false")
        for name in ("mode", "backend", "fullgraph", "per_block")
    }
    rules |= {
        f"checkpoint.{name}": (not section.enabled, "checkpoint.enabled is false")
        for name in section_fields(CheckpointSection)
        if name not in ("enabled", "checkpoint_dir", "restore_from", "init_from", "save_best")
    }
    for service, is_on in (("wandb", settings.wandb.enabled), ("tensorboard", settings.tensorboard.enabled)):
        keys = config.get(service)
        names = [name for name in keys if name != "enabled"] if isinstance(keys, Mapping) else []
        rules |= {f"{service}.{name}": (not is_on, f"{service}.enabled is false") for name in names}
    for key, (is_idle, why) in rules.items():
        path = tuple(key.split("."))
        default = _default_of(key)
        if is_idle and config.has(key) and config.origin(path).kind != "default" and config.get(key) != default:
            yield f"{key} does nothing while {why}"
    is_ours = resolved(str(config.get(f"dataset.{TARGET}"))) == OUR_DATASET
    if is_ours and config.get("dataset.shuffle_files") is True and config.get("dataset.shuffle", True) is True:
        yield "dataset.shuffle_files does nothing while dataset.shuffle is true, which mixes the samples of all shards"
    if config.has("mfu") and settings.mfu.peak_tflops is None:
        yield "mfu names no peak_tflops: the utilisation is measured only on a GPU whose peak amcli knows"


def _default_of(key: str) -> Any:
    section, _, name = key.partition(".")
    owner = next(each for each in SECTIONS if each.name == section)
    return section_fields(owner)[name].default


def _short_of_samples(config: Config, settings: Settings, data: DataCheck) -> str | None:
    """Too little data for one step; of data that our own dataset reads, and that is not packed."""
    seq_len, batch = config.get("dataset.seq_len"), settings.step_scheduler.global_batch_size
    if data.num_tokens is None or type(seq_len) is not int or settings.packed_sequence.packed_sequence_size:
        return None
    samples = sum(max(0, tokens - 1) // seq_len for tokens in data.num_tokens)
    if samples >= batch:
        return None
    return (
        f"dataset has {samples:,} samples of seq_len {seq_len:,}, and a step takes global_batch_size = {batch:,}: "
        "every step reads some of them more than once"
    )
