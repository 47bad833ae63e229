"""What was started is remembered on the user's side alone: bounded, private, and never in the way of a run."""

from __future__ import annotations

import fcntl
import json
import stat
import time

import pytest

from automodel_cli.engine.config import started
from automodel_cli.engine.config.started import Code, code_started_in, remember

NET = Code("/x/mine.py:Net", "/x/mine.py", "a" * 64)


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/amcli/started.json"


def test_what_was_started_is_found_again(state, tmp_path):
    """Of that directory, by whatever path; of another nothing."""
    (tmp_path / "link").symlink_to(tmp_path / "run")

    assert remember(tmp_path / "run", [NET]) is None

    assert code_started_in(tmp_path / "run") == code_started_in(tmp_path / "link") == {NET}
    assert code_started_in(tmp_path / "other") == frozenset()


def test_only_its_owner_can_read_or_write_it(state, tmp_path):
    """And one that others could have written says nothing."""
    remember(tmp_path / "run", [NET])
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (state, state.parent)]
    state.chmod(0o622)

    assert modes == [0o600, 0o700]
    assert started._read(state) == {}


def test_a_new_hash_takes_the_place_of_the_old_one(state, tmp_path):
    """A file that was changed back is asked about; what else was started there stays."""
    other = NET._replace(what="torchao.optim._AdamW", file="/y.py")
    remember(tmp_path / "run", [NET, other])
    remember(tmp_path / "run", [NET._replace(sha256="b" * 64)])

    assert code_started_in(tmp_path / "run") == {NET._replace(sha256="b" * 64), other}


def test_old_entries_and_too_many_leave_it(state, tmp_path, monkeypatch):
    """The newest stay."""
    monkeypatch.setattr(started, "_MAX_RUNS", 3)
    remember(tmp_path / "ancient", [NET])
    text = json.loads(state.read_text())
    text["runs"][str(tmp_path / "ancient")]["time"] -= 500 * 86_400
    state.write_text(json.dumps(text))
    for index in range(5):
        remember(tmp_path / f"run{index}", [NET])

    assert [path.rpartition("/")[2] for path in sorted(json.loads(state.read_text())["runs"])] == [
        "run2",
        "run3",
        "run4",
    ]


def test_the_same_start_writes_nothing(state, tmp_path):
    """A requeued job leaves the file alone."""
    remember(tmp_path / "run", [NET])
    before = state.stat().st_mtime_ns, state.stat().st_ino
    remember(tmp_path / "run", [NET])

    assert (state.stat().st_mtime_ns, state.stat().st_ino) == before


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "null", '{"runs": []}', '{"runs": {"/run": 3}}', "[" * 100_000, "\x00"),
        *('{"runs": {"/run": {"time": "x", "code": []}}}', '{"runs": {"/run": {"time": 1, "code": [["a", "b"]]}}}'),
        *('{"runs": {"/run": {"time": 1, "code": [["a", "b", 3]]}}}', '{"runs": {"/run": {"time": 1, "code": 1}}}'),
    ],
)
def test_a_broken_file_says_nothing_and_is_mended(state, tmp_path, text):
    """It only means that a run asks again."""
    state.parent.mkdir(parents=True)
    state.write_text(text)

    assert code_started_in(tmp_path / "run") == frozenset()
    assert remember(tmp_path / "run", [NET]) is None
    assert code_started_in(tmp_path / "run") == {NET}


def test_a_directory_that_cannot_be_written_is_one_note(tmp_path, monkeypatch):
    """Such as a file in its place, or a user without a home; a run without code of its own does not even look."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))

    assert "resuming it will ask" in remember(tmp_path / "run", [NET])
    assert remember(tmp_path / "run", []) is None
    assert code_started_in(tmp_path / "run") == frozenset()


def test_a_lock_that_another_holds_is_not_waited_for_long(state, tmp_path, monkeypatch):
    """A run begins all the same."""
    monkeypatch.setattr(started, "_LOCK_SECONDS", 0.05)
    state.parent.mkdir(parents=True)
    with (state.parent / ".started.json.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()

        assert "not remembered" in remember(tmp_path / "run", [NET])
        assert time.monotonic() - began < 1


def test_a_relative_state_directory_is_ignored(tmp_path, monkeypatch):
    """As the specification of XDG wants it: else it would lie wherever a command was typed."""
    monkeypatch.setenv("XDG_STATE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    remember(tmp_path / "run", [NET])

    assert (tmp_path / ".local/state/amcli/started.json").is_file()
    assert not (tmp_path / "here").exists()


def test_what_is_no_file_of_source_is_never_remembered(state, tmp_path):
    """A directory or a pipe has no content to compare with."""
    assert remember(tmp_path / "run", [Code.of("x.py:f", tmp_path)]) is None
    assert not state.exists()
