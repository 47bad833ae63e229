"""No change to a checkpoint goes unnoticed, and no manifest leads out of its directory."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from automodel_cli.engine.checkpoint.load_checkpoint import load
from automodel_cli.engine.checkpoint.manifest import (
    FileRecord,
    Manifest,
    compare,
    read_manifest,
    verify,
    write_manifest,
)
from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.errors import CheckpointError
from tests.engine.checkpoint.conftest import record_files


@pytest.fixture
def checkpoint(tmp_path: Path, snapshots: Callable[[int], Snapshot]) -> Path:
    return save(tmp_path, snapshots(1), facts={"loss": 1e-05, "names": ["a", "b"]})


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def with_flipped_bit(content: bytes, position: int, bit: int) -> bytes:
    return content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :]


def test_any_flipped_bit_of_the_manifest_is_noticed(checkpoint: Path) -> None:
    """All bits of manifest.json, one after the other, also those that leave its meaning unchanged."""
    path = checkpoint / "manifest.json"
    content = path.read_bytes()
    unnoticed = []

    with path.open("rb+", buffering=0) as file:
        for position, bit in itertools.product(range(len(content)), range(8)):
            file.seek(position)
            file.write(bytes([content[position] ^ (1 << bit)]))
            with contextlib.suppress(CheckpointError):
                read_manifest(checkpoint)
                unnoticed.append((position, bit))
            file.seek(position)
            file.write(content[position : position + 1])

    assert unnoticed == []


def test_a_flipped_bit_in_any_other_file_is_noticed_before_anything_is_loaded(checkpoint: Path) -> None:
    """Every file, at positions all over it: verifying names the file, and loading refuses."""
    for path in files_of(checkpoint):
        content = path.read_bytes()
        name = path.relative_to(checkpoint).as_posix()
        if name == "manifest.json":
            continue
        for position in range(0, len(content), max(1, len(content) // 20)):
            path.write_bytes(with_flipped_bit(content, position, bit=position % 8))

            (problem,) = verify(checkpoint)

            assert problem.startswith(f"{name}: SHA-256")
        with pytest.raises(CheckpointError, match="damaged"):
            load(checkpoint)
        path.write_bytes(content)
    assert verify(checkpoint) == []


def test_a_missing_file_is_noticed_even_without_hashes(checkpoint: Path) -> None:
    """Each file in turn; the manifest's own absence is said in its own words."""
    for path in files_of(checkpoint):
        content = path.read_bytes()
        path.unlink()

        (problem,) = verify(checkpoint, hashes=False)

        assert path.name in problem
        with pytest.raises(CheckpointError):
            load(checkpoint)
        path.write_bytes(content)


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\0", lambda _: b""])
def test_a_file_of_another_length_is_noticed_even_without_hashes(
    checkpoint: Path, change: Callable[[bytes], bytes]
) -> None:
    """Shorter, longer and empty, for each file in turn."""
    for path in files_of(checkpoint):
        content = path.read_bytes()
        path.write_bytes(change(content))

        problems = verify(checkpoint, hashes=False)

        assert problems, path
        path.write_bytes(content)


def test_an_extra_file_is_reported_and_does_not_prevent_loading(checkpoint: Path) -> None:
    """A note that a user leaves in a checkpoint costs them nothing, since nothing reads it."""
    (checkpoint / "model" / "notes.txt").write_text("mine")

    assert verify(checkpoint) == ["model/notes.txt: not in the manifest"]
    assert load(checkpoint).step == 1


@pytest.mark.parametrize("name", ["model", "model/model.safetensors"])
def test_links_are_not_followed_even_to_equal_bytes(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """A link in place of a file, or of a directory above it, is damage."""
    (checkpoint / name).rename(tmp_path / "elsewhere")
    (checkpoint / name).symlink_to(tmp_path / "elsewhere")

    problems = verify(checkpoint)

    assert any("is a link" in problem for problem in problems)
    with pytest.raises(CheckpointError, match="link"):
        load(checkpoint)


def test_a_pipe_in_place_of_a_file_is_damage_and_is_not_opened(checkpoint: Path) -> None:
    """Opening it would wait for a writer for ever."""
    (checkpoint / "config.yaml").unlink()
    os.mkfifo(checkpoint / "config.yaml")

    assert verify(checkpoint) == ["config.yaml: not a regular file"]


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "a/../../outside", "a//b", "", ".", "a\\..\\b", "a\0b"]
)
def test_a_manifest_cannot_name_what_lies_outside(tmp_path: Path, name: str) -> None:
    """Such a manifest is refused as a whole, whoever sealed it."""
    (tmp_path / "outside").write_text("x")
    directory = tmp_path / "step_000001"
    directory.mkdir()
    write_manifest(directory, Manifest("0", 1, "now", {name: FileRecord(1, "0" * 64)}))

    with pytest.raises(CheckpointError, match="not a plain path"):
        read_manifest(directory)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 100_000, '{"format_version": 1}', '{"format_version": "x", "files": 3}', "\udcff"],
)
def test_a_manifest_that_is_none_is_refused_with_one_error(tmp_path: Path, text: str) -> None:
    """No JSON, JSON of another kind, too deep JSON: always a CheckpointError that names the file."""
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(CheckpointError, match="damaged") as caught:
        read_manifest(tmp_path)

    assert caught.value.where == str(tmp_path / "manifest.json")


def test_a_manifest_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte is refused by its size alone."""
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**40)

    with pytest.raises(CheckpointError, match="at most"):
        read_manifest(tmp_path)


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Also with a digest of zeros among its values, which must not be mistaken for its own."""
    (tmp_path / "file").write_text("content")
    written = Manifest("1.2", 7, "now", record_files(tmp_path), {"fake": "0" * 64, "text": "naïve \U0001f600"})

    write_manifest(tmp_path, written)

    assert read_manifest(tmp_path) == written
    assert compare(tmp_path, written).broken == ()


def test_a_step_in_another_steps_directory_is_refused(checkpoint: Path) -> None:
    """A renamed checkpoint is not taken for a later one."""
    renamed = checkpoint.rename(checkpoint.with_name("step_000009"))

    with pytest.raises(CheckpointError, match="holds step 1"):
        load(renamed)


def test_the_manifest_is_plain_json_for_other_tools(checkpoint: Path) -> None:
    """Documented keys, so that a shell script can check the hashes."""
    fields = json.loads((checkpoint / "manifest.json").read_text())

    assert fields.keys() == {
        "format_version",
        "amcli_version",
        "step",
        "saved_at",
        "facts",
        "files",
        "manifest_sha256",
    }
    assert fields["files"]["config.yaml"].keys() == {"bytes", "sha256"}


def test_the_order_of_files_in_a_manifest_means_nothing(tmp_path: Path) -> None:
    """Equal contents give equal bytes, so that checkpoints of equal runs can be compared."""
    records = {"b": FileRecord(1, "1" * 64), "a": FileRecord(2, "2" * 64)}
    manifest = Manifest("1", 1, "now", records)
    write_manifest(tmp_path, manifest)
    first = (tmp_path / "manifest.json").read_bytes()

    write_manifest(tmp_path, replace(manifest, files=dict(reversed(records.items()))))

    assert (tmp_path / "manifest.json").read_bytes() == first
