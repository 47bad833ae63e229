"""How documents are kept apart is chosen by model and device, is named, and means the same every way."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from automodel_cli.engine.models.attention import keep_within_documents
from automodel_cli.engine.models.calling import call, document_mask, logits_of
from automodel_cli.engine.models.document_attention import attend_in_blocks, document_blocks
from automodel_cli.engine.models.gpt2 import build_gpt2_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WIDE = {"vocab_size": 61, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
LLAMA = {"vocab_size": 61, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
LENGTHS = ((5, 1, 10), (7, 8, 1))


def llama(**options):
    return transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**LLAMA, **options))


def documents(device="cpu"):
    return torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(row)) for row in LENGTHS]).to(device)


def packed(device="cpu"):
    torch.manual_seed(1)
    return {
        "input_ids": torch.randint(61, (2, 16)).to(device),
        "position_ids": torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS]).to(device),
        "document_ids": documents(device),
    }


def test_blocks_hold_the_pairs_of_the_mask():
    """Attention by blocks is attention by the mask of every pair, head by head."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 16, 16)

    blocks = attend_in_blocks(q, k, v, document_blocks(documents()))
    masked = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=document_mask(documents()))

    torch.testing.assert_close(blocks, masked)


@torch.no_grad()
def test_our_model_computes_the_same_in_blocks():
    """Logits of packed documents; on a CPU without gradients, which torch has not for blocks there."""
    torch.manual_seed(0)
    model = build_gpt2_model(**WIDE).eval()
    masked = logits_of(call(model, packed()))

    model.transformer.attends_in_blocks = True

    torch.testing.assert_close(logits_of(call(model, packed())), masked)


def test_a_cpu_keeps_the_mask():
    """There is no backward pass for blocks, and nothing is called slow that has no faster way."""
    model = build_gpt2_model(**WIDE)

    words = keep_within_documents(model, CPU)

    assert words == "a mask of every pair of tokens, through scaled_dot_product_attention"
    assert not model.transformer.attends_in_blocks


def test_a_gpu_gets_blocks():
    """Our GPT-2 and a model of transformers that has them."""
    ours, theirs = build_gpt2_model(**WIDE), llama()

    words = [keep_within_documents(model, GPU) for model in (ours, theirs)]

    assert words == ["flex_attention, in the blocks of pairs that a document has"] * 2
    assert ours.transformer.attends_in_blocks
    assert theirs.config._attn_implementation == "flex_attention"


@pytest.mark.parametrize(
    ("build", "options", "why"),
    [
        (lambda: build_gpt2_model(**WIDE, dropout=0.1), {}, "has no dropout"),
        (lambda: build_gpt2_model(**{**WIDE, "n_head": 4}), {}, "heads of at least 16, but they have 8"),
        (lambda: build_gpt2_model(**WIDE), {"splits_sequence": True}, "not split over context-parallel ranks"),
        (lambda: llama(attention_dropout=0.1), {}, "has no dropout"),
        (llama, {"may_change": False}, "attn_implementation: sdpa was asked for"),
        (
            lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**WIDE)),
            {},
            "GPT2LMHeadModel of transformers has no flex_attention",
        ),
    ],
)
def test_what_is_slow_on_a_gpu_is_named_with_its_reason(build, options, why):
    """And nothing is changed."""
    model = build()

    words = keep_within_documents(model, GPU, **options)

    assert words.startswith("a mask of every pair of tokens: SLOW, as ")
    assert words.endswith(why)
    assert not getattr(model.transformer if hasattr(model, "transformer") else model, "attends_in_blocks", False)


def test_what_the_user_has_named_stands():
    """An implementation that transformers was asked for by name, and a user's own model."""
    named = llama()
    named.set_attn_implementation("flex_attention")

    assert keep_within_documents(named, CPU) == "flex_attention"
    assert keep_within_documents(nn.Linear(2, 2), GPU) is None


def test_a_model_of_transformers_is_given_blocks():
    """As its argument for masks that are made already."""
    given = {}

    class Remembers(transformers.LlamaForCausalLM):
        def forward(self, input_ids=None, **arguments):
            given.update(arguments)

    model = Remembers(transformers.LlamaConfig(**LLAMA))
    model.set_attn_implementation("flex_attention")

    call(model, packed())

    pairs = given["attention_mask"].mask_mod(0, 0, torch.tensor([4, 5, 6]), torch.tensor([3, 4, 7]))
    assert pairs.tolist() == [True, False, False]


@pytest.mark.gpu
@pytest.mark.parametrize("build", [lambda: build_gpt2_model(**WIDE), llama], ids=["ours", "llama"])
def test_on_a_gpu_blocks_give_the_loss_and_gradients_of_the_mask(build):
    """With the compiled kernels."""
    torch.manual_seed(0)
    model = build().cuda()
    results = []
    for chosen in (False, True):
        if chosen:
            keep_within_documents(model, GPU)
        loss = logits_of(call(model, packed("cuda"))).float().logsumexp(-1).sum()
        model.zero_grad()
        loss.backward()
        results.append([loss.detach(), *(each.grad.clone() for each in model.parameters() if each.grad is not None)])

    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)
