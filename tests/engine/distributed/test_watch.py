"""Who hangs is read from what the ranks say of themselves; tested with files and processes in their place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from automodel_cli.engine.distributed import heartbeat, watch
from automodel_cli.engine.distributed.environment import REPORT_DIRECTORY, RankPlace
from automodel_cli.engine.distributed.heartbeat import Phase, beating, enter, process_state, read_beats
from automodel_cli.engine.distributed.rank_report import RankReport
from automodel_cli.engine.distributed.watch import Watch

TIMEOUT = 60.0


@pytest.fixture
def ranks(tmp_path):
    """Processes that stand for ranks: their beats can be written as one likes."""
    processes = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]) for _ in range(2)]

    def beat(rank, phase, step, *, beat_age=0.5, phase_age=1.0, attempt=0):
        now = time.monotonic()
        content = heartbeat._FORM.pack(processes[rank].pid, step, now - beat_age, now - phase_age, phase.value.encode())
        (tmp_path / f"attempt{attempt}-rank{rank}.beat").write_bytes(content)

    beat.processes = processes
    yield beat
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def watcher(tmp_path):
    said = []
    found = Watch(tmp_path, TIMEOUT, 5, said.append)
    found.said = said
    return found


def reported(tmp_path, rank, message, *, attempt=0, exit_code=1, is_symptom=False):
    report = RankReport(rank, "host", exit_code, message, (), is_symptom, time.time())
    (tmp_path / f"attempt{attempt}-rank{rank}.json").write_text(json.dumps(asdict(report)))


def is_killed(process):
    try:
        return process.wait(timeout=5) == -signal.SIGKILL
    except subprocess.TimeoutExpired:
        return False


def test_ranks_that_get_on_are_left_alone(ranks, watcher):
    """Also one that has waited nearly as long as it may, and one that computes for longer than that."""
    ranks(0, Phase.SYNCHRONISING, 7, phase_age=TIMEOUT - 5)
    ranks(1, Phase.TRAINING, 7, phase_age=TIMEOUT + 500)

    watcher.look()

    assert watcher.verdict() is None
    assert all(process_state(process.pid) != "X" for process in ranks.processes)


def test_a_rank_without_a_sign_of_life_is_named_and_all_are_killed(ranks, watcher, wait_until):
    """The one that waits for it is no culprit."""
    ranks(0, Phase.SYNCHRONISING, 8, phase_age=TIMEOUT + 1)
    ranks(1, Phase.TRAINING, 7, beat_age=TIMEOUT + 2, phase_age=TIMEOUT + 2)
    stopped = ranks.processes[1].pid
    os.kill(stopped, signal.SIGSTOP)
    wait_until("the process is stopped", lambda: process_state(stopped) == "T")

    watcher.look()
    watcher.look()

    message = watcher.verdict().message
    assert message.startswith("rank 1 on ")
    assert "hangs: training, step 7, for 62 s; the process is stopped, as SIGSTOP does" in message
    assert "rank 0: waiting for the other ranks, step 8, for 61 s" in message
    assert all(map(is_killed, ranks.processes))


def test_of_ranks_that_run_the_one_is_named_that_does_not_wait(ranks, watcher):
    """Its data do not come; the other has waited for it all the time."""
    ranks(0, Phase.READING, 9, phase_age=TIMEOUT + 2)
    ranks(1, Phase.SYNCHRONISING, 9, phase_age=TIMEOUT + 1)

    watcher.look()

    assert "rank 0 on" in watcher.verdict().message
    assert "waiting for data, step 9, for 62 s; it runs, and does not get on" in watcher.verdict().message


def test_peers_that_notice_first_do_not_hide_the_culprit(ranks, watcher, tmp_path):
    """A collective's own time limit inside of a step: the report is a symptom, and the silent rank the reason."""
    ranks(0, Phase.TRAINING, 4, phase_age=70)
    ranks(1, Phase.TRAINING, 4, beat_age=65, phase_age=70)
    reported(tmp_path, 0, "Timed out waiting 60000ms for recv", is_symptom=True)

    watcher.look()

    assert "rank 1 on" in watcher.verdict().message


