"""Model and loss as one: the best loss that the model allows, said in words, never a silent other one."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from automodel_cli.engine.distributed.rank_group import SOLO
from automodel_cli.engine.loss.linear_ce import ChunkedLinearCrossEntropy
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.models.head import NoHeadError, find_head
from automodel_cli.engine.train.objective import objective_of
from automodel_cli.engine.train.reported_metrics import ReportedMetrics
from automodel_cli.errors import ConfigError

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"vocab_size": 61, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


class OtherHeadLoss:
    """A user's loss that works on the whole head."""

    def of_hidden(self, hidden, weight, bias, labels, /, *, num_label_tokens):
        return hidden.sum() + weight.sum()


class Plain(nn.Module):
    """A user's model: returns a tensor, and its head has a bias and a name of its own."""

    def __init__(self):
        super().__init__()
        self.embed, self.middle, self.to_vocabulary = nn.Embedding(61, 8), nn.Linear(8, 8), nn.Linear(8, 61)

    def forward(self, input_ids):
        return self.to_vocabulary(self.middle(self.embed(input_ids)).tanh())


def hugging_face(name, **options):
    return lambda: transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**options))


MODELS = {
    "our gpt2": lambda: build_gpt2_model(**GPT2),
    "gpt2": hugging_face("GPT2Config", **GPT2),
    "llama": hugging_face("LlamaConfig", **SIZES),
    "tied qwen2": hugging_face("Qwen2Config", **SIZES, tie_word_embeddings=True),
    "qwen3": hugging_face("Qwen3Config", **SIZES, head_dim=8),
    "mixtral": hugging_face("MixtralConfig", **SIZES, **EXPERTS),
    "a user's module": Plain,
}


def batch():
    torch.manual_seed(1)
    labels = torch.randint(61, (2, 12))
    labels[0, :5] = -100
    return {"input_ids": torch.randint(61, (2, 12)), "labels": labels}


def loss_and_gradients(objective, model):
    model.zero_grad()
    loss = objective(model, batch(), 19)
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_without_a_loss_the_chunked_one_is_taken_and_equals_the_plain_one(build):
    """Value and every gradient, tied weights included; afterwards the model returns logits as before."""
    torch.manual_seed(0)
    model = build().eval()
    before = model(batch()["input_ids"])

    chosen = objective_of(None, model)
    found = loss_and_gradients(chosen, model)
    expected = loss_and_gradients(objective_of(MaskedCrossEntropy(), model), model)

    assert isinstance(chosen.loss, ChunkedLinearCrossEntropy)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    after = model(batch()["input_ids"])
    torch.testing.assert_close(getattr(after, "logits", after), getattr(before, "logits", before), rtol=0, atol=0)


def test_logits_that_are_capped_after_the_head_are_not_lost():
    """Gemma 2 caps its logits: the default is the plain loss and says why, the chunked one by name is refused."""
    model = hugging_face("Gemma2Config", **SIZES, head_dim=8, layer_types=["full_attention"] * 2)()

    chosen = objective_of(None, model)

    assert isinstance(chosen.loss, MaskedCrossEntropy)
    assert "Gemma2ForCausalLM does not return the output of a linear layer" in chosen.words
    with pytest.raises(
        ConfigError, match=r"(?s)x\.yaml:3.*Gemma2ForCausalLM.*MaskedCrossEntropy works with every model"
    ):
        objective_of(ChunkedLinearCrossEntropy(), model, where="x.yaml:3")


def test_the_choice_draws_no_random_number_and_keeps_the_mode():
    """Or the choice of a loss would change the run."""
    model = build_gpt2_model(**GPT2, dropout=0.5).train()
    state = torch.get_rng_state()

    objective_of(None, model)

    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


def test_the_words_name_the_loss_and_its_block():
    """What stands in the log."""
    model = build_gpt2_model(**GPT2)

    assert (
        objective_of(ChunkedLinearCrossEntropy(256), model).words == "chunked linear cross-entropy, 256 rows at a time"
    )
    assert objective_of(MaskedCrossEntropy(), model).words == "MaskedCrossEntropy"


def test_experts_are_balanced_where_the_model_asks_for_it():
    """`output_router_logits: true` adds the balance loss with its weight, by the share of the step's tokens."""
    torch.manual_seed(0)
    build = hugging_face("MixtralConfig", **SIZES, **EXPERTS, output_router_logits=True, router_aux_loss_coef=0.5)
    model = build().eval()
    objective = objective_of(None, model)

    reported = ReportedMetrics()
    with_balance = objective(model, batch(), 38, reported)
    with torch.no_grad():
        without = objective(model, batch(), 38)

    expected = without + 0.5 * model(batch()["input_ids"]).aux_loss * 19 / 38
    torch.testing.assert_close(with_balance, expected)
    assert with_balance > without
    assert reported.units == {"balance_loss": "nats/token"}
    torch.testing.assert_close(reported.reduced(SOLO).float()[0] * 19 / 38, with_balance.detach() - without)


