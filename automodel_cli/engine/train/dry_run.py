"""Trial steps that measure memory and are undone, bit for bit.

Weights and buffers are copied to the host before and back afterwards, so that the trial may step with the real
optimizer, whose state then has its real size. Gradients and that state are thrown away, and every generator, mode and
hyperparameter is restored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.train.generators import restore_rng, rng_tensors
from automodel_cli.engine.train.objective import Objective
from automodel_cli.engine.train.out_of_memory import is_out_of_memory
from automodel_cli.engine.train.step import micro_batch_loss
from automodel_cli.errors import OutOfMemoryError


@dataclass(frozen=True)
class DryRun:
    """A trial step and the measure of its memory.

    Args:
        optimizer: Steps once if it has no state yet.
        sample: Arrays (1, T) of one sample, repeated to batches.
        autocast_dtype: As in training.
        peak_bytes: Returns the peak of allocated memory since its last call.
    """

    model: ParallelModel
    objective: Objective
    optimizer: torch.optim.Optimizer
    sample: dict[str, Any]
    device: torch.device
    autocast_dtype: torch.dtype | None
    peak_bytes: Callable[[], int]

    def peak(self, local_batch_size: int, *, passes: int) -> int | None:
        """Peak memory of a step in bytes, or None if it ran out of memory.

        Args:
            local_batch_size: Samples of a forward pass.
            passes: Forward and backward passes of the step; from the second on, gradients exist already.
        """
        batch = {name: np.repeat(values, local_batch_size, axis=0) for name, values in self.sample.items()}
        self.model.module.train()
        self.peak_bytes()
        try:
            for number in range(1, passes + 1):
                with self.model.micro_batch(is_last=number == passes):
                    loss = micro_batch_loss(
                        self.model.module, self.objective, batch, batch["labels"].size, self.device, self.autocast_dtype
                    )
                    loss.backward()
            if not self.optimizer.state:
                self.optimizer.step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _forget_pass(self.model.module)
            return None
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return self.peak_bytes()


@contextmanager
def undone(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Restores the model, the optimizer and every generator after the body, bit for bit."""
    generators, modes = rng_tensors(), [module.training for module in model.modules()]
    # Taken before the trial: a step that FSDP2 could not finish leaves gathered tensors in the modules.
    own = _local_tensors(model)
    kept = [tensor.to("cpu", copy=True) for tensor in own]
    had_state = bool(optimizer.state)
    groups = [copy.deepcopy({k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups]
    try:
        yield
    finally:
        optimizer.zero_grad(set_to_none=True)
        if not had_state:
            optimizer.state.clear()
        for group, hyperparameters in zip(optimizer.param_groups, groups, strict=True):
            group.update(hyperparameters)
        for tensor, values in zip(own, kept, strict=True):
            tensor.copy_(values)
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
        restore_rng(generators)


def _forget_pass(model: nn.Module) -> None:
    """Resets FSDP2 after a pass that an exception has ended; it would continue with gathered weights.

    Raises:
        OutOfMemoryError: This version of torch cannot.
    """
    if not hasattr(model, "reshard"):
        return
    reset = getattr(model, "reset_iter_state", None)
    if reset is None:
        raise OutOfMemoryError(
            "local_batch_size is auto, but with FSDP2 this torch cannot go on after a trial that ran out of memory",
            help="give local_batch_size a number (`amcli plan` names one), or take torch 2.13",
        )
    reset()


def _local_tensors(model: nn.Module) -> list[torch.Tensor]:
    """This rank's part of every weight and buffer."""
    tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    # Asked by name: importing the class of sharded tensors takes time, which a process alone should not spend.
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
