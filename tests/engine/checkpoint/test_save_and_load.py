"""A checkpoint comes back as it was saved, and nothing else does."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint import manifest as manifest_module
from automodel_cli.engine.checkpoint.inspect import inspect
from automodel_cli.engine.checkpoint.load_checkpoint import load, load_newest_good
from automodel_cli.engine.checkpoint.manifest import (
    FORMAT_VERSION,
    NewerFormatError,
    read_manifest,
    sha256_of,
    verify,
    write_manifest,
)
from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.errors import CheckpointError
from tests.engine.checkpoint.conftest import record_files

MakeSnapshot = Callable[[int], Snapshot]


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def test_a_saved_snapshot_comes_back_bit_for_bit(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """Every field of the snapshot is equal after a round trip, dtypes included."""
    saved = snapshots(3)

    loaded = load(save(tmp_path / "new" / "root", saved, facts={}))

    assert (loaded.step, loaded.config_yaml) == (saved.step, saved.config_yaml)
    assert (loaded.model_config, loaded.train_state) == (saved.model_config, saved.train_state)
    assert equal(loaded.model_tensors, saved.model_tensors)
    assert equal(loaded.optim_tensors, saved.optim_tensors)
    assert equal(loaded.rng_tensors, saved.rng_tensors)


def test_a_model_without_a_config_comes_back_without_one(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """`model_config=None` writes no config.json and loads as None."""
    saved = snapshots(3)
    saved.model_config = None

    directory = save(tmp_path, saved, facts={})

    assert load(directory).model_config is None
    assert not (directory / layout.MODEL_CONFIG_FILE).exists()


def test_the_manifest_lists_every_file_and_keeps_the_facts(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """The manifest names exactly the other files, and carries the facts as JSON that all can read."""
    directory = save(tmp_path, snapshots(3), facts={"val_loss": 1.5, "best": [float("nan"), math.inf]})

    manifest = read_manifest(directory)

    on_disk = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert set(manifest.files) == on_disk - {"manifest.json"}
    assert manifest.facts == {"val_loss": 1.5, "best": [None, None]}
    assert verify(directory) == []


def test_latest_and_best_are_relative_links(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """The directory can be moved: LATEST names the last save and BEST the last one that was best."""
    save(tmp_path / "a", snapshots(1), facts={}, is_best=True)
    save(tmp_path / "a", snapshots(2), facts={})

    moved = (tmp_path / "a").rename(tmp_path / "b")

    assert str((moved / "LATEST").readlink()) == "step_000002"
    assert layout.resolve(moved / "BEST") == moved / "step_000001"


def test_saving_a_step_twice_is_refused_and_changes_nothing(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """A good checkpoint is never overwritten."""
    directory = save(tmp_path, snapshots(1), facts={})
    before = (directory / "manifest.json").read_bytes()
    (directory / "notes.txt").write_text("a user's own file does not make it a bad one")

    with pytest.raises(CheckpointError, match="already"):
        save(tmp_path, snapshots(1), facts={})

    assert (directory / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step_000001"]


def test_a_broken_checkpoint_of_the_same_step_is_moved_aside(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """A save over debris succeeds, and the debris is kept under another name."""
    directory = save(tmp_path, snapshots(1), facts={})
    (directory / "manifest.json").unlink()

    save(tmp_path, snapshots(1), facts={})

    assert verify(tmp_path / "step_000001") == []
    assert (tmp_path / "broken-step_000001").is_dir()


def test_a_broken_latest_falls_back_to_the_one_before(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """The damaged one is renamed, the earlier one is loaded, links follow, and a note says so."""
    for step in (1, 2, 3):
        save(tmp_path, snapshots(step), facts={}, is_best=step == 3)
    (tmp_path / "step_000003" / layout.MODEL_FILE).write_bytes(b"")

    snapshot, directory, notes = load_newest_good(tmp_path)

    assert (snapshot.step, directory) == (2, tmp_path / "step_000002")
    assert len(notes) == 1
    assert "broken-step_000003" in notes[0]
    assert layout.MODEL_FILE in notes[0]
    assert layout.resolve(tmp_path) == directory
    assert layout.read_link(tmp_path, "BEST") is None


def test_no_good_checkpoint_is_an_error_that_names_each(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """When all are broken the message lists all of them with their reasons."""
    for step in (1, 2):
        (save(tmp_path, snapshots(step), facts={}) / layout.CONFIG_FILE).unlink()

    with pytest.raises(CheckpointError, match="no checkpoint that can be loaded") as caught:
        load_newest_good(tmp_path)

    assert all(name in str(caught.value) for name in ("step_000001", "step_000002", "config.yaml: missing"))


def test_a_checkpoint_that_cannot_be_read_now_is_skipped_and_kept(
    tmp_path: Path, snapshots: MakeSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing disk or a missing permission says nothing about the bytes, so nothing is renamed."""
    for step in (1, 2):
        save(tmp_path, snapshots(step), facts={})

    def failing(path: Path) -> str:
        if "step_000002" in path.parts:
            raise OSError(5, "Input/output error")
        return sha256_of(path)

    monkeypatch.setattr(manifest_module, "sha256_of", failing)
    snapshot, directory, notes = load_newest_good(tmp_path)

    assert (snapshot.step, directory.name) == (1, "step_000001")
    assert len(notes) == 1
    assert "cannot be read" in notes[0]
    assert (tmp_path / "step_000002").is_dir()


