"""What a step minimises: a model and a loss as one call, chosen once and named at the start.

A loss is given either the logits, or the input and the weight of the head (`HeadLoss`), which saves
the logits. A loss that was asked for by name is used or refused; without one, the chunked loss is
taken where the model allows it, and the words say so where it does not. Of a head that tensor parallelism
splits, only a loss that says so (`TakesSplitHead`) works on parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from automodel_cli.engine.distributed.tensor_parallel import splits
from automodel_cli.engine.loss.linear_ce import ChunkedLinearCrossEntropy
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy
from automodel_cli.engine.models.calling import call, in_words, logits_of, unwrapped
from automodel_cli.engine.models.head import Head, NoHeadError, find_head
from automodel_cli.engine.protocols import (
    IGNORED_LABEL,
    DescribesItself,
    HeadLoss,
    LossFunction,
    Metric,
    TakesSplitHead,
    in_users_code,
)
from automodel_cli.engine.train.reported_metrics import ReportedMetrics
from automodel_cli.errors import ConfigError

if TYPE_CHECKING:
    from automodel_cli.engine.protocols import Metrics


@dataclass(frozen=True)
class Objective:
    """A micro-batch to its loss.

    Args:
        loss: As it was configured.
        head: What the loss replaces; None where it is given logits.
        words: For the user: which loss, and why not a better one.
        places: File and line of `model` and `loss_fn`, where they are known.
    """

    loss: LossFunction | HeadLoss
    head: Head | None
    words: str
    places: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self,
        model: nn.Module,
        batch: dict[str, torch.Tensor],
        num_label_tokens: int,
        reported: ReportedMetrics | None = None,
    ) -> torch.Tensor:
        """The loss of one micro-batch, summed over its label tokens and divided by `num_label_tokens`.

        Args:
            model: The model that this was chosen for, or a wrapper around it.
            batch: `input_ids` and `labels` (B, T), and what `call` takes beside them; on the model's device.
            num_label_tokens: Label tokens of the whole optimisation step.
            reported: Gets what the model and the loss report, and the balance loss of a mixture of experts.
        """
        labels_BT = batch["labels"]
        of_loss: Metrics | None = None
        if self.head is None:
            output = self._output(model, batch)
            logits = self._logits(output)
            self._check_shape(logits.shape, labels_BT)
            with in_users_code(lambda: f"in {self._named('loss_fn')}, of logits {tuple(logits.shape)}"):
                loss, of_loss = _split(self.loss(logits, labels_BT, num_label_tokens=num_label_tokens))  # type: ignore[operator]
            self._check_scalar(loss)
        else:
            head, of_hidden = self.head, self.loss.of_hidden  # type: ignore[union-attr]

            def loss_of(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
                nonlocal of_loss
                self._check_shape((*hidden.shape[:-1], head.vocab_size), labels_BT)
                loss, of_loss = _split(of_hidden(hidden, weight, bias, labels_BT, num_label_tokens=num_label_tokens))
                return loss

            with head.replaced(loss_of):
                output = self._output(model, batch)
            loss = self._logits(output)
        balance = _balance_loss(model, output) if torch.is_grad_enabled() else None
        if reported is not None:
            of_balance = None if balance is None else {"balance_loss": Metric(balance, unit="nats/token")}
            reported.add(labels_BT, getattr(output, "metrics", None), of_loss, of_balance)
        if balance is None:
            return loss
        return loss + balance * ((labels_BT != IGNORED_LABEL).sum() / num_label_tokens)

    def _output(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
        with in_users_code(lambda: f"in the forward pass of {self._named('model')}, of {_ids_in_words(batch)}"):
            return call(model, batch)

    def _logits(self, output: Any) -> torch.Tensor:
        try:
            return logits_of(output)
        except ConfigError as error:
            error.where = self.places.get("model")
            raise

    def _check_shape(self, logits: Sequence[int], labels_BT: torch.Tensor) -> None:
        """Compares sizes, which never waits for a device."""
        *places, V = logits
        B, T = labels_BT.shape
        if places == [B, T]:
            return
        help_ = None
        if places == [B, T - 1]:
            help_ = "shift nothing in the model: label t is already the token after input t"
        elif places == [B, 1]:
            help_ = "give the logits of every position, not of the last one alone"
        elif places == [B * T]:
            help_ = "leave out the step that makes one dimension of the two"
        raise ConfigError(
            f"the model's logits are {tuple(logits)}, labels {(B, T)}; each label needs logits at its own place: "
            f"{(B, T, V)}",
            where=self.places.get("model"),
            help=help_,
        )

    def _check_scalar(self, loss: Any) -> None:
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            raise ConfigError(
                f"the loss is {in_words(loss)}, not a tensor without dimensions",
                where=self.places.get("loss_fn"),
                help="return the sum over all labels that are not -100, divided by num_label_tokens",
            )

    def _named(self, key: str) -> str:
        return f"`{key}`" + (f" from {self.places[key]}" if key in self.places else "")


def objective_of(
    loss: LossFunction | HeadLoss | None,
    model: nn.Module,
    where: str | None = None,
    *,
    tp_size: int = 1,
    model_where: str | None = None,
) -> Objective:
    """The objective of a run.

    Args:
        loss: What the configuration names, or None.
        model: Not wrapped and not compiled yet.
        where: Where the loss was named, for errors.
        tp_size: Tensor-parallel ranks that the model is going to be split over.
        model_where: Where the model was named, for errors.

    Raises:
        ConfigError: The loss needs a head that the model does not offer.
    """
    places = {key: place for key, place in (("model", model_where), ("loss_fn", where)) if place is not None}
    if loss is not None and not isinstance(loss, HeadLoss):
        return Objective(loss, None, type(loss).__name__, places)
    try:
        head = find_head(model)
        parts = tp_size if splits(model, head.layer) else 1
        if parts > 1 and loss is not None and not (isinstance(loss, TakesSplitHead) and loss.takes_split_head):
            raise NoHeadError("the head is split over tensor-parallel ranks")
    except NoHeadError as error:
        if loss is not None:
            raise ConfigError(
                f"{type(loss).__name__} is computed with the model's head, but {error}",
                where=where,
                help="loss_fn._target_: automodel_cli.engine.loss.masked_ce.MaskedCrossEntropy works with every model",
            ) from error
        return Objective(MaskedCrossEntropy(), None, f"masked cross-entropy of whole logits, since {error}", places)
    loss = loss or ChunkedLinearCrossEntropy()
    device = next(model.parameters()).device
    name = type(loss).__name__
    words = loss.in_words(head.vocab_size, parts, device) if isinstance(loss, DescribesItself) else name
    return Objective(loss, head, words, places)


def _split(returned: Any) -> tuple[torch.Tensor, Metrics | None]:
    """A loss and what it reports."""
    match returned:
        case (loss, Mapping() as metrics):
            return loss, metrics
    return returned, None


def _ids_in_words(batch: dict[str, torch.Tensor]) -> str:
    ids = batch["input_ids"]
    words = f"input_ids {tuple(ids.shape)}"
    with suppress(RuntimeError):  # of a GPU that has failed, nothing more can be read
        words += f" with ids {int(ids.min())} to {int(ids.max())}"
    return words


def _balance_loss(model: nn.Module, output: Any) -> torch.Tensor | None:
    """The balance loss of a mixture of experts of transformers, times its weight; None where there is none.

    It is there where the model's own `output_router_logits` is true.
    """
    balance = getattr(output, "aux_loss", None)
    weight = getattr(unwrapped(model), "router_aux_loss_coef", None)
    return None if balance is None or weight is None else balance * weight
