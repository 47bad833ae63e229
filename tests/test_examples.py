"""The example scripts are well-formed and use options that exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from automodel_cli.app import app

EXAMPLES = Path(__file__).parents[1] / "examples"


def options_of(*names: str) -> set[str]:
    """Every option of a command, by its long name."""
    command = get_command(app)
    for name in names:
        command = command.commands[name]
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_python_examples_compile(script):
    """Without what they import."""
    compile(script.read_text(encoding="utf-8"), str(script), "exec")


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_shell_examples_parse(script):
    """By the shell that runs them."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")

    done = subprocess.run([bash, "-n", str(script)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["slurm_prep.sh", "ray_prep.py"])
def test_the_options_of_the_examples_exist(name):
    """Those of `prep` and of `data merge`; the rest is Slurm's and the script's own."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    known = options_of("prep") | options_of("data", "merge")
    used = set(re.findall(r"--(?:max-tokens|partition|num-workers|output-dir|output)\b", text))

    assert {"--partition", "--num-workers", "--output-dir", "--output"} <= used <= known


def test_the_slurm_script_prepares_its_part_and_leaves_the_merge_behind(tmp_path):
    """Run with stand-ins for amcli and sbatch: task 0 of 4 calls both, task 2 only prepares."""
    for name in ("amcli", "sbatch"):
        stand_in = tmp_path / name
        stand_in.write_text(f'#!/bin/bash\necho {name} "$@"\n')
        stand_in.chmod(0o755)

    def run_task(index: int) -> list[str]:
        slurm = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": "77"}
        environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUTPUT": "out"}
        done = subprocess.run(
            ["bash", EXAMPLES / "slurm_prep.sh"], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    first, third = run_task(0), run_task(2)

    assert [line.split()[0] for line in first] == ["amcli", "sbatch"]
    assert "--partition 0/4" in first[0]
    assert "afterok:77" in first[1]
    assert "amcli data merge 'out-parts'/part-* --output 'out'" in first[1]
    assert len(third) == 1
    assert "--partition 2/4" in third[0]


def test_the_options_of_the_training_script_exist():
    """Those of `pretrain` and `resume`; the rest is Slurm's."""
    text = (EXAMPLES / "slurm_pretrain.sh").read_text(encoding="utf-8")
    used = set(re.findall(r"--(?:nproc-per-node|nnodes|rdzv-endpoint|max-restarts|set)\b", text))

    assert {"--nproc-per-node", "--nnodes", "--rdzv-endpoint", "--max-restarts"} <= used
    assert used <= options_of("pretrain") & options_of("resume")
