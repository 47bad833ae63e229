"""A new token format takes one class and one line in a table; every command then knows it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.app import run
from automodel_cli.engine.shards.formats import FORMATS
from automodel_cli.engine.shards.shard_format import ShardFormat
from automodel_cli.engine.shards.tokens import ShardInfo
from automodel_cli.errors import DataError

_HEADER = struct.Struct("<4sIH6x")


class ToyFormat(ShardFormat):
    """A header of 16 bytes, the bytes per token in it, and an index under another name."""

    name = "toy"
    title = "toy"

    def claims(self, path):
        with path.open("rb") as file:
            return file.read(4) == b"TOYS"

    def read(self, path):
        _, num_tokens, width = _HEADER.unpack(path.read_bytes()[: _HEADER.size])
        if path.stat().st_size != _HEADER.size + num_tokens * width:
            raise DataError(f"the toy shard promises {num_tokens} tokens, but has others", where=str(path))
        return ShardInfo(path, num_tokens, np.dtype(f"<u{width}"), self.name, _HEADER.size)

    def index_path(self, path):
        return path.with_suffix(".toy.idx")

    def header(self, num_tokens, dtype):
        return _HEADER.pack(b"TOYS", num_tokens, dtype.itemsize)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(FORMATS, "toy", ToyFormat())


def prepared(name: str) -> Path:
    """Two parts in a format, merged."""
    for part in range(2):
        lines = [
            json.dumps({"text": f"{part}{number:03d}" + "abcde"[number % 5] * (number % 37)}) for number in range(200)
        ]
        Path(f"text-{part}.jsonl").write_text("\n".join(lines))
    options = ["--tokenizer", "bytes", "--format", name, "--val-tokens", "1000", "--shard-tokens", "4000"]
    for part in range(2):
        command = ["prep", "text-*.jsonl", *options, "--partition", f"{part}/2", "--output-dir", f"{name}-parts"]
        assert run(command) == 0
    assert run(["data", "merge", *map(str, Path(f"{name}-parts").iterdir()), "--output", name]) == 0
    return Path(name)


@pytest.mark.usefixtures("toy")
def test_a_format_of_ones_own_is_prepared_merged_verified_inspected_and_trained_on(tiny_run, capsys):
    """The weights are those of a run on the default format: the same samples in the same order."""
    weights = {}
    for name in ("toy", "bin"):
        directory = prepared(name)
        patterns = {"dataset": "train", "validation_dataset": "val"}
        settings = [f"{section}.file_pattern={directory}/{split}_*.bin" for section, split in patterns.items()]
        options = [
            word for setting in (*settings, f"checkpoint.checkpoint_dir=run-{name}") for word in ("--set", setting)
        ]
        assert run(["data", "verify", str(directory)]) == 0
        assert run(["pretrain", "-c", str(tiny_run), *options]) == 0
        weights[name] = Path(f"run-{name}/LATEST/model/model.safetensors").read_bytes()
    capsys.readouterr()
    assert run(["data", "inspect", "toy", "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)

    assert Path("toy/train_000000.bin").read_bytes()[:4] == b"TOYS"
    assert Path("toy/train_000000.toy.idx").is_file()
    assert [split["formats"] for split in inspected["splits"].values()] == [["toy"], ["toy"]]
    assert weights["toy"] == weights["bin"]


@pytest.mark.usefixtures("toy")
def test_a_damaged_file_of_ones_own_format_is_refused_before_training(tiny_run, capsys):
    """In the words of the format, by the check of the configuration and by `data verify`."""
    directory = prepared("toy")
    shard = directory / "train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])

    assert run(["data", "verify", str(directory)]) == 3
    assert "the toy shard promises 3936 tokens" in capsys.readouterr().out
    assert run(["pretrain", "-c", str(tiny_run), "--set", f"dataset.file_pattern={directory}/train_*.bin"]) == 3
    assert "dataset.file_pattern: toy/train_000000.bin: the toy shard promises" in capsys.readouterr().err
    assert not Path("checkpoints").exists()
