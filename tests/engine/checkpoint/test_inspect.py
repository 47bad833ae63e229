"""`inspect` tells the truth about any directory, and neither runs nor changes anything in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.inspect import inspect, look
from automodel_cli.engine.checkpoint.manifest import read_manifest, write_manifest
from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.errors import CheckpointError
from tests.engine.checkpoint.conftest import record_files

MakeSnapshot = Callable[[int], Snapshot]


@pytest.fixture
def checkpoint(tmp_path: Path, snapshots: MakeSnapshot) -> Path:
    facts = {"loss": 1.25, "val_loss": 1.5, "device": "cpu", "odd": float("inf")}
    return save(tmp_path, snapshots(200), facts=facts, is_best=True)


def sealed_again(directory: Path) -> None:
    """Makes the manifest vouch for the files as they are now."""
    write_manifest(directory, replace(read_manifest(directory), files=record_files(directory)))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_complete_checkpoint_is_described(checkpoint: Path) -> None:
    """Progress from facts and state, parameters from the header, values from the configuration."""
    report = inspect(checkpoint, verify=True)

    assert (report.verdict, report.verified, report.problems, report.notes) == ("resumable", True, (), ())
    assert (report.step, report.marks) == (200, ("LATEST", "BEST"))
    assert report.progress == {"tokens_seen": 200 * 4096, "loss": 1.25, "val_loss": 1.5}
    assert report.facts == {"device": "cpu", "odd": None}
    assert report.parameters is not None
    assert report.parameters.by_component == {"embedding": 28, "attention": 12, "norm": 4}
    assert report.parameters.by_dtype == {"F32": 32, "BF16": 12}
    assert report.parameters.tied_head
    assert report.optimizer_dtypes == {"F32": 1}
    assert report.config == {"seed": 200, "model.n_layer": 1, "model.n_embd": 4, "optimizer.lr": 1e-3}
    assert report.total_bytes == sum(len(content) for content in contents(checkpoint).values())


def test_a_report_is_json(checkpoint: Path) -> None:
    """Strict JSON, without NaN and Infinity, that reads back to the same report."""
    fields = inspect(checkpoint).to_dict()

    assert json.loads(json.dumps(fields, allow_nan=False))["verdict"] == "resumable"


@pytest.mark.parametrize("name", [layout.CONFIG_FILE, layout.MODEL_FILE, layout.OPTIMIZER_FILE, "manifest.json"])
def test_a_missing_file_makes_it_incomplete(checkpoint: Path, name: str) -> None:
    """The problem names the file; the step is still known."""
    (checkpoint / name).unlink()

    report = inspect(checkpoint)

    assert report.verdict == "incomplete"
    assert report.problems[0].startswith(f"{name}: ")
    assert report.step == 200


def test_a_file_that_the_manifest_never_knew_makes_it_incomplete(checkpoint: Path) -> None:
    """A manifest without weights does not describe a checkpoint."""
    (checkpoint / layout.MODEL_FILE).unlink()
    sealed_again(checkpoint)

    assert inspect(checkpoint).problems == (f"{layout.MODEL_FILE}: not in the manifest",)


def test_a_flipped_bit_of_a_weight_is_found_by_verify_only(checkpoint: Path) -> None:
    """The quick look says what it looked at; the thorough one reads every byte."""
    path = checkpoint / layout.MODEL_FILE
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    quick, thorough = inspect(checkpoint), inspect(checkpoint, verify=True)

    assert (quick.verdict, quick.verified) == ("resumable", False)
    assert thorough.verdict == "corrupt"
    assert thorough.problems[0].startswith(f"{layout.MODEL_FILE}: SHA-256")


DAMAGE = {
    layout.MODEL_FILE: b"\xff" * 100,
    layout.OPTIMIZER_FILE: b"",
    layout.TRAIN_STATE_FILE: b"[" * 100_000,
    layout.MODEL_CONFIG_FILE: b"[]",
    layout.CONFIG_FILE: b"a: !!python/object/apply:os.system [exit]",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_contents_that_mean_nothing_make_it_corrupt_even_if_sealed(checkpoint: Path, name: str) -> None:
    """A manifest can vouch for anything; what cannot be read is still said, by its name."""
    (checkpoint / name).write_bytes(DAMAGE[name])
    sealed_again(checkpoint)

    report = inspect(checkpoint, verify=True)

    assert report.verdict == "corrupt"
    assert [problem.partition(":")[0] for problem in report.problems] == [name]


@pytest.mark.parametrize("has_manifest", [True, False])
def test_links_and_pipes_are_never_opened(checkpoint: Path, tmp_path: Path, has_manifest: bool) -> None:
    """A link to the outside is not read, and a pipe does not block, whether or not a manifest tells of them."""
    secret = tmp_path / "secret"
    secret.write_text("seed: 42\n")
    (checkpoint / layout.CONFIG_FILE).unlink()
    (checkpoint / layout.CONFIG_FILE).symlink_to(secret)
    (checkpoint / layout.TRAIN_STATE_FILE).unlink()
    os.mkfifo(checkpoint / layout.TRAIN_STATE_FILE)
    if not has_manifest:
        (checkpoint / "manifest.json").unlink()

    report = inspect(checkpoint, verify=True)

    assert report.verdict == ("corrupt" if has_manifest else "incomplete")
    assert report.config == {}
    assert layout.CONFIG_FILE not in report.files


@pytest.mark.parametrize("state", [b'{"loss": "\\u001b[2J", "tokens_seen": []}', b'{"loss": NaN}'])
def test_values_of_any_kind_are_carried_as_they_are(tmp_path: Path, snapshots: MakeSnapshot, state: bytes) -> None:
    """A state with texts for numbers neither raises nor breaks the JSON."""
    directory = save(tmp_path, snapshots(1), facts={})
    (directory / layout.TRAIN_STATE_FILE).write_bytes(state)
    sealed_again(directory)

    json.dumps(inspect(directory).to_dict(), allow_nan=False)


def test_inspecting_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """A look at a damaged run renames and repairs nothing: that is left to `resume`."""
    (checkpoint / layout.MODEL_FILE).write_bytes(b"")
    before = contents(tmp_path)

    look(tmp_path, verify=True)

    assert contents(tmp_path) == before


def test_a_directory_of_checkpoints_gives_their_list(tmp_path: Path, snapshots: MakeSnapshot) -> None:
    """By step, each with its own verdict, with what is odd about the directory."""
    for step in (1, 2, 3):
        save(tmp_path, snapshots(step), facts={}, is_best=step == 1)
    (tmp_path / "step_000002" / layout.CONFIG_FILE).unlink()
    (tmp_path / "step_000003").rename(tmp_path / "broken-step_000003")

    report = look(tmp_path)

    assert [(item.step, item.verdict, item.marks) for item in report.checkpoints] == [
        (1, "resumable", ("BEST",)),
        (2, "incomplete", ()),
    ]
    assert not report.is_sound
    assert any("LATEST points to step_000003, which is gone" in note for note in report.notes)
    assert any("broken-step_000003" in note for note in report.notes)
    assert json.loads(json.dumps(report.to_dict()))["checkpoints"][0]["step"] == 1


def test_a_checkpoint_that_was_set_aside_can_be_looked_at(checkpoint: Path) -> None:
    """Its verdict is that of its contents, whatever its name."""
    aside = checkpoint.rename(checkpoint.with_name("broken-step_000200"))

    assert look(aside).is_sound


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    """There is nothing to report on."""
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        look(tmp_path)


def test_inspecting_imports_neither_torch_nor_numpy(checkpoint: Path) -> None:
    """In a process of its own, with everything read and rendered."""
    code = (
        "import sys; from pathlib import Path; from automodel_cli.commands.render_checkpoint import report;"
        "from automodel_cli.engine.checkpoint.inspect import look;"
        f"report(look(Path({str(checkpoint)!r}), verify=True), as_json=False);"
        "print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.endswith("[]\n")
