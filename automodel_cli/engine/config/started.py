"""What this user started: the code of each run, kept on the user's side and never in a checkpoint.

A run whose configuration names code of the user's own goes on without a question while that code is the same.
One small file, `$XDG_STATE_HOME/amcli/started.json` (by default below `~/.local/state`), holds for each
directory of checkpoints what was started there. It is bounded and readable by its owner alone; old entries
leave it. A broken or missing file only means that a run asks again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

_FILE = "started.json"
_MAX_BYTES = 4_000_000
_MAX_RUNS = 500
_MAX_CODE = 100  # of one run
_MAX_AGE_SECONDS = 400 * 86_400
_FRESH_SECONDS = 86_400  # an entry that is younger and holds the same is not written anew
_LOCK_SECONDS = 2.0
_MAX_SOURCE_BYTES = 64_000_000
_UNKNOWN = "not known"  # in place of a hash; never remembered


class Code(NamedTuple):
    """A target or an argument, the file that it runs (empty where source shows none), and the file's hash."""

    what: str
    file: str
    sha256: str

    @classmethod
    def of(cls, what: str, path: Path | None) -> Code:
        """What a target runs, with the hash of its file as it is now."""
        if path is None:
            return cls(what, "", "")
        try:
            # A pipe would never end; no file of source is as large.
            is_source = path.is_file() and path.stat().st_size <= _MAX_SOURCE_BYTES
            return cls(what, str(path), hashlib.sha256(path.read_bytes()).hexdigest() if is_source else _UNKNOWN)
        except OSError:
            return cls(what, str(path), _UNKNOWN)


def code_started_in(root: Path) -> frozenset[Code]:
    """What this user started in a directory of checkpoints; empty where nothing is known."""
    try:
        path = _directory() / _FILE
        stamp = path.stat()
    except (OSError, RuntimeError):
        return frozenset()
    runs = _runs(path, (stamp.st_mtime_ns, stamp.st_ino))
    return runs.get(str(root.resolve()), (0.0, frozenset()))[1]


def remember(root: Path, code: Collection[Code]) -> str | None:
    """Adds what a run is started with; an older hash of the same file is forgotten.

    Returns:
        One line where that is not possible.
    """
    known = [one for one in code if one.sha256 != _UNKNOWN]
    if not known:
        return None
    try:
        directory = _directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(directory):
            _add(directory / _FILE, str(root.resolve()), known)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"what this run was started with is not remembered ({reason}): resuming it will ask for -c"
    return None


def _add(path: Path, root: str, code: Collection[Code]) -> None:
    import tempfile  # takes time that a command which only reads need not spend

    now = time.time()
    runs = {name: entry for name, entry in _read(path).items() if abs(now - entry[0]) < _MAX_AGE_SECONDS}
    when, before = runs.get(root, (0.0, frozenset()))
    replaced = {(one.what, one.file) for one in code}
    kept = sorted(one for one in before if (one.what, one.file) not in replaced)
    entry = frozenset([*code, *kept][:_MAX_CODE])
    if entry == before and now - when < _FRESH_SECONDS:
        return
    runs[root] = now, entry
    newest = sorted(runs.items(), key=lambda item: item[1][0], reverse=True)[:_MAX_RUNS]
    text = json.dumps({"runs": {name: {"time": at, "code": sorted(found)} for name, (at, found) in newest}}, indent=1)
    # Created with mode 0600 and renamed: a reader sees the old file or the new one.
    descriptor, fresh = tempfile.mkstemp(prefix=f".{_FILE}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(fresh).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(fresh).unlink()
        raise


@lru_cache(maxsize=1)
def _runs(path: Path, stamp: tuple[int, int]) -> dict[str, tuple[float, frozenset[Code]]]:
    return _read(path)


def _read(path: Path) -> dict[str, tuple[float, frozenset[Code]]]:
    """Time and code of each run; what is not as it was written here is left out."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            # Another user who can write it could consent in this user's name.
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return {}
            text = file.read(_MAX_BYTES + 1)
        runs = json.loads(text).get("runs") if len(text) <= _MAX_BYTES else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    entries = ((name, _entry(found)) for name, found in (runs.items() if isinstance(runs, dict) else ()))
    return {name: entry for name, entry in entries if entry is not None}


def _entry(found: Any) -> tuple[float, frozenset[Code]] | None:
    if not isinstance(found, dict) or not isinstance(found.get("time"), int | float):
        return None
    code = found.get("code")
    if not isinstance(code, list) or len(code) > _MAX_CODE:
        return None
    is_sound = all(isinstance(one, list) and len(one) == 3 and all(isinstance(x, str) for x in one) for one in code)
    return (found["time"], frozenset(Code(*one) for one in code)) if is_sound else None


def _directory() -> Path:
    """Where state is kept.

    Raises:
        RuntimeError: The user has no home directory.
    """
    named = os.environ.get("XDG_STATE_HOME", "")
    # A relative path is to be ignored, says the specification.
    return (Path(named) if Path(named).is_absolute() else Path.home() / ".local/state") / "amcli"


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keeps two runs from writing at once; a lock that cannot be had soon is an OSError."""
    try:
        import fcntl
    except ImportError:  # Windows: the last of two runs wins
        yield
        return
    descriptor = os.open(directory / f".{_FILE}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)
