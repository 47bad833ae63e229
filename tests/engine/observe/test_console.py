"""What a person sees: aligned lines everywhere, a bar on a terminal, no control codes elsewhere."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from automodel_cli.engine.observe.console import ConsoleSink, FittedProgress, LineFormat
from automodel_cli.engine.observe.metrics import ReportedNumber, StepStats, ValStats

STATS = StepStats(
    step=120,
    max_steps=400,
    loss=2.12339,
    grad_norm=0.531,
    lr=9.12e-4,
    tokens_per_second=45123.4,
    step_seconds=0.1824,
    memory_bytes=510_000_000,
    tokens_seen=10**6,
    data_wait_seconds=0.001,
    data_wait_share=0.005,
    seconds_left=51.07,
)


def whole_run(sink: ConsoleSink) -> None:
    sink.on_start({"model": "GPT-2", "parameters": 1_852_608, "nested": {"left": "out"}})
    for step in range(1, 4):
        sink.on_step(replace(STATS, step=step))
    sink.on_validation(ValStats(3, 2.0312, 7.6233, 640))
    sink.on_message("saved [bold]step_000003[/bold]")
    sink.close()


def test_a_step_line_looks_as_documented() -> None:
    """The line of the documentation, character by character."""
    line = LineFormat(400).step(STATS)

    assert line == (
        "step  120/400 | loss 2.1234 | grad_norm 0.53 | lr 9.12e-04 | tps 45,123 | mem 0.51 GB | 182 ms | left 0:51"
    )


def test_what_only_some_runs_have_is_shown_where_it_is() -> None:
    """Several devices, a known peak, a loader that is waited for, and the last step, which leaves nothing."""
    full = replace(STATS, step=400, tokens_per_second_per_device=5640.4, mfu=0.4123, data_wait_share=0.25)

    line = LineFormat(400).step(full)

    assert line.endswith("| tps 45,123 (5,640 each) | mfu 41.2% | mem 0.51 GB | 182 ms | data 25%")


def test_reported_numbers_follow_and_are_left_out_first() -> None:
    """With their units; a narrow terminal shows the step's own numbers before them."""
    stats = replace(STATS, reported=[ReportedNumber("gate", 0.123456, "share"), ReportedNumber("largest", 7.0)])

    whole, narrow = LineFormat(400).step(stats), LineFormat(400).step(stats, room=110)

    assert "| mem 0.51 GB | gate 0.1235 share | largest 7 | 182 ms |" in whole
    assert "182 ms" in narrow
    assert "largest" not in narrow


def test_a_validation_line_looks_as_documented() -> None:
    """Its counter stands under that of the steps."""
    line = LineFormat(400).validation(ValStats(120, 2.0312, 7.6233, 640))

    assert line == "step  120/400 | val_loss 2.0312 | perplexity 7.62"


def test_columns_stay_under_each_other_once_they_have_been_wide() -> None:
    """A loss that falls below ten and a speed that loses a digit do not move what is right of them."""
    lines = LineFormat(1000)
    wide = lines.step(replace(STATS, step=1000, max_steps=2000, loss=10.8612, tokens_per_second=145_000))

    narrow = lines.step(replace(STATS, step=7, loss=9.1, tokens_per_second=999))

    def bars(line: str) -> list[int]:
        return [match.start() for match in re.finditer(r"\|", line)]

    assert bars(narrow) == bars(wide)


@pytest.mark.parametrize(("seconds", "shown"), [(0.00432, "4.3 ms"), (0.1824, "182 ms"), (12.3456, "12,346 ms")])
def test_times_carry_the_digits_that_matter(seconds: float, shown: str) -> None:
    """Short steps keep a decimal."""
    assert LineFormat(9).step(replace(STATS, step_seconds=seconds)).split(" | ")[6] == shown


