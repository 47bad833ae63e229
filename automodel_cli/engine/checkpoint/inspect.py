"""Reports what a checkpoint, or a run's directory, holds and whether it is whole; no torch, and nothing in it runs.

Reads the manifest, the JSON and YAML files and the headers of the tensor files; the tensors themselves only if asked to
verify them. Links are refused, sizes are bounded before reading, and what cannot be read becomes a line of the report.
Writes nothing.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.checkpoint_report import (
    CheckpointReport,
    ParameterCount,
    RunReport,
    Verdict,
    count_parameters,
)
from automodel_cli.engine.checkpoint.foreign import pickled_tensors
from automodel_cli.engine.checkpoint.manifest import (
    MANIFEST_NAME,
    Findings,
    Manifest,
    NewerFormatError,
    compare,
    read_manifest,
)
from automodel_cli.engine.checkpoint.snapshot import read_train_state
from automodel_cli.engine.checkpoint.stored_tensors import TensorInfo, stored_tensors
from automodel_cli.engine.checkpoint.tensor_index import json_object
from automodel_cli.engine.config.yaml_reader import read_yaml
from automodel_cli.errors import CheckpointError, ConfigError

_REQUIRED_FILES = (layout.CONFIG_FILE, layout.TRAIN_STATE_FILE, layout.rng_file(rank=0))
_PROGRESS_KEYS = ("tokens_seen", "samples_consumed", "loss", "val_loss", "best_val_loss", "lr", "train_seconds")
_CONFIG_KEYS = (
    "seed",
    "dataset.file_pattern",
    "dataset.seq_len",
    "optimizer._target_",
    "optimizer.lr",
    "step_scheduler.max_steps",
    "step_scheduler.global_batch_size",
)


def inspect(directory: Path, verify: bool = False) -> CheckpointReport:
    """Reports on one checkpoint, whatever state it is in.

    Args:
        directory: The checkpoint, as `layout.resolve` returns it.
        verify: Also read every byte and compare it with the manifest.

    Raises:
        NewerFormatError: A newer amcli wrote it.
        CheckpointError: A file is there and cannot be read.
    """
    try:
        return _Inspection(directory).report(verify)
    except OSError as error:
        raise CheckpointError(
            f"it cannot be read: {error}", where=str(directory), help="check its permissions, and the disk"
        ) from error


@dataclass
class _Inspection:
    """Collects what is found while the files are read one after another."""

    directory: Path
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self, verify: bool) -> CheckpointReport:
        manifest = self._manifest()
        if manifest is not None:
            self._compare(manifest, verify)
        else:
            self._look_for_required_files()
        model_config = self._json(layout.MODEL_CONFIG_FILE, json_object)
        step = manifest.step if manifest else None
        state = self._json(layout.TRAIN_STATE_FILE, lambda path: read_train_state(path, step)) or {}
        facts = dict(manifest.facts) if manifest else {}
        parameters = self._parameters(model_config)
        optimizer_dtypes = self._optimizer_dtypes()
        config = self._config()
        problems = tuple(dict.fromkeys([*self.missing, *self.damaged]))
        return CheckpointReport(
            path=str(self.directory),
            verdict=self._verdict(manifest),
            verified=verify and manifest is not None,
            problems=problems,
            notes=tuple(self.notes),
            marks=_marks(self.directory),
            step=manifest.step if manifest else layout.step_of(self.directory.name),
            saved_at=manifest.saved_at if manifest else None,
            progress={key: value for key in _PROGRESS_KEYS if (value := facts.pop(key, state.get(key))) is not None},
            parameters=parameters,
            optimizer_dtypes=optimizer_dtypes,
            files=_file_sizes(self.directory),
            config=config,
            facts=facts,
            amcli_version=manifest.amcli_version if manifest else None,
        )

    def _verdict(self, manifest: Manifest | None) -> Verdict:
        if self.damaged:
            return "corrupt"
        if self.missing:
            return "incomplete"
        return "weights only" if manifest is not None and layout.is_weights_only(manifest) else "resumable"

    def _manifest(self) -> Manifest | None:
        try:
            return read_manifest(self.directory)
        except NewerFormatError:
            raise
        except CheckpointError as error:
            exists = (self.directory / MANIFEST_NAME).exists()
            (self.damaged if exists else self.missing).append(f"{MANIFEST_NAME}: {error.message}")
            return None

    def _compare(self, manifest: Manifest, verify: bool) -> None:
        findings: Findings = compare(self.directory, manifest, hashes=verify)
        self.missing += findings.missing
        self.damaged += findings.damaged
        self.notes += findings.extra
        required = _required(manifest.files, weights_only=layout.is_weights_only(manifest))
        self.missing += [f"{name}: not in the manifest" for name in required if name not in manifest.files]
        named = layout.step_of(self.directory.name)
        if named is not None and named != manifest.step:
            self.damaged.append(f"it holds step {manifest.step}, not the step of its name")

    def _look_for_required_files(self) -> None:
        there = _file_sizes(self.directory)
        self.missing += [f"{name}: missing" for name in _required(there) if name not in there]

    def _readable(self, name: str) -> Path | None:
        """The file, if it is a regular one that no link leads to."""
        path = self.directory / name
        if any(problem.startswith(f"{name}: ") for problem in self.damaged):
            return None  # a damaged file says nothing
        if path.parent.is_symlink() or path.is_symlink() or not path.exists():
            return None  # a problem already, unless it is optional
        return path if path.is_file() else None

    def _json(self, name: str, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any] | None:
        path = self._readable(name)
        if path is None:
            return None
        try:
            return read(path)
        except CheckpointError as error:
            self.damaged.append(f"{name}: {error.message}")
            return None

    def _parameters(self, model_config: Mapping[str, Any] | None) -> ParameterCount | None:
        tensors = self._tensors(layout.model_files(_file_sizes(self.directory)))
        return count_parameters(tensors, model_config) if tensors else None

    def _optimizer_dtypes(self) -> dict[str, int]:
        tensors = self._tensors(layout.optimizer_files(_file_sizes(self.directory)))
        return count_parameters(tensors, None).by_dtype if tensors else {}

    def _tensors(self, names: list[str]) -> dict[str, TensorInfo]:
        """The tensors of some files; none unless all files can be read, since each may hold a part of a tensor."""
        paths = [self._readable(name) for name in names]
        readable = [path for path in paths if path is not None]
        if len(readable) < len(paths) or self._lacks_parts_beside(names):
            return {}
        try:
            if names == [layout.PICKLED_MODEL_FILE]:
                return pickled_tensors(readable[0])
            return {name: tensor.info for name, tensor in stored_tensors(readable).items()}
        except CheckpointError as error:
            where = Path(error.where or "")
            name = where.relative_to(self.directory).as_posix() if where.is_relative_to(self.directory) else names[0]
            self.damaged.append(f"{name}: {error.message}")
            return {}

    def _lacks_parts_beside(self, names: list[str]) -> bool:
        """Whether a file of tensors is missing where these stand: the tensors left are then no sign of damage."""
        folders = {name.split("/")[0] for name in names}
        return any(
            problem.split("/")[0] in folders and problem.endswith(".safetensors: missing") for problem in self.missing
        )

    def _config(self) -> dict[str, Any]:
        path = self._readable(layout.CONFIG_FILE)
        if path is None:
            return {}
        try:
            values = read_yaml(path, kind="checkpoint").value
        except ConfigError as error:
            self.damaged.append(f"{layout.CONFIG_FILE}: {error.message}")
            return {}
        return _telling_values(values) if isinstance(values, Mapping) else {}


def _required(names: Collection[str], *, weights_only: bool = False) -> list[str]:
    """Files that a checkpoint needs; those that it has show whether ranks wrote it in parts."""
    model = layout.model_files(names) or [layout.MODEL_FILE]
    if weights_only:
        return [layout.CONFIG_FILE, *model]
    return [*_REQUIRED_FILES, *model, *(layout.optimizer_files(names) or [layout.OPTIMIZER_FILE])]


def _telling_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The scalars of `model`, then the other keys that describe the run."""
    model = values.get("model")
    shown = {f"model.{key}": value for key, value in model.items()} if isinstance(model, Mapping) else {}
    for dotted in _CONFIG_KEYS:
        section, _, key = dotted.rpartition(".")
        holder = values.get(section) if section else values
        if isinstance(holder, Mapping) and key in holder:
            shown[dotted] = holder[key]
    return {key: value for key, value in shown.items() if isinstance(value, str | int | float | bool)}


