"""What a table says in a narrow terminal is what it says in a wide one, or part of it; nothing is cut or broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from automodel_cli import app
from automodel_cli.commands import columns, render
from automodel_cli.engine.train.recipe import RunSummary

FINEWEB = str(Path(__file__).parents[2] / "examples/fineweb.yaml")
WIDTHS = [40, 60, 80, 120]
TABLES = [
    ["config", "show", "--format", "table"],
    ["config", "show", "--diff", FINEWEB],
    ["config", "show", "--explain", "optimizer.lr"],
    ["plan"],
    ["plan", "-c", FINEWEB, "--nproc-per-node", "8"],
    ["prep", "--list"],
    ["data", "inspect", "DATA"],
    ["inspect-ckpt"],
    ["inspect-ckpt", "checkpoints"],
    ["inspect-ckpt", "--tensor", "*"],
    ["inspect-ckpt", "--tree"],
    ["inspect-ckpt", "checkpoints/step_000002", "--diff", "checkpoints/step_000004"],
    ["inspect-ckpt", "checkpoints/LATEST/model"],
]
# Those whose first column is a key or a name.
KEYED = [table for table in TABLES if table[0] == "inspect-ckpt" or "--format" in table or "--diff" in table]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_data):
    """A directory with the checkpoints of a tiny run."""
    from tests.conftest import TINY

    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        Path("tiny.yaml").write_text(TINY.replace("DATA", str(tiny_data)))
        assert app.run(["pretrain", "-c", "tiny.yaml", "--quiet"]) == 0
    return directory


@pytest.fixture
def table(place, tiny_data, capsys, monkeypatch):
    """The lines of a table in so many columns; in as many as it likes for None."""
    monkeypatch.chdir(place)

    def run(arguments, width=None):
        if width is not None:
            monkeypatch.setenv("COLUMNS", str(width))
        assert app.run([str(tiny_data) if word == "DATA" else word for word in arguments]) == 0
        monkeypatch.delenv("COLUMNS", raising=False)
        return capsys.readouterr().out.splitlines()

    return run


def check(lines: list[str], whole: list[str], width: int) -> None:
    """Each word stands in the wide table, too, and only a single word may be longer than a line."""
    words = {word for line in whole for word in line.split()}
    assert {word for line in lines for word in line.split() if set(word) != {"█"}} <= words
    for line in lines:
        if "amcli " not in line:  # a command is pasted, so it is one line
            assert len(line) <= width or len(line.split()) == 1, line


@pytest.mark.parametrize("arguments", TABLES, ids=lambda words: " ".join(Path(word).name for word in words))
def test_no_name_and_no_number_is_cut_or_broken(table, arguments):
    """Lines keep to the terminal, what they hold is whole, and of keys and names none is missing."""
    whole = table(arguments)
    keys = {line.split()[0] for line in whole if line.strip()} if arguments in KEYED else set()

    for width in WIDTHS:
        lines = table(arguments, width)

        check(lines, whole, width)
        assert keys <= {word for line in lines for word in line.split()}


def test_what_matters_most_stays_longest(table):
    """Which checkpoint, and whether it is good; of tensors the name and what is no number."""
    assert table(["inspect-ckpt", "checkpoints"], 40)[1].split() == ["checkpoint", "verdict"]
    assert table(["inspect-ckpt", "checkpoints"], 60)[1].split() == ["checkpoint", "loss", "val_loss", "verdict"]
    assert table(["inspect-ckpt", "--tensor", "*"], 40)[0].split() == ["tensor", "NaN", "Inf"]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_summary_of_a_run_keeps_to_the_terminal(capsys, monkeypatch, width):
    """Except for its commands, which are pasted."""
    summary = RunSummary(1000, 1.25, 1.5, 3.34, 10**9, 123456.7, 360.0, Path("my runs/LATEST"), has_tokenizer=True)
    render.run_summary(summary, as_json=False)
    whole = capsys.readouterr().out.splitlines()
    monkeypatch.setenv("COLUMNS", str(width))

    render.run_summary(summary, as_json=False)

    lines = capsys.readouterr().out.splitlines()
    check(lines, whole, width)
    assert [line for line in lines if "amcli " in line] == [line for line in whole if "amcli " in line]


def test_a_number_keeps_its_unit():
    """Whatever the width, both are on one line."""
    text = "16.5 GB of 80 GB, 12 x 8 tokens in 3 min and 989 TFLOP/s"
    whole = ["16.5 GB", "80 GB", "12 x", "8 tokens", "3 min", "989 TFLOP/s"]

    for width in range(8, 60):
        lines = columns.wrapped(text, width)
        assert all(any(pair in line for line in lines) for pair in whole), lines
