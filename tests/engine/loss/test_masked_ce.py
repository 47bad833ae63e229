"""Masked cross-entropy: the plain definition, summed and divided."""

from __future__ import annotations

import torch

from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy


def test_value_and_gradient_are_those_of_the_definition_in_fp64():
    """-log softmax(logits)[label], over the labels that are not -100; masked positions get no gradient."""
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, -100, 3, 6, 0], [-100, -100, 2, 2, 5]])
    kept = labels != -100
    expected = -(logits.softmax(-1).log()[kept].gather(1, labels[kept][:, None])).sum() / 7
    (expected_gradient,) = torch.autograd.grad(expected, logits)

    loss = MaskedCrossEntropy()(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)

    # The softmax is in fp32 by contract, so fp32's rounding is what may remain.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
    assert gradient[~kept].abs().max() == 0


def test_micro_batches_add_up_to_the_step():
    """With the step's token count, the losses of uneven parts sum to the loss of the whole."""
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 9), torch.randint(9, (4, 6))
    labels[0, 1:] = -100
    loss_fn = MaskedCrossEntropy()
    count = int((labels != -100).sum())

    parts = sum(loss_fn(logits[i : i + 1], labels[i : i + 1], num_label_tokens=count) for i in range(4))

    torch.testing.assert_close(parts, loss_fn(logits, labels))


def test_bf16_logits_are_summed_in_fp32():
    """The loss of bf16 logits is that of the same numbers in fp32, not a bf16 sum."""
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 64, 97).bfloat16(), torch.randint(97, (8, 64))

    loss = MaskedCrossEntropy()(logits, labels)

    assert loss.dtype == torch.float32
    assert torch.equal(loss, MaskedCrossEntropy()(logits.float(), labels))


def test_all_masked_is_zero_not_nan():
    """Nothing to learn is no loss."""
    assert MaskedCrossEntropy()(torch.randn(1, 2, 3), torch.full((1, 2), -100)) == 0
