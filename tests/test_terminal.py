"""Whatever happens to its terminal, a command that works ends as its work does; one that prints says that it could not.

In every test a real process writes to a real pipe, device or pseudo-terminal.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import pty  # noqa: TID251  # closed on purpose; `drain_until` reads it until then
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

AMCLI = f"{sys.executable} -m automodel_cli"
# Works as a run does, without the seconds that torch takes: prints, is interrupted, reports how it ended.
WORK = """
import signal, sys, time, warnings, threading
from automodel_cli import app, terminal
from automodel_cli.commands.options import working
from automodel_cli.engine.train.signals import StopSignal
from automodel_cli.errors import InterruptedTrainingError

def work():
    with StopSignal() as stop:
        for number in range(%d):
            print(f"line {number} " + "x" * 200, flush=True)
            time.sleep(0.01)
            if stop.requested:
                open("saved", "w").close()
                raise InterruptedTrainingError(f"{stop.reason}: stopped, saved")
    print("not flushed", end="")

app.app.command("work")(working(work))
sys.argv = ["amcli", "work"]
app.main()
"""


def shell(line: str, **more: object) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash, `WORK` being a command in it; fails after 60 s."""
    environment = {**os.environ, "AMCLI": AMCLI, "WORK": f"{sys.executable} -c"}
    return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=60, **more)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("redirect", "code"),
    [
        ("| true", 141),
        ("> /dev/full", 141),
        ("2> /dev/full > /dev/full", 141),
        (">&-", 0),
        ("2>&-", 0),
    ],
)
def test_a_command_that_prints_says_by_its_code_that_it_could_not(redirect, code):
    """No second message when Python flushes at its end; who closes standard output wants none."""
    done = shell(f"$AMCLI config schema {redirect}; exit ${{PIPESTATUS[0]}}")

    assert done.returncode == code
    assert done.stderr in ("", "error: the output cannot be written: No space left on device\n")
    assert ("No space" in done.stderr) is (redirect == "> /dev/full")


@pytest.mark.parametrize("redirect", ["2> /dev/full", "2>&-", "2>&1 | true"])
def test_an_error_that_cannot_be_shown_keeps_its_code(redirect):
    """The report about a failure may itself fail."""
    assert shell(f"$AMCLI config show -c nowhere.yaml {redirect}; exit ${{PIPESTATUS[0]}}").returncode == 2


@pytest.mark.parametrize("redirect", ["| head -n 1", "2>&1 | true", "> /dev/full", "&> /dev/full", ">&- 2>&-", "<&-"])
def test_work_goes_on_without_a_reader_and_ends_with_its_own_code(tmp_path, redirect):
    """A dead `tee`, a full disk under the log, closed descriptors: exit code 0, and at most one line about it."""
    done = shell(f"$WORK '{WORK % 20}' {redirect}; exit ${{PIPESTATUS[0]}}", cwd=tmp_path)

    assert done.returncode == 0
    lost = "warning: standard output cannot be written to (REASON); the work goes on\n"
    reasons = ("Broken pipe", "No space left on device")
    assert done.stderr in ("", *(lost.replace("REASON", reason) for reason in reasons))


def test_a_closed_descriptor_is_not_given_to_the_next_file(tmp_path):
    """Else every message would be written into that file, a checkpoint perhaps."""
    code = (
        "from automodel_cli import terminal; terminal.install(shows_everything=False); f = open('file', 'w'); print(1)"
    )

    assert shell(f'{sys.executable} -c "{code}" >&- 2>&-', cwd=tmp_path).returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("redirect", ["", "2>&1"])
def test_ctrl_c_with_tee_saves_and_ends_with_6(tmp_path, redirect):
    """Ctrl-C reaches the whole group, so `tee` dies before the run has said its last words."""
    line = f"trap : INT; $WORK '{WORK % 9999}' {redirect} | tee log > /dev/null; exit ${{PIPESTATUS[0]}}"

    with started(["bash", "-c", line], tmp_path) as process:
        wait_for(
            lambda: (tmp_path / "log").is_file() and "line 5 " in (tmp_path / "log").read_text(), "line 5 in the log"
        )
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(30)

    assert code == 6
    assert (tmp_path / "saved").exists()


