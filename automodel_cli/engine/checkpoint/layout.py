"""Names and places of checkpoints, and the two links `LATEST` and `BEST`.

    checkpoints/
      LATEST -> step_000200        BEST -> step_000150
      step_000200/
        config.yaml  model/  optim/  state/  manifest.json

Weights and optimizer state are one file each, or several: each rank of a sharded run writes its part.

A link may only name a checkpoint beside it. It moves in two steps: `.LATEST.next` is set before the new directory gets
its name, and becomes `LATEST` afterwards. So a save that is killed in between counts as done.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from automodel_cli.engine.checkpoint.manifest import MANIFEST_NAME, Manifest
from automodel_cli.engine.config.suggest import DEFAULT_ROOT
from automodel_cli.engine.durable import replace_link, sync_directory
from automodel_cli.errors import CheckpointError

LATEST = "LATEST"
BEST = "BEST"
LINKS = (LATEST, BEST)
BROKEN_PREFIX = "broken-"

CONFIG_FILE = "config.yaml"
MODEL_DIRECTORY = "model"
MODEL_CONFIG_FILE = "model/config.json"
MODEL_FILE = "model/model.safetensors"
PICKLED_MODEL_FILE = "model/pytorch_model.bin"
OPTIMIZER_FILE = "optim/optimizer.safetensors"
TRAIN_STATE_FILE = "state/train_state.json"

_STEP_NAME = re.compile(r"step_([0-9]{6,18})")
_PARTIAL_NAME = re.compile(r"\.(?:step_[0-9]{6,18}|(?:LATEST|BEST)(?:\.next)?)\.tmp-([0-9]{1,10})")
_MODEL_PART = re.compile(r"model/model_rank[0-9]{1,9}(?:_[0-9]{1,9})?\.safetensors")
_OPTIMIZER_PART = re.compile(r"optim/optimizer_rank[0-9]{1,9}(?:_[0-9]{1,9})?\.safetensors")
_MAX_LINK_BYTES = 4096


def step_directory_name(step: int) -> str:
    """Name of the checkpoint after `step` optimisation steps.

    >>> step_directory_name(200)
    'step_000200'
    """
    return f"step_{step:06d}"


def step_of(name: str) -> int | None:
    """The step in a checkpoint's name, or None if it is no such name.

    >>> step_of("step_000200"), step_of("step_200")
    (200, None)
    """
    match = _STEP_NAME.fullmatch(name)
    step = int(match[1]) if match else None
    return step if step is not None and step_directory_name(step) == name else None


def partial_directory_name(step: int, pid: int) -> str:
    """Name of the hidden directory in which process `pid` assembles a checkpoint."""
    return f".{step_directory_name(step)}.tmp-{pid}"


def partial_owner(name: str) -> int | None:
    """The process that a hidden, unfinished directory or link belongs to; None for any other name."""
    match = _PARTIAL_NAME.fullmatch(name)
    return int(match[1]) if match else None


def rng_file(rank: int) -> str:
    """Path of the random number generators of one rank, relative to the checkpoint."""
    return f"state/rng_rank{rank}.safetensors"


def part_file(whole: str, rank: int, number: int = 1) -> str:
    """Path of what one rank writes of the weights or the optimizer state.

    Args:
        whole: `MODEL_FILE` or `OPTIMIZER_FILE`.
        rank: The rank that writes it.
        number: A file holds at most one block of a tensor; further blocks are in files 2, 3, ...

    >>> part_file(MODEL_FILE, rank=3), part_file(MODEL_FILE, rank=3, number=2)
    ('model/model_rank3.safetensors', 'model/model_rank3_2.safetensors')
    """
    stem, _, suffix = whole.rpartition(".")
    return f"{stem}_rank{rank}" + (f"_{number}" if number > 1 else "") + f".{suffix}"


def model_files(names: Collection[str]) -> list[str]:
    """Files of a checkpoint that hold the weights: a single one, or one or more for each rank."""
    for whole in (MODEL_FILE, PICKLED_MODEL_FILE):
        if whole in names:
            return [whole]
    return sorted(name for name in names if _MODEL_PART.fullmatch(name))


def optimizer_files(names: Collection[str]) -> list[str]:
    """Files of a checkpoint that hold the optimizer's state."""
    return [OPTIMIZER_FILE] if OPTIMIZER_FILE in names else sorted(filter(_OPTIMIZER_PART.fullmatch, names))


def rank_of(name: str) -> int | None:
    """The rank that a part of the weights or of the optimizer's state belongs to; None for any other file.

    >>> rank_of("optim/optimizer_rank12.safetensors"), rank_of("model/model.safetensors")
    (12, None)
    """
    found = re.search(r"_rank([0-9]+)", name)
    is_part = _MODEL_PART.fullmatch(name) or _OPTIMIZER_PART.fullmatch(name)
    return int(found[1]) if found and is_part else None


def is_complete(directory: Path) -> bool:
    """Whether a save finished here: the manifest exists. Says nothing about damage since."""
    return (directory / MANIFEST_NAME).is_file()