def _file_sizes(directory: Path) -> dict[str, int]:
    return {
        path.relative_to(directory).as_posix(): path.lstat().st_size
        for path in sorted(directory.rglob("*"))
        if stat.S_ISREG(path.lstat().st_mode)
    }


def _marks(directory: Path) -> tuple[str, ...]:
    real = directory.resolve()
    return tuple(name for name in layout.LINKS if _points_at(real.parent, name, real))


def _points_at(root: Path, name: str, directory: Path) -> bool:
    try:
        target = layout.read_link(root, name)
    except CheckpointError:
        return False  # a link that leads elsewhere; following it raises the error
    return target is not None and target.name == directory.name


def inspect_run(root: Path, verify: bool = False) -> RunReport:
    """Reports on every checkpoint of a run's directory.

    Raises:
        CheckpointError: There is no checkpoint in it, or one cannot be read.
    """
    steps = layout.list_steps(root)
    if not steps:
        layout.resolve(root)  # raises, and says what there is instead
    notes = [
        f"{path.name}: set aside, since it was broken" for path in sorted(root.glob(f"{layout.BROKEN_PREFIX}step_*"))
    ]
    for name in layout.LINKS:
        try:
            target = layout.read_link(root, name)
        except CheckpointError as error:
            notes.append(error.message)
            continue
        if target is not None and not target.is_dir():
            notes.append(f"{name} points to {target.name}, which is gone")
    return RunReport(str(root), tuple(inspect(path, verify) for _, path in steps), tuple(notes))


def look(path: Path | None, verify: bool = False) -> CheckpointReport | RunReport:
    """Reports on what a user names: every checkpoint of a run's directory, or one checkpoint.

    Raises:
        CheckpointError: There is nothing to report on.
    """
    if path is not None and path.is_dir() and not layout.is_checkpoint(path) and layout.list_steps(path):
        return inspect_run(path, verify)
    return inspect(layout.resolve(path), verify)
