"""A step is the same however it is cut, and a bad one changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.train.step import evaluate, train_step
from automodel_cli.errors import ConfigError, DataError, TrainingDivergedError

CPU = torch.device("cpu")
PLAIN = {"device": CPU, "lr": 0.1, "max_norm": None, "autocast_dtype": None}


def network(dtype=torch.float64, dropout=0.0):
    torch.manual_seed(0)
    return build_gpt2_model(vocab_size=13, n_positions=6, n_embd=8, n_layer=1, n_head=2, dropout=dropout).to(dtype)


class ReturnsPair(nn.Module):
    """A user's model that returns what the engine cannot read."""

    def forward(self, input_ids):
        return input_ids, input_ids


class Fp64CrossEntropy:
    """The same sum without the contract's fp32, so that only the cutting can make a difference."""

    def __call__(self, logits, labels, *, num_label_tokens):
        flat = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        return flat / num_label_tokens


def batch(rows=6, masked=True):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(13, (rows, 6), generator=generator)
    labels = torch.randint(13, (rows, 6), generator=generator)
    if masked:
        labels[0, 1:] = -100  # micro-batches with different numbers of label tokens
        labels[3] = -100
    return {"input_ids": ids, "labels": labels}


def split(whole, size):
    rows = len(whole["labels"])
    return [{name: part[i : i + size] for name, part in whole.items()} for i in range(0, rows, size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_how_a_step_is_cut_changes_nothing(size):
    """Loss, norm and every weight agree to rounding for any micro-batch, with uneven label counts.

    With plain SGD at a rate of 1, equal weights are equal gradients.
    """
    results, weights = [], []
    for rows in (6, size):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        micro_batches = split(batch(), rows)
        results.append(train_step(model, Fp64CrossEntropy(), optimizer, micro_batches, **PLAIN))
        weights.append([parameter.detach() for parameter in model.parameters()])

    assert results[0].num_tokens == results[1].num_tokens == 25
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-6)
    assert results[1].grad_norm == pytest.approx(results[0].grad_norm, rel=1e-6)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-12, atol=1e-12)


def test_clipping_scales_the_step_and_reports_the_norm_before_it():
    """With SGD the length of the update is lr times the clipped norm."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]

    result = train_step(model, Fp64CrossEntropy(), optimizer, [batch()], **{**PLAIN, "max_norm": 0.01})

    moved = math.sqrt(sum(((a - b) ** 2).sum().item() for a, b in zip(before, model.parameters(), strict=True)))
    assert result.grad_norm > 0.01
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_what_is_not_finite_never_reaches_the_weights(poison):
    """NaN in the loss or infinity in the gradient: an error, and weights and optimizer as before."""
    model = network(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def loss_fn(logits, labels, *, num_label_tokens):
        loss = MaskedCrossEntropy()(logits, labels, num_label_tokens=num_label_tokens)
        if poison == "loss":
            return loss * math.nan
        logits.register_hook(lambda gradient: gradient * math.inf)
        return loss

    with pytest.raises(TrainingDivergedError, match="must be finite"):
        train_step(model, loss_fn, optimizer, [batch()], **PLAIN)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_without_labels_is_refused():
    """Dividing by zero tokens would be NaN."""
    model = network()
    whole = batch()
    whole["labels"][:] = -100

    with pytest.raises(DataError, match="masked"):
        train_step(model, Fp64CrossEntropy(), torch.optim.SGD(model.parameters(), lr=1.0), [whole], **PLAIN)


def test_the_rate_reaches_every_group_times_its_multiplier():
    """`lr_mult` of a group is kept; the others get the rate itself."""
    model = network()
    first, *rest = model.parameters()
    groups = [{"params": [first], "lr_mult": 0.5}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, lr=9.0)

    train_step(model, Fp64CrossEntropy(), optimizer, [batch()], **PLAIN)

    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]


def test_evaluation_is_the_token_weighted_mean_without_dropout():
    """Uneven batches weigh by their tokens, dropout is off, and the mode is put back."""
    model = network(dropout=0.5).train()
    whole = batch()

    parts = evaluate(model, Fp64CrossEntropy(), split(whole, 4), device=CPU, autocast_dtype=None)
    once = evaluate(model, Fp64CrossEntropy(), [whole], device=CPU, autocast_dtype=None)

    assert parts.loss == pytest.approx(once.loss, rel=1e-12)
    assert parts.num_tokens == 25
    assert model.training


@pytest.mark.parametrize("batches_before", [0, 1, 2])
def test_evaluation_stops_when_asked(batches_before):
    """A stop signal does not wait for the whole validation set, and no batch at all is no loss of zero."""
    asked = iter([False] * batches_before + [True])

    result = evaluate(
        network(),
        Fp64CrossEntropy(),
        [batch(masked=False)] * 3,
        device=CPU,
        autocast_dtype=None,
        should_stop=lambda: next(asked),
    )

    assert result.num_tokens == 36 * batches_before
    assert math.isnan(result.loss) == (batches_before == 0)


def test_a_validation_set_without_labels_is_refused():
    """The mean over no token is not a number that may be compared."""
    whole = batch()
    whole["labels"][:] = -100

    with pytest.raises(DataError, match="no label token"):
        evaluate(network(), Fp64CrossEntropy(), [whole], device=CPU, autocast_dtype=None)


def test_arrays_are_batches_too():
    """What the loader gives, numpy, trains as tensors do."""
    results = []
    for make in (lambda tensor: tensor, lambda tensor: tensor.numpy()):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        micro_batch = {name: make(values) for name, values in batch().items()}
        results.append(train_step(model, Fp64CrossEntropy(), optimizer, [micro_batch], **PLAIN))

    assert results[0] == results[1]


def test_bf16_autocast_keeps_the_weights_in_fp32_and_the_loss_close():
    """Only the matrix products change their type."""
    results = []
    for autocast_dtype in (None, torch.bfloat16):
        model = network(torch.float32)
        optimizer = torch.optim.AdamW(model.parameters())
        results.append(
            train_step(model, MaskedCrossEntropy(), optimizer, [batch()], **{**PLAIN, "autocast_dtype": autocast_dtype})
        )
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())

    assert results[0].loss != results[1].loss
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-2)


def test_a_model_may_return_its_logits_bare():
    """Any module that maps ids to logits will do; anything else is named."""
    model = nn.Sequential(nn.Embedding(13, 8), nn.Linear(8, 13)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    assert train_step(model, Fp64CrossEntropy(), optimizer, [batch()], **PLAIN).loss > 0
    with pytest.raises(ConfigError, match=r"returned a tuple of \(Tensor \(6, 6\), Tensor \(6, 6\)\), not logits"):
        evaluate(ReturnsPair(), Fp64CrossEntropy(), [batch()], device=CPU, autocast_dtype=None)


def test_a_rate_that_is_a_tensor_stays_the_same_tensor():
    """Optimizers whose step is compiled hold on to it; the update is that of the number."""
    weights = []
    for lr in (torch.tensor(0.5), 0.5):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, foreach=False)
        train_step(model, Fp64CrossEntropy(), optimizer, [batch()], **PLAIN)
        assert (optimizer.param_groups[0]["lr"] is lr) == isinstance(lr, torch.Tensor)
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))

    torch.testing.assert_close(weights[0], weights[1])
