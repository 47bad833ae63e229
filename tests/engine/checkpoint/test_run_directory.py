"""The lock on a run's directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from automodel_cli.engine.checkpoint.run_directory import LOCK_FILE, run_lock
from automodel_cli.errors import CheckpointError

HOLD = """
import sys, time
from pathlib import Path
from automodel_cli.engine.checkpoint.run_directory import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the directory `run`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_told_who_is_there(holder, tmp_path):
    """Its process and host stand in the message, and the directory is as it was."""
    with pytest.raises(CheckpointError, match=f"process {holder.pid} on '.+'"), run_lock(tmp_path / "run"):
        pytest.fail("two runs hold one lock")

    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


def test_a_kill_frees_the_lock(holder, tmp_path):
    """What a killed run leaves behind keeps nobody out."""
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()

    with run_lock(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / LOCK_FILE).read_text()


def test_one_process_cannot_take_it_twice(tmp_path):
    """The lock belongs to the run, not to the process."""
    with run_lock(tmp_path), pytest.raises(CheckpointError, match=f"process {os.getpid()}"), run_lock(tmp_path):
        pytest.fail("taken twice")


def test_a_directory_that_nothing_was_put_into_goes_again(tmp_path):
    """A refused run leaves no trace; one that saved something leaves that alone."""
    with run_lock(tmp_path / "empty"):
        pass
    with run_lock(tmp_path / "full"):
        (tmp_path / "full" / "kept").touch()

    assert not (tmp_path / "empty").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["kept"]


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    """A hostile directory must not make a run write elsewhere."""
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(CheckpointError), run_lock(tmp_path / "run"):
        pytest.fail("followed")

    assert (tmp_path / "elsewhere").read_text() == "precious"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_place_that_takes_no_directory_is_refused_in_the_end():
    """There `mkdir` says "no such file", as it does for a moment where another run removes its empty directory."""
    with pytest.raises(CheckpointError, match="cannot be written to"), run_lock(Path("/proc/checkpoints")):
        pass
