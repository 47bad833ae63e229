"""Steps that are tried for the memory they take, and undone: nothing of them is left, bit for bit.

Weights and buffers are copied to the host before and back afterwards, so that the trial may step with the real
optimizer, whose state then has its real size; gradients and that state are thrown away, and every generator, mode and
hyperparameter is put back.
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
from automodel_cli.engine.train.objective import Objective
from automodel_cli.engine.train.out_of_memory import is_out_of_memory
from automodel_cli.engine.train.state import restore_rng, rng_tensors
from automodel_cli.engine.train.step import micro_batch_loss
from automodel_cli.errors import OutOfMemoryError


@dataclass(frozen=True)
class DryRun:
    """What is tried, and how its memory is measured.

    Args:
        model: On the ranks.
        objective: Of the model.
        optimizer: Steps once where it has no state yet.
        sample: Arrays (1, T) of one sample, repeated to batches.
        device: Of the model.
        autocast_dtype: As in training.
        peak_bytes: The most that was allocated since it was asked before.
    """

    model: ParallelModel
    objective: Objective
    optimizer: torch.optim.Optimizer
    sample: dict[str, Any]
    device: torch.device
    autocast_dtype: torch.dtype | None
    peak_bytes: Callable[[], int]

    def peak(self, local_batch_size: int, *, passes: int) -> int | None:
        """Bytes at the peak of a step, or None where there was no memory for it.

        Args:
            local_batch_size: Samples of a forward pass.
            passes: Forward and backward passes of the step; from the second on, gradients are there already.
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
    """Puts the model, the optimizer and every generator back after the body, to the bit."""
    generators, modes = rng_tensors(), [module.training for module in model.modules()]
    # The tensors of now: a step that FSDP2 could not finish leaves gathered ones in the modules.
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
    """Has FSDP2 forget a pass that an exception has ended: it would go on with gathered weights.

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
    """What this rank holds of every weight and buffer."""
    tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    # By its method: importing sharded tensors takes a second that a process alone does not spend.
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
