"""What a user should know about a configuration that passes every check."""

from __future__ import annotations

from automodel_cli.engine.config.aliases import substitution_note
from automodel_cli.engine.config.check_targets import TargetCheck
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.sections import WandbSection


def notes_on(config: Config, wandb: WandbSection, found: TargetCheck) -> tuple[str, ...]:
    """What stands in for what, what has no effect yet, and what could not be checked; one line each."""
    named = [*found.targets, str(config.get("distributed._target_")), str(config.get("dataloader.collate_fn"))]
    notes = [substitution_note(named), *found.unchecked]
    if config.get("wandb") is not None and wandb.enabled and wandb.mode != "disabled":
        where = config.key_origin(("wandb",))
        notes.append(f"{where}: this version does not report to Weights & Biases yet; metrics.jsonl has the numbers")
    return tuple(note for note in notes if note)
