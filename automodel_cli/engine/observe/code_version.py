"""The commit of the user's repository that a run is started from, for the checkpoints that it writes."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

# A repository on a slow network disk must not hold up a training.
_TIMEOUT_SECONDS = 5.0


@cache
def code_version(directory: Path) -> dict[str, str | bool] | None:
    """The commit that is checked out around a directory, as it is when this is first asked.

    Args:
        directory: Any directory of a Git repository.

    Returns:
        `commit`, the whole hash, and `changed`: whether tracked files differ from it; None where there is
        no repository, no commit or no Git, or where comparing files would start a program of the repository.
    """
    commit = _git(directory, "rev-parse", "--verify", "HEAD")
    # A filter of the repository's own is a program that `git status` would start to compare a file.
    filters = _git(directory, "config", "--show-scope", "--name-only", "--get-regexp", r"^filter\.") or ""
    if any(line.startswith(("local", "worktree")) for line in filters.splitlines()):
        return None
    status = _git(directory, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    if commit is None or status is None:
        return None
    return {"commit": commit.strip(), "changed": bool(status.strip())}


def _git(directory: Path, *arguments: str) -> str | None:
    # No lock on the index, no program of the repository's own, nothing fetched: looking must change and run nothing.
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_ALLOW_PROTOCOL": "none"}
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None
