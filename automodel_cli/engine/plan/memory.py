"""Memory of one device in training, by what it is for; and the devices that a plan knows by name.

The total is the sum of all categories, as if each were at its largest at the same time. They are not quite:
gradients grow while activations go. So the total is an upper bound for these tensors; the CUDA context,
workspaces of libraries and fragments of the allocator come on top (`derive.py` keeps a share for them).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.observe.speed import peak_flops
from automodel_cli.engine.plan.parameters import CountedModel, ParameterTensor, Part
from automodel_cli.engine.plan.run_sizes import RunSizes
from automodel_cli.errors import UsageError

_FP32 = 4
_BF16 = 2
# Blocks that FSDP2 has gathered at once: the one that computes, and the next.
_GATHERED_BLOCKS = 2
# 10^9 bytes, from the data sheets of NVIDIA (A100 80GB, H100 SXM, H200 SXM, HGX B200, L40S) and AMD (MI300X).
MEMORY_GB = {"A100": 80, "H100": 80, "H200": 141, "B200": 180, "L40S": 48, "MI300X": 192}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[MGT]i?)B", re.IGNORECASE)
_UNITS = {"m": 10**6, "g": 10**9, "t": 10**12, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that needs most; None where the configuration does not give a part.

    Args:
        weights: This rank's part of the weights.
        gradients: Their gradients, from one backward pass to the next.
        optimizer: What the optimizer keeps from step to step.
        buffers: Copies for a while: weights in bf16, gathered blocks, gradients on their way.
        activations: What the forward pass keeps for the backward pass.
        logits: The output of the model, and what the loss makes of it.
    """

    weights: int
    gradients: int
    optimizer: int | None
    buffers: int
    activations: int | None
    logits: int

    @property
    def total(self) -> int | None:
        """The sum; None if a part is not known."""
        if self.optimizer is None or self.activations is None:
            return None
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations + self.logits


