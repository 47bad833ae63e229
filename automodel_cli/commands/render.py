"""What several commands print: notes, questions, and the summary at the end of a run."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from automodel_cli.commands import columns
from automodel_cli.engine.config.emit import Change, steady
from automodel_cli.engine.config.secrets import masked_message
from automodel_cli.engine.config.suggest import on_run

if TYPE_CHECKING:
    from automodel_cli.engine.train.recipe import RunSummary

Say = Callable[[str], None]


def speaker(as_json: bool, *, quiet: bool = False) -> Say:
    """Where notes go: standard output, standard error where that is kept for JSON, or nowhere."""
    if quiet:
        return lambda text: None
    return lambda text: typer.echo(steady(masked_message(text)), err=as_json)


def changes(found: list[Change], say: Say) -> None:
    """Prints every key that is not as it was in the checkpoint."""
    for change in found:
        say(f"changed  {change}")


def notes(found: Sequence[str], say: Say) -> None:
    """Prints what could not be checked, and what has no effect yet."""
    for note in found:
        say("\n".join(columns.wrapped(f"note: {note}", columns.room(), "  ")))


def ask(what: str, *, yes: bool) -> None:
    """Asks on a terminal whether to go on; a script is not asked.

    Args:
        what: What will be lost, as the beginning of a question: `delete the run in checkpoints`.
        yes: The answer was given with `--yes`.

    Raises:
        typer.Abort: The answer is no.
    """
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm(f"{what}?", abort=True, err=True)


def run_summary(summary: RunSummary, *, as_json: bool) -> None:
    """Prints how a run ended: losses beside the unigram entropy, throughput, and what to do next."""
    values = {
        "step": summary.step,
        "loss": summary.loss,
        "val_loss": summary.val_loss,
        "unigram_entropy_nats": summary.unigram_entropy_nats,
        "tokens_seen": summary.tokens_seen,
        "tokens_per_second": round(summary.tokens_per_second, 1),
        "seconds": round(summary.seconds, 3),
        "checkpoint": None if summary.checkpoint is None else str(summary.checkpoint),
    }
    if as_json:
        typer.echo(json.dumps(values))
        return
    rows = [("steps", f"{summary.step:,}"), ("tokens", f"{summary.tokens_seen:,}")]
    if summary.loss is not None:
        rows.append(("loss", f"{summary.loss:.4f} nats per token"))
    if summary.val_loss is not None:
        perplexity = math.exp(min(summary.val_loss, 700.0))
        rows.append(("val_loss", f"{summary.val_loss:.4f} nats per token, perplexity {perplexity:.2f}"))
    if summary.unigram_entropy_nats is not None:
        entropy = f"{summary.unigram_entropy_nats:.4f} nats per token: what knowing only the frequency of tokens gives"
        rows.append(("unigram entropy", entropy))
    rows.append(("speed", f"{summary.tokens_per_second:,.0f} tokens/s, {summary.seconds:.1f} s in all"))
    if summary.checkpoint is not None:
        rows.append(("checkpoint", str(summary.checkpoint)))
    typer.echo()
    columns.show(rows, text=[1])
    if summary.checkpoint is not None:
        # Commands are pasted, so they are never wrapped.
        width = max(len(name) for name, _ in rows)
        looks = ["sample", "inspect-ckpt"] if summary.has_tokenizer else ["inspect-ckpt"]
        for word, name in zip(("next", "or"), looks, strict=False):
            typer.echo(f"{word:<{width}}  {on_run(name, summary.checkpoint.parent)}")
