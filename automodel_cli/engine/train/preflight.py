"""Checks and preparations before torch is imported, so that a refusal takes no time."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from automodel_cli.engine.checkpoint.layout import LINKS, list_steps
from automodel_cli.engine.checkpoint.run_directory import run_lock
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.load import embedded_corpus_directory
from automodel_cli.engine.config.parallel_layout import Degrees, is_sharded
from automodel_cli.engine.config.sections import CheckpointSection
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.config.suggest import on_run
from automodel_cli.engine.distributed.environment import RankPlace
from automodel_cli.engine.distributed.heartbeat import beating
from automodel_cli.engine.distributed.rank_group import SOLO, RankGroup
from automodel_cli.engine.distributed.rank_report import announce
from automodel_cli.engine.observe.jsonl import METRICS_FILE
from automodel_cli.engine.observe.run_sinks import TENSORBOARD_DIRECTORY
from automodel_cli.engine.prep.prepare import PrepOptions, prepare
from automodel_cli.engine.train.signals import save_requests_ignored
from automodel_cli.errors import CheckpointError

_SHOWN_AFTER_SECONDS = 10.0


@contextmanager
def new_run(section: CheckpointSection, *, overwrite: bool) -> Iterator[Path]:
    """Owns the directory of a new run's checkpoints, which must not hold another run.

    Args:
        section: Names the directory.
        overwrite: Delete the checkpoints and metrics of the run that is there; other files stay.

    Raises:
        CheckpointError: It holds checkpoints and `overwrite` is not given, or another run is working there.
    """
    root = Path(section.checkpoint_dir)
    with owned(section, root):
        if section.enabled:
            _make_way(root, overwrite=overwrite)
        yield root


def check_new_run(section: CheckpointSection, *, overwrite: bool) -> None:
    """Refuses what `new_run` would refuse, and changes nothing; for a process that only starts the ranks.

    Raises:
        CheckpointError: The directory holds checkpoints and `overwrite` is not given.
    """
    root = Path(section.checkpoint_dir)
    if section.enabled and not overwrite and list_steps(root):
        _make_way(root, overwrite=False)


def run_begun(section: CheckpointSection) -> bool:
    """Whether there is a checkpoint to resume from."""
    return section.enabled and bool(list_steps(Path(section.checkpoint_dir)))


@contextmanager
def on_ranks(
    place: RankPlace, settings: Settings, root: Path, prepared: Callable[[], AbstractContextManager[Any]]
) -> Iterator[RankGroup]:
    """Joins the ranks of the run, if it has several, and enters a context on rank 0.

    Args:
        place: This process among them.
        settings: The checked sections of the run.
        root: Directory of the checkpoints.
        prepared: Opens the context that rank 0 enters.

    Yields:
        The ranks.

    Raises:
        AmcliError: The ranks cannot connect, the context cannot be entered, or the ranks would each write a part of
            a checkpoint and do not see the same directory. It is raised on all ranks.
    """
    with save_requests_ignored(), beating(place):
        announce(place)
        with _group(place, settings, prepared) as group:
            if writes_parts(settings, group.degrees):
                check_shared_directory(root, group)
            yield group


@contextmanager
def _group(
    place: RankPlace, settings: Settings, prepared: Callable[[], AbstractContextManager[Any]]
) -> Iterator[RankGroup]:
    # FSDP2's policies apply to one rank, too, or the precision would depend on the number of ranks.
    if place.world_size == 1 and not (settings.distributed.mp_policy or settings.distributed.offload_policy):
        with prepared():
            yield SOLO
        return
    from automodel_cli.engine.distributed.distributed_group import joined

    with joined(place, settings) as group, group.entered_on_first_rank(prepared):
        yield group


def writes_parts(settings: Settings, degrees: Degrees) -> bool:
    """Whether every rank writes a part of each checkpoint, into one directory."""
    section = settings.checkpoint
    return section.enabled and section.save_consolidated != "every" and is_sharded(settings.distributed, degrees)


def check_shared_directory(root: Path, group: RankGroup) -> None:
    """Refuses ranks that do not see the directory of rank 0, before any work that could not be saved.

    Raises:
        CheckpointError: On rank 0: a rank does not see it.
        PeerFailedError: The same, on all other ranks.
    """
    sign = root / f".seen-{os.getpid()}"

    def left() -> str:
        root.mkdir(parents=True, exist_ok=True)
        # Its random content differs from a file of the same name on another machine.
        sign.write_text(text := secrets.token_hex(16))
        return text

    wanted = group.broadcast(group.on_first_rank(lambda: (sign, left())))
    unseeing = group.gather("" if _appears(*wanted) else f"rank {group.rank} on {platform.node()}")
    try:
        group.on_first_rank(lambda: _check_all_see(root, [text for text in unseeing or () if text]))
    finally:
        if group.rank == 0:
            sign.unlink(missing_ok=True)


def _appears(sign: Path, text: str) -> bool:
    """Whether a file is there with this text; a network file system may take some seconds to show it."""
    deadline = time.monotonic() + _SHOWN_AFTER_SECONDS
    while True:
        # Listing the directory makes a client of a network file system refresh it.
        if sign.parent.is_dir() and any(path.name == sign.name for path in sign.parent.iterdir()):
            return sign.read_text() == text
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _check_all_see(root: Path, unseeing: list[str]) -> None:
    if unseeing:
        some = ", ".join(unseeing[:4]) + (f" and {len(unseeing) - 4} more" if len(unseeing) > 4 else "")
        raise CheckpointError(
            "every rank writes its part of a checkpoint into this directory of rank 0's machine, and it is not seen by "
            f"{some}",
            where=str(root.absolute()),
            help="set checkpoint.checkpoint_dir to a directory that all machines share,\n"
            "        or --set checkpoint.save_consolidated=every: then rank 0 gathers and writes everything",
        )


def owned(section: CheckpointSection, root: Path) -> AbstractContextManager[None]:
    """Locks `root` against other runs while this one works there; a run that saves nothing locks nothing.

    Raises:
        CheckpointError: Another run is working there, or it is no directory.
    """
    return run_lock(root) if section.enabled else nullcontext()


def _make_way(root: Path, *, overwrite: bool) -> None:
    steps = list_steps(root)
    if steps and not overwrite:
        newest = max(step for step, _ in steps)
        raise CheckpointError(
            f"there is a run here already, with {len(steps)} checkpoints up to step {newest}",
            where=str(root),
            help=f"`{on_run('resume', root)}` continues it, --overwrite deletes it,\n"
            "        --set checkpoint.checkpoint_dir=DIR starts beside it",
        )
    for _, directory in steps:
        shutil.rmtree(directory)
    for name in (*LINKS, METRICS_FILE):
        (root / name).unlink(missing_ok=True)
    # TensorBoard would draw the events of the old run into the curves of the new one.
    shutil.rmtree(root / TENSORBOARD_DIRECTORY, ignore_errors=True)


def ensure_embedded_corpus(config: Config, say: Callable[[str], None]) -> None:
    """Prepares the embedded text if the built-in configuration is used and its shards are not there yet."""
    directory = embedded_corpus_directory(config)
    if directory is not None and not (directory / "manifest.json").exists():
        say(f"preparing the embedded Shakespeare in {directory} (as `amcli prep shakespeare` does)")
        prepare(PrepOptions(source="shakespeare", output_dir=directory))