def test_a_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """No control code, nothing wrapped, nothing taken for markup, whatever the environment asks for."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()

    whole_run(ConsoleSink(max_steps=3, stream=stream))

    text = stream.getvalue()
    assert [char for char in text if not (char.isprintable() or char == "\n")] == []
    assert len(text.splitlines()) == 2 + 3 + 1 + 1
    assert "saved [bold]step_000003[/bold]" in text
    assert "1,852,608" in text


def test_each_line_reaches_a_pipe_at_once() -> None:
    """The stream is flushed line by line: `tee` and a job's log show the run while it runs."""
    flushed: list[str] = []

    class Log(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    sink = ConsoleSink(max_steps=3, stream=Log())
    sink.on_message("one")
    sink.on_step(replace(STATS, step=1))

    assert flushed[0] == "one\n"
    assert flushed[-1].count("\n") == 2


@pytest.fixture
def on_a_terminal(terminal) -> Callable[[Callable[[ConsoleSink], None]], str]:
    """What a terminal of 80 columns receives."""

    def run(work: Callable[[ConsoleSink], None]) -> str:
        screen = terminal()
        with os.fdopen(os.dup(screen.theirs), "w") as stream:
            work(ConsoleSink(max_steps=3, stream=stream))
        return screen.close()

    return run


def test_a_terminal_gets_the_lines_and_a_bar_below(monkeypatch: pytest.MonkeyPatch, on_a_terminal) -> None:
    """Every line is there once and unbroken; the bar is drawn, says what is left, and gives the cursor back."""
    monkeypatch.setenv("TERM", "xterm-256color")

    text = on_a_terminal(whole_run)

    for step in (1, 2, 3):
        assert text.count(LineFormat(3, says_left=False).step(replace(STATS, step=step), 80)) == 1
    assert "| left" not in text
    assert " left" in text
    assert "saved [bold]step_000003[/bold]" in text
    assert "tok/s" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, on_a_terminal) -> None:
    """It could not move a cursor."""
    monkeypatch.setenv("TERM", "dumb")

    assert "\x1b" not in on_a_terminal(whole_run)


def test_closing_twice_or_before_the_first_step_is_harmless() -> None:
    """A run that fails early is closed like any other."""
    sink = ConsoleSink(max_steps=3, stream=io.StringIO())

    sink.close()
    sink.close()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_line_leaves_out_whole_facts_where_a_terminal_is_narrow(width: int) -> None:
    """Step and loss stay; what is left is as it is in a wide terminal."""
    stats = replace(STATS, mfu=0.4123, data_wait_share=0.25, tokens_per_second_per_device=5640.4)
    sets = {"web": ValStats(1, 2.5, 12.0, 9), "code": ValStats(1, 1.5, 4.5, 9)}
    val = ValStats(120, 2.0312, 7.6233, 640, val_bits_per_byte=1.72, sets=sets)

    for line, whole, loss in (
        (LineFormat(400).step(stats, width), LineFormat(400).step(stats), "loss 2.1234"),
        (LineFormat(400).validation(val, width), LineFormat(400).validation(val), "val_loss 2.0312"),
    ):
        assert len(line) <= width
        assert line.split(" | ")[:2] == ["step  120/400", loss]
        assert set(line.split(" | ")) <= set(whole.split(" | "))


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_progress_line_is_never_broken(width: int) -> None:
    """Of its facts, whole ones go; the bar takes the room that is left."""
    facts = ["12%", "1 h 2 min left", "1,234,567 tokens of 890 documents", "12.3 K tokens/s"]
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    progress = FittedProgress(console=console)
    progress.add_task("", total=1.0, completed=0.5, before="preparing shakespeare", facts=facts)

    console.print(*progress.get_renderables())

    lines = console.file.getvalue().splitlines()
    assert len(lines) == 1
    assert len(lines[0]) <= width
    words = [part.strip() for part in re.split(r"  +|[━╸╺]+", lines[0]) if part.strip()]
    assert words == ["preparing shakespeare", *facts][: len(words)]
    assert len(words) >= 2
    assert ("━" in lines[0]) == (width - len("  ".join(words)) >= 8)


def test_facts_of_the_beginning_keep_to_the_terminal() -> None:
    """Text goes on below itself; words are whole."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    sink = ConsoleSink(max_steps=3, stream=stream)
    sink._room = lambda: 40

    sink.on_start({"model": "GPT-2", "data": "952,660 tokens, 16 samples per step of 128 tokens, in 2 shards"})

    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert [line[:5].strip() for line in lines] == ["model", "data", ""]
