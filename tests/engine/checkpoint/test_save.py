"""A save is there whole or not at all, whatever stops it, and takes nothing good away."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.load_checkpoint import load, load_newest_good
from automodel_cli.engine.checkpoint.manifest import verify
from automodel_cli.engine.checkpoint.save import SaveStage, save
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.errors import CheckpointError

MakeSnapshot = Callable[[int], Snapshot]

# Imports torch once and forks for every kill: the child saves and is killed, the parent goes on.
KILLER = """
import importlib.util, os, signal, sys
from pathlib import Path
from automodel_cli.engine.checkpoint.save import save

spec = importlib.util.spec_from_file_location("snapshots", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
old, new = module.snapshot_at(1), module.snapshot_at(2)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def die_at_stage(wanted):
    return lambda stage: die() if stage.name == wanted else None

def die_at_sync(number):
    real, calls = os.fsync, []
    def fsync(descriptor):
        calls.append(descriptor)
        die() if len(calls) == number else real(descriptor)
    os.fsync = fsync

for place in sys.argv[3:]:
    root = Path(sys.argv[2]) / place
    save(root, old, facts={}, is_best=True)
    child = os.fork()
    if child == 0:
        if place.startswith("sync-"):
            die_at_sync(int(place.removeprefix("sync-")))
            save(root, new, facts={}, is_best=True, max_recent=1)
        else:
            save(root, new, facts={}, is_best=True, max_recent=1, on_stage=die_at_stage(place))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    (root.parent / f"{place}.signal").write_text(str(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0))
"""
NUM_SYNCS = 16  # six files, the manifest, four directories, and five times the links and the directory around
PLACES = [*(stage.name for stage in SaveStage), *(f"sync-{number}" for number in range(1, NUM_SYNCS + 1))]
BEYOND = f"sync-{NUM_SYNCS + 1}"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run directory per place, in which a second save was killed there."""
    base = tmp_path_factory.mktemp("killed")
    subprocess.run(
        [sys.executable, "-c", KILLER, str(Path(__file__).with_name("conftest.py")), str(base), *PLACES, BEYOND],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return base


def names_in(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_every_place_of_the_kill_lies_inside_of_the_save(killed: Path) -> None:
    """The child died by the signal at each place, and there is no further place to synchronise at."""
    assert {(killed / f"{place}.signal").read_text() for place in PLACES} == {"9"}
    assert (killed / f"{BEYOND}.signal").read_text() == "0"


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_save_leaves_the_old_or_the_new_checkpoint(killed: Path, place: str) -> None:
    """LATEST names a sound checkpoint, loading skips nothing, and after the rename it is the new one."""
    root = killed / place

    latest = layout.resolve(root)
    snapshot, directory, notes = load_newest_good(root)

    renamed = (root / "step_000002").exists()
    assert verify(latest) == []
    assert (directory, notes) == (latest, [])
    assert snapshot.step == (2 if renamed else 1)
    assert layout.read_link(root, "BEST") == latest


@pytest.mark.parametrize("place", PLACES)
def test_the_next_save_clears_what_a_killed_one_left(killed: Path, snapshots: MakeSnapshot, place: str) -> None:
    """It succeeds at once, and of the dead process nothing hidden remains."""
    root = killed / place
    done = layout.step_of(layout.resolve(root).name)
    assert done is not None

    save(root, snapshots(done + 1), facts={}, is_best=True, max_recent=1)

    assert names_in(root) == {"LATEST", "BEST", layout.step_directory_name(done + 1)}
    assert verify(layout.resolve(root)) == []


class KilledError(Exception):
    """Ends a save like a kill: nothing in the save handles it."""


def killed_at(wanted: SaveStage) -> Callable[[SaveStage], None]:
    def stop(stage: SaveStage) -> None:
        if stage is wanted:
            raise KilledError

    return stop


def test_two_kills_in_a_row_lose_no_checkpoint(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """The first was killed before LATEST moved, the second before its rename: the first one's counts."""
    save(tmp_path, snapshots(1), facts={}, is_best=True)
    with pytest.raises(KilledError):
        save(tmp_path, snapshots(2), facts={}, is_best=True, on_stage=killed_at(SaveStage.RENAMED))

    with pytest.raises(KilledError):
        save(tmp_path, snapshots(3), facts={}, is_best=True, on_stage=killed_at(SaveStage.ANNOUNCED))

    assert layout.resolve(tmp_path).name == "step_000002"
    assert layout.resolve(tmp_path / "BEST").name == "step_000002"


def test_stages_are_told_in_the_order_of_the_protocol(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """Each once; the manifest does not exist before everything else is on disk."""
    told: list[tuple[SaveStage, bool]] = []

    def note(stage: SaveStage) -> None:
        told.append((stage, any(tmp_path.glob(".step_*/manifest.json")) or any(tmp_path.glob("step_*/manifest.json"))))

    save(tmp_path, snapshots(1), facts={}, on_stage=note)

    assert [stage for stage, _ in told] == list(SaveStage)
    assert [stage for stage, has_manifest in told if not has_manifest] == list(SaveStage)[:3]


def test_debris_of_a_living_process_and_of_others_stays(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """Only what has our hidden names and a dead process is removed; a link goes, what it names stays."""
    mine, living = f".step_000001.tmp-{os.getpid()}", f".step_000001.tmp-{os.getppid()}"
    dead, foreign = ".step_000001.tmp-4194999", ".step_000001.tmp-abc"
    for name in (mine, living, dead, foreign, "notes"):
        (tmp_path / name / "inside").mkdir(parents=True)
    for name in (".LATEST.next.tmp-4194999", ".BEST.tmp-4194999", ".step_000002.tmp-4194999"):
        (tmp_path / name).symlink_to("notes")

    save(tmp_path, snapshots(1), facts={})

    assert names_in(tmp_path) == {living, foreign, "notes", "step_000001", "LATEST"}
    assert names_in(tmp_path / "notes") == {"inside"}


@pytest.mark.parametrize("max_recent", [1, 2, 3])
def test_retention_keeps_the_newest_and_the_best(tmp_path: Path, snapshots: MakeSnapshot, max_recent: int) -> None:
    """Of six saves with the second as the best, `max_recent` and the best remain, all sound."""
    for step in range(1, 7):
        save(tmp_path, snapshots(step), facts={}, is_best=step == 2, max_recent=max_recent)

    kept = {step for step, _ in layout.list_steps(tmp_path)}
    assert kept == {2, *range(7 - max_recent, 7)}
    assert all(verify(path) == [] for _, path in layout.list_steps(tmp_path))


def test_retention_never_removes_latest_even_if_later_steps_exist(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """A run that was taken back to an earlier step saves below the old ones, and its save stays."""
    for step in (10, 20, 30):
        save(tmp_path, snapshots(step), facts={})

    save(tmp_path, snapshots(15), facts={}, max_recent=1)

    assert [step for step, _ in layout.list_steps(tmp_path)] == [15, 30]
    assert layout.resolve(tmp_path).name == "step_000015"


def test_without_a_limit_everything_is_kept(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """`max_recent=None` deletes nothing, and less than 1 is refused before anything is written."""
    for step in (1, 2, 3):
        save(tmp_path, snapshots(step), facts={})

    with pytest.raises(ValueError, match="max_recent is 0"):
        save(tmp_path, snapshots(4), facts={}, max_recent=0)

    assert [step for step, _ in layout.list_steps(tmp_path)] == [1, 2, 3]


def test_too_little_space_is_said_with_both_numbers_before_writing(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """A tensor of an exbyte does not fit; nothing is written, and what was there stays."""
    save(tmp_path, snapshots(1), facts={})
    huge = snapshots(2)
    huge.model_tensors = {"weight": torch.empty(2**58, device="meta")}

    with pytest.raises(CheckpointError, match=r"needs 1,152,921,504,6\d\d,\d\d\d,\d\d\d bytes.* has [\d,]+ free"):
        save(tmp_path, huge, facts={})

    assert names_in(tmp_path) == {"LATEST", "step_000001"}


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Lets the operating system refuse to make files longer than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit_bytes", [0, 10, 200, 600])
def test_a_write_that_fails_half_way_changes_nothing(
    tmp_path: Path, snapshots: MakeSnapshot, file_size_limit: Callable[[int], None], limit_bytes: int
) -> None:
    """Whichever file it hits first: one error with the free space and the limit, no debris, LATEST as before."""
    before = save(tmp_path, snapshots(1), facts={})

    file_size_limit(limit_bytes)
    with pytest.raises(
        CheckpointError, match=r"could not be written: .* needs [\d,]+ bytes, .* has [\d,]+ free"
    ) as caught:
        save(tmp_path, snapshots(2), facts={})

    file_size_limit(resource.RLIM_INFINITY)
    assert names_in(tmp_path) == {"LATEST", "step_000001"}
    assert load(layout.resolve(tmp_path)).step == 1
    assert layout.resolve(tmp_path) == before
    assert "ulimit -f" in str(caught.value.help)


def test_a_root_that_is_a_file_is_refused(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """The user's file is not touched."""
    (tmp_path / "root").write_text("mine")

    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path / "root", snapshots(1), facts={})

    assert (tmp_path / "root").read_text() == "mine"


def test_whatever_lies_under_the_name_of_the_step_is_not_overwritten(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """A link or a file there is refused: it is not ours to move."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "step_000001").symlink_to("elsewhere")
    (tmp_path / "step_000002").write_text("mine")

    for step in (1, 2):
        with pytest.raises(CheckpointError, match="not by a checkpoint directory"):
            save(tmp_path, snapshots(step), facts={})

    assert not any((tmp_path / "elsewhere").iterdir())


def test_all_files_of_a_checkpoint_may_be_read_by_whom_the_umask_allows(
    tmp_path: Path, snapshots: MakeSnapshot
) -> None:
    """A group that shares a run can read its weights, not only its configuration."""
    before = os.umask(0o027)
    try:
        directory = save(tmp_path, snapshots(1), facts={})
    finally:
        os.umask(before)

    assert {oct(path.stat().st_mode & 0o777) for path in directory.rglob("*") if path.is_file()} == {"0o640"}
