"""The sections of the configuration that belong to amcli, as frozen dataclasses.

One table: the name, type, default, range and meaning of every key stand here, and the checks,
the defaults in `config show` and the engine all read them from here. Sections with `_target_`
(`model`, `dataset`, `optimizer`, ...) belong to their callable: `target_sections.py`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar

from automodel_cli.engine.bounded import MAX_WHOLE
from automodel_cli.engine.config import aliases

_MAX_THREADS = 1024  # torch crashes where more are asked for than the machine starts
# A number that amcli finds by itself.
AUTO = "auto"


def key(
    meaning: str,
    *,
    default: Any = MISSING,
    minimum: float | None = None,
    maximum: int = MAX_WHOLE,
    above: float | None = None,
    choices: tuple[Any, ...] | None = None,
    quiet: bool = False,
    duration: bool = False,
    words: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with its meaning and its rules.

    A `quiet` key stands in a configuration only if it is set: `config show` does not print its default. Text is
    allowed as a length of `values.py` if the key is a `duration`, and as one of its `words`.
    """
    metadata = {"meaning": meaning, "minimum": minimum, "above": above, "choices": choices, "quiet": quiet}
    metadata |= {"duration": duration, "words": words, "maximum": maximum}
    return field(default=default, metadata=metadata) if default is not MISSING else field(metadata=metadata)


@dataclass(frozen=True)
class General:
    """Keys at the top level, outside every section."""

    name: ClassVar[str] = ""
    seed: int = key("seed of the initialisation, of dropout and of the sample order", default=1234, minimum=0)
    device: str = key("where to train", default="auto", choices=("auto", "cpu", "cuda"))
    precision: str = key(
        "auto is bf16 on a GPU that has it, and fp32 elsewhere; bf16 is autocast over fp32 weights, bf16-params "
        "keeps weights and optimizer in bf16 too, tf32 is fp32 with faster products on a GPU, fp8 is bf16 with linear "
        "layers that multiply in 8 bits (torchao; GPUs from Ada or Hopper on)",
        default="auto",
        choices=("auto", "fp32", "tf32", "bf16", "bf16-params", "fp8"),
    )
    deterministic: bool | str = key(
        "use only algorithms that give the same bits every time, on a GPU too; slower there; elastic: the same bits on "
        "any number of data-parallel ranks, too; slower everywhere",
        default=False,
        choices=(False, True, "elastic"),
        quiet=True,
    )
    shift_labels: bool = key(
        "labels of the data sets stand at the place of their own token, as in a copy of input_ids, and are shifted by "
        "one when they are read",
        default=False,
        quiet=True,
    )
    num_threads: int | None = key(
        "CPU threads of torch; null takes what torch finds", default=None, minimum=1, maximum=_MAX_THREADS
    )
    cpu_matmul: str = key(
        "library for large fp32 products on a CPU: auto takes oneDNN where torch's MKL leaves AVX-512 unused, "
        "torch always takes what torch takes; the two differ by rounding",
        default="auto",
        choices=("auto", "torch"),
        quiet=True,
    )
    recipe: str | None = key(
        "what guides for NeMo AutoModel name here; amcli pre-trains with or without it",
        default=None,
        choices=(None, aliases.RECIPE),
        quiet=True,
    )


@dataclass(frozen=True)
class StepSchedulerSection:
    """How many steps, how large, and what happens at which of them."""

    name: ClassVar[str] = "step_scheduler"
    max_steps: int = key("optimisation steps of the whole run", minimum=1)
    global_batch_size: int = key("samples per optimisation step, over all ranks", minimum=1)
    local_batch_size: int | str = key(
        "most samples of a forward pass of one rank (the micro-batch); auto finds how many fit",
        minimum=1,
        words=(AUTO,),
    )
    val_every_steps: int | None = key(
        "validate every so many steps, and at the end; null only at the end", default=None, minimum=1
    )
    val_batches: int | None = key("validation batches, the first of the set; null takes all", default=50, minimum=1)
    val_tokens: int | str | None = key(
        "label tokens of each validation set to validate on, as in 10M tokens; takes the place of val_batches",
        default=None,
        minimum=1,
        quiet=True,
        duration=True,
    )
    ckpt_every_steps: int | None = key("save every so many steps; null only at the end", default=None, minimum=1)

    @property
    def micro_batch_size(self) -> int:
        """`local_batch_size` as a number, which it is once a run has begun.

        Raises:
            ValueError: It is still `auto`.
        """
        if isinstance(self.local_batch_size, str):
            raise ValueError("local_batch_size is auto, and its number is not found yet")
        return self.local_batch_size


