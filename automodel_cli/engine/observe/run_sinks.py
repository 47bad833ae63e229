"""The sinks of a run: the console, `metrics.jsonl` beside the checkpoints, and what the configuration adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from automodel_cli.engine.config.check_settings import reports_to
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.observe.console import ConsoleSink
from automodel_cli.engine.observe.jsonl import METRICS_FILE, JsonlSink
from automodel_cli.engine.observe.metrics import Fanout, Sink
from automodel_cli.engine.observe.optional_sinks import TensorBoardSink, WandbSink

TENSORBOARD_DIRECTORY = "tensorboard"


def run_sink(
    config: Config, settings: Settings, root: Path, *, start_step: int, quiet: bool = False
) -> Callable[[], AbstractContextManager[Sink]]:
    """A function that opens what a run reports to; nothing is written before it is called.

    Args:
        config: Says where else to report; what is sent of it is masked.
        settings: Its checked sections.
        root: Where `metrics.jsonl` and other files go; without checkpoints there is no `metrics.jsonl`.
        start_step: Steps done before; reports of later steps are cut from the metrics file,
            so that no step stands twice after a resume.
        quiet: Print nothing.
    """

    @contextmanager
    def opened() -> Iterator[Sink]:
        sinks: list[Sink] = [] if quiet else [ConsoleSink(settings.step_scheduler.max_steps, start_step)]
        if settings.checkpoint.enabled:
            sinks.append(JsonlSink(root / METRICS_FILE, start_step))
        if reports_to("wandb", config, settings):
            sinks.append(WandbSink(settings.wandb, config.masked().values, root))
        if reports_to("tensorboard", config, settings):
            sinks.append(TensorBoardSink(Path(settings.tensorboard.log_dir or root / TENSORBOARD_DIRECTORY)))
        sink = Fanout(sinks)
        try:
            yield sink
        finally:
            sink.close()

    return opened
