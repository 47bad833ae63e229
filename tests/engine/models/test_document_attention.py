"""A window and the borders of documents hold together, in every kind of layer that has one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers

from automodel_cli.engine.models.attention import keep_within_documents
from automodel_cli.engine.models.calling import call, logits_of
from automodel_cli.engine.models.document_attention import refuse_split_windows, window_of
from automodel_cli.errors import ConfigError

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
WINDOW = {"sliding_window": 3}
SOME = {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}
# Two rows of three documents each; the longest are three windows long, the shortest less than one.
LENGTHS = ((5, 1, 10), (7, 8, 1))


def build(name, attention="sdpa", **options):
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**SIZES, **options})
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


WINDOWED = {
    "mistral": ("MistralConfig", "sdpa", WINDOW),
    "mistral, eager": ("MistralConfig", "eager", WINDOW),
    "mixtral": ("MixtralConfig", "sdpa", {**WINDOW, "num_local_experts": 2}),
    "qwen2, one layer of two": ("Qwen2Config", "sdpa", SOME),
    "qwen3, one layer of two": ("Qwen3Config", "eager", SOME),
    "gemma2, alternating": ("Gemma2Config", "eager", WINDOW),
    "gemma3": ("Gemma3TextConfig", "sdpa", WINDOW),
    # Its forward pass does not tell documents by their positions: masks that it makes itself would cross borders.
    "gpt-oss, alternating": ("GptOssConfig", "eager", {**WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama4, in chunks": ("Llama4TextConfig", "sdpa", {"attention_chunk_size": 3, "num_local_experts": 2}),
}


def packed(device="cpu"):
    torch.manual_seed(1)
    batch = {
        "input_ids": torch.randint(61, (2, 16)),
        "position_ids": torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS]),
        "document_ids": torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(row)) for row in LENGTHS]),
    }
    return {name: values.to(device) for name, values in batch.items()}


def losses_alone(model, ids_BT):
    """Loss of every document, each in a forward pass of its own, in which transformers makes the masks."""
    documents = [ids for row, lengths in zip(ids_BT, LENGTHS, strict=True) for ids in row.split(lengths)]
    return torch.stack(
        [
            F.cross_entropy(logits_of(call(model, {"input_ids": ids[None]}))[0], ids, reduction="sum")
            for ids in documents
        ]
    )


def losses_together(model, batch):
    logits = logits_of(call(model, batch)).flatten(0, 1)
    each = F.cross_entropy(logits, batch["input_ids"].flatten(), reduction="none")
    return torch.stack([part.sum() for part in each.split([n for row in LENGTHS for n in row])])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(("name", "attention", "options"), WINDOWED.values(), ids=WINDOWED)
def test_a_packed_document_keeps_its_window_and_its_borders(name, attention, options):
    """Loss of every document and gradient of all, against one forward pass per document."""
    model, batch = build(name, attention, **options), packed()
    alone = losses_alone(model, batch["input_ids"])
    expected = gradients(model, alone.sum())

    together = losses_together(model, batch)

    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(model, together.sum()), expected, rtol=1e-4, atol=1e-5)


def test_without_its_window_a_document_would_have_another_loss():
    """What the test above would find if the mask of documents replaced the window."""
    windowed, batch = build("MistralConfig", **WINDOW), packed()
    open_ = build("MistralConfig", sliding_window=None)

    difference = (losses_together(windowed, batch) - losses_together(open_, batch)).abs()

    short = torch.tensor([n <= WINDOW["sliding_window"] for row in LENGTHS for n in row])
    assert difference[short].max() < 1e-5
    assert difference[~short].min() > 1e-5


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("MistralConfig", {"sliding_window": 5}, 5),
        ("MistralConfig", {"sliding_window": None}, None),
        ("MixtralConfig", {}, None),
        ("LlamaConfig", {}, None),
        ("Qwen2Config", {"sliding_window": 5}, None),
        ("Qwen2Config", SOME, 3),
        ("Qwen3Config", {}, None),
        ("Gemma2Config", WINDOW, 3),
    ],
)
def test_a_window_is_one_that_some_layer_uses(name, options, expected):
    """A size that no layer follows is none."""
    assert window_of(build(name, "eager", **options)) == expected


def test_layers_that_carry_a_state_are_refused_before_training():
    """No mask stops a recurrent layer at a border."""
    model = build("Lfm2Config", layer_types=["conv", "full_attention"])

    with pytest.raises(ConfigError, match="layers of the kind conv, which carry a state"):
        keep_within_documents(model, torch.device("cpu"))


def test_a_window_is_not_split_over_ranks_in_silence():
    """A rank whose part is shorter than the window would attend to everything before it."""
    refuse_split_windows(build("MistralConfig", sliding_window=None))

    with pytest.raises(ConfigError, match="sees 3 tokens at once"):
        refuse_split_windows(build("MistralConfig", **WINDOW))


@pytest.mark.gpu
def test_on_a_gpu_the_blocks_hold_the_window():
    """`flex_attention`, which the run chooses there, against scaled-dot-product attention."""
    wide = {"hidden_size": 64, "head_dim": 16, **WINDOW}
    model, batch = build("MistralConfig", **wide).cuda(), packed("cuda")
    expected = losses_together(model, batch)

    words = keep_within_documents(model, torch.device("cuda"))

    assert "flex_attention" in words
    torch.testing.assert_close(losses_together(model, batch), expected, rtol=1e-4, atol=1e-4)
