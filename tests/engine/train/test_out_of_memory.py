"""Which failures are a lack of memory, and what is said of them."""

from __future__ import annotations

import errno

import pytest
import torch

from automodel_cli.engine.config.config import read_configs
from automodel_cli.engine.distributed.rank_group import SOLO
from automodel_cli.engine.train.out_of_memory import doing_in_words, explained, is_out_of_memory
from automodel_cli.errors import DataError, ExitCode, OutOfMemoryError


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: out of memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_failed_allocations_of_every_kind_are_told(error):
    """Of a GPU, of torch on a CPU, of Python and of the system."""
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOSPC, "full"), DataError("no data")])
def test_other_failures_are_not(error):
    """A full disk is no lack of memory."""
    assert not is_out_of_memory(error)


def test_a_real_failed_allocation_becomes_one_message(tiny_run):
    """More than any machine has: torch itself refuses, and the amount is in the message."""
    with pytest.raises(OutOfMemoryError) as caught, explained(read_configs([tiny_run]), tiny_run.parent, SOLO):
        torch.empty(2**60, dtype=torch.uint8)

    assert caught.value.exit_code == ExitCode.OUT_OF_MEMORY == 7
    assert "1,152,921,504.61 GB more were asked for" in str(caught.value)
    assert "nothing was saved before: start again" in str(caught.value)


def test_other_exceptions_pass_as_they_are(tiny_run):
    """A defect keeps its type."""
    with pytest.raises(ValueError, match="a defect"), explained(read_configs([tiny_run]), tiny_run.parent, SOLO):
        raise ValueError("a defect")


@pytest.mark.parametrize("place", ["evaluate", "backward", "build_parts", "step"])
def test_the_place_is_told_by_the_functions(place):
    """The outermost that is known: a forward pass of validation is validation."""
    scope: dict[str, object] = {}
    exec(f"def micro_batch_loss():\n    raise MemoryError\ndef {place}():\n    micro_batch_loss()\n", scope)

    with pytest.raises(MemoryError) as caught:
        scope[place]()  # type: ignore[operator]

    expected = {
        "evaluate": "in validation",
        "backward": "in a forward pass",
        "build_parts": "while the model was built",
    }
    assert doing_in_words(caught.value) == expected.get(place, "in a forward pass")
