"""What is checked or made before torch is imported: torch-free, so that a refusal takes no time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_cli.engine.checkpoint.layout import LINKS, list_steps
from automodel_cli.engine.checkpoint.run_lock import run_lock
from automodel_cli.engine.config.builtin import embedded_corpus_directory
from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.distributed.environment import RankPlace
from automodel_cli.engine.distributed.report import announce
from automodel_cli.engine.observe.build import METRICS_FILE, TENSORBOARD_DIRECTORY
from automodel_cli.engine.prep.prepare import PrepOptions, prepare
from automodel_cli.engine.train.signals import save_requests_ignored
from automodel_cli.errors import CheckpointError

if TYPE_CHECKING:
    from automodel_cli.engine.distributed.team import Team


@contextmanager
def new_run(settings: Settings, *, overwrite: bool) -> Iterator[Path]:
    """Owns the directory of a new run's checkpoints, which must not hold another run.

    Args:
        settings: Names the directory.
        overwrite: Delete the checkpoints and metrics of the run that is there; other files stay.

    Raises:
        CheckpointError: It holds checkpoints and `overwrite` is not given, or another run is working there.
    """
    root = Path(settings.checkpoint.checkpoint_dir)
    with owned(settings, root):
        if settings.checkpoint.enabled:
            _make_way(root, overwrite=overwrite)
        yield root


def check_new_run(settings: Settings, *, overwrite: bool) -> None:
    """Refuses what `new_run` would refuse, and changes nothing: for whoever starts the processes that will run.

    Raises:
        CheckpointError: The directory holds checkpoints and `overwrite` is not given.
    """
    root = Path(settings.checkpoint.checkpoint_dir)
    if settings.checkpoint.enabled and not overwrite and list_steps(root):
        _make_way(root, overwrite=False)


def run_begun(settings: Settings) -> bool:
    """Whether there is a checkpoint to go on from."""
    return settings.checkpoint.enabled and bool(list_steps(Path(settings.checkpoint.checkpoint_dir)))


@contextmanager
def on_ranks(
    place: RankPlace, settings: Settings, prepared: Callable[[], AbstractContextManager[Any]]
) -> Iterator[Team | None]:
    """Joins the ranks of the run, if it has several, and enters a context on the first of them.

    Yields:
        The ranks; None for a process alone.

    Raises:
        AmcliError: The ranks cannot meet, or the context cannot be entered; then no rank goes on.
    """
    with save_requests_ignored():
        announce(place)
        with _team(place, settings, prepared) as team:
            yield team


@contextmanager
def _team(
    place: RankPlace, settings: Settings, prepared: Callable[[], AbstractContextManager[Any]]
) -> Iterator[Team | None]:
    # Policies of FSDP2 hold on one rank as on many, or another number of ranks would train in another precision.
    if place.world_size == 1 and not (settings.distributed.mp_policy or settings.distributed.offload_policy):
        with prepared():
            yield None
        return
    from automodel_cli.engine.distributed.team import joined

    with joined(place, settings) as team, team.entered_on_first(prepared):
        yield team


def owned(settings: Settings, root: Path) -> AbstractContextManager[None]:
    """Keeps other runs out of `root` while this one works there; a run that saves nothing owns nothing.

    Raises:
        CheckpointError: Another run is working there, or it is no directory.
    """
    return run_lock(root) if settings.checkpoint.enabled else nullcontext()


def _make_way(root: Path, *, overwrite: bool) -> None:
    steps = list_steps(root)
    if steps and not overwrite:
        newest = max(step for step, _ in steps)
        raise CheckpointError(
            f"there is a run here already, with {len(steps)} checkpoints up to step {newest}",
            where=str(root),
            help="`amcli resume` continues it, --overwrite deletes it,\n"
            "        --set checkpoint.checkpoint_dir=DIR starts beside it",
        )
    for _, directory in steps:
        shutil.rmtree(directory)
    for name in (*LINKS, METRICS_FILE):
        (root / name).unlink(missing_ok=True)
    # TensorBoard would draw the old run's events into the curves of the new one.
    shutil.rmtree(root / TENSORBOARD_DIRECTORY, ignore_errors=True)


def ensure_embedded_corpus(config: Config, say: Callable[[str], None]) -> None:
    """Prepares the embedded text if the built-in configuration is used and its shards are not there yet."""
    directory = embedded_corpus_directory(config)
    if directory is not None and not (directory / "manifest.json").exists():
        say(f"preparing the embedded Shakespeare in {directory} (as `amcli prep shakespeare` does)")
        prepare(PrepOptions(source="shakespeare", output_dir=directory))
