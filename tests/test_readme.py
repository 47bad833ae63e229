"""What the documents promise: their commands run, their targets, codes and links exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from automodel_cli.errors import ExitCode

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RUNNABLE = re.compile(r"^```(bash|python) runnable\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = [
    "model.n_layer=1",
    "model.n_embd=32",
    "model.n_head=2",
    "step_scheduler.global_batch_size=4",
    "step_scheduler.local_batch_size=4",
    "step_scheduler.val_batches=1",
]
SMALL_ARGUMENTS = " ".join(f"--set {override}" for override in SMALL)
# Stands in for the console script: the same command lines, over a model that trains in a moment.
AMCLI = f"""#!/usr/bin/env bash
case "$1" in
    pretrain) set -- "$@" {SMALL_ARGUMENTS} --set step_scheduler.max_steps=3 ;;
    resume) set -- "$@" --set step_scheduler.max_steps=5 ;;
esac
exec "{sys.executable}" -m automodel_cli "$@"
"""
PLAIN_AMCLI = f"""#!/usr/bin/env bash
exec "{sys.executable}" -m automodel_cli "$@"
"""
PYTHON = f"""#!/usr/bin/env bash
exec "{sys.executable}" "$@"
"""


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """Runs a command that must succeed, with the scripts of `cwd`/bin first on the PATH."""
    variables = {
        **os.environ,
        "PATH": f"{cwd / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(directory: Path, **scripts: str) -> None:
    """Writes executable scripts into `directory`/bin."""
    (directory / "bin").mkdir()
    for name, text in scripts.items():
        script = directory / "bin" / name
        script.write_text(text, encoding="utf-8")
        script.chmod(0o755)


def test_the_runnable_blocks_of_the_readme_run_as_written(tmp_path: Path):
    """Every line that is marked runnable succeeds, in order, in one directory; only the model is smaller."""
    install(tmp_path, amcli=AMCLI, python=PYTHON)
    (tmp_path / "texts").mkdir()
    for number in range(60):
        words = " ".join(f"word{number * i % 97}" for i in range(500))
        (tmp_path / "texts" / f"{number}.txt").write_text(words, encoding="utf-8")
    blocks = RUNNABLE.findall(README.read_text(encoding="utf-8"))

    for language, code in blocks:
        run(["bash", "-euc", code] if language == "bash" else ["python", "-c", code], tmp_path)

    assert len(blocks) >= 3
    assert (tmp_path / "checkpoints" / "LATEST" / "model" / "model.safetensors").is_file()


def test_the_quickstart_trains_once_and_then_reuses_what_is_there(tmp_path: Path):
    """The first run goes through every command; a second one neither prepares nor trains again."""
    install(tmp_path, amcli=PLAIN_AMCLI, python=PYTHON)
    script = ROOT / "scripts" / "quickstart.sh"
    short = {"QUICKSTART_STEPS": "3", "QUICKSTART_MORE_STEPS": "5", "QUICKSTART_ARGS": SMALL_ARGUMENTS}

    first = run([script], tmp_path, **short)
    metrics = (tmp_path / "checkpoints" / "metrics.jsonl").read_bytes()
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "shakespeare").iterdir()}
    second = run([script], tmp_path, **short)

    commands = re.findall(r"^\$ amcli (\S+)", first, re.MULTILINE)
    assert commands == ["prep", "pretrain", "resume", "inspect-ckpt", "sample"]
    assert re.findall(r"^\$ amcli (\S+)", second, re.MULTILINE) == ["prep", "inspect-ckpt", "sample"]
    assert "it is kept" in second
    assert (tmp_path / "checkpoints" / "metrics.jsonl").read_bytes() == metrics
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    report = json.loads(run(["amcli", "inspect-ckpt", "--json"], tmp_path))
    assert report["step"] == 5


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_a_document_names_exists(document: str):
    """`make X` in a document is a target of the Makefile."""
    named = set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)", (ROOT / document).read_text(encoding="utf-8"), re.M))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert {first or second for first, second in named} <= targets
    assert named


@pytest.mark.parametrize("document", ["README.md", "docs/exit-codes.md"])
def test_the_documented_exit_codes_are_those_of_the_program(document: str):
    """Each code stands in the table once, and no other number does."""
    listed = re.findall(r"^\| (\d+) \|", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(int(code) for code in listed) == sorted(ExitCode)


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.yaml")))
@pytest.mark.usefixtures("named_shards")
def test_every_example_is_a_sound_configuration(example: str, tmp_path: Path):
    """`amcli config show` finds nothing to object to, once there is data."""
    install(tmp_path, amcli=PLAIN_AMCLI)

    shown = run(["amcli", "config", "show", "-c", ROOT / "examples" / example], tmp_path)

    assert "_target_" in shown


@pytest.mark.parametrize(
    "check",
    [["check_links.py"], ["gen_cli_docs.py", "--check"], ["draw_architecture.py", "--check"]],
    ids=["links", "help pages", "architecture"],
)
def test_the_documents_are_current(check: list[str]):
    """Every link leads somewhere; docs/cli.md is what the commands say now, the picture what the imports are."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / check[0], *check[1:]],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_decision_is_listed():
    """The index of the decisions links each of their files."""
    index = (ROOT / "docs" / "adr" / "README.md").read_text(encoding="utf-8")
    decisions = [path.name for path in (ROOT / "docs" / "adr").glob("[0-9]*.md")]

    assert [name for name in decisions if f"({name})" not in index] == []
