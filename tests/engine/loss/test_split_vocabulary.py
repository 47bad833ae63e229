"""The chunked loss of a head whose rows are split over two processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from automodel_cli.engine.loss.linear_ce import ChunkedLinearCrossEntropy
from automodel_cli.errors import ConfigError
from tests.engine.loss.test_linear_ce import LargestAllocation, plain

B, T, C = 2, 6, 5
OPTIONS = [{}, {"z_loss": 0.1}, {"label_smoothing": 0.2}, {"z_loss": 0.1, "label_smoothing": 0.2}]


def head_of(V, dtype=torch.float64):
    """Hidden states, weight, bias, and labels with some ignored: all of the first block, and some of the others."""
    generator = torch.Generator().manual_seed(V)
    tensors = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((B, T, C), (V, C), (V,)))
    labels = torch.randint(0, V, (B, T), generator=generator)
    labels[0, :4] = -100
    labels[1, 2] = -100
    return *(3 * each for each in tensors), labels


def check(mesh, V, options, layout):
    """Value and gradients of one head against the plain loss of whole logits."""
    whole_hidden, whole_weight, whole_bias, labels = head_of(V)
    inputs = [each.clone().requires_grad_() for each in (whole_hidden, whole_weight, whole_bias)]
    expected = plain(*inputs, labels, num_label_tokens=9, **options)
    expected_gradients = torch.autograd.grad(3 * expected, inputs)

    weight, bias = (distribute_tensor(each, mesh, [Shard(0)]).requires_grad_() for each in (whole_weight, whole_bias))
    hidden = whole_hidden.clone() if layout is None else distribute_tensor(whole_hidden, mesh, [layout])
    hidden.requires_grad_()
    loss = ChunkedLinearCrossEntropy(4, **options).of_hidden(hidden, weight, bias, labels, num_label_tokens=9)
    gradients = torch.autograd.grad(3 * loss, (hidden, weight, bias))

    found = [each.full_tensor() if isinstance(each, DTensor) else each for each in (loss, *gradients)]
    for mine, theirs in zip(found, (expected, *expected_gradients), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def check_memory(mesh):
    """No rank makes a tensor as large as one block of whole logits."""
    hidden, weight, _, labels = head_of(1009, torch.float32)
    weight = distribute_tensor(weight, mesh, [Shard(0)]).requires_grad_()
    with LargestAllocation(weight.to_local(), hidden) as seen:
        ChunkedLinearCrossEntropy(8).of_hidden(hidden, weight, None, labels, num_label_tokens=9)
    assert seen.largest <= 8 * 505


def check_refusals(mesh):
    """What has no parts by rows, or a part without rows, is refused with what to do."""
    hidden, weight, _, labels = head_of(1)
    lost, by_columns = (distribute_tensor(weight, mesh, [Shard(dimension)]) for dimension in (0, 1))
    with pytest.raises(ConfigError, match="leaves one without an entry"):
        ChunkedLinearCrossEntropy().of_hidden(hidden, lost, None, labels, num_label_tokens=9)
    with pytest.raises(ConfigError, match="split by its rows"):
        ChunkedLinearCrossEntropy().of_hidden(hidden, by_columns, None, labels, num_label_tokens=9)


def rank_main(rank, directory):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        for V in (8, 7, 61):
            for options in OPTIONS:
                for layout in (None, Replicate(), Shard(1)):
                    check(mesh, V, options, layout)
        check_memory(mesh)
        check_refusals(mesh)
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.dist
def test_parts_of_a_head_give_the_loss_of_the_whole(tmp_path):
    """In fp64, loss and gradients of two parts are the plain loss's.

    With vocabularies that 2 divides and does not, ignored labels, every option, and hidden states that are plain,
    replicated, or split along the sequence.
    """
    mp.spawn(rank_main, args=(str(tmp_path),), nprocs=2)