def is_checkpoint(directory: Path) -> bool:
    """Whether this directory is one checkpoint, in whatever state, rather than a directory of them."""
    name = directory.resolve().name.removeprefix(BROKEN_PREFIX)
    return is_complete(directory) or re.match(_STEP_NAME, name) is not None


def is_weights_only(manifest: Manifest) -> bool:
    """Whether a run can only start from this checkpoint, not go on: no optimizer or generator state was saved."""
    return not any(name.startswith(("optim/", "state/rng_")) for name in manifest.files)


def list_steps(root: Path) -> list[tuple[int, Path]]:
    """All checkpoints of a directory, complete or not, by ascending step. Links are not followed."""
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted((step, root / name) for name in names if (step := step_of(name)) is not None)


def later_steps(root: Path, step: int) -> list[Path]:
    """Complete checkpoints after `step`: a run that continues from `step` would collide with them."""
    return [path for found, path in list_steps(root) if found > step and is_complete(path)]


def announce_links(root: Path, names: tuple[str, ...], step: int) -> None:
    """First step: says that `names` will point at `step` as soon as its directory has its name."""
    for name in names:
        replace_link(root / _pending(name), step_directory_name(step))


def settle_links(root: Path) -> None:
    """Second step: makes announced links real, and forgets those whose save never finished."""
    for name in LINKS:
        target = _target(root, _pending(name))
        if target is None:
            continue
        if is_complete(target):
            (root / _pending(name)).replace(root / name)
        else:
            (root / _pending(name)).unlink()
        sync_directory(root)


def point_link(root: Path, name: str, target: Path | None) -> None:
    """Points `LATEST` or `BEST` at a checkpoint, or removes it."""
    if target is not None:
        replace_link(root / name, target.name)
    elif os.path.lexists(root / name):
        (root / name).unlink()
        sync_directory(root)


def read_link(root: Path, name: str) -> Path | None:
    """What `LATEST` or `BEST` points at; the directory need not exist. None without a link.

    Raises:
        CheckpointError: The link does not name a checkpoint of this directory.
    """
    announced = _target(root, _pending(name))
    return announced if announced is not None and is_complete(announced) else _target(root, name)


def _pending(name: str) -> str:
    return f".{name}.next"


def _target(root: Path, name: str) -> Path | None:
    link = root / name
    if link.is_symlink():
        text = str(link.readlink())
    elif link.is_file():
        with link.open("rb") as file:
            text = file.read(_MAX_LINK_BYTES).decode(errors="replace").strip()
    else:
        return None
    real_root = root.resolve()
    # Normalised as text: following `..` through links could lead back here from elsewhere.
    target = Path(os.path.normpath(real_root / text))
    if target.parent != real_root or step_of(target.name) is None or (root / target.name).is_symlink():
        raise CheckpointError(
            f"{name} points to {text!r}, but it may only name a checkpoint directory beside it",
            where=str(link),
            help=f"remove it, or point it at one of: {_names(root)}",
        )
    return root / target.name


def resolve(path: Path | None = None, default_root: Path = DEFAULT_ROOT) -> Path:
    """The checkpoint directory that a user means.

    Args:
        path: A checkpoint, `LATEST` or `BEST`, or a directory of checkpoints, which means its
            `LATEST`, or the highest complete step if it has none. None means `default_root`, and
            a bare number, `LATEST` or `BEST` one in it.
        default_root: A run's directory.

    Raises:
        CheckpointError: There is no such checkpoint; the message says what there is.
    """
    place = default_root if path is None else path
    if place.name in LINKS:
        is_bare = str(place) in LINKS and not os.path.lexists(place)
        return _linked(default_root if is_bare else place.parent, place.name)
    if str(place).isdecimal() and not place.exists():
        place = default_root / step_directory_name(int(str(place)))
    if not place.is_dir():
        raise CheckpointError(
            "there is no such directory" if not place.exists() else "this is a file, not a checkpoint directory",
            where=str(place),
            help=_what_exists(place, default_root),
        )
    if is_checkpoint(place):
        return place
    return _newest(place)


def _linked(root: Path, name: str) -> Path:
    target = read_link(root, name)
    if target is None or not target.is_dir():
        found = f"there is no {name} link" if target is None else f"{name} points to {target.name}, which is gone"
        raise CheckpointError(found, where=str(root), help=f"checkpoints there: {_names(root)}")
    return target


def _newest(root: Path) -> Path:
    latest = read_link(root, LATEST)
    if latest is not None and latest.is_dir():
        return latest
    complete = [path for _, path in list_steps(root) if is_complete(path)]
    if not complete:
        raise CheckpointError(
            f"there is no complete checkpoint in this directory; checkpoints there: {_names(root)}",
            where=str(root),
            help="training writes them; give the directory that checkpoint.checkpoint_dir names",
        )
    return complete[-1]


def _names(root: Path) -> str:
    names = [path.name if is_complete(path) else f"{path.name} (incomplete)" for _, path in list_steps(root)]
    return ", ".join(names[-8:]) or "none"


def _what_exists(place: Path, default_root: Path) -> str:
    root = place.parent if list_steps(place.parent) else default_root
    if list_steps(root):
        return f"checkpoints in {root}: {_names(root)}"
    return "`amcli pretrain` writes checkpoints"