DECAY_STYLES = ("cosine", "linear", "constant", "inverse-square-root", "WSD")
WSD_STYLES = ("1-sqrt", "minus_sqrt", "linear", "cosine")


@dataclass(frozen=True)
class LRSchedulerSection:
    """The learning rate as a function of the step; lengths in steps, or in tokens as in `10M tokens`."""

    name: ClassVar[str] = "lr_scheduler"
    lr_decay_style: str = key(
        "shape of the decay; WSD stays at the top and decays at the end", default="constant", choices=DECAY_STYLES
    )
    lr_warmup_steps: int | str = key("length of the linear warm-up", default=0, minimum=0, duration=True)
    lr_decay_steps: int | str | None = key(
        "where min_lr is reached, from the start; null is max_steps", default=None, minimum=1, duration=True
    )
    lr_wsd_decay_steps: int | str | None = key(
        "length of the decay of WSD, which ends at lr_decay_steps; null is a fifth of that",
        default=None,
        minimum=1,
        quiet=True,
        duration=True,
    )
    lr_wsd_decay_style: str = key(
        "shape of the decay of WSD; minus_sqrt is another name of 1-sqrt",
        default="1-sqrt",
        choices=WSD_STYLES,
        quiet=True,
    )
    min_lr: float = key("learning rate at the end of the decay", default=0.0, minimum=0.0)
    _target_: str | None = key(
        "a function of the step in place of this schedule: called as f(step, other keys), it returns a multiplier of "
        "optimizer.lr",
        default=None,
        quiet=True,
    )


@dataclass(frozen=True)
class ClipGradNormSection:
    """Clipping of the gradient."""

    name: ClassVar[str] = "clip_grad_norm"
    max_norm: float | None = key("largest global norm of the gradient; null does not clip", default=1.0, above=0.0)


@dataclass(frozen=True)
class DataloaderSection:
    """How batches are read ahead."""

    name: ClassVar[str] = "dataloader"
    num_workers: int = key(
        "threads that assemble batches ahead; 0 reads in the training thread",
        default=1,
        minimum=0,
        maximum=_MAX_THREADS,
    )
    prefetch_factor: int = key("optimisation steps that each worker may be ahead", default=2, minimum=1)
    pin_memory: bool = key(
        "batches go to a GPU through pinned memory, always", default=True, choices=(True,), quiet=True
    )
    persistent_workers: bool = key(
        "the threads live as long as the run, always", default=True, choices=(True,), quiet=True
    )
    collate_fn: str | None = key(
        "how samples become a batch; samples of one length are stacked, with or without this name",
        default=None,
        choices=(None, aliases.COLLATE_FN),
        quiet=True,
    )


@dataclass(frozen=True)
class CompileSection:
    """Compiling the model with torch.compile; worth it on a GPU, and hardly on a CPU."""

    name: ClassVar[str] = "compile"
    enabled: bool = key("whether to compile the model", default=False, quiet=True)
    mode: str = key(
        "what to optimise for, as torch.compile names it",
        default="default",
        # Not those with CUDA graphs: a gradient that is kept would be written over by the next micro-batch.
        choices=("default", "max-autotune-no-cudagraphs"),
        quiet=True,
    )
    backend: str = key("what compiles, as torch.compile names it", default="inductor", quiet=True)
    fullgraph: bool = key("refuse what cannot be compiled instead of leaving it out", default=False, quiet=True)
    per_block: bool = key("compile one block for all, not the whole model", default=True, quiet=True)


@dataclass(frozen=True)
class ActivationCheckpointingSection:
    """Less memory for more time: activations are computed again in the backward pass."""

    name: ClassVar[str] = "activation_checkpointing"
    mode: str | None = key(
        "full keeps only the input of a block; selective keeps its products of matrices and attention too",
        default=None,
        choices=(None, "full", "selective"),
        quiet=True,
    )
    every: int = key("every so many blocks; the others keep everything", default=1, minimum=1, quiet=True)