def test_a_reader_that_has_stopped_reading_does_not_keep_a_run_from_saving(tmp_path):
    """`less`, which waits for a key: the pipe is full when the signal comes."""
    with started(["bash", "-c", f"exec $WORK '{WORK % 99999}'"], tmp_path, stdout=subprocess.PIPE) as process:
        wait_for(lambda: is_stuck(process.stdout), "full pipe")
        process.terminate()
        code = process.wait(30)

    assert code == 6
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("ignored", "sent", "code"),
    [
        (True, [signal.SIGHUP, signal.SIGTERM], 6),
        (False, [signal.SIGHUP, signal.SIGHUP], 6),
        (False, [signal.SIGTERM, signal.SIGHUP], 6),
        (False, [signal.SIGQUIT], 6),
        (False, [], 0),
    ],
)
def test_a_terminal_that_vanishes_ends_a_run_only_by_the_signal_that_it_heeds(tmp_path, ignored, sent, code):
    """With `nohup` SIGHUP is nothing; else it saves and stops, however often a closing terminal sends it."""
    num_lines = 100 if code == 0 else 9999
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        # Without a signal this is what `disown` leaves: the kernel's SIGHUP does not come.
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored or not sent else signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", WORK % num_lines])
    drain_until(terminal, b"line 5 ")
    for number in sent:
        os.kill(child, number)
        time.sleep(0.05)
    os.close(terminal)

    assert exit_code(child) == code
    assert (tmp_path / "saved").exists() is (code == 6)


def test_libraries_are_heard_only_on_request(tmp_path):
    """Warnings, log records and a thread's traceback; those of the user's own file are shown, in a line."""
    (tmp_path / "mine.py").write_text(
        "import logging, threading, warnings\n"
        "warnings.warn('of mine')\n"
        "logging.getLogger('mine').warning('logged by me')\n"
        "code = 'warnings.warn(chr(65) * 9); logging.getLogger(chr(65)).warning(chr(66) * 9)'\n"
        "exec(compile(code, threading.__file__, 'exec'))\n"
        "thread = threading.Thread(target=lambda: 1 / 0, name='background')\n"
        "thread.start(); thread.join()\n"
    )
    code = (
        "import sys; from automodel_cli import app; from automodel_cli.commands.options import working\n"
        "def work():\n    sys.path.insert(0, '.'); import mine\n"
        "app.app.command('work')(working(work)); sys.argv = ['amcli', 'work', *sys.argv[1:]]; app.main()"
    )

    quiet, full = (
        subprocess.run([sys.executable, "-c", code, *more], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        for more in ([], ["--traceback"])
    )

    assert quiet.returncode == full.returncode == 0
    assert quiet.stderr.splitlines() == [
        f"warning: {tmp_path}/mine.py:2: UserWarning: of mine",
        "logged by me",
        "warning: the thread background ended (ZeroDivisionError: division by zero)",
    ]
    assert all(words in full.stderr for words in ("A" * 9, "B" * 9, "Traceback"))


def test_ctrl_c_while_the_shell_completes_a_line_prints_nothing():
    """Into a prompt, of all places; also while modules are still being imported."""
    code = "import automodel_cli, signal; signal.raise_signal(signal.SIGINT)"

    done = shell(f"_AMCLI_COMPLETE=complete_bash {sys.executable} -c '{code}'; exit $?")

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def wait_for(is_so, what: str, seconds: float = 30) -> None:
    """Waits until it is so; fails by saying for what it has waited."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"no {what} within {seconds:g} s"
        time.sleep(0.02)


def is_stuck(pipe) -> bool:
    """Whether something lies in a pipe that does not get more."""
    counts = []
    for pause in (0.5, 0):
        count = array.array("i", [0])
        fcntl.ioctl(pipe, termios.FIONREAD, count)
        counts.append(count[0])
        time.sleep(pause)
    return counts[0] == counts[1] > 0


@contextlib.contextmanager
def started(command: list[str], directory: Path, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which is ended with all of its children."""
    environment = {**os.environ, "WORK": f"{sys.executable} -c"}
    process = subprocess.Popen(command, cwd=directory, env=environment, start_new_session=True, **more)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def drain_until(terminal: int, words: bytes, seconds: float = 30) -> Callable[[], bytes]:
    """Reads a pseudo-terminal up to some words, and on, so that its child never waits; returns a getter of the text."""
    parts, found = [b""], threading.Event()

    def read() -> None:
        with contextlib.suppress(OSError):  # it was closed
            while part := os.read(terminal, 4096):
                parts[0] += part
                if words in parts[0]:
                    found.set()
        found.set()

    threading.Thread(target=read, daemon=True).start()
    found.wait(seconds)
    assert words in parts[0], f"no {words!r} on the terminal within {seconds:g} s, but {parts[0][-2000:]!r}"
    return lambda: parts[0]


def exit_code(child: int, seconds: float = 30) -> int:
    """How a child ends; it is killed if it takes longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail(f"the child did not end within {seconds:g} s")
