"""A checkpoint that several ranks write is there whole or not at all, and no damage to it goes unnoticed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from automodel_cli.engine.checkpoint import layout, rank_records
from automodel_cli.engine.checkpoint.inspect import inspect
from automodel_cli.engine.checkpoint.load_checkpoint import load, load_newest_good
from automodel_cli.engine.checkpoint.manifest import verify
from automodel_cli.engine.checkpoint.rank_files import RankFiles, TensorFile, files_of_parts, texts_of
from automodel_cli.engine.checkpoint.save import Publication, SaveStage, Saving, begin, finish
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.distributed.region import Part, Region
from automodel_cli.errors import CheckpointError, PeerFailedError

MakeSnapshot = Callable[[int], Snapshot]
RANKS = 3


def shares(snapshot: Snapshot) -> list[RankFiles]:
    """What each of three ranks writes of a snapshot: rows of every tensor, rank 2 in two files."""
    found = []
    for rank in range(RANKS):
        files = []
        for kind, tensors in (
            (layout.MODEL_FILE, snapshot.model_tensors),
            (layout.OPTIMIZER_FILE, snapshot.optim_tensors),
        ):
            parts = []
            for name, tensor in tensors.items():
                whole = Region.whole(tensor.shape)
                if not tensor.numel() or not tensor.dim():
                    parts += [Part(name, whole, tensor)] if rank == 0 else []
                    continue
                mine = whole.chunk(0, rank, RANKS)
                halves = [mine.chunk(0, half, 2) for half in (0, 1)] if rank == 2 else [mine]
                parts += [Part(name, half, tensor[half.within(whole)]) for half in halves if half.num_elements]
            files += files_of_parts(kind, rank, parts)
        files.append(TensorFile(layout.rng_file(rank), snapshot.rng_tensors))
        found.append(RankFiles(texts_of(snapshot) if rank == 0 else {}, tuple(files)))
    return found


def saving(root: Path, snapshot: Snapshot, partial: Path, rank: int, share: RankFiles) -> Saving:
    publication = Publication() if rank == 0 else None
    return Saving(root, snapshot.step, partial, share, publication, rank, writers=RANKS)


def save_by_ranks(root: Path, snapshot: Snapshot) -> Path:
    partial = begin(root, snapshot.step, 1000)
    for rank, share in reversed(list(enumerate(shares(snapshot)))):
        directory = finish(saving(root, snapshot, partial, rank, share))
    return directory


def names_in(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_the_parts_are_read_as_the_whole(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """Weights, optimizer state and generators of all ranks; the records of the ranks are gone."""
    snapshot = snapshots(1)

    directory = save_by_ranks(tmp_path, snapshot)

    found = load(directory)
    for ours, theirs in ((found.model_tensors, snapshot.model_tensors), (found.optim_tensors, snapshot.optim_tensors)):
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert len(found.peer_rng_tensors) == RANKS - 1
    assert verify(directory) == []
    assert names_in(directory) == {"config.yaml", "manifest.json", "model", "optim", "state"}
    assert {path.name for path in (directory / "model").glob("*_rank2*")} == {
        "model_rank2.safetensors",
        "model_rank2_2.safetensors",
    }
    assert inspect(directory).verdict == "resumable"
    assert inspect(directory).parameters.total == sum(tensor.numel() for tensor in snapshot.model_tensors.values())


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_missing_part_makes_it_incomplete_and_not_corrupt(tmp_path: Path, snapshots: MakeSnapshot, rank: int) -> None:
    """Whichever rank wrote it: the parts that are left are sound."""
    directory = save_by_ranks(tmp_path, snapshots(1))
    name = layout.part_file(layout.MODEL_FILE, rank)
    (directory / name).unlink()

    report = inspect(directory)

    assert report.verdict == "incomplete"
    assert report.problems == (f"{name}: missing",)


def damages() -> list[tuple[str, str]]:
    names = [layout.part_file(kind, rank) for kind in (layout.MODEL_FILE, layout.OPTIMIZER_FILE) for rank in (0,)]
    names += [layout.part_file(layout.MODEL_FILE, 1), layout.part_file(layout.MODEL_FILE, 2, 2), layout.rng_file(2)]
    return [(name, damage) for name in names for damage in ("flipped", "cut", "missing")]


@pytest.mark.parametrize(("name", "damage"), damages())
def test_every_damaged_part_makes_the_run_fall_back(
    tmp_path: Path, snapshots: MakeSnapshot, name: str, damage: str
) -> None:
    """Any file of any rank, with one other bit, without its end, or gone."""
    good = save_by_ranks(tmp_path, snapshots(1))
    path = save_by_ranks(tmp_path, snapshots(2)) / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "flipped" else b""))

    snapshot, directory, notes = load_newest_good(tmp_path)

    assert (snapshot.step, directory) == (1, good)
    assert any(name in note for note in notes)
    assert "broken-step_000002" in names_in(tmp_path)


@pytest.mark.parametrize("stage", [SaveStage.TENSORS_WRITTEN, SaveStage.FILES_SYNCED])
def test_a_rank_that_dies_leaves_the_checkpoint_before(
    tmp_path: Path, snapshots: MakeSnapshot, monkeypatch: pytest.MonkeyPatch, stage: SaveStage
) -> None:
    """Rank 0 waits for it, gives up after the time limit and names it; nothing is published or left behind."""
    save_by_ranks(tmp_path, snapshots(1))
    snapshot = snapshots(2)
    partial = begin(tmp_path, 2, 1000)
    first, second, third = shares(snapshot)

    def dies(reached: SaveStage) -> None:
        if reached is stage:
            raise SystemExit(9)

    finish(saving(tmp_path, snapshot, partial, 2, third))
    with pytest.raises(SystemExit):
        finish(saving(tmp_path, snapshot, partial, 1, second), dies)
    monkeypatch.setattr(rank_records, "PATIENCE_SECONDS", 0.05)
    with pytest.raises(CheckpointError, match=r"rank 1 did not finish writing"):
        finish(saving(tmp_path, snapshot, partial, 0, first))

    assert names_in(tmp_path) == {"LATEST", "step_000001"}
    assert load(layout.resolve(tmp_path)).step == 1


def test_a_rank_that_cannot_write_is_named_with_its_reason(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """By rank 0, in one message; the rank itself says nothing more."""
    snapshot = snapshots(1)
    partial = begin(tmp_path, 1, 1000)
    first, second, _ = shares(snapshot)
    (partial / "model").mkdir()
    (partial / layout.part_file(layout.MODEL_FILE, 1)).write_text("in the way")

    with pytest.raises(PeerFailedError):
        finish(saving(tmp_path, snapshot, partial, 1, second))
    with pytest.raises(CheckpointError, match=r"rank 1 on .*: the checkpoint could not be written: .*File exists"):
        finish(saving(tmp_path, snapshot, partial, 0, first))

    assert names_in(tmp_path) == set()


def test_a_file_that_rank_0_sees_otherwise_is_not_published(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """A file system that does not show what was written is found out before the manifest vouches for it."""
    snapshot = snapshots(1)
    partial = begin(tmp_path, 1, 1000)
    first, second, third = shares(snapshot)
    finish(saving(tmp_path, snapshot, partial, 1, second))
    finish(saving(tmp_path, snapshot, partial, 2, third))
    (partial / layout.part_file(layout.MODEL_FILE, 1)).write_text("shorter")

    with pytest.raises(CheckpointError, match=r"model_rank1.safetensors has 7 bytes here, and \d+ where it was"):
        finish(saving(tmp_path, snapshot, partial, 0, first))

    assert names_in(tmp_path) == set()


def test_rank_0_waits_for_the_slowest(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """In whatever order they come: on threads, rank 0 first."""
    snapshot = snapshots(1)
    partial = begin(tmp_path, 1, 1000)
    every = [saving(tmp_path, snapshot, partial, rank, share) for rank, share in enumerate(shares(snapshot))]
    threads = [threading.Thread(target=finish, args=(one,)) for one in every]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert load(tmp_path / "step_000001").step == 1
