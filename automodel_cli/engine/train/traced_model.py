"""Counts a model that no formula knows, from one forward pass on fake tensors: parameters, FLOPs and activations.

The model is built by its own constructor, but its tensors have no memory, so a model of any size is counted on a
laptop. Counted is what autograd keeps: distinct storages that operations save for the backward pass, without
parameters, buffers and autocast's copies of parameters (Korthikanti et al. 2022 count the same by hand). Attention is
that of a CPU's fused kernel, which keeps what a GPU's flash kernel keeps. Not known afterwards: what tensor- and
context-parallel ranks keep. Needs torch and runs the model's code, so `engine.plan` cannot call it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.instantiate import instantiate
from automodel_cli.engine.distributed.module_tree import transformer_blocks
from automodel_cli.engine.models.calling import call, logits_of
from automodel_cli.engine.models.document_attention import without_packing_masks
from automodel_cli.engine.models.head import head_or_stated
from automodel_cli.engine.models.recompute import KEPT_PRODUCTS
from automodel_cli.engine.plan.parameters import CountedModel, ParameterTensor, Part
from automodel_cli.engine.plan.run_sizes import RunSizes, run_sizes

_FORWARD_AND_BACKWARD = 3  # the backward pass multiplies twice for each product of the forward pass


# torch counts the attention kernels of GPUs, but not that of CPUs.
_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    torch.ops.aten._grouped_mm: lambda left, right, *_, **__: 2 * left[0] * left[1] * right[-1],
}


class UntraceableError(Exception):
    """The model cannot be counted by a trace; the text says why."""


@dataclass
class _Kept:
    """Bytes that one forward pass keeps.

    Args:
        blocks: Kept by each block.
        products: Outputs of each block's matrix products and attention, and its input.
        inputs: Input of each block.
        head: Kept by the head.
        outside: Kept by everything else.
    """

    blocks: list[int]
    products: list[int]
    inputs: list[int]
    head: int = 0
    outside: int = 0


def traced(config: Config) -> CountedModel:
    """The model of a configuration, built on fake tensors and run once.

    Args:
        config: Checked; its section `model` is built, which runs the code that it names.

    Raises:
        UntraceableError: The model cannot be built or run without data.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # The exception says in one line why a shape rule failed.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    with _reasons("built"), mode:
        model = instantiate(config, "model")
    if not isinstance(model, nn.Module):
        raise UntraceableError(f"model._target_ gives a {type(model).__name__}, not an nn.Module")
    weight_bytes = run_sizes(config).weight_bytes
    if weight_bytes == 2:
        with mode:
            model = model.to(torch.bfloat16)
    blocks = transformer_blocks(model)
    with mode:
        head = head_or_stated(model)
        with _reasons("run"), _GroupedProducts(), torch.no_grad():
            logits = logits_of(call(model, {"input_ids": torch.zeros(1, 2, dtype=torch.int64)}))
    tensors = list(_parameter_tensors(model, blocks, head))
    embedding = next((t for t in tensors if t.part is Part.EMBEDDING), None)
    trace = _Trace(mode, model, blocks, head, weight_bytes)
    return CountedModel(
        kind=type(model).__name__,
        tensors=tensors,
        num_layers=max(1, len(blocks)),
        vocab_size=logits.shape[-1],
        channels=embedding.shape[-1] if embedding else logits.shape[-1],
        is_tied=not any(t.part is Part.HEAD for t in tensors),
        flops_per_token=trace.flops_per_token,
        activation_bytes=trace.activation_bytes,
        is_traced=True,
    )


@contextlib.contextmanager
def _reasons(done: str) -> Iterator[None]:
    """Turns an exception of the model's code into the reason why it cannot be counted."""
    try:
        yield
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        message = f"it cannot be {done} on tensors without content: {type(error).__name__}: {first}"
        raise UntraceableError(message) from error


