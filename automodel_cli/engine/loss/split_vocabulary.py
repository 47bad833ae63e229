"""The softmax of a block of logits whose vocabulary is split over tensor-parallel ranks.

Every rank holds the logits of its part of the vocabulary. For the loss of a row the ranks exchange three numbers,
the log-sum-exp of each part, the label's logit and, for smoothing, the sum of the logits, in one gather per block;
the gradient of a part needs nothing else. All ranks compute the loss from the same numbers in the same order, so it
is the same to the bit on each. Parts are those of `torch.chunk`, so the last may be smaller.

Method: Shoeybi et al. 2019, "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
with one gather of log-sums in place of reductions of the maximum, the sum and the target.

Shapes: v this rank's part of the vocabulary V, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

from automodel_cli.engine.loss.masked_ce import HeadLossSettings, row_losses
from automodel_cli.engine.protocols import IGNORED_LABEL
from automodel_cli.errors import ConfigError


@dataclass(frozen=True)
class VocabularyPart:
    """The part of the vocabulary that this rank has.

    Args:
        group: The ranks that share the vocabulary, in its order.
        begin: First entry.
        size: Entries of the part, v.
        whole: Entries of the vocabulary, V.
    """

    group: dist.ProcessGroup
    begin: int
    size: int
    whole: int

    @property
    def largest(self) -> int:
        """Entries of the largest part, which is the first."""
        return -(-self.whole // self.group.size())


def part_of(weight_VC: DTensor) -> VocabularyPart:
    """This rank's part of a head.

    Raises:
        ConfigError: The weight is not split by its rows over one group, or a rank would have no rows.
    """
    mesh = weight_VC.device_mesh
    if mesh.ndim != 1 or weight_VC.placements != (Shard(0),):
        raise ConfigError(
            f"the chunked cross-entropy takes a head split by its rows, but this is split as {weight_VC.placements}",
            help="loss_fn._target_: automodel_cli.engine.loss.masked_ce.MaskedCrossEntropy works with it",
        )
    whole, ranks = weight_VC.shape[0], mesh.size()
    rows = -(-whole // ranks)
    # Decided from the whole shape, not from this rank's part, so that all ranks refuse together.
    if rows * (ranks - 1) >= whole:
        raise ConfigError(
            f"a vocabulary of {whole:,} split over {ranks} tensor-parallel ranks leaves one without an entry",
            help="lower distributed.tp_size",
        )
    return VocabularyPart(mesh.get_group(), mesh.get_local_rank() * rows, weight_VC.to_local().shape[0], whole)


def split_block_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    buffer: torch.Tensor,
    settings: HeadLossSettings,
    bias_sum_v: torch.Tensor | None,
    part: VocabularyPart,
    with_gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of a block; turns its logits into gradients without the factor, which is returned (rows,).

    Args:
        logits: (rows, v); used up.
        labels: Ids in the whole vocabulary, (rows,); the same on all ranks.
        buffer: (block rows, v) in the dtype of sums; its rows are converted to probabilities at a time.
        settings: Settings of the call.
        bias_sum_v: Accumulates the gradient of the bias, if it is wanted.
        part: Which part of the vocabulary it is.
        with_gradients: Whether the gradients are wanted.
    """
    smoothing = settings.label_smoothing
    kept = labels != IGNORED_LABEL
    inside = kept & (labels >= part.begin) & (labels < part.begin + part.size)
    column = (labels - part.begin).masked_fill(~inside, 0)[:, None]
    target, lse, mean = _sums_of_all(logits, inside, column, buffer, part, with_mean=bool(smoothing))
    loss = torch.where(kept, row_losses(target, lse, mean, settings), 0.0).sum()
    growth = 1 + 2 * settings.z_loss * lse
    factor = torch.where(kept, growth / settings.num_label_tokens, 0.0)
    if with_gradients:
        of_label = torch.where(inside, (smoothing - 1) / growth, 0.0)[:, None]
        for begin in range(0, len(logits), len(buffer)):
            rows = slice(begin, min(begin + len(buffer), len(logits)))
            p = torch.sub(logits[rows], lse[rows, None], out=buffer[: rows.stop - begin]).exp_()
            p.scatter_add_(1, column[rows], of_label[rows])
            if smoothing:
                p.sub_((smoothing / part.whole / growth[rows])[:, None])
            if bias_sum_v is not None:
                bias_sum_v.addmv_(p.T, factor[rows])
            logits[rows] = p
    return loss, factor


def _sums_of_all(
    logits: torch.Tensor,
    inside: torch.Tensor,
    column: torch.Tensor,
    buffer: torch.Tensor,
    part: VocabularyPart,
    *,
    with_mean: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Label's logit, log of the denominator and mean logit of each row, over the whole vocabulary."""
    own = torch.empty(3 if with_mean else 2, len(logits), dtype=buffer.dtype, device=logits.device)
    own[0] = torch.where(inside, logits.gather(1, column)[:, 0].to(buffer.dtype), 0.0)
    for begin in range(0, len(logits), len(buffer)):
        rows = slice(begin, min(begin + len(buffer), len(logits)))
        wide = buffer[: rows.stop - begin].copy_(logits[rows])
        if with_mean:
            own[2, rows] = wide.sum(dim=1)
        largest = wide.amax(dim=1)
        own[1, rows] = wide.sub_(largest[:, None]).exp_().sum(dim=1).log_() + largest
    of_all = own.new_empty(part.group.size(), *own.shape)
    dist.all_gather(list(of_all.unbind()), own, group=part.group)
    mean = of_all[:, 2].sum(dim=0) / part.whole if with_mean else None
    # One rank has the label, the others have zeros: the sum is exact.
    return of_all[:, 0].sum(dim=0), torch.logsumexp(of_all[:, 1], dim=0), mean
