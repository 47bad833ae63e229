"""The commit of the user's repository, by a real Git."""

import shutil
import subprocess
from pathlib import Path

import pytest

from automodel_cli.engine.observe.code_version import code_version

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")


def _git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=directory, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    _git(tmp_path, "init", "-q")
    (tmp_path / "train.py").write_text("lr = 1\n")
    _git(tmp_path, "add", "train.py")
    _git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


@needs_git
def test_a_clean_repository_gives_its_commit(repository: Path) -> None:
    """Files that Git does not track, such as checkpoints, are not a change."""
    (repository / "checkpoints").mkdir()
    (repository / "checkpoints" / "new").write_text("x")

    assert code_version(repository / "checkpoints") == {
        "commit": _git(repository, "rev-parse", "HEAD"),
        "changed": False,
    }


@needs_git
def test_an_edit_that_is_not_committed_is_told(repository: Path) -> None:
    """Or the commit would be taken for what was run."""
    (repository / "train.py").write_text("lr = 2\n")

    found = code_version(repository)

    assert found is not None
    assert found["changed"] is True


@needs_git
def test_looking_runs_no_program_of_the_repository(repository: Path) -> None:
    """A repository may name a program that watches its files; `git status` would start it."""
    watcher = repository / "watcher"
    watcher.write_text(f"#!/bin/sh\ntouch {repository}/was_run\n")
    watcher.chmod(0o755)
    _git(repository, "config", "core.fsmonitor", str(watcher))

    assert code_version(repository) is not None
    assert not (repository / "was_run").exists()


@needs_git
def test_looking_runs_no_filter_of_the_repository(repository: Path) -> None:
    """Nor one of a repository inside it: both may have come along with a checkpoint."""
    filter_ = f"touch {repository}/was_run; cat"
    for where in (repository, repository / "inner"):
        where.mkdir(exist_ok=True)
        _git(where, "init", "-q")
        (where / ".gitattributes").write_text("*.txt filter=mine\n")
        (where / "a.txt").write_text("a\n")
        _git(where, "add", ".gitattributes", "a.txt")
        _git(where, "commit", "-q", "-m", "second")
        _git(where, "config", "filter.mine.clean", filter_)
        (where / "a.txt").write_text("b\n")

    assert code_version(repository) is None

    code_version.cache_clear()
    _git(repository, "config", "--unset", "filter.mine.clean")
    _git(repository, "add", "inner")
    assert code_version(repository) is not None
    assert not (repository / "was_run").exists()


def test_no_repository_no_commit_and_no_git_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training must not need Git."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "without_git").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert code_version(tmp_path / "plain") is None

    monkeypatch.setenv("PATH", "")
    assert code_version(tmp_path / "without_git") is None
