"""`amcli inspect-ckpt` shows what the engine found, for people and for scripts, and exits by the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from automodel_cli.commands.inspect_ckpt import inspect_ckpt
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.manifest import read_manifest, write_manifest
from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.errors import CheckpointError, UsageError
from tests.engine.checkpoint.conftest import record_files

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(inspect_ckpt)

Invoke = Callable[..., tuple[int, str]]


def snapshot_at(step: int, name: str = "transformer.wte.weight") -> Snapshot:
    return Snapshot(
        step=step,
        config_yaml="seed: 7\nmodel: {n_layer: 2}\n",
        model_tensors={name: torch.ones(10, 4), "transformer.h.0.mlp.c_fc.weight": torch.ones(4, 15)},
        model_config={"tie_word_embeddings": True},
        optim_tensors={"transformer.wte.weight.exp_avg": torch.zeros(10, 4)},
        train_state={"tokens_seen": 4096 * step, "loss": 2.5, "val_loss": 2.25, "best_val_loss": 2.125},
        rng_tensors={"torch_cpu": torch.zeros(8, dtype=torch.uint8)},
    )


@pytest.fixture
def root() -> Path:
    for step in (100, 200):
        save(Path("checkpoints"), snapshot_at(step), facts={"device": "cpu"}, is_best=step == 100)
    return Path("checkpoints")


@pytest.fixture
def invoke() -> Invoke:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    return run


def test_without_an_argument_latest_is_shown(root: Path, invoke: Invoke) -> None:
    """Everything that the default page promises stands on it."""
    code, text = invoke()

    assert code == 0
    first, second, *_ = text.splitlines()
    assert first == "checkpoints/step_000200  (LATEST)"
    assert second.startswith("RESUMABLE: ")
    for promised in ("819,200", "2.5000 nats", "perplexity 9.49", "best 2.1250", "100 F32", "40 values F32", "cpu"):
        assert promised in text
    for table_row in (r"embedding 40 40.0%", "mlp 60 60.0%", "model.n_layer 2", "seed 7"):
        assert any(" ".join(line.split()) == table_row for line in text.splitlines())
    assert "the output layer is the token embedding" in text
    for name in read_manifest(root / "step_000200").files:
        assert name in text


def test_a_runs_directory_gives_a_list(root: Path, invoke: Invoke) -> None:
    """One line per checkpoint, with its marks."""
    code, text = invoke("checkpoints")

    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert code == 0
    assert any(
        line.startswith("step_000100 2.5000 2.2500 409,600") and line.endswith("resumable BEST") for line in lines
    )
    assert any(line.startswith("step_000200") and line.endswith("resumable LATEST") for line in lines)


def test_best_can_be_named(root: Path, invoke: Invoke) -> None:
    """By the link's name, as in other commands."""
    _, text = invoke("checkpoints/BEST")

    assert text.startswith("checkpoints/step_000100  (BEST)")


@pytest.mark.parametrize("arguments", [[], ["checkpoints"], ["--json"], ["checkpoints", "--json"]])
def test_a_broken_checkpoint_exits_with_4_and_says_why(root: Path, invoke: Invoke, arguments: list[str]) -> None:
    """On all four pages."""
    (root / "step_000200" / layout.CONFIG_FILE).unlink()

    code, text = invoke(*arguments)

    assert code == 4
    assert "incomplete" in text.lower()
    assert "config.yaml: missing" in text


def test_verify_is_what_finds_a_flipped_bit(root: Path, invoke: Invoke) -> None:
    """The default page says that it has not looked at the bytes."""
    path = root / "step_000200" / layout.MODEL_FILE
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    quick_code, quick = invoke()
    code, text = invoke("--verify")

    assert (quick_code, code) == (0, 4)
    assert "--verify also reads every byte" in quick
    assert "CORRUPT" in text
    assert f"{layout.MODEL_FILE}: SHA-256" in text


