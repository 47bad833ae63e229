"""Sizes of a run, read from a checked configuration: batch, length, layout, precision, optimizer, loss, schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.declared_facts import LossFacts, loss_facts_of, optimizer_facts_of
from automodel_cli.engine.config.parallel_layout import Degrees, degrees_of, filled_batch
from automodel_cli.engine.config.sections import AUTO, DistributedSection, section_fields
from automodel_cli.engine.config.values import resolve_env, tokens_per_step
from automodel_cli.errors import ConfigError


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer keeps for each number that it trains, in the type of the weights.

    Args:
        per_matrix: Tensors like each matrix inside the blocks.
        per_other: Tensors like each other parameter.
        counts_steps: Whether it also keeps one fp32 step count for each other parameter; for matrices only if
            `per_matrix` equals `per_other`.
    """

    per_matrix: float
    per_other: float
    counts_steps: bool


@dataclass(frozen=True)
class RunSizes:
    """The numbers that a plan starts from; None where the configuration does not have one.

    Args:
        seq_len: Tokens of a sample.
        global_batch_size: Samples of a step, over all ranks.
        local_batch_size: Samples of a forward pass of one rank; None if the configuration has none, or `auto`.
        finds_local_batch: Whether the local batch size is `auto`.
        max_steps: Steps of the run.
        is_bf16: Whether matrix products are computed in bf16; `auto` is, since a plan is for a GPU.
        weight_bytes: Bytes of one number of a weight, of its gradient and of its optimizer state.
        degrees: How the ranks are divided.
        distributed: The other keys of the layout.
        optimizer: None for one that is not known here.
        loss: What the class of the loss declares of itself.
        chunk_size: Rows of a chunk, if the configuration names them.
        recompute: What blocks keep for the backward pass, to compute the rest again: `full` their input,
            `selective` products of matrices and attention, too; None keeps everything.
        recompute_every: One block in `recompute_every` is recomputed.
        has_mask: Whether attention reads a mask of T x T.
        peak_tflops: Peak of one device, if the configuration names it.
    """

    seq_len: int | None
    global_batch_size: int | None
    local_batch_size: int | None
    max_steps: int | None
    is_bf16: bool
    weight_bytes: int
    degrees: Degrees
    distributed: DistributedSection
    optimizer: OptimizerState | None
    loss: LossFacts = field(default_factory=LossFacts)
    chunk_size: int | None = None
    recompute: str | None = None
    recompute_every: int = 1
    has_mask: bool = False
    peak_tflops: float | None = None
    finds_local_batch: bool = False

    @property
    def uses_fsdp(self) -> bool:
        """Whether weights are sharded and gathered; never for one rank alone."""
        apart = self.degrees.dp * self.degrees.cp > 1 or self.distributed.mp_policy or self.distributed.offload_policy
        return bool(apart) and self.distributed.chosen_strategy() != "ddp"

    @property
    def accumulation(self) -> int | None:
        """Forward and backward passes of a step; None where a batch size is missing or does not divide."""
        if not self.global_batch_size or not self.local_batch_size:
            return None
        passes, rest = divmod(self.global_batch_size, self.local_batch_size * self.degrees.dp)
        return passes if passes and not rest else None

    @property
    def has_chunked_loss(self) -> bool:
        """Whether the loss is computed with the head, without all logits."""
        return self.loss.logits_per_block is not None

    def loss_rows(self, vocab_size: int) -> int:
        """Rows of logits that the loss holds at once."""
        if self.loss.logits_per_block is None:
            raise ValueError("a loss of whole logits has no blocks of rows")
        return self.chunk_size or max(self.loss.least_rows, self.loss.logits_per_block // vocab_size)


def with_environment(config: Config) -> Config:
    """The configuration with environment variables put in; a reference that resolves to nothing stays."""

    def looked_up(node: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(node, Mapping):
            return {name: looked_up(value, (*path, name)) for name, value in node.items()}
        if isinstance(node, list):
            return [looked_up(value, (*path, index)) for index, value in enumerate(node)]
        try:
            return resolve_env(node, config.origin(path))
        except ConfigError:
            return node

    return Config(looked_up(config.values, ()), config.origins, config.key_origins)


def run_sizes(config: Config, world_size: int | None = None) -> RunSizes:
    """Reads the sizes.

    Args:
        config: Checked, with environment variables put in.
        world_size: Ranks of the run; None takes as few as the layout allows.
    """
    section = config.get("distributed")
    known = section_fields(DistributedSection)
    given = {name: value for name, value in section.items() if name in known} if isinstance(section, Mapping) else {}
    section = DistributedSection(**given)
    world = world_size or (section.dp_size or section.dp_replicate_size or 1) * section.tp_size * section.cp_size
    samples, tokens = _whole(config, "step_scheduler.global_batch_size"), tokens_per_step(config)
    precision, device = config.get("precision"), config.get("device")
    degrees, local = degrees_of(section, world), _whole(config, "step_scheduler.local_batch_size")
    return RunSizes(
        seq_len=tokens // samples if samples and tokens else None,
        global_batch_size=samples,
        local_batch_size=filled_batch(local, samples, degrees.dp) if samples and local else local,
        max_steps=_whole(config, "step_scheduler.max_steps"),
        is_bf16=precision in ("bf16", "bf16-params", "fp8") or (precision in (None, "auto") and device != "cpu"),
        weight_bytes=2 if precision == "bf16-params" else 4,
        degrees=degrees,
        distributed=section,
        optimizer=_optimizer(config),
        loss=loss_facts_of(config),
        chunk_size=_whole(config, "loss_fn.chunk_size"),
        recompute=config.get("activation_checkpointing.mode"),
        recompute_every=_whole(config, "activation_checkpointing.every") or 1,
        has_mask=bool(config.get("dataset.document_mask") or config.get("packed_sequence.packed_sequence_size")),
        peak_tflops=config.get("mfu.peak_tflops"),
        finds_local_batch=config.get("step_scheduler.local_batch_size") == AUTO,
    )


def _optimizer(config: Config) -> OptimizerState | None:
    """What the optimizer keeps, as its class declares; None where it declares nothing."""
    section = config.get("optimizer")
    facts = optimizer_facts_of(config)
    if facts.state_per_parameter is None or not isinstance(section, Mapping):
        return None
    more = sum(amount for option, amount in facts.state_of_options.items() if section.get(option))
    per_other = facts.state_per_parameter + more
    per_matrix = per_other if facts.state_per_matrix is None else facts.state_per_matrix + more
    rules = section.get("param_groups") or ()
    if per_matrix != per_other and any(isinstance(rule, Mapping) and "muon" in rule for rule in rules):
        return None  # a rule moves parameters between the two kinds
    return OptimizerState(per_matrix, per_other, facts.counts_steps)


def _whole(config: Config, path: str) -> int | None:
    value = config.get(path)
    return value if type(value) is int and value > 0 else None


@dataclass(frozen=True)
class Schedule:
    """Amounts of a run; None where a number of the configuration is missing.

    Args:
        seq_len: Tokens of a sample.
        dp_ranks: Ranks that read different samples.
        accumulation: Forward and backward passes of a step on each rank.
        tokens_per_step: Tokens that one update learns from, over all ranks.
        steps: Updates.
        tokens: Tokens of the whole run; repeated ones count again.
        tokens_per_parameter: Hoffmann et al. 2022 found about 20 best for a given amount of compute.
        data_tokens: Tokens of the training data.
        epochs: How often the run goes through them.
    """

    seq_len: int | None
    dp_ranks: int
    accumulation: int | None
    tokens_per_step: int | None
    steps: int | None
    tokens: int | None
    tokens_per_parameter: float | None
    data_tokens: int | None
    epochs: float | None


def schedule(sizes: RunSizes, num_parameters: int | None, data_tokens: int | None) -> Schedule:
    """The amounts: products and quotients of numbers that stand in the configuration.

    Args:
        sizes: Sizes of the run.
        num_parameters: All parameters of the model; None where the number is not known.
        data_tokens: Tokens of the training data; None without a manifest.
    """
    per_step = sizes.global_batch_size * sizes.seq_len if sizes.global_batch_size and sizes.seq_len else None
    tokens = per_step * sizes.max_steps if per_step and sizes.max_steps else None
    return Schedule(
        seq_len=sizes.seq_len,
        dp_ranks=sizes.degrees.dp,
        accumulation=sizes.accumulation,
        tokens_per_step=per_step,
        steps=sizes.max_steps,
        tokens=tokens,
        tokens_per_parameter=tokens / num_parameters if tokens and num_parameters else None,
        data_tokens=data_tokens,
        epochs=tokens / data_tokens if tokens and data_tokens else None,
    )