@dataclass(frozen=True)
class CheckpointSection:
    """Where and how the run is saved."""

    name: ClassVar[str] = "checkpoint"
    enabled: bool = key("whether to save at all", default=True)
    checkpoint_dir: str = key("directory of this run's checkpoints", default="checkpoints")
    model_save_format: str = key(
        "format of the weights: safetensors, or a file of torch.save, which rank 0 always writes whole",
        default="safetensors",
        choices=("safetensors", "torch_save"),
    )
    save_consolidated: str | bool = key(
        "when ranks that each hold a part of the model write whole files instead of their parts: the weights of the "
        "final checkpoint, every checkpoint by rank 0 alone, or, with false, never; others always write whole files",
        default="final",
        choices=("final", "every", False),
    )
    max_recent_checkpoints: int | None = key(
        "how many to keep; LATEST and BEST always stay; null keeps all", default=None, minimum=1
    )
    keep_every_steps: int | None = key(
        "of those beyond max_recent_checkpoints, keep the multiples of so many steps",
        default=None,
        minimum=1,
        quiet=True,
    )
    best_metric_key: str = key(
        "what BEST is the least of: val_loss, the mean over all validation sets, or val_loss/NAME of one of them",
        default="val_loss",
        quiet=True,
    )
    save_best: bool = key(
        "also save a step that is not due when its validation is the best so far", default=False, quiet=True
    )
    is_async: bool = key(
        "go on training while a checkpoint is written, from a copy in the host's memory of all that a rank writes",
        default=False,
        quiet=True,
    )
    on_save_error: str = key(
        "what a save that fails before the end of the run does: stop it, or warn and train on unsaved",
        default="stop",
        choices=("stop", "warn"),
        quiet=True,
    )
    restore_from: str | int | None = key(
        "what a run goes on from, with all of its state: LATEST of checkpoint_dir where there is one, a step or name "
        "in it, or the path of any checkpoint or run",
        default=None,
        quiet=True,
    )
    init_from: str | None = key(
        "weights that a new run starts from: a checkpoint, a Hugging Face directory or a file of weights",
        default=None,
        quiet=True,
    )


@dataclass(frozen=True)
class DistributedSection:
    """The layout over devices: how the ranks that `--nproc-per-node` starts share model and data."""

    name: ClassVar[str] = "distributed"
    strategy: str | None = key(
        "ddp: every rank holds the whole model; fsdp2, also for null: it is sharded over the ranks",
        default=None,
        choices=(None, "ddp", "fsdp2"),
    )
    dp_size: int | None = key("data-parallel ranks; null is what remains of the world", default=None, minimum=1)
    tp_size: int = key("tensor-parallel ranks: each has a part of every matrix", default=1, minimum=1)
    cp_size: int = key("context-parallel ranks: each has a part of every sequence", default=1, minimum=1)
    pp_size: int = key("pipeline-parallel ranks", default=1, minimum=1, quiet=True)
    dp_replicate_size: int | None = key(
        "groups that each hold the whole model, sharded within the group; null is one",
        default=None,
        minimum=1,
        quiet=True,
    )
    sequence_parallel: bool = key(
        "tensor-parallel ranks also split what is between the matrices, along the sequence", default=False, quiet=True
    )
    reshard_after_forward: bool = key(
        "fsdp2: free a block's gathered weights until its backward pass, for less memory and one more gather",
        default=True,
        quiet=True,
    )
    mp_policy: str | None = key(
        "fsdp2: bf16 gathers and computes with bf16 weights (masters and gradients' sums stay fp32)",
        default=None,
        choices=(None, "bf16"),
        quiet=True,
    )
    offload_policy: str | None = key(
        "fsdp2: cpu keeps weights and optimizer in the host's memory", default=None, choices=(None, "cpu"), quiet=True
    )
    defer_fsdp_grad_sync: bool = key(
        "fsdp2: sum gradients over ranks once per step, not once per micro-batch", default=True, quiet=True
    )
    dtype: str | None = key(
        "where guides for NeMo AutoModel put the precision; amcli has it at the top level",
        default=None,
        choices=(None, "float32", "bfloat16"),
        quiet=True,
    )
    _target_: str | None = key(
        "another way to say the strategy: the manager that guides for NeMo AutoModel name",
        default=None,
        choices=(None, *aliases.STRATEGIES),
        quiet=True,
    )

    def chosen_strategy(self) -> str | None:
        """The strategy, whether it was named or given by a manager."""
        return self.strategy or aliases.STRATEGIES.get(self._target_ or "")