def test_what_comes_after_latest_is_left_alone(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """A user who points LATEST back resumes there, and finds the later checkpoints unharmed."""
    for step in (1, 2, 3):
        save(tmp_path, snapshots(step), facts={})
    layout.point_link(tmp_path, "LATEST", tmp_path / "step_000002")

    _, directory, notes = load_newest_good(tmp_path)

    assert (directory.name, notes) == ("step_000002", [])
    assert layout.later_steps(tmp_path, 2) == [tmp_path / "step_000003"]


class Payload:
    """A pickle that creates a directory when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def sealed_again(directory: Path) -> None:
    """Makes the manifest vouch for the files as they are now."""
    manifest = read_manifest(directory)
    write_manifest(directory, replace(manifest, files=record_files(directory)))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_state_file_that_is_no_json_object_ends_in_one_clear_error(
    tmp_path: Path, snapshots: MakeSnapshot, content: bytes
) -> None:
    """A manifest may vouch for bytes that mean nothing; loading names the file, and does not crash."""
    directory = save(tmp_path, snapshots(1), facts={})
    (directory / layout.TRAIN_STATE_FILE).write_bytes(content)
    sealed_again(directory)

    with pytest.raises(CheckpointError, match="the training state is damaged") as caught:
        load(directory)

    assert caught.value.where == str(directory / layout.TRAIN_STATE_FILE)


def test_tensors_that_are_no_safetensors_end_in_one_clear_error(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """The same for a weights file that its manifest vouches for."""
    directory = save(tmp_path, snapshots(1), facts={})
    (directory / layout.MODEL_FILE).write_bytes(b"\xff" * 64)
    sealed_again(directory)

    with pytest.raises(CheckpointError, match="not a sound safetensors header"):
        load(directory)


def test_code_in_pickled_weights_never_runs(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """Even where the manifest vouches for it: neither loading nor looking at it executes anything."""
    directory = save(tmp_path, snapshots(1), facts={})
    (directory / layout.MODEL_FILE).unlink()
    torch.save({"w": Payload(tmp_path / "executed")}, directory / layout.PICKLED_MODEL_FILE)
    sealed_again(directory)

    with pytest.raises(CheckpointError, match="cannot be read"):
        load(directory)
    inspect(directory)

    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_a_newer_format_is_never_set_aside(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """It is good, only not for us: loading says so and renames nothing, and so does saving over it."""
    for step in (1, 2):
        save(tmp_path, snapshots(step), facts={})
    newest = tmp_path / "step_000002"
    write_manifest(newest, replace(read_manifest(newest), format_version=FORMAT_VERSION + 1))

    with pytest.raises(NewerFormatError, match="format version 2"):
        load_newest_good(tmp_path)
    with pytest.raises(NewerFormatError, match="format version 2"):
        save(tmp_path, snapshots(2), facts={})

    assert newest.is_dir()
