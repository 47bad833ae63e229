"""Our GPT-2 is GPT-2: equal to transformers in logits and gradients, initialised as published."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import GPT2Config as HuggingFaceConfig
from transformers import GPT2LMHeadModel as HuggingFaceGPT2

from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy
from automodel_cli.engine.models.export import export_model, import_tensors
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.errors import ConfigError

SIZES = {"vocab_size": 97, "n_positions": 24, "n_embd": 32, "n_layer": 3, "n_head": 4}


@pytest.fixture
def pair():
    """Our model and transformers' with the weights of ours, every tensor away from zero."""
    torch.manual_seed(0)
    ours = build_gpt2_model(**SIZES)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    theirs = HuggingFaceGPT2(HuggingFaceConfig(**export_model(ours).config))
    missing, unexpected = theirs.load_state_dict(export_model(ours).tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    theirs.tie_weights()
    return ours.eval(), theirs.eval()


def test_logits_are_those_of_transformers(pair):
    """Within 1e-5 in fp32, at full length and at length 1."""
    ours, theirs = pair
    for length in (24, 7, 1):
        ids = torch.randint(97, (3, length))

        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


def test_gradients_are_those_of_transformers(pair):
    """Every tensor's gradient of the mean cross-entropy agrees within 1e-5, tied embedding included."""
    ours, theirs = pair
    ids = torch.randint(97, (3, 24))
    labels = torch.randint(97, (3, 24))
    loss_fn = MaskedCrossEntropy()

    loss_fn(ours(ids).logits, labels).backward()
    loss_fn(theirs(ids).logits, labels).backward()

    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        gradient = parameter.grad
        if their_gradients[name].shape != gradient.shape or name.endswith(("c_attn.weight", "c_proj.weight")):
            gradient = gradient.T  # transformers keeps these weights transposed
        torch.testing.assert_close(gradient, their_gradients[name], rtol=0, atol=1e-5, msg=name)


def test_weights_of_transformers_come_back_bit_for_bit(pair):
    """Theirs into a fresh model of ours: the same bits, and so the same logits."""
    ours, theirs = pair
    fresh = build_gpt2_model(**SIZES)
    tensors = {name: tensor for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}

    import_tensors(fresh, tensors)

    for (name, mine), other in zip(ours.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_dropout_acts_in_training_only():
    """Two passes in eval are equal and those in training are not, in attention too."""
    model = build_gpt2_model(**SIZES, dropout=0.5)
    ids = torch.arange(24)[None]

    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)

    # With every nn.Dropout switched off by hand, what still differs is dropout inside attention.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_no_position_sees_what_comes_after_it():
    """Changing the last token changes no earlier logits."""
    model = build_gpt2_model(**SIZES).eval()
    ids = torch.randint(97, (1, 24))
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 97

    assert torch.equal(model(ids).logits[:, :-1], model(changed).logits[:, :-1])


def test_initial_weights_are_those_of_the_paper():
    """Standard deviations 0.02, residual projections over sqrt(2 layers), zero biases, unit gains."""
    torch.manual_seed(0)
    model = build_gpt2_model(vocab_size=500, n_positions=64, n_embd=128, n_layer=8, n_head=4)

    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            assert parameter.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05), name
        elif parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            expected = 0.0 if name.endswith("bias") else 1.0
            assert torch.equal(parameter, torch.full_like(parameter, expected)), name


def test_equal_seeds_give_equal_weights():
    """Initialisation draws from torch's generator and from nothing else."""
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(build_gpt2_model(**SIZES).transformer.h[2].mlp.c_fc.weight)

    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_the_head_is_the_embedding():
    """One tensor, so that a step changes both."""
    model = build_gpt2_model(**SIZES)

    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_head": 5}, "multiple of n_head = 5"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"n_layer": "12"}, "n_layer is '12', but it must be a whole number"),
        ({"n_embd": 32.0}, "n_embd is 32.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_impossible_sizes_are_refused_with_numbers(change, words):
    """Before any memory is taken."""
    with pytest.raises(ConfigError, match=words):
        build_gpt2_model(**{**SIZES, **change})


def test_an_unknown_argument_is_an_error():
    """`n_layers=24` does not build the default in silence."""
    with pytest.raises(TypeError, match="n_layers"):
        build_gpt2_model(**SIZES, n_layers=24)


def test_a_sequence_beyond_the_positions_is_refused():
    """With both numbers, instead of an index error on some device."""
    with pytest.raises(ConfigError, match=r"25 tokens.*24 positions"):
        build_gpt2_model(**SIZES)(torch.zeros(1, 25, dtype=torch.int64))
