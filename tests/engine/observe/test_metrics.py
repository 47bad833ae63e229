"""A broken sink costs its own reports, once said, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from automodel_cli.engine.observe.metrics import Fanout, ReportedNumber, StepStats, ValStats, scalars

STATS = StepStats(1, 2, 3.0, 0.5, 1e-3, 1000.0, 0.1, 10**9, 100, 0.0)
VALIDATION = ValStats(1, 2.0, 7.4, 640)


class Recorder:
    """Keeps what it is sent."""

    name = "the recorder"
    num_gone = 0

    def __init__(self) -> None:
        self.got: list[Any] = []

    def on_start(self, facts: dict[str, Any]) -> None:
        self.got.append(facts)

    def on_step(self, stats: StepStats) -> None:
        self.got.append(stats)

    def on_validation(self, stats: ValStats) -> None:
        self.got.append(stats)

    def on_message(self, text: str) -> None:
        self.got.append(text)

    def close(self) -> None:
        self.got.append("closed")


class Broken(Recorder):
    """Fails at everything."""

    name = "the service"

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") or name == "close":
            raise ConnectionError("the service is gone")
        return super().__getattribute__(name)


def send_all(sink: Fanout) -> None:
    sink.on_start({"seed": 7})
    sink.on_step(STATS)
    sink.on_validation(VALIDATION)
    sink.on_message("hello")
    sink.close()


def test_every_sink_gets_every_report_in_order() -> None:
    """Two sinks, five calls each."""
    first, second = Recorder(), Recorder()

    send_all(Fanout([first, second]))

    assert first.got == second.got == [{"seed": 7}, STATS, VALIDATION, "hello", "closed"]


def test_a_failing_sink_is_warned_about_once_and_harms_no_other() -> None:
    """The one behind it gets everything; at the end the number of lost reports is said."""
    recorder, warnings = Recorder(), list[str]()

    send_all(Fanout([Broken(), recorder], warn=warnings.append))

    assert len(recorder.got) == 5
    failure, loss = warnings
    assert "ConnectionError: the service is gone" in failure
    assert loss == "the service lacks 4 reports that could not be written"


def test_a_sink_that_comes_back_gets_the_later_reports() -> None:
    """One failure does not silence it for good, and is counted."""

    class Flaky(Recorder):
        def on_start(self, facts: dict[str, Any]) -> None:
            raise TimeoutError("not yet")

    flaky, warnings = Flaky(), list[str]()

    send_all(Fanout([flaky], warn=warnings.append))

    assert flaky.got == [STATS, VALIDATION, "hello", "closed"]
    assert warnings[1:] == ["the recorder lacks 1 report that could not be written"]


def test_the_wish_to_stop_is_not_swallowed() -> None:
    """Ctrl-C while a sink works reaches the training loop."""

    class Interrupted(Recorder):
        def on_step(self, stats: StepStats) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Fanout([Interrupted()]).on_step(STATS)


def test_warnings_go_to_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output stays for what a program reads."""
    Fanout([Broken()]).on_message("x")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("warning: the service cannot be written")


def test_reported_numbers_are_curves_like_all_others():
    """What a model or a loss reports is a scalar under its name, for every sink alike; its unit is not."""
    stats = replace(STATS, reported=[ReportedNumber("gate/open", 0.25, "share")])

    curves = scalars(stats.flat())

    assert curves == {**scalars(STATS.flat()), "gate/open": 0.25}