def test_a_head_that_is_split_over_ranks_is_trained_by_parts():
    """The chunked loss says so, and how many rows its part of the vocabulary allows; other head losses are refused."""
    model = build_gpt2_model(**GPT2)

    chosen = objective_of(None, model, tp_size=2)

    assert isinstance(chosen.loss, ChunkedLinearCrossEntropy)
    assert chosen.words.startswith("chunked, vocabulary-parallel linear cross-entropy")
    with pytest.raises(ConfigError, match="split over tensor-parallel ranks"):
        objective_of(OtherHeadLoss(), model, tp_size=2)


def test_a_head_that_the_plan_leaves_whole_is_not_called_split():
    """What the log says is what the plan does."""
    model = build_gpt2_model(**GPT2)
    model.tp_plan = {"transformer.h.*.mlp.c_fc": "colwise"}

    assert objective_of(None, model, tp_size=2).words.startswith("chunked linear")


class Returning(Plain):
    """A user's model whose forward changes what it returns."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, input_ids):
        return self.change(super().forward(input_ids))


RETURNED = {
    "text": (lambda logits: "logits", "returned a str, not logits", "object with `.logits`"),
    "nothing": (lambda logits: None, "returned None, not logits", "object with `.logits`"),
    "a tuple": (lambda logits: (logits, None), "returned a tuple of (Tensor (2, 12, 61), None)", "output[0] alone"),
    "loss first": (lambda logits: (logits.sum(), logits), "(Tensor (), Tensor (2, 12, 61))", "output[1] alone"),
    "a dict": (lambda logits: {"logits": logits}, "a dict of (logits: Tensor (2, 12, 61))", 'output["logits"] alone'),
    "flattened": (lambda logits: logits.flatten(0, 1), "logits are (24, 61), labels (2, 12)", "one dimension"),
    "one short": (lambda logits: logits[:, :-1], "logits are (2, 11, 61), labels (2, 12)", "shift nothing"),
    "the last": (lambda logits: logits[:, -1:], "logits are (2, 1, 61), labels (2, 12)", "every position"),
}


@pytest.mark.parametrize(("change", "message", "help_"), RETURNED.values(), ids=RETURNED)
def test_what_a_model_returned_is_said_with_its_shapes_and_what_to_return(change, message, help_):
    """At the line of the model, and never as an error of a product deep inside the loss."""
    objective = objective_of(None, model := Returning(change), model_where="own.yaml:1:3")

    with pytest.raises(ConfigError) as caught:
        objective(model, batch(), 19)

    assert message in caught.value.message
    assert help_ in caught.value.help
    assert caught.value.where == "own.yaml:1:3"


@pytest.mark.parametrize("cut", [slice(-1), slice(-1, None)])
def test_a_model_that_cuts_positions_before_its_head_is_found_where_the_head_is_replaced(cut):
    """The logits never exist there; the message has the shape that they would have."""

    class Cutting(Plain):
        def forward(self, input_ids):
            return self.to_vocabulary(self.middle(self.embed(input_ids))[:, cut])

    objective = objective_of(None, model := Cutting())
    places = len(range(12)[cut])

    assert isinstance(objective.loss, ChunkedLinearCrossEntropy)
    with pytest.raises(ConfigError, match=rf"logits are \(2, {places}, 61\), labels \(2, 12\)"):
        objective(model, batch(), 19)


@pytest.mark.parametrize("loss", [lambda logits, labels, num_label_tokens: logits.sum(-1), lambda *a, **k: 1.0])
def test_a_loss_that_is_no_scalar_is_refused(loss):
    """Its shape, or its type, is said at the line of the loss."""
    with pytest.raises(ConfigError, match=r"own\.yaml:2:3: the loss is .*, not a tensor without dimensions"):
        objective_of(loss, model := Plain(), "own.yaml:2:3")(model, batch(), 19)


def fail(*_, **__):
    raise ValueError("my own")


@pytest.mark.parametrize(
    ("loss", "model", "note"),
    [
        (
            None,
            Returning(fail),
            "in the forward pass of `model` from own.yaml:1:3, of input_ids (2, 12) with ids 0 to 58",
        ),
        (fail, Plain(), "in `loss_fn` from own.yaml:2:3, of logits (2, 12, 61)"),
    ],
)
def test_an_exception_of_the_users_own_code_keeps_its_type_and_gets_one_note(loss, model, note):
    """Which key, from which line, with which numbers."""
    objective = objective_of(loss, model, "own.yaml:2:3", model_where="own.yaml:1:3")

    with pytest.raises(ValueError, match="my own") as caught:
        objective(model, batch(), 19)

    assert caught.value.__notes__ == [note]


def test_a_model_without_parameters_has_no_head():
    """Finding the head needs a device, which such a model does not tell; that nothing can be trained is said later."""

    class Constant(nn.Module):
        def forward(self, input_ids):
            return torch.zeros(*input_ids.shape, 61)

    with pytest.raises(NoHeadError, match="Constant has no parameter"):
        find_head(Constant())
