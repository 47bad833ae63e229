"""How much a run reads: tokens per step, steps, tokens in all, and how often the data is seen."""

from __future__ import annotations

from dataclasses import dataclass

from automodel_cli.engine.plan.run_sizes import RunSizes


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
        sizes: Of the run.
        num_parameters: Of the model, all of them; None where nobody knows.
        data_tokens: Of the training data; None where no manifest says.
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
