"""One optimisation step, and one pass over a validation set.

The loss of a step is the SUM over the label tokens of all its micro-batches, divided by their
number, so how a step is cut into micro-batches changes nothing but rounding. A loss or gradient
that is not finite never reaches the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from automodel_cli.engine.distributed.parallel_model import ParallelModel, as_parallel
from automodel_cli.engine.protocols import IGNORED_LABEL, OPTIONAL_INPUTS, LossFunction
from automodel_cli.engine.train.objective import Objective
from automodel_cli.engine.train.reported_metrics import ReportedMetrics
from automodel_cli.engine.train.step_numbers import DeviceGuard, StepNumbers
from automodel_cli.errors import DataError

if TYPE_CHECKING:
    from automodel_cli.engine.train.elastic import Elastic


class StepResult(NamedTuple):
    """Loss in nats per token, the gradient's norm before clipping, and label tokens of the step."""

    loss: float
    grad_norm: float
    num_tokens: int


class EvalResult(NamedTuple):
    """Loss in nats per token, and the label tokens it is the mean over."""

    loss: float
    num_tokens: int


def train_step(
    model: nn.Module | ParallelModel,
    loss_fn: LossFunction | Objective,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[dict[str, Any]],
    *,
    device: torch.device,
    lr: float,
    max_norm: float | None,
    autocast_dtype: torch.dtype | None,
    num_label_tokens: int | None = None,
) -> StepResult:
    """Accumulates the gradient of all micro-batches and updates the weights once; see `queue_step` for arguments.

    Raises:
        TrainingDivergedError: The loss or the norm is not finite; weights and optimizer are unchanged.
        DataError: The step has no label token.
    """
    numbers = queue_step(
        model,
        loss_fn,
        optimizer,
        micro_batches,
        device=device,
        lr=lr,
        max_norm=max_norm,
        autocast_dtype=autocast_dtype,
        num_label_tokens=num_label_tokens,
    )
    return StepResult(*numbers.read(), numbers.num_tokens)


def queue_step(
    model: nn.Module | ParallelModel,
    loss_fn: LossFunction | Objective,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[dict[str, Any]],
    *,
    device: torch.device,
    lr: float,
    max_norm: float | None,
    autocast_dtype: torch.dtype | None,
    num_label_tokens: int | None = None,
    guard: DeviceGuard | None = None,
    elastic: Elastic | None = None,
    reported: ReportedMetrics | None = None,
) -> StepNumbers:
    """Like `train_step`, but the caller reads the numbers.

    Args:
        model: Maps `input_ids` (B, T) to logits (B, T, V) or to an object with `.logits`; a plain module is that of a
            process alone.
        loss_fn: Returns the sum over tokens divided by the number it is given; takes logits, or model and batch.
        optimizer: Its groups get `lr`, times their own `lr_mult` if they have one.
        micro_batches: `input_ids` and `labels`, int64 (B, T), as arrays or tensors.
        device: Where the model is.
        lr: Learning rate of this update.
        max_norm: Clip the gradient's global norm to this; None only measures it.
        autocast_dtype: Type of matrix products; None computes in the type of the weights.
        num_label_tokens: Label tokens of the step over all ranks; None if no other rank has any.
        guard: Decides on the device whether `optimizer` steps, so that the numbers need not be read here.
        elastic: Set for this step if its bits must not depend on the number of ranks.
        reported: Collects what the model and the loss report; the same object for all steps.

    Raises:
        TrainingDivergedError: Without a guard: the loss or the norm is not finite; nothing has changed.
        DataError: The step has no label token.
    """
    num_tokens = label_tokens(micro_batches) if num_label_tokens is None else num_label_tokens
    if num_tokens == 0:
        raise DataError("every label of this step is masked, so there is nothing to learn from")
    parallel = as_parallel(model)
    parallel.module.train()
    reported = ReportedMetrics() if reported is None else reported
    reported.begin_step()
    losses = []
    for index, batch in enumerate(micro_batches):
        if elastic is not None:
            elastic.begin(index)
        with parallel.micro_batch(is_last=index == len(micro_batches) - 1):
            loss = micro_batch_loss(parallel.module, loss_fn, batch, num_tokens, device, autocast_dtype, reported)
            loss.backward()
        losses.append(loss.detach())
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if elastic is None:
        on_device = parallel.clip(parameters, sum(losses, torch.zeros((), device=device)), max_norm)
    else:
        on_device = elastic.clip(parameters, losses, max_norm)
    numbers = StepNumbers(on_device, num_tokens, reported.reduced(parallel.group), reported.units)
    try:
        if guard is None:
            numbers.read()  # the only synchronisation of a step: both numbers are copied together
        for group in optimizer.param_groups:
            _set_lr(group, lr * group.get("lr_mult", 1.0))
        if guard is None:
            optimizer.step()
        else:
            guard.step(on_device)
    finally:
        optimizer.zero_grad(set_to_none=True)
    return numbers


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)  # the compiled step of the optimizer reads this tensor
    else:
        group["lr"] = lr