@dataclass(frozen=True)
class DistEnvSection:
    """How the ranks of a run talk to and wait for each other."""

    name: ClassVar[str] = "dist_env"
    backend: str | None = key(
        "what carries the messages; null suits the device", default=None, choices=(None, "nccl", "gloo"), quiet=True
    )
    timeout_minutes: float = key("how long a rank waits for the others", default=10.0, above=0.0, quiet=True)


@dataclass(frozen=True)
class PackedSequenceSection:
    """Packing of several whole documents into one sample, within which attention stays in each document."""

    name: ClassVar[str] = "packed_sequence"
    packed_sequence_size: int = key("tokens of a sample of whole documents; 0: off", default=0, minimum=0, quiet=True)


@dataclass(frozen=True)
class WandbSection:
    """Reports to Weights & Biases, where this section is given; needs the extra `wandb`."""

    enabled: bool = key("whether to report", default=True, quiet=True)
    project: str | None = key("project of the run", default=None, quiet=True)
    entity: str | None = key("user or team that owns the project; null is your own", default=None, quiet=True)
    name: str | None = key("name of the run", default=None, quiet=True)
    mode: str = key(
        "offline keeps everything on this machine",
        default="online",
        choices=("online", "offline", "disabled"),
        quiet=True,
    )
    save_dir: str | None = key("directory of its local files; null is checkpoint_dir", default=None, quiet=True)


# On the class, `name` is that of the section, as in all others; on an instance it is the run's.
WandbSection.name = "wandb"


@dataclass(frozen=True)
class MfuSection:
    """What the model FLOPs utilisation is measured against."""

    name: ClassVar[str] = "mfu"
    peak_tflops: float | None = key(
        "TFLOP/s that one device could do at most; null takes the maker's figure for dense bf16, where it is known",
        default=None,
        above=0.0,
        quiet=True,
    )


@dataclass(frozen=True)
class TensorboardSection:
    """Files for TensorBoard, where this section is given; needs the extra `tensorboard`."""

    name: ClassVar[str] = "tensorboard"
    enabled: bool = key("whether to write them", default=True, quiet=True)
    log_dir: str | None = key("their directory; null is tensorboard in checkpoint_dir", default=None, quiet=True)


SECTIONS: tuple[type[Any], ...] = (
    StepSchedulerSection,
    LRSchedulerSection,
    ClipGradNormSection,
    DataloaderSection,
    CompileSection,
    ActivationCheckpointingSection,
    CheckpointSection,
    DistributedSection,
    DistEnvSection,
    PackedSequenceSection,
    WandbSection,
    TensorboardSection,
    MfuSection,
)

# Sections of amcli in whose place a `_target_` may stand; the other keys are then its arguments.
REPLACEABLE = ("lr_scheduler",)


def section_fields(section: type[Any]) -> dict[str, Field[Any]]:
    """The keys of a section by name."""
    return {item.name: item for item in fields(section)}


def is_replaced(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a `_target_` stands in the place of a section of amcli in these values of a configuration."""
    section = values.get(name)
    return name in REPLACEABLE and isinstance(section, Mapping) and section.get("_target_") is not None


def own_sections(values: Mapping[str, Any]) -> list[type[Any]]:
    """The sections whose keys are those of amcli in these values of a configuration; the top level is the first."""
    sections: tuple[type[Any], ...] = (General, *SECTIONS)
    return [section for section in sections if not is_replaced(section.name, values)]


def is_required(item: Field[Any]) -> bool:
    """Whether a key has no default."""
    return item.default is MISSING


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def allowed_types(section: type[Any], name: str) -> tuple[type[Any], ...]:
    """The types that the value of a key may have."""
    annotation = typing.get_type_hints(section)[name]
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def type_words(allowed: tuple[type[Any], ...]) -> str:
    """Types in words.

    >>> type_words((int, type(None)))
    'a whole number or null'
    """
    return " or ".join(_TYPE_NAMES[kind] for kind in allowed)
