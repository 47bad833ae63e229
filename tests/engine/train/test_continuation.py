"""How a run goes on: whose code it may run, and whether it can."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from automodel_cli import app
from automodel_cli.engine.checkpoint.manifest import FileRecord, read_manifest, write_manifest
from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.train.continuation import plan_resume
from automodel_cli.errors import ConfigError


@pytest.fixture
def checkpoint(tiny_run, tmp_path):
    """A checkpoint whose configuration names a model of the user's own, by a path relative to nothing but itself."""
    (tmp_path / "mine.py").write_text("def build(vocab_size): ...\n")
    text = (
        tiny_run.read_text().split("model:")[0] + f"model: {{_target_: '{tmp_path}/mine.py:build', vocab_size: 257}}\n"
    )
    text += "dataset:" + tiny_run.read_text().split("dataset:", 1)[1]
    tensors = {"weight": torch.zeros(2)}
    snapshot = Snapshot(
        step=3,
        config_yaml=text,
        model_tensors=tensors,
        model_config=None,
        optim_tensors=tensors,
        train_state={"step": 3},
        rng_tensors={"torch_cpu": torch.get_rng_state()},
    )
    return save(tmp_path / "checkpoints", snapshot, facts={"loss": 1.0})


def test_what_only_the_checkpoint_names_is_refused_and_the_option_is_named(checkpoint):
    """In the parent, before torch or the model's file is imported."""
    with pytest.raises(ConfigError, match="code that amcli does not know") as caught:
        plan_resume(checkpoint, None, [])

    assert "--trust-config" in caught.value.help


def test_consent_makes_it_code_and_lists_it(checkpoint, tmp_path):
    """The plan is made, and says which file will run."""
    plan = plan_resume(checkpoint, None, [], trust=True)

    assert any(str(tmp_path / "mine.py") in note and "SHA-256" in note for note in plan.settings.notes)


def test_the_runs_own_file_needs_no_consent(checkpoint, tiny_run):
    """What is named with -c is what the user runs."""
    tiny_run.write_text((checkpoint / "config.yaml").read_text())

    assert plan_resume(checkpoint, [tiny_run], []).config.get("model._target_").endswith("mine.py:build")


@pytest.fixture
def ask(tiny_run, capsys):
    """Trains the tiny run, then asks with a changed configuration: exit code and answer."""
    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0

    def run(*arguments: str, old: str = "", new: str = "") -> tuple[int, dict]:
        Path("other.yaml").write_text(tiny_run.read_text().replace(old, new, 1))
        capsys.readouterr()
        code = app.run(["inspect-ckpt", "--can-resume", "-c", "other.yaml", *arguments, "--json"])
        return int(code), json.loads(capsys.readouterr().out)

    return run


def test_the_same_configuration_is_a_yes(ask):
    code, answer = ask()

    assert (code, answer["verdict"], answer["changes"], answer["reasons"]) == (0, "yes", [], [])


def test_what_may_change_is_listed(ask):
    """Keys, the learning rate that follows from them, and the number of ranks."""
    code, answer = ask("--nproc-per-node", "2", old="max_steps: 6", new="max_steps: 9")

    assert (code, answer["verdict"], answer["world_size"]) == (0, "yes, but", 2)
    assert answer["changes"][0] == "step_scheduler.max_steps: 6 -> 9"
    assert any("the learning rate from step 7 on" in line for line in answer["changes"])
    assert answer["changes"][-1] == "ranks: 1 -> 2"


@pytest.mark.parametrize(
    ("arguments", "old", "new", "reason"),
    [
        ((), "seed: 7", "seed: 8", "seed: 7 -> 8"),
        (("--nproc-per-node", "3"), "", "", "global_batch_size"),
        (("4",), "", "", "went on after step 4, up to step_000006"),
    ],
)
def test_what_cannot_go_on_is_a_no_with_its_reason(ask, arguments, old, new, reason):
    """Another run of it, ranks that do not divide the batch, a checkpoint in the middle: exit code 4."""
    code, answer = ask(*arguments, old=old, new=new)

    assert (code, answer["verdict"]) == (4, "no")
    assert reason in " ".join(answer["reasons"])


def test_a_broken_checkpoint_is_a_no(ask):
    Path("checkpoints/step_000006/model/model.safetensors").unlink()

    code, answer = ask()

    assert (code, answer["reasons"]) == (4, ["model/model.safetensors: missing"])


def test_the_question_needs_no_torch():
    code = "import sys, automodel_cli.engine.train.continuation; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_data_elsewhere_are_told_and_allowed(ask, tiny_data):
    """What counts is what the shards hold, not where they lie."""
    shutil.copytree(tiny_data, "copied")

    code, answer = ask(old=str(tiny_data), new="copied")

    assert (code, answer["verdict"]) == (0, "yes, but")
    assert answer["changes"][0].startswith("dataset.file_pattern")


def test_other_data_are_a_no(ask, tiny_data):
    """The cursor counts samples of the data that the run began with."""
    shutil.copytree(tiny_data, "copied")
    shard = Path("copied/train_000000.bin")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    code, answer = ask(old=str(tiny_data), new="copied")

    assert (code, answer["verdict"]) == (4, "no")
    assert "another seed or other data" in answer["reasons"][0]


def test_verify_reads_every_byte_first(ask):
    """Without it only sizes are compared, in the time of a look."""
    weights = Path("checkpoints/step_000006/model/model.safetensors")
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)

    assert ask()[0] == 0
    code, answer = ask("--verify")
    assert code == 4
    assert answer["reasons"][0].startswith("model/model.safetensors: SHA-256 is")


def test_names_in_a_checkpoint_do_not_steer_the_terminal(tiny_run, capsys):
    """A manifest may list a file of any name; that it is missing is said without the control codes in it."""
    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0
    step = Path("checkpoints/LATEST").resolve()
    found = read_manifest(step)
    evil = {"\x1b]52;c;eA==\x07": FileRecord(1, "0" * 64)}
    write_manifest(step, replace(found, files={**found.files, **evil}))
    capsys.readouterr()

    assert app.run(["inspect-ckpt", "--can-resume"]) == 4

    said = capsys.readouterr().out
    assert "]52;c;eA==" in said
    assert not {"\x1b", "\x07"} & set(said)
