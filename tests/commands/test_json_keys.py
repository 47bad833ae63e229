"""Documented JSON keys are those that are printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from automodel_cli import app

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"\| (?P<commands>`.+?`(?:, `.+?`)*) \| (?P<keys>.+) \|")
FINEWEB = str(ROOT / "examples/fineweb.yaml")


def documented():
    """Command line -> the keys of its document, without those of inner ones."""
    rows = map(ROW.fullmatch, (ROOT / "docs/json.md").read_text().splitlines())
    return {
        command: set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row["keys"])))
        for row in rows
        if row
        for command in re.findall(r"`(.+?)`", row["commands"])
    }


@pytest.fixture
def keys_of(capsys):
    """The keys that a command prints, whatever its verdict."""

    def run(*arguments):
        app.run([*arguments, "--json"])
        found = json.loads(capsys.readouterr().out)
        return set(found[0] if isinstance(found, list) else found)

    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["prep", "--list"], "prep --list --json"),
        (["config", "show"], "config show --json"),
        (["config", "show", "--check"], "config show --check --json"),
        (["config", "show", "--check", "--set", "seed=-1"], "config show --check --json"),
        (["config", "show", "--diff", FINEWEB], "config show --diff OTHER --json"),
        (["config", "show", "--explain", "optimizer.lr"], "config show --explain KEY --json"),
        (["config", "show", "--plot-lr"], "config show --plot-lr --json"),
        (["data", "verify", "DATA"], "data verify DIR --json"),
        (["data", "inspect", "DATA"], "data inspect DIR --json"),
        (["prep", "shakespeare", "--max-tokens", "10K"], "prep --json"),
        (["prep", "shakespeare", "--dry-run"], "prep --dry-run --json"),
    ],
)
def test_the_documented_keys_are_printed(keys_of, tiny_data, arguments, line):
    """All of them, and no others."""
    assert keys_of(*(str(tiny_data) if word == "DATA" else word for word in arguments)) == documented()[line]


def test_the_documented_keys_of_merged_parts_are_printed(keys_of, tmp_path, monkeypatch):
    """One part is a whole, too."""
    monkeypatch.chdir(tmp_path)

    keys_of("prep", "shakespeare", "--max-tokens", "10K", "--partition", "0/1", "--output-dir", "parts")

    assert (
        keys_of("data", "merge", "parts/part-00000-of-00001", "--output", "whole")
        == documented()["data merge DIR --json"]
    )


def test_the_documented_keys_of_a_run_and_its_checkpoints_are_printed(keys_of, tiny_run):
    """One short run, resumed and inspected."""
    short = ["--set", "step_scheduler.max_steps=2"]

    assert keys_of("pretrain", "-c", str(tiny_run), *short) == documented()["pretrain --json"]
    assert keys_of("resume") == documented()["resume --json"]
    assert keys_of("inspect-ckpt") == documented()["inspect-ckpt --json"]
    assert keys_of("inspect-ckpt", "--can-resume") == documented()["inspect-ckpt --can-resume --json"]
    assert keys_of("inspect-ckpt", "checkpoints") == documented()["inspect-ckpt RUN --json"]
    assert keys_of("sample", "--max-new-tokens", "3") == documented()["sample --json"]
    assert keys_of("export", "--out", "exported") == documented()["export --json"]
    assert keys_of("import", "exported", "--out", "imported") == documented()["import --json"]


@pytest.mark.slow
def test_the_documented_keys_of_a_comparison_are_printed(keys_of, tiny_run):
    """Three trainings in processes of their own."""
    arguments = ("verify-resume", "-c", str(tiny_run), "--steps", "4", "--every", "2", "--kills", "1")

    assert keys_of(*arguments) == documented()["verify-resume --json"]


def test_the_documented_keys_of_a_plan_are_printed(keys_of):
    """Of the largest example."""
    assert keys_of("plan", "-c", FINEWEB) == documented()["plan --json"]
