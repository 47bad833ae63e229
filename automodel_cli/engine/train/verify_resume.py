"""Proves that a killed and resumed run ends as an undisturbed one: trains both and compares hashes.

The same configuration is trained twice, each time by the command line that users type: once straight
through, and once killed without warning (SIGKILL to all of its processes) at random moments and
resumed each time. Then weights, optimizer state and generators must have equal SHA-256, and every
step the same loss and gradient norm. Torch-free: the training happens in other processes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from automodel_cli.engine.checkpoint.layout import TRAIN_STATE_FILE, list_steps, resolve, step_directory_name
from automodel_cli.engine.checkpoint.manifest import read_manifest
from automodel_cli.engine.checkpoint.snapshot import read_train_state
from automodel_cli.engine.distributed.environment import own_command
from automodel_cli.engine.observe.jsonl import METRICS_FILE, read_records, read_records_backwards, step_in
from automodel_cli.errors import AmcliError, CheckpointError

_POLL_SECONDS = 0.02
# Keys of the training state that differ between any two runs.
_OWN = {"train_seconds", "run_id"}
_COMPARED = ("loss", "grad_norm", "lr", "tokens_seen")


@dataclass(frozen=True)
class Kill:
    """One kill: the last step that was reported before it, and the step that the run went on from."""

    after_step: int
    resumed_from: int

    @property
    def steps_lost(self) -> int:
        """Steps that had to be trained again."""
        return self.after_step - self.resumed_from


@dataclass(frozen=True)
class Verification:
    """The result.

    Args:
        steps: Steps of each run.
        seed: Seed of the random moments.
        kills: The kills, in order.
        hashes: SHA-256 in both runs, for each file of the last checkpoint.
        different_steps: Steps whose loss, gradient norm, learning rate or tokens differ.
        state_differs: Keys of the training state that differ.
    """

    steps: int
    seed: int
    kills: tuple[Kill, ...]
    hashes: dict[str, tuple[str, str]]
    different_steps: tuple[int, ...]
    state_differs: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not self.different_steps and not self.state_differs and all(a == b for a, b in self.hashes.values())

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        kills = [{**asdict(kill), "steps_lost": kill.steps_lost} for kill in self.kills]
        return {**asdict(self), "kills": kills, "is_equal": self.is_equal}


def verify_resume(
    arguments: Sequence[str],
    *,
    steps: int,
    every: int,
    kills: int,
    seed: int,
    directory: Path,
    say: Callable[[str], None],
) -> Verification:
    """Trains twice and compares.

    Args:
        arguments: Options of `amcli pretrain` for the configuration: `-c FILE`, `--set KEY=VALUE`,
            `--nproc-per-node N`. Length, intervals and directories are set here.
        steps: Optimisation steps of each run.
        every: Steps between two checkpoints.
        kills: Number of kills of the second run.
        seed: Seed of the random moments.
        directory: For both runs; must not exist.
        say: Called with what is being done.

    Raises:
        CheckpointError: The directory is in the way, or a run failed by itself.
    """
    straight, killed = directory / "straight", directory / "killed"
    try:
        directory.mkdir(parents=True)
        (directory / "straight.log").touch()
    except FileExistsError:
        raise CheckpointError("it exists already", where=str(directory), help="name another with --directory") from None
    except OSError as error:
        raise CheckpointError(
            f"the directory of both runs cannot be written to: {error.strerror}",
            where=str(directory),
            help="name one that can be written to with --directory",
        ) from error
    say(f"training {steps} steps straight through")
    _run_to_end(_command("pretrain", arguments, straight, steps, every), directory / "straight.log")
    done = [
        kill
        for moment in _moments(steps, kills, random.Random(seed))
        if (kill := _kill_once(arguments, killed, steps, every, moment, say)) is not None
    ]
    say(f"training on to step {steps}")
    _run_to_end(_continuation(arguments, killed, steps, every), directory / "killed.log")
    return _compared(straight, killed, steps, seed, done)


def _moments(steps: int, kills: int, generator: random.Random) -> list[tuple[int, float]]:
    """For each kill the step that must have been reported, ascending, and the part of a step to wait after that."""
    return [(step, generator.random()) for step in sorted(generator.choices(range(1, steps), k=kills))]


def _command(what: str, arguments: Sequence[str], root: Path, steps: int, every: int, *more: str) -> list[str]:
    own = [f"step_scheduler.max_steps={steps}", f"step_scheduler.ckpt_every_steps={every}"]
    own += [f"checkpoint.checkpoint_dir={root}", "checkpoint.enabled=true"]
    options = [part for assignment in own for part in ("--set", assignment)]
    return [*own_command(), what, *more, *arguments, *options]


def _continuation(arguments: Sequence[str], root: Path, steps: int, every: int) -> list[str]:
    """Resumes if there is a checkpoint, else starts again, as a scheduler would."""
    if any((path / "manifest.json").is_file() for _, path in list_steps(root)):
        return _command("resume", arguments, root, steps, every, str(root))
    return _command("pretrain", arguments, root, steps, every, "--overwrite")


def _kill_once(
    arguments: Sequence[str],
    root: Path,
    steps: int,
    every: int,
    moment: tuple[int, float],
    say: Callable[[str], None],
) -> Kill | None:
    """Starts or resumes the run, and kills all of its processes at a moment; None if the run ended before."""
    at_step, part = moment
    began = time.time()
    log = root.parent / "killed.log"
    with log.open("ab") as output:
        command = _continuation(arguments, root, steps, every)
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while process.poll() is None and _last_report(root, since=began).get("step", 0) < at_step:
                time.sleep(_POLL_SECONDS)
            if process.poll() is None:
                time.sleep(part * _last_report(root, since=began).get("step_seconds", 0.0))
        finally:
            # The whole group: the ranks of a run are children of its launcher.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode == 0:
        say("the run was done before it could be killed: take more --steps")
        return None
    if process.returncode != -signal.SIGKILL:
        raise _failed(process.returncode, log)
    reached = _last_report(root).get("step", 0)
    saved = [step for step, path in list_steps(root) if (path / "manifest.json").is_file()]
    kill = Kill(after_step=reached, resumed_from=max(saved, default=0))
    say(f"killed after step {kill.after_step}; the last checkpoint is of step {kill.resumed_from}")
    return kill


def _run_to_end(command: list[str], log: Path) -> None:
    with log.open("ab") as output:
        code = subprocess.run(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, check=False).returncode
    if code != 0:
        raise _failed(code, log)


def _failed(code: int, log: Path) -> AmcliError:
    text = log.read_text(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "no output")
    return CheckpointError(
        f"a run ended by itself with exit code {code}: {reason.removeprefix('error: ')}",
        where=str(log),
        help="the configuration must train by itself before this can say anything",
    )


def _reports(root: Path) -> dict[int, dict[str, Any]]:
    """The report of each step."""
    records = (record for record in read_records(root / METRICS_FILE) if record.get("event") == "step")
    return {step: record for record in records if (step := step_in(record)) is not None}


def _last_report(root: Path, since: float = 0.0) -> dict[str, Any]:
    """The report of the last step, if it was written after a moment; empty before there is one."""
    for record in read_records_backwards(root / METRICS_FILE):
        if record.get("event") == "step" and step_in(record) is not None:
            written = record.get("time")
            return record if isinstance(written, float | int) and written >= since else {}
    return {}


def _compared(straight: Path, killed: Path, steps: int, seed: int, kills: list[Kill]) -> Verification:
    first, second = (resolve(root / step_directory_name(steps)) for root in (straight, killed))
    ours, theirs = read_manifest(first).files, read_manifest(second).files
    names = [name for name in {**ours, **theirs} if name.endswith((".safetensors", ".bin"))]
    nothing = "(missing)"
    hashes = {
        name: (
            ours[name].sha256 if name in ours else nothing,
            theirs[name].sha256 if name in theirs else nothing,
        )
        for name in sorted(names)
    }
    states = [read_train_state(path / TRAIN_STATE_FILE) for path in (first, second)]
    keys = sorted({*states[0], *states[1]} - _OWN)
    reports = [_reports(root) for root in (straight, killed)]
    return Verification(
        steps=steps,
        seed=seed,
        kills=tuple(kills),
        hashes=hashes,
        different_steps=tuple(
            step
            for step in range(1, steps + 1)
            if any(reports[0].get(step, {}).get(key) != reports[1].get(step, {}).get(key) for key in _COMPARED)
            or step not in reports[0]
        ),
        state_differs=tuple(key for key in keys if states[0].get(key) != states[1].get(key)),
    )
