"""The estimate against tensors that a real training step makes, counted in bytes."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.declared_facts import LossFacts, loss_facts_of
from automodel_cli.engine.config.parallel_layout import Degrees
from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.loss.linear_ce import ChunkedLinearCrossEntropy
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy
from automodel_cli.engine.models.calling import call, logits_of
from automodel_cli.engine.models.recompute import recompute_activations
from automodel_cli.engine.optim.muon import MuonWithAdamW
from automodel_cli.engine.optim.optimizer import build_optimizer
from automodel_cli.engine.plan.activations import activation_bytes
from automodel_cli.engine.plan.derive import by_formulas
from automodel_cli.engine.plan.memory import Memory
from automodel_cli.engine.plan.memory import memory as memory_of_model
from automodel_cli.engine.plan.model_config import model_shape
from automodel_cli.engine.plan.parameters import count_parameters, parameter_tensors
from automodel_cli.engine.plan.run_sizes import OptimizerState, RunSizes, run_sizes
from tests.engine.plan.conftest import SMALL_GPT2, SMALL_LLAMA, built, hf, ours

B, T = 3, 24
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
CONFIGS = {
    "ours": ours(**SMALL_GPT2),
    "ours without biases": ours(**SMALL_GPT2, bias=False),
    "hf gpt2": hf("GPT2Config", **SMALL_GPT2, **NO_DROPOUT),
    "llama": hf("LlamaConfig", **SMALL_LLAMA),
    "qwen2": hf("Qwen2Config", **SMALL_LLAMA, tie_word_embeddings=True),
    "qwen3": hf("Qwen3Config", **SMALL_LLAMA, head_dim=16),
}
ADAMW = OptimizerState(2, 2, counts_steps=True)
CHUNKED = loss_facts_of(Config({}))
ONE_RANK = RunSizes(T, 4 * B, B, 10, False, 4, Degrees(), DistributedSection(), ADAMW)
GPT2_124M = model_shape(ours(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12))


def memory(shape, *args, **kwargs) -> Memory:
    return memory_of_model(by_formulas(shape), *args, **kwargs)


def layout(strategy: str | None = None, *, is_bf16: bool = True, keys: dict | None = None, **degrees: int) -> RunSizes:
    section = DistributedSection(strategy=strategy, **(keys or {}))
    return replace(ONE_RANK, is_bf16=is_bf16, degrees=Degrees(**degrees), distributed=section)


def num_bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved_bytes(model: torch.nn.Module, run, *, is_bf16: bool) -> int:
    """What autograd keeps of `run()`: distinct storages, without parameters, buffers and autocast's copies of them."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    matrices = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}
    saved = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        is_copy = is_bf16 and {tuple(tensor.shape), tuple(tensor.shape)[::-1]} & matrices
        if storage.data_ptr() not in own and not is_copy:
            saved[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16) if is_bf16 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        result = run()
    assert result is not None
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_weights_gradients_and_adamw_take_what_they_take(config, amsgrad):
    """To the byte, steps that AdamW counts included."""
    model = built(config, "cpu")
    optimizer = build_optimizer(torch.optim.AdamW, {"lr": 1e-3, "amsgrad": amsgrad}, model)
    logits_of(call(model, {"input_ids": torch.zeros(B, T, dtype=torch.int64)})).sum().backward()
    optimizer.step()

    section = {"_target_": "torch.optim.AdamW", "amsgrad": amsgrad}
    sizes = replace(ONE_RANK, optimizer=run_sizes(Config({"optimizer": section})).optimizer)
    found = memory(model_shape(config), sizes, B, T, accumulates=True)

    assert found.weights == num_bytes(model.parameters())
    assert found.gradients == num_bytes(parameter.grad for parameter in model.parameters())
    assert found.optimizer == num_bytes(t for state in optimizer.state.values() for t in state.values())


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adam, {}),
        (MuonWithAdamW, {"adamw_lr": 1e-3}),
    ],
)
def test_other_optimizers_take_what_they_take(target, arguments):
    """To the byte; Muon keeps one tensor for each matrix of the blocks, AdamW two for everything else."""
    config = ours(**SMALL_GPT2)
    model = built(config, "cpu")
    optimizer = build_optimizer(target, {"lr": 1e-3, **arguments}, model)
    logits_of(call(model, {"input_ids": torch.zeros(B, T, dtype=torch.int64)})).sum().backward()
    optimizer.step()

    module = "torch.optim" if target is not MuonWithAdamW else target.__module__
    state = run_sizes(Config({"optimizer": {"_target_": f"{module}.{target.__name__}", **arguments}})).optimizer
    found = memory(model_shape(config), replace(ONE_RANK, optimizer=state), B, T, accumulates=True)

    kept = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    assert found.optimizer == num_bytes(kept)


