"""A rank that hangs is named with its phase, everything ends, and a failure that comes again is not repeated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Does something to one rank when its loss has been called often enough, in every attempt or in the first only.
DISTURBED = """
import os, signal, time
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy

class Disturbed(MaskedCrossEntropy):
    def __init__(self, at_call=0, what="", always=False):
        super().__init__()
        self.calls, self.at_call, self.what = 0, at_call, what
        self.active = always or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.active and self.calls == self.at_call and os.environ.get("RANK") == "1":
            if self.what == "error":
                raise ValueError("a defect of the user's own")
            os.kill(os.getpid(), getattr(signal, self.what))
        return super().__call__(*args, **kwargs)
"""
# Its samples never come on rank 1 once the run is at work.
BLOCKING = """
import os, time
import numpy as np

class Blocking:
    seq_len = 16

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        while os.environ.get("RANK") == "1" and os.path.exists("checkpoints/step_000002"):
            time.sleep(0.1)
        ids = np.arange(17) + index
        return {"input_ids": ids[:-1] % 250, "labels": ids[1:] % 250}
"""
LIMIT_MINUTES = 0.05

pytestmark = pytest.mark.dist


@pytest.fixture
def run(tiny_run):
    """Runs two ranks with a time limit of three seconds; gives the result, the seconds and the time limit."""
    (tiny_run.parent / "disturbed.py").write_text(DISTURBED)
    (tiny_run.parent / "blocking.py").write_text(BLOCKING)

    def started(*arguments: str, **assignments: object) -> subprocess.CompletedProcess[str]:
        settings = [f"--set={name.replace('__', '.')}={value}" for name, value in assignments.items()]
        line = [sys.executable, "-m", "automodel_cli", "pretrain", "-c", str(tiny_run), "--nproc-per-node=2"]
        line += [f"--set=dist_env.timeout_minutes={LIMIT_MINUTES}", *arguments, *settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, env=environment)

    return started


def disturbed(**arguments: object) -> dict[str, str]:
    """The setting of a loss that disturbs."""
    values = "".join(f", {name}: {value}" for name, value in arguments.items())
    return {"loss_fn": f"{{_target_: 'disturbed.py:Disturbed'{values}}}"}


def processes_of(directory: Path) -> list[str]:
    """Command lines of living processes that work in a directory."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if place.joinpath("cwd").resolve() == directory.resolve() and int(place.name) != os.getpid():
                found.append(place.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if "automodel_cli" in line]


def test_a_stopped_rank_is_named_and_everything_ends(run, tmp_path):
    """SIGSTOP: the process gives no sign of life. Rank, process, phase and step, and no process is left."""
    done = run(**disturbed(at_call=3, what="SIGSTOP"))

    assert done.returncode == 8, done.stderr
    assert done.stderr.count("error:") == 1
    assert re.search(
        r"rank 1 on \S+ \(process \d+\) hangs: training, step 3, for \d+ s; the process is stopped", done.stderr
    )
    assert "rank 0:" in done.stderr
    assert not processes_of(tmp_path)


@pytest.mark.slow
def test_a_rank_whose_data_never_come_is_named_with_its_place(run, tiny_run):
    """It runs, so it can say which line it stands at."""
    (tiny_run.parent / "blocking.py").write_text(BLOCKING)

    done = run("--unset=dataset.file_pattern", "--unset=dataset.seq_len", dataset___target_="blocking.py:Blocking")

    assert done.returncode == 8, done.stderr
    assert "rank 1 on" in done.stderr
    assert "hangs: waiting for data, step" in done.stderr
    assert "rank 0: waiting for the other ranks" in done.stderr


@pytest.mark.slow
def test_a_job_whose_rank_hung_once_comes_back(run):
    """The last checkpoint, one more start, and the reason said aloud."""
    done = run("--max-restarts=2", **disturbed(at_call=3, what="SIGSTOP"))

    assert done.returncode == 0, done.stderr
    assert "failed at step 3: rank 1 on" in done.stderr
    assert "starting again from the last checkpoint (2 left)" in done.stderr
    assert Path("checkpoints/step_000006").is_dir()


@pytest.mark.slow
def test_a_failure_that_comes_again_at_the_same_step_ends_the_job(run):
    """Two of nine restarts are enough to see that a third would not help."""
    done = run("--max-restarts=9", **disturbed(at_call=1, what="error", always=True))

    assert done.returncode == 1, done.stderr
    assert "failed twice in the same way, now at step 1" in done.stderr
    assert "a defect of the user's own" in done.stderr
    assert done.stderr.count("starting again") == 1
