"""How much CPU time a command costs before it does anything: amcli beside torchrun and `import torch`.

Runs the commands in turn, several rounds, so that a busy machine slows all of them alike, and
takes medians. CPU seconds are user plus system time of the command and its children; the first
round only fills caches and is not counted.

    python benchmarks/startup.py [--rounds 9]    writes benchmarks/results/startup.{json,md}
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SCRIPTS = Path(sysconfig.get_path("scripts"))
# A model that trains its two steps in a moment: inspect-ckpt needs some checkpoint to look at.
TINY = "model.n_layer=1 model.n_embd=32 model.n_head=2 step_scheduler.max_steps=2 step_scheduler.val_batches=1"
LLAMA = "llama.yaml"  # the preset with most source to read: classes of transformers
LITGPT = SCRIPTS / "litgpt"  # measured where it is installed beside amcli
NO_LITGPT = "`litgpt --help` is not measured: litgpt is not installed here (it asks for another torch)."
COMPLETION = {"_AMCLI_COMPLETE": "complete_bash", "COMP_LINE": "amcli re", "COMP_WORD": "re"}
KEYS = COMPLETION | {"COMP_LINE": "amcli pretrain --set model.n_", "COMP_WORD": "model.n_"}


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds, in seconds."""

    command: str
    cpu_seconds: float
    wall_seconds: float
    cpu_seconds_each_round: list[float]


def commands() -> dict[str, tuple[list[str], dict[str, str]]]:
    """What is measured: the name in the table -> the command and what its environment adds."""
    amcli = str(SCRIPTS / "amcli")
    return {
        "python -c pass": ([sys.executable, "-c", "pass"], {}),
        "amcli --version": ([amcli, "--version"], {}),
        "amcli --help": ([amcli, "--help"], {}),
        "amcli re<TAB>": ([amcli], COMPLETION),
        "amcli pretrain --set model.n_<TAB>": ([amcli], KEYS),
        "amcli config show": ([amcli, "config", "show"], {}),
        "amcli config show --check": ([amcli, "config", "show", "--check"], {}),
        "amcli config show -c LLAMA --check": ([amcli, "config", "show", "-c", LLAMA, "--check"], {}),
        "amcli inspect-ckpt": ([amcli, "inspect-ckpt"], {}),
        "torchrun --help": ([str(SCRIPTS / "torchrun"), "--help"], {}),
        **({"litgpt --help": ([str(LITGPT), "--help"], {})} if LITGPT.is_file() else {}),
        "python -c 'import torch'": ([sys.executable, "-c", "import torch"], {}),
    }


def cpu_and_wall_seconds(command: list[str], environment: dict[str, str], directory: Path) -> tuple[float, float]:
    """Runs one command and returns what it cost."""
    clock = os.times()
    subprocess.run(command, cwd=directory, env=os.environ | environment, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - clock.children_user - clock.children_system
    return cpu, after.elapsed - clock.elapsed


def measure(directory: Path, num_rounds: int) -> list[Timing]:
    """Runs every command `num_rounds` times, in turn."""
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands()}
    for round_number in range(num_rounds + 1):
        for name, (command, environment) in commands().items():
            cost = cpu_and_wall_seconds(command, environment, directory)
            if round_number:
                costs[name].append(cost)
    return [
        Timing(
            command=name,
            cpu_seconds=round(statistics.median(cpu for cpu, _ in rounds), 3),
            wall_seconds=round(statistics.median(wall for _, wall in rounds), 3),
            cpu_seconds_each_round=[round(cpu, 3) for cpu, _ in rounds],
        )
        for name, rounds in costs.items()
    ]


def make_checkpoint(directory: Path) -> None:
    """Prepares the embedded text, trains a tiny model, and writes a configuration, in `directory`."""
    subprocess.run(
        [SCRIPTS / "amcli", "config", "init", LLAMA, "--preset", "hf-llama"],
        cwd=directory,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    llama = (directory / LLAMA).read_text(encoding="utf-8").replace("data/fineweb", "data/shakespeare")
    (directory / LLAMA).write_text(llama, encoding="utf-8")
    overrides = [word for override in TINY.split() for word in ("--set", override)]
    for arguments in (["prep", "shakespeare"], ["pretrain", *overrides]):
        subprocess.run([SCRIPTS / "amcli", *arguments], cwd=directory, stdout=subprocess.DEVNULL, check=True)


def machine() -> dict[str, str | int | None]:
    """What the numbers depend on."""
    models = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "typer": version("typer"),
        "amcli": version("amcli"),
    }


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def table(timings: list[Timing], facts: dict[str, str | int | None], num_rounds: int) -> str:
    """The results as a Markdown page."""
    rows = [f"| `{t.command}` | {t.cpu_seconds:.2f} | {t.wall_seconds:.2f} |" for t in timings]
    described = ", ".join(f"{name} {value}" for name, value in facts.items())
    return "\n".join(
        [
            "# Start-up",
            "",
            f"Medians of {num_rounds} rounds in turn, by `python benchmarks/startup.py`; {described}.",
            "",
            "| command | CPU seconds | wall seconds |",
            "|---|---|---|",
            *rows,
            "",
            *([] if LITGPT.is_file() else [NO_LITGPT, ""]),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_checkpoint(directory)
        timings = measure(directory, options.rounds)
    facts = machine()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "startup.json").write_text(
        json.dumps({"machine": facts, "timings": [asdict(timing) for timing in timings]}, indent=2) + "\n",
        encoding="utf-8",
    )
    page = table(timings, facts, options.rounds)
    (RESULTS / "startup.md").write_text(page, encoding="utf-8")
    sys.stdout.write(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