@pytest.mark.parametrize("is_bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_activations_are_what_autograd_keeps(config, is_bf16):
    """To the byte, but for the written-out GELU under autocast: a CPU computes it in narrower types than a GPU."""
    model = built(config, "cpu").train()
    batch = {"input_ids": torch.zeros(B, T, dtype=torch.int64)}

    measured = saved_bytes(model, lambda: call(model, batch), is_bf16=is_bf16)

    estimate = activation_bytes(model_shape(config), replace(ONE_RANK, is_bf16=is_bf16), B, T)
    if is_bf16 and config is CONFIGS["hf gpt2"]:
        assert measured < estimate < 1.4 * measured
    else:
        assert estimate == measured


@pytest.mark.parametrize("config", [ours(**SMALL_GPT2), hf("LlamaConfig", **SMALL_LLAMA)], ids=["ours", "llama"])
def test_bf16_copies_of_weights_are_what_autocast_keeps(config):
    """The buffers of one rank are the copies of the matrices that are multiplied."""
    model = built(config, "cpu").train()
    copies = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16 and {tuple(tensor.shape), tuple(tensor.shape)[::-1]} & matrices:
            copies[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    matrices = {tuple(parameter.shape) for parameter in model.parameters() if parameter.dim() == 2}
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        output = call(model, {"input_ids": torch.zeros(B, T, dtype=torch.int64)})

    assert logits_of(output).requires_grad
    found = memory(model_shape(config), replace(ONE_RANK, is_bf16=True), B, T, accumulates=True)
    assert found.buffers == num_bytes(copies.values())


class LiveBytes(TorchDispatchMode):
    """The largest number of bytes that were alive at once, of storages that were made inside of it.

    Args:
        given: Tensors that were there before.
    """

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.peak = 0
        self._given = {tensor.untyped_storage()._cdata for tensor in given}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._given:
                storage = tensor.untyped_storage()
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._live = {key: found for key, found in self._live.items() if not found[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result

    def bytes_now(self) -> int:
        """What is alive at this moment."""
        return sum(size for found, size in self._live.values() if not found.expired())


@pytest.mark.parametrize("is_bf16", [False, True], ids=["fp32", "bf16"])
def test_the_loss_holds_three_tensors_like_the_logits(is_bf16):
    """Peak of forward and backward over logits (N, V), measured by the storages that are alive."""
    V, N = 4096, B * T
    shape = replace(GPT2_124M, vocab_size=V)
    labels_BT = torch.zeros(B, T, dtype=torch.int64)
    logits_BTV = torch.zeros(B, T, V, dtype=torch.bfloat16 if is_bf16 else torch.float32, requires_grad=True)

    with LiveBytes(logits_BTV, labels_BT) as peak:
        MaskedCrossEntropy()(logits_BTV, labels_BT, num_label_tokens=N).backward()

    found = memory(shape, replace(ONE_RANK, is_bf16=is_bf16), B, T, accumulates=True)
    assert found.logits == 3 * 4 * N * V
    assert peak.peak == pytest.approx(found.logits, rel=0.01)


@pytest.mark.parametrize("is_bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("chunk_size", [8, 64])
def test_the_chunked_loss_holds_a_chunk_and_two_gradients(monkeypatch, is_bf16, chunk_size):
    """Within a tenth of the measured peak, and far below that of all logits where these are large."""
    # As on a GPU, for which the plan is: oneDNN, for some CPUs, gives fresh memory for every product.
    for module in ("linear_ce", "products"):
        monkeypatch.setattr(f"automodel_cli.engine.loss.{module}.onednn_is_faster", lambda: False)
    V, C, rows = 4096, 32, 96
    shape = replace(GPT2_124M, vocab_size=V, channels=C)
    hidden_BTC = torch.randn(4, rows // 4, C, requires_grad=True)
    weight_VC = torch.randn(V, C, requires_grad=True)
    labels_BT = torch.zeros(4, rows // 4, dtype=torch.int64)
    autocast = torch.autocast("cpu", torch.bfloat16) if is_bf16 else contextlib.nullcontext()

    with LiveBytes(hidden_BTC, weight_VC, labels_BT) as peak:
        with autocast:
            loss = ChunkedLinearCrossEntropy(chunk_size).of_hidden(
                hidden_BTC, weight_VC, None, labels_BT, num_label_tokens=rows
            )
        loss.backward()

    sizes = replace(ONE_RANK, is_bf16=is_bf16, loss=CHUNKED, chunk_size=chunk_size)
    assert memory(shape, sizes, 4, rows // 4, accumulates=True).logits == pytest.approx(peak.peak, rel=0.1)


def test_the_default_chunk_is_that_of_the_loss():
    """The plan reads from source what the class takes on a GPU, since the class needs torch."""
    for vocab_size in (257, 50_257, 151_936, 10**9):
        rows = ChunkedLinearCrossEntropy().rows_per_block(vocab_size, torch.device("cuda"))
        assert replace(ONE_RANK, loss=CHUNKED).loss_rows(vocab_size) == rows


def test_fsdp2_divides_what_a_rank_keeps():
    """Weights, gradients without accumulation, and optimizer state; a remainder is padded to the largest shard."""
    total = count_parameters(parameter_tensors(GPT2_124M)).total

    found = memory(GPT2_124M, layout(dp_shard=8), 16, 1024, accumulates=False)

    assert total / 8 <= found.weights / 4 <= total / 8 * 1.001
    assert found.gradients == found.weights
    assert found.optimizer == pytest.approx(2 * found.weights, rel=1e-4)


def test_gradients_that_wait_for_the_last_pass_are_whole():
    """`defer_fsdp_grad_sync` saves messages and costs memory; with one pass a step it costs nothing."""
    total = count_parameters(parameter_tensors(GPT2_124M)).total
    eager = layout(dp_shard=8, keys={"defer_fsdp_grad_sync": False})

    assert memory(GPT2_124M, layout(dp_shard=8), 16, 1024, accumulates=True).gradients == 4 * total
    assert memory(GPT2_124M, eager, 16, 1024, accumulates=True).gradients < 4 * total / 7


def test_ddp_keeps_everything_on_every_rank():
    """And sends a copy of the gradients."""
    one, ddp = (
        memory(GPT2_124M, sizes, 16, 1024, accumulates=True) for sizes in (layout(), layout("ddp", dp_replicate=8))
    )

    assert (ddp.weights, ddp.gradients, ddp.optimizer) == (one.weights, one.gradients, one.optimizer)
    assert ddp.buffers == one.buffers + one.gradients


def test_hybrid_sharding_divides_by_the_group_only():
    """Two groups of four ranks hold a quarter each."""
    hybrid = memory(GPT2_124M, layout(dp_replicate=2, dp_shard=4), 16, 1024, accumulates=True)
    sharded = memory(GPT2_124M, layout(dp_shard=4), 16, 1024, accumulates=True)

    assert hybrid == sharded


def test_tensor_parallelism_divides_matrices_and_what_is_inside_of_them():
    """What lies between is held whole, unless sequence parallelism splits that too."""
    one, two, sequence = (
        memory(GPT2_124M, sizes, 16, 1024, accumulates=True)
        for sizes in (layout(), layout(tp=2), layout(tp=2, keys={"sequence_parallel": True}))
    )
    whole = count_parameters(parameter_tensors(GPT2_124M))

    assert one.weights / 2 < two.weights < one.weights / 2 + 4 * (whole.positions + 20 * 12 * 768)
    assert one.activations / 2 < two.activations < one.activations
    assert sequence.activations < two.activations


def test_tensor_parallelism_divides_the_head_of_the_chunked_loss():
    """All but the sums for the head's input, which every rank holds whole; whole logits are not divided."""
    one, two = (replace(layout(tp=tp), loss=CHUNKED, is_bf16=True, chunk_size=64) for tp in (1, 2))
    logits, part = (memory(GPT2_124M, sizes, 1, 64, accumulates=True).logits for sizes in (one, two))
    whole = [
        memory(GPT2_124M, replace(sizes, loss=LossFacts()), 1, 64, accumulates=True).logits for sizes in (one, two)
    ]

    # Of an odd vocabulary the larger part; the rest is 4 bytes, twice, for each of (64, 768).
    assert logits / 2 <= part <= logits / 2 + 4 * 64 * 768 + 8 * 768 * 4
    assert whole[0] == whole[1]


def test_context_parallelism_divides_the_tokens():
    """Logits exactly; activations all but the keys and values of other ranks."""
    one, two = (
        memory(GPT2_124M, sizes, 16, 1024, accumulates=True) for sizes in (layout(dp_shard=2), layout(dp_shard=2, cp=2))
    )

    assert two.logits == one.logits / 2
    assert one.activations / 2 < two.activations < one.activations
    assert two.weights < one.weights


def test_policies_of_fsdp2_change_what_they_say():
    """Narrow gathers need no copies by autocast, kept gathers more, and a host takes what the device had."""
    plain, narrow, kept, host = (
        memory(GPT2_124M, layout(dp_shard=8, keys=keys), 16, 1024, accumulates=False)
        for keys in ({}, {"mp_policy": "bf16"}, {"reshard_after_forward": False}, {"offload_policy": "cpu"})
    )

    assert narrow.buffers < plain.buffers < kept.buffers
    assert (host.weights, host.gradients, host.optimizer) == (0, 0, 0)


@pytest.mark.parametrize(("mode", "every"), [("full", 1), ("full", 2), ("selective", 1), ("selective", 3)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_recomputed_blocks_keep_what_they_keep(config, mode, every):
    """The bytes that are alive behind the forward pass, and one block that the backward pass makes whole again."""
    model = built(config, "cpu").train()
    recompute_activations(model, mode, every)
    ids_BT = torch.zeros(B, T, dtype=torch.int64)

    with LiveBytes(ids_BT, *model.parameters(), *model.buffers()) as live:
        logits = logits_of(call(model, {"input_ids": ids_BT}))
    measured = live.bytes_now() - num_bytes([logits]) + num_bytes([ids_BT])

    shape, sizes = model_shape(config), replace(ONE_RANK, recompute=mode, recompute_every=every)
    estimate = activation_bytes(shape, sizes, B, T)
    deeper = activation_bytes(replace(shape, num_layers=2 + 1), ONE_RANK, B, T)
    block = deeper - activation_bytes(shape, ONE_RANK, B, T)
    assert estimate - (block if every <= 2 else 0) == measured


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_in_bf16_halve_what_is_like_them(config):
    """Nothing is cast. Activations to the byte, but for the statistics of layer norms: bf16 on a CPU, fp32 on a GPU."""
    model = built(config, "cpu").to(torch.bfloat16).train()
    shape, sizes = model_shape(config), replace(ONE_RANK, is_bf16=True, weight_bytes=2)
    batch = {"input_ids": torch.zeros(B, T, dtype=torch.int64)}

    found = memory(shape, sizes, B, T, accumulates=True)

    statistics = (2 * shape.num_layers + 1) * 2 * B * T if shape.family.is_gpt2 else 0
    assert found.weights == found.gradients == num_bytes(model.parameters())
    assert found.buffers == 0
    assert found.activations == saved_bytes(model, lambda: call(model, batch), is_bf16=False) + 2 * statistics


@pytest.mark.parametrize(
    "config",
    [
        Config({"model": {**CONFIGS["llama"].values["model"], "attn_implementation": "eager"}}),
        Config({**CONFIGS["ours"].values, "dataset": {"document_mask": True}}),
        Config({**CONFIGS["ours"].values, "packed_sequence": {"packed_sequence_size": 64}}),
        Config({**CONFIGS["ours"].values, "optimizer": {"_target_": "my.py:Own"}}),
    ],
)
def test_a_total_with_an_unknown_part_is_not_known(config):
    """Attention with T x T scores or masks, and an optimizer that nobody has described."""
    found = memory(model_shape(config), replace(run_sizes(config), seq_len=T), B, T, accumulates=True)

    assert found.total is None
    assert isinstance(found, Memory)
    assert found.weights > 0


@given(st.integers(1, 64), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.booleans())
def test_more_samples_never_need_less(batch, dp_shard, cp, tp, recomputes):
    """The total grows with the batch, in every layout."""
    sizes = replace(layout(dp_shard=dp_shard, cp=cp, tp=tp), recompute="full" if recomputes else None)

    less, more = (memory(GPT2_124M, sizes, size, 1024, accumulates=True).total for size in (batch, batch + 1))

    assert less < more