class _GroupedProducts(TorchDispatchMode):
    """Gives the shape of a grouped product of experts in fp32, which torch's own rule for fake tensors refuses."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype is torch.float32 and args[1].dim() == 3:
            return args[0].new_empty((*args[0].shape[:-1], args[1].shape[-1]))
        return func(*args, **(kwargs or {}))


class _Trace:
    """Forward passes of a model on fake tensors; each shape is run once."""

    def __init__(
        self,
        mode: FakeTensorMode,
        model: nn.Module,
        blocks: list[nn.Module],
        head: nn.Module | None,
        weight_bytes: int,
    ) -> None:
        self._mode, self._model, self._blocks, self._head = mode, model.train(), blocks, head
        self._weight_bytes = weight_bytes
        self._kept = cache(self._measured)

    @cache  # noqa: B019  # lives as long as the one plan that asks
    def flops_per_token(self, seq_len: int) -> int:
        """Operations of the forward and the backward pass, attention in full."""
        with (
            _reasons("run"),
            without_packing_masks(),
            self._mode,
            _GroupedProducts(),
            FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter,
        ):
            call(self._model, {"input_ids": torch.zeros(1, seq_len, dtype=torch.int64)})
        return _FORWARD_AND_BACKWARD * counter.get_total_flops() // seq_len

    def activation_bytes(self, sizes: RunSizes, local_batch_size: int, seq_len: int) -> int | None:
        """Bytes between the forward and the backward pass; None where ranks share a sample, or attention reads a mask.

        What is kept grows linearly with the samples, so two passes give it for every batch.
        """
        if sizes.has_mask or sizes.degrees.cp > 1 or sizes.degrees.tp > 1 or sizes.weight_bytes != self._weight_bytes:
            return None
        one, two = (self._total(sizes, batch, seq_len) for batch in (1, 2))
        return one + (two - one) * (local_batch_size - 1)

    def _total(self, sizes: RunSizes, batch: int, seq_len: int) -> int:
        kept = self._kept(batch, seq_len, sizes.is_bf16)
        every = sizes.recompute_every
        recomputed = range(every - 1, len(kept.blocks), every) if sizes.recompute else range(0)
        blocks = sum(size for index, size in enumerate(kept.blocks) if index not in recomputed)
        if recomputed:  # what is kept of each, and one at a time whole again
            of_each = kept.inputs if sizes.recompute == "full" else kept.products
            blocks += sum(of_each[index] for index in recomputed) + max(kept.blocks[index] for index in recomputed)
        # The chunked loss keeps the gradient of the head's input instead of the input; it counts with the logits.
        return blocks + kept.outside + (0 if sizes.has_chunked_loss else kept.head)

    def _measured(self, batch: int, seq_len: int, is_bf16: bool) -> _Kept:
        model = self._model
        own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        watch = _Watch(own, len(self._blocks))
        hooks = [watch.around(block, index) for index, block in enumerate(self._blocks)]
        hooks += [watch.around(self._head, watch.HEAD)] if self._head is not None else []
        autocast = torch.autocast("cpu", torch.bfloat16) if is_bf16 else contextlib.nullcontext()
        saved = torch.autograd.graph.saved_tensors_hooks(watch.keep, lambda tensor: tensor)
        try:
            with _reasons("run"), without_packing_masks(), self._mode, _GroupedProducts(), watch, saved, autocast:
                call(model, {"input_ids": torch.zeros(batch, seq_len, dtype=torch.int64)})
        finally:
            for before, after in hooks:
                before.remove()
                after.remove()
        return watch.kept()


@dataclass
class _Place:
    """Storages, by identity, that were saved or made in one place of the model."""

    saved: dict[int, int] = field(default_factory=dict)
    products: dict[int, int] = field(default_factory=dict)
    input_bytes: int = 0


class _Watch(TorchDispatchMode):
    """Sorts what a forward pass keeps by the block that keeps it.

    Args:
        own: Storages of parameters and buffers.
        num_blocks: Blocks of the model.
    """

    HEAD, OUTSIDE = -2, -1

    def __init__(self, own: set[int], num_blocks: int) -> None:
        super().__init__()
        self._own = set(own)
        self._places = {index: _Place() for index in (self.HEAD, self.OUTSIDE, *range(num_blocks))}
        self._current = self.OUTSIDE
        self._held: list[Any] = []  # so that no identity is used twice

    def around(self, module: nn.Module, place: int) -> tuple[Any, Any]:
        """Hooks that say when the forward pass is inside of a module."""

        def enter(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._current = place
            first = next((a for a in (*arguments, *keywords.values()) if isinstance(a, torch.Tensor)), None)
            if first is not None:
                self._places[place].input_bytes = first.untyped_storage().nbytes()

        def leave(*_: Any) -> None:
            self._current = self.OUTSIDE

        return module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._own:
            self._held.append(result.untyped_storage())
            self._own.add(result.untyped_storage()._cdata)  # autocast's copy of a parameter: a buffer of the plan
        if func in KEPT_PRODUCTS:
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    self._add(self._places[self._current].products, tensor)
        return result

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Counts what an operation saves for the backward pass."""
        if tensor.untyped_storage()._cdata not in self._own:
            self._add(self._places[self._current].saved, tensor)
        return tensor

    def _add(self, found: dict[int, int], tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._held.append(storage)
        found[storage._cdata] = storage.nbytes()

    def kept(self) -> _Kept:
        """What was kept; a storage counts where it was saved first."""
        seen: set[int] = set()
        sizes: dict[int, int] = {}
        for place, found in self._places.items():
            sizes[place] = sum(size for storage, size in found.saved.items() if storage not in seen)
            seen |= found.saved.keys()
        blocks = [place for place in self._places if place >= 0]
        return _Kept(
            blocks=[sizes[place] for place in blocks],
            products=[sum(self._places[p].products.values()) + self._places[p].input_bytes for p in blocks],
            inputs=[self._places[place].input_bytes for place in blocks],
            head=sizes[self.HEAD],
            outside=sizes[self.OUTSIDE],
        )


def _parameter_tensors(model: nn.Module, blocks: list[nn.Module], head: nn.Module | None) -> Iterator[ParameterTensor]:
    """Every parameter of a built model; those of equal name and shape in several blocks once."""
    of_blocks = {id(parameter) for block in blocks for parameter in block.parameters()}
    embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    of_head = getattr(head, "weight", None)
    found: dict[tuple[str, tuple[int, ...]], tuple[Part, int, bool]] = {}
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() >= 2
        is_embedding = any(parameter is weight for weight in embeddings)
        if id(parameter) in of_blocks:
            name = ".".join("*" if word.isdigit() else word for word in name.split("."))
            part, is_product = Part.BLOCKS, is_matrix
        elif is_embedding:
            first = parameter is embeddings[0]
            part, is_product = Part.EMBEDDING if first else Part.POSITIONS, parameter is of_head
        else:
            part, is_product = (Part.HEAD, is_matrix) if parameter is of_head else (Part.NORM, is_matrix)
        key = (name, tuple(parameter.shape))
        found[key] = (part, found[key][1] + 1 if key in found else 1, is_product)
    for (name, shape), (part, copies, is_product) in found.items():
        yield ParameterTensor(name, shape, part, copies, None, is_product)
