"""Which commit of the user's repository a run is started from: what one asks first of an old checkpoint."""

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
        no repository, no commit or no Git.
    """
    commit = _git(directory, "rev-parse", "--verify", "HEAD")
    status = _git(directory, "status", "--porcelain", "--untracked-files=no")
    if commit is None or status is None:
        return None
    return {"commit": commit.strip(), "changed": bool(status.strip())}


def _git(directory: Path, *arguments: str) -> str | None:
    # Neither a lock on the index nor a program of the repository's own: looking must change and run nothing.
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
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
