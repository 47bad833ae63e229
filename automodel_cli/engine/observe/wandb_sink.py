"""Reports to Weights & Biases, online or into files on this machine.

Sent are the numbers of every step and the configuration as it may be shown: values of secret keys
masked, `${VAR}` unresolved. What wandb would collect by itself (the command line, which may hold a
secret, the installed packages, the code, what is printed) is switched off.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.sections import WandbSection
from automodel_cli.engine.observe.metrics import StepStats, ValStats, scalars


class WandbSink:
    """One run of Weights & Biases; a resumed run of amcli continues it.

    Args:
        section: The `wandb` section of the configuration.
        config: The configuration, masked.
        directory: Where wandb keeps its files, unless the section names a place.
    """

    name = "wandb"
    num_gone = 0

    def __init__(self, section: WandbSection, config: Mapping[str, Any], directory: Path) -> None:
        self._section = section
        self._config = dict(config)
        self._directory = Path(section.save_dir) if section.save_dir else directory
        self._run: Any = None

    def on_start(self, facts: dict[str, Any]) -> None:
        """Begins the run, or goes on with the one of the same `run_id`; raises what wandb raises."""
        # Imported with the first report: it takes a second, and a refused run never gets here.
        import wandb

        self._directory.mkdir(parents=True, exist_ok=True)
        section = self._section
        self._run = wandb.init(
            project=section.project,
            entity=section.entity,
            name=section.name,
            mode=section.mode,  # type: ignore[arg-type]  # one of the choices of the section
            dir=str(self._directory),
            id=facts.get("run_id"),
            resume="allow",
            config={**self._config, "facts": {key: value for key, value in facts.items() if key != "run_id"}},
            settings=wandb.Settings(
                console="off",
                save_code=False,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )
        # A run that is resumed from an earlier checkpoint reports steps anew, which wandb's own counter refuses.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def on_step(self, stats: StepStats) -> None:
        """Logs the numbers of a step under their names in `metrics.jsonl`."""
        self._log(stats.step, scalars(stats.flat()))

    def on_validation(self, stats: ValStats) -> None:
        """Logs a validation."""
        self._log(stats.step, scalars(stats.flat()))

    def on_message(self, text: str) -> None:
        """Nothing: a message is no number."""

    def close(self) -> None:
        """Ends the run; what is not sent yet is sent now."""
        if self._run is not None:
            self._run.finish()

    def _log(self, step: int, numbers: dict[str, float]) -> None:
        if self._run is None:
            raise RuntimeError("wandb did not start")
        self._run.log({"step": step, **numbers})