def test_json_is_the_engines_report(root: Path, invoke: Invoke) -> None:
    """One object for a checkpoint, one with a list for a run."""
    _, one = invoke("--json")
    _, many = invoke("checkpoints", "--json")

    assert json.loads(one)["progress"]["val_loss"] == 2.25
    assert json.loads(one)["parameters"]["total"] == 100
    assert [item["step"] for item in json.loads(many)["checkpoints"]] == [100, 200]


def test_nothing_in_a_checkpoint_can_steer_a_terminal(
    root: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Escape sequences in facts, configuration and file names come out as text, also with FORCE_COLOR."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    evil = "\x1b]0;owned\x07\u202e[red]x[/red]"
    save(root, snapshot_at(300), facts={evil: evil, "versions": {evil: evil}, "loss": evil, "device": evil})
    directory = root / "step_000300"
    (directory / f"{evil.replace('/', '')}.txt").write_text("")
    (directory / layout.CONFIG_FILE).write_text('model: {name: "\\e[2J"}\nseed: "\\a"\n')
    write_manifest(directory, replace(read_manifest(directory), files=record_files(directory)))

    for arguments in ([], ["checkpoints"], ["--json"]):
        _, text = invoke(*arguments)

        assert [char for char in text if not (char.isprintable() or char == "\n")] == []
    assert "[red]x[/red]" in invoke()[1]


@pytest.mark.parametrize("loss", [1e6, 710.0, -3.0, 0])
def test_any_loss_can_be_shown(root: Path, invoke: Invoke, loss: float) -> None:
    """Perplexities beyond a float's range do not end the page."""
    save(root, snapshot_at(300), facts={"val_loss": loss})

    code, text = invoke()

    assert code == 0
    assert f"{loss:.4f} nats per token" in text


@pytest.mark.parametrize("value", [10**400, -(10**400), True, [], {}, "x", None, float("inf")])
def test_values_of_any_kind_can_be_shown(root: Path, invoke: Invoke, value: object) -> None:
    """Where numbers are expected, on the page and in the list."""
    keys = ("loss", "val_loss", "best_val_loss", "tokens_seen", "lr")
    save(root, snapshot_at(300), facts=dict.fromkeys(keys, value))

    for arguments in ([], ["checkpoints"], ["--json"]):
        code, _ = invoke(*arguments)

        assert code == 0


def test_nothing_there_is_an_error_with_advice(invoke: Invoke) -> None:
    """It reaches the one error boundary as a CheckpointError."""
    with pytest.raises(CheckpointError, match="no such directory") as caught:
        invoke()

    assert "amcli pretrain" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tree"], "c_fc"),
        (["--tensor", "*c_fc*"], "transformer.h.0.mlp.c_fc.weight"),
        (["--stats"], "transformer.wte.weight"),
        (["100", "--diff", "200"], "transformer.h.0"),
        (["checkpoints/step_000100/model"], "WEIGHTS ONLY"),
    ],
)
def test_tensors_are_shown(root: Path, invoke: Invoke, arguments: list[str], expected: str) -> None:
    """As text, and as JSON that parses."""
    code, text = invoke(*arguments)
    json_code, document = invoke(*arguments, "--json")

    assert (code, json_code) == (0, 0)
    assert expected in text
    assert json.loads(document)


def test_outputs_exclude_each_other_and_names_are_checked(root: Path, invoke: Invoke) -> None:
    """With what would work."""
    with pytest.raises(UsageError, match="each ask for another output"):
        invoke("--tree", "--stats")
    with pytest.raises(UsageError) as caught:
        invoke("--tensor", "nothing*")

    assert "there is transformer." in str(caught.value.help)


def test_hashes_are_not_promised_where_there_are_none(root: Path, invoke: Invoke) -> None:
    """A directory of weights has no manifest: asking for its hashes is an error, not a success without a look."""
    model = str(root / "LATEST" / "model")

    assert invoke(model)[0] == 0
    with pytest.raises(UsageError, match="keeps no hashes that --verify could compare"):
        invoke(model, "--verify")
