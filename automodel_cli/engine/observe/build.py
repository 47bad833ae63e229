"""The sinks of a run: the console, and `metrics.jsonl` beside the checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.observe.console import ConsoleSink
from automodel_cli.engine.observe.fanout import Fanout
from automodel_cli.engine.observe.jsonl import JsonlSink
from automodel_cli.engine.observe.metrics import Sink

METRICS_FILE = "metrics.jsonl"


def run_sink(
    settings: Settings, root: Path, *, start_step: int, quiet: bool = False
) -> Callable[[], AbstractContextManager[Sink]]:
    """A function that opens what a run reports to; nothing is written before it is called.

    Args:
        settings: Says how long the run is and whether it saves anything.
        root: Where `metrics.jsonl` goes, unless checkpoints are off.
        start_step: Steps done before; reports of later steps are cut from the metrics file,
            so that no step stands twice after a resume.
        quiet: Print nothing.
    """

    @contextmanager
    def opened() -> Iterator[Sink]:
        sinks: list[Sink] = [] if quiet else [ConsoleSink(settings.step_scheduler.max_steps, start_step)]
        if settings.checkpoint.enabled:
            jsonl = JsonlSink(root / METRICS_FILE)
            jsonl.truncate_after(start_step)
            sinks.append(jsonl)
        sink = Fanout(sinks)
        try:
            yield sink
        finally:
            sink.close()

    return opened
