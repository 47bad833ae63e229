"""Rules that a type and a range cannot say: of schedule, validation, model, elastic runs, checkpoints and reports.

Every rule hands what it finds to `refuse`. The rules of the parallel layout are in `parallel_layout.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.sections import LRSchedulerSection, section_fields
from automodel_cli.engine.config.settings import Refuse, Settings
from automodel_cli.engine.config.suggest import hint, nearest
from automodel_cli.engine.config.target_sections import metric_keys, validation_sets
from automodel_cli.engine.config.values import DurationError, in_steps, in_tokens, resolve_env, tokens_per_step
from automodel_cli.errors import ConfigError

# Names of the sizes of a model, those of Hugging Face included.
_WIDTHS = ("n_embd", "hidden_size")
_HEADS = ("n_head", "num_attention_heads")
_POSITIONS = ("n_positions", "max_position_embeddings")
_MOST = 1_000_000  # more heads or channels are a typing error; it bounds the search for divisors
Service = Literal["wandb", "tensorboard"]
_SERVICES: tuple[Service, ...] = ("wandb", "tensorboard")


def check_schedule(config: Config, settings: Settings, refuse: Refuse) -> None:
    """Refuses rates that are no numbers or in the wrong order, and lengths that overlap or cannot be converted."""
    section = settings.lr_scheduler
    _check_rates(config, section.min_lr, refuse)
    lengths = _lengths(config, section, refuse)
    warmup, decay = lengths.get("lr_warmup_steps"), lengths.get("lr_decay_steps")
    if warmup is not None and decay is not None and decay <= warmup:
        refuse(
            "lr_scheduler.lr_decay_steps",
            f"lr_scheduler.lr_decay_steps is {_shown(section.lr_decay_steps, decay)}, "
            f"but the decay must end after the warm-up, lr_warmup_steps = {_shown(section.lr_warmup_steps, warmup)}",
            None,
        )
    wsd, end = lengths.get("lr_wsd_decay_steps"), decay or settings.step_scheduler.max_steps
    if wsd is not None and warmup is not None and section.lr_decay_style == "WSD" and wsd > max(1, end - warmup):
        refuse(
            "lr_scheduler.lr_wsd_decay_steps",
            f"lr_scheduler.lr_wsd_decay_steps is {_shown(section.lr_wsd_decay_steps, wsd)}, but between the warm-up "
            f"and the end of the decay there are {end} - {warmup} = {end - warmup} steps",
            f"up to {max(1, end - warmup)} would work",
        )


def _check_rates(config: Config, min_lr: float, refuse: Refuse) -> None:
    raw = config.get("optimizer.lr") if isinstance(config.get("optimizer"), Mapping) else 0.0
    if raw is None:
        refuse("optimizer", "optimizer has no `lr`, and the schedule starts from it", "for example `lr: 3e-4`")
        return
    try:
        lr = resolve_env(raw, config.origin(("optimizer", "lr")))
    except ConfigError as error:
        refuse("optimizer.lr", error.message, error.help)
        return
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not lr >= 0:
        refuse("optimizer.lr", f"optimizer.lr is {lr!r}, but it must be a number of at least 0", "for example 3e-4")
    elif min_lr > lr and isinstance(config.get("optimizer"), Mapping):
        refuse(
            "lr_scheduler.min_lr",
            f"lr_scheduler.min_lr is {min_lr}, but it must be at most optimizer.lr = {lr}",
            f"{lr / 10:g} is common",
        )


def _lengths(config: Config, section: LRSchedulerSection, refuse: Refuse) -> dict[str, int]:
    """The lengths that are set, in steps; those that cannot be converted are refused and left out."""
    steps: dict[str, int] = {}
    for name, item in section_fields(LRSchedulerSection).items():
        value: Any = getattr(section, name)
        if not item.metadata["duration"] or value is None:
            continue
        try:
            steps[name] = in_steps(value, tokens_per_step(config))
        except DurationError as error:
            help_ = "give it in steps, such as 2000" if "not known" in str(error) else None
            refuse(f"lr_scheduler.{name}", f"lr_scheduler.{name} is {value!r}, but {error}", help_)
    return steps


def _shown(value: int | str | None, steps: int) -> str:
    return f"{value} ({steps:,} steps)" if isinstance(value, str) else str(steps)


def check_validation(config: Config, settings: Settings, refuse: Refuse) -> None:
    """Refuses a validation without data, a budget that is no number of tokens, and an unknown `best_metric_key`."""
    steps, best = settings.step_scheduler, settings.checkpoint.best_metric_key
    if steps.val_every_steps is not None and not validation_sets(config):
        refuse(
            "step_scheduler.val_every_steps",
            f"step_scheduler.val_every_steps is {steps.val_every_steps}, but there is no `validation_dataset`",
            "add that section, or set val_every_steps to null",
        )
    if steps.val_tokens is not None:
        try:
            in_tokens(steps.val_tokens)
        except DurationError as error:
            key = "step_scheduler.val_tokens"
            refuse(key, f"{key} is {steps.val_tokens!r}, but {error}", None)
    if best not in metric_keys(config):
        message = f"checkpoint.best_metric_key is {best!r}, which no validation of this run reports"
        refuse("checkpoint.best_metric_key", message, hint(best, metric_keys(config), noun="losses"))


def check_model(config: Config, refuse: Refuse) -> None:
    """Refuses widths that the heads do not divide, and samples longer than the model's positions.

    Only numbers in `model` and in a `config` inside it are judged.
    """
    for section in ("model", "model.config"):
        width, heads = _first(config, section, _WIDTHS), _first(config, section, _HEADS)
        # A head with a size of its own does not take an equal share of the width.
        if width and heads and config.get(f"{section}.head_dim") is None:
            _check_divides(width, heads, refuse)
        groups = _first(config, section, ("num_key_value_heads",))
        if heads and groups:
            _check_divides(heads, groups, refuse)
    positions = next(_all(config, _POSITIONS), None)
    packs = "packed_sequence.packed_sequence_size"
    # Packs take the place of the datasets' own samples.
    for name in (packs,) if _number(config, packs) else _sample_lengths(config):
        length = _number(config, name)
        if positions and length and length > positions[1]:
            key, most = positions
            refuse(
                name,
                f"{name} is {length}, but the model has {most} positions ({key})",
                f"a {name.rpartition('.')[2]} up to {most} would work",
            )


def _sample_lengths(config: Config) -> list[str]:
    """The keys that may say how long the samples of a dataset are."""
    sections = ["dataset", *map(dotted, validation_sets(config).values())]
    return [f"{section}.{name}" for section in sections for name in ("seq_len", "seq_length")]


def _check_divides(whole: tuple[str, int], part: tuple[str, int], refuse: Refuse) -> None:
    (key, number), (by, divisor) = whole, part
    if number % divisor == 0 or number > _MOST:
        return
    below = next((n for n in range(min(divisor, number), 0, -1) if number % n == 0), 1)
    above = next((n for n in range(min(divisor, number), number + 1) if number % n == 0), number)
    works = " or ".join(str(n) for n in dict.fromkeys((below, above)))
    name = by.rpartition(".")[2]
    refuse(by, f"{key} is {number}, but it must be a multiple of {by} = {divisor}", f"{name} {works} would work")


def _first(config: Config, section: str, names: tuple[str, ...]) -> tuple[str, int] | None:
    return next(_of(config, (f"{section}.{name}" for name in names)), None)


def _all(config: Config, names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    return _of(config, (f"{section}.{name}" for section in ("model", "model.config") for name in names))


def _of(config: Config, keys: Iterator[str]) -> Iterator[tuple[str, int]]:
    """The keys that hold a whole number above zero, with it."""
    for key in keys:
        number = _number(config, key)
        if number is not None and number > 0:
            yield key, number


def _number(config: Config, key: str) -> int | None:
    """A whole number, also by way of an environment variable; None for anything else, which others refuse."""
    path: KeyPath = tuple(key.split("."))
    try:
        value: Any = resolve_env(config.get(key), config.origin(path))
    except ConfigError:
        return None
    return value if type(value) is int else None


def check_elastic(config: Config, settings: Settings, refuse: Refuse) -> None:
    """Refuses what computes other sums on other numbers of ranks, if `deterministic` is `elastic`."""
    if settings.general.deterministic != "elastic":
        return
    section = settings.distributed
    obstacles = {
        "distributed.tp_size": (section.tp_size > 1, "tensor parallelism splits the sums inside of products"),
        "distributed.cp_size": (section.cp_size > 1, "context parallelism splits the sums over a sequence"),
        "distributed.dp_replicate_size": (
            (section.dp_replicate_size or 1) > 1,
            "groups of replicas are summed within each group first",
        ),
        "compile.enabled": (settings.compile.enabled, "a program is compiled for one layout"),
        "optimizer.fused": (
            config.get("optimizer.fused") is True,
            "fused kernels round the last elements of a tensor otherwise than the rest",
        ),
        "step_scheduler.local_batch_size": (
            config.get("step_scheduler.local_batch_size") == "auto",
            "another size of the micro-batches gives other sums",
        ),
        "precision": (settings.general.precision == "fp8", "the scales of 8-bit products are shared over the ranks"),
    }
    for path, (is_there, why) in obstacles.items():
        if is_there:
            refuse(
                path,
                f"{path} is {str(config.get(path)).lower()}, but deterministic is elastic, the same bits on any number "
                f"of ranks: {why}",
                "leave it out, or set deterministic to true, the same bits on the same number of ranks",
            )


def check_checkpoint(settings: Settings, refuse: Refuse) -> None:
    """Refuses weights to start from that are not there, and a rule for keeping that keeps nothing."""
    section = settings.checkpoint
    if section.init_from is not None:
        place = Path(section.init_from).expanduser()
        if not place.exists():
            refuse("checkpoint.init_from", f"there is no {section.init_from!r}", _beside(place))
        if section.restore_from not in (None, "LATEST"):
            message = f"init_from starts a new run, and restore_from = {section.restore_from!r} continues one"
            refuse("checkpoint.init_from", message, "leave one of them out; beside restore_from: LATEST it may stand")
    if section.keep_every_steps is not None and section.max_recent_checkpoints is None:
        message = "keep_every_steps has no effect while max_recent_checkpoints is null, which keeps all"
        refuse("checkpoint.keep_every_steps", message, "set checkpoint.max_recent_checkpoints, or leave it out")


def _beside(place: Path) -> str:
    """The files in the nearest directory that exists."""
    directory = next(parent for parent in place.absolute().parents if parent.is_dir())
    names = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    match = nearest(place.name, names) if directory == place.absolute().parent else None
    shown = match or ", ".join(names[:6]) or "nothing"
    return f"in {directory} there is {shown}"


def reports_to(service: Service, config: Config, settings: Settings) -> bool:
    """Whether the configuration has the section of a service, and it is not switched off there."""
    if not config.has(service):
        return False
    if service == "wandb":
        return settings.wandb.enabled and settings.wandb.mode != "disabled"
    return settings.tensorboard.enabled


def check_sinks(config: Config, settings: Settings, refuse: Refuse) -> None:
    """Refuses a service whose package is not installed: the run would train and report nothing."""
    for service in _SERVICES:
        if reports_to(service, config, settings) and importlib.util.find_spec(service) is None:
            refuse(
                service,
                f"the section `{service}` asks for reports, but the package {service} is not installed",
                f"pip install 'amcli[{service}]', or `{service}: {{enabled: false}}`",
            )