def memory(model: CountedModel, sizes: RunSizes, local_batch_size: int, seq_len: int, *, accumulates: bool) -> Memory:
    """The memory of one device.

    Weights, gradients and optimizer state follow Rajbhandari et al. 2020 (ZeRO): of AdamW in fp32, 4 + 4 + 8 bytes
    for each parameter on this rank. A shard is the largest that FSDP2 makes: it cuts the first dimension of each
    tensor and pads the parts to one size.

    Args:
        model: Its parameters and activations.
        sizes: Layout, precision, optimizer and loss.
        local_batch_size: Samples of one forward pass.
        seq_len: Tokens of a sample.
        accumulates: Whether a step has several backward passes.
    """
    tensors = model.tensors
    width, tp = sizes.weight_bytes, sizes.degrees.tp
    shards = sizes.degrees.dp_shard * sizes.degrees.cp if sizes.uses_fsdp else 1
    own = sum(_largest_part(tensor, tp, shards) for tensor in tensors)
    whole = sum(_largest_part(tensor, tp, 1) for tensor in tensors)
    # Without a sum over ranks after every pass, the gradients of the whole model wait for the last one.
    waits = sizes.uses_fsdp and accumulates and sizes.distributed.defer_fsdp_grad_sync
    is_on_host = sizes.distributed.offload_policy == "cpu"
    optimizer = _optimizer_bytes(tensors, sizes, shards, width)
    return Memory(
        weights=0 if is_on_host else own * width,
        gradients=whole * width if waits else 0 if is_on_host else own * width,
        optimizer=0 if is_on_host and optimizer is not None else optimizer,
        buffers=_buffer_bytes(model, sizes, whole),
        activations=model.activation_bytes(sizes, local_batch_size, seq_len),
        logits=_logit_bytes(model, sizes, local_batch_size * -(-seq_len // sizes.degrees.cp)),
    )


def _largest_part(tensor: ParameterTensor, tp: int, shards: int) -> int:
    """Elements of all copies of a tensor on the rank that has most."""
    return tensor.copies * math.prod(_part_shape(tensor, tp, shards))


def _part_shape(tensor: ParameterTensor, tp: int, shards: int) -> Iterator[int]:
    for dim, size in enumerate(tensor.shape):
        part = -(-size // tp) if dim == tensor.tp_dim else size
        yield -(-part // shards) if dim == 0 else part


def _optimizer_bytes(tensors: Sequence[ParameterTensor], sizes: RunSizes, shards: int, width: int) -> int | None:
    """Tensors like the weights, in their type, and an fp32 step count for each parameter where the class keeps one."""
    state = sizes.optimizer
    if state is None:
        return None
    total = 0
    for tensor in tensors:
        is_matrix = tensor.part is Part.BLOCKS and len(tensor.shape) == 2
        kept = state.per_matrix if is_matrix else state.per_other
        total += math.ceil(kept * width * _largest_part(tensor, sizes.degrees.tp, shards))
        if state.counts_steps and kept == state.per_other:
            total += _FP32 * tensor.copies
    return total


def _buffer_bytes(model: CountedModel, sizes: RunSizes, whole: int) -> int:
    """Copies of weights and gradients that live for a part of a step.

    Sources: torch's autocast keeps a bf16 copy of each fp32 matrix that it multiplies until its backward pass. FSDP2
    (Zhao et al. 2023, and the documentation of `fully_shard`) gathers a block before it is used, and the rest of
    the model once; it sums the fp32 gradient of a block by way of a copy. With DDP every gradient travels in a copy.
    """
    tensors, tp = model.tensors, sizes.degrees.tp
    is_narrow = sizes.distributed.mp_policy == "bf16" and sizes.uses_fsdp
    casts = sizes.is_bf16 and sizes.weight_bytes == _FP32 and not is_narrow
    copies = _BF16 * sum(_largest_part(t, tp, 1) for t in tensors if t.is_product and not _is_chunked_head(t, sizes))
    total = copies if casts else 0
    if sizes.uses_fsdp:
        block = sum(_largest_part(t, tp, 1) for t in tensors if t.part is Part.BLOCKS) // model.num_layers
        rest = whole - block * model.num_layers
        gathered = _GATHERED_BLOCKS if sizes.distributed.reshard_after_forward else model.num_layers
        width = _BF16 if is_narrow else sizes.weight_bytes
        total += (rest + min(gathered, model.num_layers) * block) * width + 2 * block * _FP32
    elif sizes.degrees.dp * sizes.degrees.cp > 1:
        total += whole * sizes.weight_bytes
    return total


def _is_chunked_head(tensor: ParameterTensor, sizes: RunSizes) -> bool:
    """Whether the loss makes the head's copy itself, and it counts with the logits."""
    return sizes.has_chunked_loss and tensor.part in (Part.EMBEDDING, Part.HEAD)


def _logit_bytes(model: CountedModel, sizes: RunSizes, tokens: int) -> int:
    """What the loss holds at its peak, the beginning of its backward pass.

    A loss of whole logits: what its class declares for each. Tensor-parallel ranks hold all columns: the head's output
    is gathered.

    The chunked loss: the fp32 sums of the head's gradient (V, C) and of its input's (tokens, C); and the buffers
    of a chunk, or, later, the scaled sums. Tensor-parallel ranks hold their part v of V of all this.
    """
    V, C, tp = model.vocab_size, model.channels, sizes.degrees.tp
    if not sizes.has_chunked_loss:
        return math.ceil(sizes.loss.bytes_per_logit * tokens * V)
    v = -(-V // tp)
    rows = min(sizes.loss_rows(v), tokens)
    sums = _FP32 * (v * C + tokens * C)
    # In bf16 a chunk has its logits beside its probabilities, and so it has where a split softmax reads them twice.
    beside = _BF16 if sizes.is_bf16 else _FP32 if tp > 1 else 0
    # In bf16 the head and its gradient pass through bf16, too.
    chunk = rows * v * (_FP32 + beside) + (2 * _BF16 * v * C if sizes.is_bf16 else 0)
    return sums + max(chunk, sums)


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Args:
        name: The maker's name of it.
        peak_flops: Dense bf16 matrix products, operations per second.
        memory_bytes: Size according to its maker.
    """

    name: str
    peak_flops: float
    memory_bytes: int


def device_named(text: str) -> Device:
    """The device of a name such as `h100`.

    Raises:
        UsageError: It is none of `MEMORY_GB`.

    >>> device_named("h200")
    Device(name='H200', peak_flops=989400000000000, memory_bytes=141000000000)
    """
    name = text.upper()
    peak = peak_flops(name) if name in MEMORY_GB else None
    if peak is None:
        known = [known.lower() for known in MEMORY_GB]
        other = "for another, leave --device out and give --peak-tflops and --gpu-memory"
        help_ = f"{hint(text.lower(), known, noun='devices')}; {other}"
        raise UsageError(f"no device is called {text}", help=help_)
    return Device(name, peak, MEMORY_GB[name] * 10**9)


def memory_bytes(text: str) -> int:
    """A size such as `80GB` (10^9 bytes each) or `79.6GiB` (2^30 bytes each).

    Raises:
        UsageError: It is no size, or zero.

    >>> memory_bytes("80GB"), memory_bytes("1.5 GiB")
    (80000000000, 1610612736)
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found["number"]) * _UNITS[found["unit"].lower()]) if found else 0
    if size < 1:
        raise UsageError(f"--gpu-memory is {text!r}, but it must be a size", help="80GB, 79.6GiB or 512MB")
    return size