def test_a_peer_that_is_ended_for_waiting_in_vain_is_no_culprit(ranks, watcher):
    """NCCL's own watchdog kills the process, without a report."""
    ranks(0, Phase.TRAINING, 4, phase_age=TIMEOUT + 5)
    ranks(1, Phase.TRAINING, 4, phase_age=TIMEOUT + 6)
    ranks.processes[0].kill()
    ranks.processes[0].wait()

    watcher.look()

    assert "rank 1 on" in watcher.verdict().message


def test_a_job_that_was_suspended_as_a_whole_goes_on(ranks, watcher):
    """Ctrl-Z stops the launcher, too; nobody has waited for anybody."""
    ranks(0, Phase.SYNCHRONISING, 8, phase_age=TIMEOUT + 100)
    ranks(1, Phase.TRAINING, 7, beat_age=TIMEOUT + 99, phase_age=TIMEOUT + 100)
    watcher._last_look -= TIMEOUT + 98

    watcher.look()

    assert watcher.verdict() is None


def test_a_failure_of_its_own_is_no_hang_and_its_peers_are_ended(ranks, watcher, tmp_path, monkeypatch):
    """They get a few seconds to notice; who is on its way out gets as long as it takes."""
    monkeypatch.setattr(watch, "_NOTICE_SECONDS", 0.0)
    ranks(0, Phase.ENDING, 4)
    ranks(1, Phase.TRAINING, 4)
    reported(tmp_path, 0, "ValueError: a defect")

    watcher.look()
    watcher.look()

    assert watcher.verdict() is None
    assert is_killed(ranks.processes[1])
    assert process_state(ranks.processes[0].pid) != "X"


def test_ranks_that_were_stopped_in_order_may_take_their_time(ranks, watcher, tmp_path):
    """A signal: one rank has ended with everything saved, the other is still writing."""
    ranks(0, Phase.SAVING, 4)
    ranks(1, Phase.ENDING, 4)
    reported(tmp_path, 1, "stopped after step 4", exit_code=6)
    ranks.processes[1].kill()
    ranks.processes[1].wait()

    watcher.look()
    watcher.look()

    assert process_state(ranks.processes[0].pid) != "X"


@pytest.mark.parametrize(("second_step", "goes_on"), [(4, False), (3, False), (5, True)])
def test_the_same_failure_twice_is_one_too_many(ranks, watcher, tmp_path, monkeypatch, second_step, goes_on):
    """But a job that got further between them may have been unlucky."""
    ended = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda pid, number: ended.append((pid, number)))
        for attempt, step in enumerate((4, second_step)):
            for rank in (0, 1):
                ranks(rank, Phase.TRAINING, step, attempt=attempt)
            reported(tmp_path, 0, f"ValueError: a defect at 0x{attempt}f", attempt=attempt)
            watcher.look()
            watcher.look()
        ranks(0, Phase.STARTING, 0, attempt=2)
        watcher.look()

    assert ((os.getpid(), signal.SIGTERM) in ended) is not goes_on
    assert (watcher.verdict() is None) is goes_on
    if not goes_on:
        assert f"failed twice in the same way, now at step {second_step}" in watcher.verdict().message
    assert len(watcher.said) == 1 + goes_on


def test_a_rank_says_what_it_does(tmp_path, monkeypatch):
    """Through a file that another process reads at any time; after the end, that it ended in order."""
    monkeypatch.setenv(REPORT_DIRECTORY, str(tmp_path))
    place = RankPlace(rank=3, world_size=4, launcher="torchrun", restart_count=2)

    with beating(place):
        enter(Phase.VALIDATING, 12)
        (during,) = read_beats(tmp_path)
    (after,) = read_beats(tmp_path)

    assert (during.attempt, during.rank, during.pid) == (2, 3, os.getpid())
    assert during.in_words == "validating, step 12"
    assert after.phase is Phase.ENDED


def test_without_our_launcher_nothing_is_written(tmp_path, monkeypatch):
    """Another launcher's ranks have nobody who reads it."""
    monkeypatch.delenv(REPORT_DIRECTORY, raising=False)

    with beating(RankPlace(rank=0, world_size=2, launcher="srun")):
        enter(Phase.TRAINING, 1)

    assert not list(tmp_path.iterdir())
