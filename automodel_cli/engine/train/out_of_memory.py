"""Running out of memory: one message with the memory in use and the settings that would save most.

The estimate is that of `amcli plan`, for the same configuration. Everything that this module needs is imported
beforehand: later there may be no memory for another module.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from automodel_cli.engine.checkpoint.layout import is_complete, list_steps
from automodel_cli.engine.checkpoint.snapshot import TrainState
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.origin import DEFAULT
from automodel_cli.engine.config.suggest import command
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.plan.savings import Saving, needed, savings
from automodel_cli.engine.train.device import DeviceMemory, Placement, device_memory
from automodel_cli.errors import AmcliError, OutOfMemoryError

_NAMED = 3
# Parts of torch's messages about a failed allocation, in errors without a type of their own.
_WORDS = ("DefaultCPUAllocator: ", "CUDA out of memory", "CUDA error: out of memory", "std::bad_alloc", "ALLOC_FAILED")
# Messages of torch on a GPU, of torch on a CPU, and of numpy.
_WANTED = re.compile(r"(?:[Tt]ried|Unable) to allocate (\d+(?:\.\d+)?) (bytes|[KMGT]iB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
# Functions in a traceback, and what the run was doing in them.
_DOING = {
    "build_parts": "while the model was built",
    "evaluate": "in validation",
    "micro_batch_loss": "in a forward pass",
    "backward": "in a backward pass",
    "clip": "while the gradient was clipped",
    "step": "in the optimizer's step",
}


@dataclass
class Situation:
    """The state of a run when something fails; the recipe keeps it up to date.

    Args:
        config: The final configuration.
        root: Directory of the checkpoints.
        placement: Device and types; None before they are chosen.
        state: Progress; None before it is known.
    """

    config: Config
    root: Path
    group: RankGroup
    placement: Placement | None = None
    state: TrainState | None = None


@contextmanager
def explained(config: Config, root: Path, group: RankGroup) -> Iterator[Situation]:
    """Turns running out of memory in the body into one message; other exceptions pass.

    Raises:
        OutOfMemoryError: There was no memory left, on the device or the host.
    """
    situation = Situation(config, root, group)
    try:
        yield situation
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _explanation(error, situation) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that an allocation failed."""
    if isinstance(error, AmcliError):
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def _explanation(error: Exception, situation: Situation) -> OutOfMemoryError:
    device = situation.placement.device if situation.placement else torch.device("cpu")
    found = device_memory(device)
    doing = doing_in_words(error)
    # The frames hold the tensors of the step, and the rest of this function needs some memory, too.
    traceback.clear_frames(error.__traceback__)
    named, why_not, total = _savings(situation, device)
    step = situation.state.step + 1 if situation.state and not doing.startswith("while the model") else None
    return OutOfMemoryError(
        message(_on(situation, device), doing, _wanted(str(error)), found, total),
        where=f"step {step}" if step else None,
        help="\n".join([*_help(named, why_not), *_where_it_goes_on(situation, named)]),
    )


def message(on: str, doing: str, wanted: int | None, found: DeviceMemory, total: int | None) -> str:
    """The message, with its numbers.

    >>> message("cuda:0", "in a forward pass", 2**30, DeviceMemory(79 * 10**9, 0, 80 * 10**9), None)
    'out of memory on cuda:0 in a forward pass: 1.07 GB more were asked for, with 79.00 GB in use of 80.00 GB'
    """
    more = f"{in_units(wanted)} more were asked for, with " if wanted is not None else ""
    needs = f";\nthe estimate of `amcli plan` for this configuration is {in_units(total)}" if total else ""
    place = f"out of memory on {on}{f' {doing}' if doing else ''}"
    return f"{place}: {more}{in_units(found.used)} in use of {in_units(found.total)}{needs}"


def in_units(num_bytes: int) -> str:
    """A size for users.

    >>> in_units(1_530_000_000), in_units(2_000_000), in_units(512)
    ('1.53 GB', '2.0 MB', '512 bytes')
    """
    if num_bytes >= 10**9:
        return f"{num_bytes / 10**9:,.2f} GB"
    return f"{num_bytes / 10**6:.1f} MB" if num_bytes >= 10**5 else f"{num_bytes} bytes"


def doing_in_words(error: BaseException) -> str:
    """What the run was doing, by the functions in the traceback; empty if none is known."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    return next((words for name, words in _DOING.items() if name in names), "")


def _on(situation: Situation, device: torch.device) -> str:
    if situation.placement is None or device.type == "cpu":
        return "this machine"
    return f"{device} ({situation.placement.name})"


def _wanted(text: str) -> int | None:
    found = _WANTED.search(text)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


def _savings(situation: Situation, device: torch.device) -> tuple[list[Saving], str, int | None]:
    """The settings to suggest, why there are none, and the estimate of the run as it is in bytes."""
    config, group = situation.config, situation.group
    if situation.placement is not None and config.get("precision", "auto") == "auto":
        precision = "bf16" if situation.placement.autocast_dtype is not None else "fp32"
        config = config.with_value(("precision",), precision, DEFAULT)
    config = config.with_value(("device",), device.type, DEFAULT)
    world_size = group.world_size
    is_one_machine = group.place.local_world_size == world_size
    num_gpus = torch.cuda.device_count() if device.type == "cuda" and is_one_machine else 0
    try:
        found = needed(config, world_size)
        return savings(config, world_size, num_gpus=num_gpus)[:_NAMED], "", found.total if found else None
    except MemoryError:
        return [], "there is not even memory to compute what would help", None


def _help(named: Sequence[Saving], why_not: str) -> list[str]:
    if not named:
        return [why_not or "nothing that amcli knows would save memory here: a smaller model, or a larger device"]
    known = any(saving.saved_bytes is not None for saving in named)
    first = (
        "what would save most, by the same estimate:" if known else "what would save memory (how much is not known):"
    )
    width = max(len(saving.options) for saving in named)
    lines = []
    for saving in named:
        size = f"saves {in_units(saving.saved_bytes)}: " if saving.saved_bytes is not None else ""
        lines.append(f"    {saving.options:<{width}}  {size}{saving.note}")
    return [first, *lines]


def _where_it_goes_on(situation: Situation, named: Sequence[Saving]) -> list[str]:
    """The last checkpoint, and how to resume from it."""
    options = f" {named[0].options}" if named else ""
    saved = [path for _, path in list_steps(situation.root) if is_complete(path)]
    if not saved:
        return [f"  nothing was saved before: start again with one of them{', such as' + options if options else ''}"]
    return [f"  {saved[-1].name} is whole: `{command('resume', situation.root)}{options}` goes on there"]