@torch.no_grad()
def evaluate(
    model: nn.Module | ParallelModel,
    loss_fn: LossFunction | Objective,
    batches: Iterable[dict[str, Any]],
    *,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    should_stop: Callable[[], bool] = lambda: False,
) -> EvalResult:
    """The mean loss over all label tokens of `batches`, with dropout off; the model's mode is put back.

    Args:
        model: As in `train_step`.
        loss_fn: As in `train_step`.
        batches: As the micro-batches of `train_step`; the last may be smaller. All ranks need equally many.
        device: Where the model is.
        autocast_dtype: As in `train_step`.
        should_stop: Called before every batch; if true, the rest is left out, and the result is that of
            the batches before (a loss of NaN if there were none). It must return the same on all ranks.

    Raises:
        DataError: No batch has a label token.
    """
    parallel = as_parallel(model)
    was_training = parallel.module.training
    parallel.module.eval()
    # Sums of millions of tokens: in fp32 the last digits that are shown would be rounding.
    total = torch.zeros((), dtype=torch.float64, device=device)
    num_tokens, stopped = 0, False
    try:
        with parallel.forward():
            for batch in batches:
                stopped = should_stop()
                if stopped:
                    break
                total += micro_batch_loss(parallel.module, loss_fn, batch, 1, device, autocast_dtype)
                num_tokens += label_tokens([batch])
    finally:
        parallel.module.train(was_training)
        parallel.reshard()
    group = parallel.group
    total = group.all_reduce(group.counted_once(total))
    num_tokens = group.all_reduce_ints(group.counted_once(num_tokens))[0]
    if num_tokens == 0 and not stopped:
        raise DataError("the validation set has no label token")
    return EvalResult(total.item() / num_tokens if num_tokens else math.nan, num_tokens)


def micro_batch_loss(
    model: nn.Module,
    loss_fn: LossFunction | Objective,
    batch: dict[str, Any],
    num_tokens: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    reported: ReportedMetrics | None = None,
) -> torch.Tensor:
    """The loss of one micro-batch, summed over its label tokens and divided by `num_tokens`."""
    objective = loss_fn if isinstance(loss_fn, Objective) else Objective(loss_fn, None, "")
    inputs = {name: batch[name] for name in ("input_ids", "labels", *OPTIONAL_INPUTS) if name in batch}
    on_device = {name: _to_device(values, device) for name, values in inputs.items()}
    with _autocast(device, autocast_dtype):
        return objective(model, on_device, num_tokens, reported)


def label_tokens(batches: Iterable[dict[str, Any]]) -> int:
    """Number of tokens that are trained on; counted on the host, as reading a number from a GPU would wait for it."""
    return sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in batches)


def _to_device(values: Any, device: torch.device) -> torch.Tensor:
    tensor = torch.as_tensor(values)
    if device.type == "cuda":
        # Pinned memory lets the copy overlap with the computation of the micro-batch before.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
