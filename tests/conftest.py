"""What all tests share: a directory of their own, waits that end, a terminal, and a tiny run that trains in seconds."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from automodel_cli.engine.durable import BLANK_DIGEST, sealed
from automodel_cli.engine.prep.prepare import PrepOptions, prepare

# Before torch is imported: test processes share the cores with each other and with what they start. With as many
# threads in each as there are cores, a sixth of the processors' time went into waiting for threads of tiny products.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no defect: no test may fail for the time that an example took.
settings.register_profile("amcli", deadline=None)
settings.load_profile("amcli")

TINY = """
seed: 7
model:
  _target_: automodel_cli.engine.models.gpt2.build_gpt2_model
  vocab_size: 257
  n_positions: 16
  n_embd: 16
  n_layer: 2
  n_head: 2
  dropout: 0.1
dataset: &data
  _target_: automodel_cli.engine.data.nanogpt_dataset.NanogptDataset
  file_pattern: DATA/train_*.bin
  seq_len: 16
validation_dataset: {<<: *data, file_pattern: "DATA/val_*.bin"}
optimizer: {_target_: torch.optim.AdamW, lr: 1e-2}
lr_scheduler: {lr_decay_style: cosine, lr_warmup_steps: 2}
step_scheduler:
  max_steps: 6
  global_batch_size: 8
  local_batch_size: 4
  val_every_steps: 3
  val_batches: 2
  ckpt_every_steps: 2
num_threads: 1
checkpoint: {checkpoint_dir: checkpoints}
"""


@pytest.fixture(autouse=True)
def _no_columns(monkeypatch):
    """Output is as wide as it likes, whatever the caller's shell, or a parallel test runner, exports."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Verdicts on tokenizers, and what was started, are kept for the tests, and never among the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _not_where_pytest_was_started(tmp_path_factory):
    """Fixtures that several tests share work elsewhere, too."""
    with contextlib.chdir(tmp_path_factory.mktemp("shared")):
        yield


@pytest.fixture(autouse=True)
def _own_directory(tmp_path):
    """A test neither reads nor writes the directory that pytest was started in, which may hold somebody's run.

    Not by `monkeypatch`: a test that calls its `undo` would be back there.
    """
    with contextlib.chdir(tmp_path):
        yield


def _wait_until(what: str, is_so: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for a condition and fails with its name; the time is for a busy machine, not a measurement."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.01)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """The one way in which tests wait for something: `wait_until("it is saved", path.exists)`."""
    return _wait_until


class Terminal:
    """A pseudo-terminal that a thread reads all the time: whoever writes to it never waits for a reader.

    Args:
        columns: Its width.
    """

    def __init__(self, columns: int = 80) -> None:
        self._ours, self.theirs = pty.openpty()
        termios.tcsetwinsize(self.theirs, (24, columns))
        self._received = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # Linux reports the end of a terminal as an error, other systems as no bytes.
        with contextlib.suppress(OSError):
            while chunk := os.read(self._ours, 65536):
                self._received += chunk

    @property
    def shown(self) -> str:
        """All that was written to it so far."""
        return self._received.decode(errors="replace")

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def run(self, command: list[object], keys: str = "", seconds: float = 120.0, **streams) -> int:
        """The exit code of a command at this terminal, which `streams` may give others; `keys` are pressed before."""
        self.press(keys)
        here = {"stdin": self.theirs, "stdout": self.theirs, "stderr": self.theirs, **streams}
        process = subprocess.Popen([str(word) for word in command], **here)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"waited {seconds:.0f} s in vain for the end of {command}; the terminal shows {self.shown!r}")

    def close(self) -> str:
        """What was shown, to the last character."""
        os.close(self.theirs)
        self._reader.join()
        os.close(self._ours)
        return self.shown


@pytest.fixture(scope="session")
def terminal() -> type[Terminal]:
    """Opens a pseudo-terminal of so many columns; the one way in which tests have one."""
    return Terminal


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Shards of a part of the embedded text, made once."""
    directory = tmp_path_factory.mktemp("data")
    prepare(PrepOptions(source="shakespeare", output_dir=directory, max_tokens=50_000, val_tokens=5_000))
    return directory


@pytest.fixture(scope="session")
def edit_manifest():
    """Changes what the manifest of a directory of shards says, as if it had been written so."""

    def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
        path = directory / "manifest.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_bytes(sealed(json.dumps({**raw, "manifest_sha256": BLANK_DIGEST})))

    return edit


@pytest.fixture
def tiny_run(tiny_data, tmp_path) -> Path:
    """A configuration of a tiny run, in the working directory of the test."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("DATA", str(tiny_data)))
    return path


@pytest.fixture(scope="session")
def hollow_shard():
    """Writes a whole shard of zeros, which take no room on the disk: for checks that read no token."""

    def write(path: Path, num_tokens: int = 2_000_000) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(struct.pack("<4i", 278895051, 1, num_tokens, 2).ljust(1024, b"\0"))
        os.truncate(path, 1024 + 2 * num_tokens)

    return write


@pytest.fixture
def named_shards(tmp_path, hollow_shard) -> Path:
    """The working directory of the test: shards of zeros where the examples and presets expect theirs."""
    for directory in ("data/shakespeare", "data/fineweb"):
        for split in ("train", "val"):
            hollow_shard(tmp_path / directory / f"{split}_000000.bin")
    return tmp_path
