"""Reports to Weights & Biases, and to event files that `tensorboard --logdir DIR` shows.

W&B gets the numbers of every step and the configuration as it may be shown: values of secret keys masked, `${VAR}`
unresolved. What wandb would collect by itself (the command line, which may hold a secret, the installed packages, the
code, what is printed) is switched off. TensorBoard's records are made by its package and written here: its own writer
is a thread that dies, with a traceback, of a full disk.
"""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.sections import WandbSection
from automodel_cli.engine.observe.metrics import StepStats, ValStats, scalars
from automodel_cli.engine.observe.record_file import RecordFile


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


class TensorBoardSink:
    """Writes every number of a step under its name in `metrics.jsonl`.

    Args:
        directory: For the event files; a resumed run adds a file, and TensorBoard shows them as one curve.
    """

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self._directory = directory
        self._file: RecordFile | None = None

    @property
    def num_gone(self) -> int:
        """Reports that went with a file that was removed."""
        return 0 if self._file is None else self._file.num_gone

    def on_start(self, facts: dict[str, Any]) -> None:
        """Begins the file; raises what tensorboard raises."""
        self._write(0, {})

    def on_step(self, stats: StepStats) -> None:
        """Writes the numbers of a step."""
        self._write(stats.step, scalars(stats.flat()))

    def on_validation(self, stats: ValStats) -> None:
        """Writes a validation."""
        self._write(stats.step, scalars(stats.flat()))

    def on_message(self, text: str) -> None:
        """Nothing: a message is no number."""

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, step: int, numbers: dict[str, float]) -> None:
        # Imported with the first report, as a refused run needs none of it.
        import numpy as np
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.util import tensor_util

        now = time.time()
        if self._file is None:
            name = f"events.out.tfevents.{int(now):010d}.{platform.node()}.{os.getpid()}.0"
            head = _framed(event_pb2.Event(wall_time=now, file_version="brain.Event:2"))
            self._file = RecordFile(self._directory / name, head)
        event = event_pb2.Event(wall_time=now, step=step)
        for tag, number in numbers.items():
            metadata = summary_pb2.SummaryMetadata(
                plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="scalars"),
                data_class=summary_pb2.DataClass.DATA_CLASS_SCALAR,
            )
            event.summary.value.add(
                tag=tag, tensor=tensor_util.make_tensor_proto(np.float32(number)), metadata=metadata
            )
        self._file.append(_framed(event) if numbers else b"")


def _framed(event: Any) -> bytes:
    """An event as it stands in a file: with its length and checksums."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
