"""The chunked loss is the plain loss of the same head: in value, in gradients, and without the logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.loss.linear_ce import ChunkedLinearCrossEntropy
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy
from automodel_cli.errors import ConfigError


def head_of(B=2, T=7, C=5, V=13, *, bias=True, dtype=torch.float64, scale=1.0):
    torch.manual_seed(0)
    hidden = (torch.randn(B, T, C, dtype=dtype) * scale).requires_grad_()
    weight = torch.randn(V, C, dtype=dtype, requires_grad=True)
    labels = torch.randint(V, (B, T))
    return hidden, weight, torch.randn(V, dtype=dtype, requires_grad=True) if bias else None, labels


def plain(hidden, weight, bias, labels, *, num_label_tokens, z_loss=0.0, label_smoothing=0.0):
    """The definition on whole logits, in the type that is given."""
    logits = F.linear(hidden, weight, bias).flatten(0, 1)
    kept = labels.flatten() != -100
    log_p = logits[kept].log_softmax(-1)
    nll = -log_p.gather(1, labels.flatten()[kept][:, None])[:, 0]
    losses = (1 - label_smoothing) * nll - label_smoothing * log_p.mean(-1) + z_loss * logits[kept].logsumexp(-1) ** 2
    return losses.sum() / num_label_tokens


def gradients(loss, inputs):
    return torch.autograd.grad(loss, [each for each in inputs if each is not None])


@given(
    rows=st.integers(1, 20),
    masked=st.sets(st.integers(0, 13), max_size=14),
    z_loss=st.sampled_from([0.0, 0.1]),
    label_smoothing=st.sampled_from([0.0, 0.2]),
    bias=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_value_and_gradients_are_those_of_the_definition_in_fp64(rows, masked, z_loss, label_smoothing, bias):
    """For every size of a block, every mask (all of a block, all of the batch) and every option."""
    hidden, weight, offset, labels = head_of(bias=bias)
    labels.view(-1)[list(masked)] = -100
    options = {"z_loss": z_loss, "label_smoothing": label_smoothing}

    loss = ChunkedLinearCrossEntropy(rows, **options).of_hidden(hidden, weight, offset, labels, num_label_tokens=9)
    expected = plain(hidden, weight, offset, labels, num_label_tokens=9, **options)

    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    inputs = (hidden, weight, offset)
    for mine, theirs in zip(gradients(3 * loss, inputs), gradients(3 * expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_finite_differences_agree():
    """Autograd's own check of a backward pass, in fp64."""
    hidden, weight, bias, labels = head_of()
    labels[0, 2] = -100
    loss_fn = ChunkedLinearCrossEntropy(4, z_loss=0.1, label_smoothing=0.1)

    assert torch.autograd.gradcheck(
        lambda *inputs: loss_fn.of_hidden(*inputs, labels, num_label_tokens=5), (hidden, weight, bias)
    )


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.01, "label_smoothing": 0.1}])
def test_both_losses_mean_the_same_by_their_options(options):
    """`MaskedCrossEntropy` on the logits and the chunked loss on the head agree in fp32."""
    hidden, weight, bias, labels = head_of(dtype=torch.float32)
    labels[1, 3:] = -100

    chunked = ChunkedLinearCrossEntropy(5, **options).of_hidden(hidden, weight, bias, labels, num_label_tokens=10)
    whole = MaskedCrossEntropy(**options)(F.linear(hidden, weight, bias), labels, num_label_tokens=10)

    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)


def test_labels_that_are_very_unlikely_keep_their_loss():
    """A probability that underflows to zero in fp32 still has a finite, right logarithm."""
    hidden, weight, _, labels = head_of(bias=False, dtype=torch.float32, scale=400.0)

    loss = ChunkedLinearCrossEntropy(3).of_hidden(hidden, weight, None, labels, num_label_tokens=14)
    expected = plain(hidden.double(), weight.double(), None, labels, num_label_tokens=14)

    assert expected > 200
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_under_autocast_it_is_no_less_exact_than_the_plain_loss():
    """bf16 products, fp32 sums: the distance from fp32 is at most that of autocast with whole logits."""
    hidden, weight, _, labels = head_of(B=4, T=64, C=64, V=301, bias=False, dtype=torch.float32)

    def errors(loss_of):
        reference = plain(hidden.double(), weight.double(), None, labels, num_label_tokens=256)
        exact = gradients(reference, (hidden, weight))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of()
        found = gradients(loss, (hidden, weight))
        assert loss.dtype == torch.float32
        return [abs(loss - reference).item(), *((a - b).norm() / b.norm() for a, b in zip(found, exact, strict=True))]

    chunked = errors(
        lambda: ChunkedLinearCrossEntropy(50).of_hidden(hidden, weight, None, labels, num_label_tokens=256)
    )
    whole = errors(lambda: MaskedCrossEntropy()(F.linear(hidden, weight), labels, num_label_tokens=256))

    assert chunked[0] < whole[0] + 1e-2
    assert all(mine < 1.5 * theirs < 0.02 for mine, theirs in zip(chunked[1:], whole[1:], strict=True))


class LargestAllocation(torch.utils._python_dispatch.TorchDispatchMode):
    """Elements of the largest tensor that any operation makes; views of `known` tensors are none."""

    def __init__(self, *known):
        super().__init__()
        self.largest = 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_nothing_as_large_as_the_logits_is_ever_made(dtype):
    """The largest tensor of loss and gradients is a block, in fp32 and under autocast; whole logits show the check."""
    hidden, weight, _, labels = head_of(B=4, T=32, C=4, V=503, bias=False, dtype=torch.float32)

    def largest(loss_of):
        with LargestAllocation() as seen, torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            gradients(loss_of(), (hidden, weight))
        return seen.largest

    chunked = largest(lambda: ChunkedLinearCrossEntropy(8).of_hidden(hidden, weight, None, labels, num_label_tokens=9))
    whole = largest(lambda: MaskedCrossEntropy()(F.linear(hidden, weight), labels, num_label_tokens=9))

    assert chunked == 8 * 503
    assert whole == 128 * 503


def test_without_gradients_none_are_computed():
    """Validation pays for the loss alone: nothing of the weight's shape is made."""
    hidden, weight, _, labels = head_of(B=1, T=4, C=64, V=101, bias=False, dtype=torch.float32)

    with torch.no_grad(), LargestAllocation(weight, hidden) as seen:
        ChunkedLinearCrossEntropy(2).of_hidden(hidden, weight, None, labels, num_label_tokens=4)

    assert seen.largest == 2 * 101


@pytest.mark.parametrize(
    ("options", "words"),
    [({"chunk_size": 0}, "chunk_size is 0"), ({"z_loss": -1}, "z_loss is -1"), ({"label_smoothing": 1}, "below 1")],
)
def test_impossible_options_are_refused(options, words):
    """With the value and the range."""
    with pytest.raises(ConfigError, match=words):
        ChunkedLinearCrossEntropy(**options)
