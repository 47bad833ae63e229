"""A run as a user has it: trained, killed, resumed, inspected, sampled, loaded by transformers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from automodel_cli import app
from automodel_cli.engine.checkpoint.run_directory import run_lock

# A loss that does something to the process when it has been called often enough:
# two micro-batches per step, so call 2 * k - 1 is the first of step k.
DISTURBED = """
import math, os, signal
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy

class Disturbed(MaskedCrossEntropy):
    def __init__(self, at_step=0, what=""):
        super().__init__()
        self.calls, self.at_call, self.what = 0, 2 * at_step - 1, what

    def __call__(self, *args, **kwargs):
        import torch
        # Validation does not count, so that steps do.
        self.calls += torch.is_grad_enabled()
        if self.calls == self.at_call and torch.is_grad_enabled():
            if self.what == "nan":
                return super().__call__(*args, **kwargs) * math.nan
            os.kill(os.getpid(), getattr(signal, self.what))
        return super().__call__(*args, **kwargs)
"""


def weights(root: Path, step: int) -> str:
    return hashlib.sha256((root / f"step_{step:06d}" / "model" / "model.safetensors").read_bytes()).hexdigest()


def metrics(root: Path, event: str = "step") -> list[dict]:
    lines = (root / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def amcli(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "automodel_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.fixture
def disturbed(tiny_run):
    """The tiny run with a loss from a file beside it; returns the overrides for a disturbance."""
    (tiny_run.parent / "disturbed.py").write_text(DISTURBED)
    tiny_run.write_text(tiny_run.read_text() + "loss_fn: {_target_: 'disturbed.py:Disturbed'}\n")

    def overrides(step: int, what: str) -> list[str]:
        return ["-c", str(tiny_run), "--set", f"loss_fn.at_step={step}", "--set", f"loss_fn.what={what}"]

    return overrides


def test_killed_and_resumed_ends_in_the_same_weights(tiny_run, disturbed):
    """20 steps straight equal 10 + kill -9 (inside step 13) + resume, by SHA-256 of weights and metrics."""
    common = ["--set", "step_scheduler.max_steps=20", "--set", "step_scheduler.ckpt_every_steps=10"]
    straight = ["--set", "checkpoint.checkpoint_dir=straight"]
    assert app.run(["pretrain", "-c", str(tiny_run), *common, *straight]) == 0

    killed = amcli("pretrain", *disturbed(13, "SIGKILL"), *common)
    resumed = amcli("resume", "-c", str(tiny_run), *common)

    assert killed.returncode == -signal.SIGKILL
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 10" in resumed.stdout
    assert weights(Path("checkpoints"), 20) == weights(Path("straight"), 20)
    curves = [
        [(m["step"], m["loss"], m["grad_norm"], m["lr"]) for m in metrics(Path(root))]
        for root in ("straight", "checkpoints")
    ]
    assert curves[0] == curves[1]
    assert [step for step, *_ in curves[1]] == list(range(1, 21))


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_stop_signal_saves_the_step_and_exits_with_6(tiny_run, disturbed, name):
    """No step is lost, the message names the way on, and the rest equals an undisturbed run."""
    assert app.run(["pretrain", "-c", str(tiny_run), "--set", "checkpoint.checkpoint_dir=straight"]) == 0

    stopped = amcli("pretrain", *disturbed(3, name))
    resumed = amcli("resume", "-c", str(tiny_run))

    assert stopped.returncode == 6
    assert f"{name} received: stopped after step 3" in stopped.stderr
    assert "amcli resume" in stopped.stderr
    assert "resuming after step 3" in resumed.stdout
    assert weights(Path("checkpoints"), 6) == weights(Path("straight"), 6)


def test_a_run_that_diverges_stops_with_5_and_keeps_its_last_checkpoint(disturbed):
    """A loss that is not finite never reaches the weights."""
    diverged = amcli("pretrain", *disturbed(4, "nan"))

    assert diverged.returncode == 5
    assert "step 4" in diverged.stderr
    assert Path("checkpoints/LATEST").readlink() == Path("step_000002")


def test_transformers_loads_the_checkpoint_with_equal_logits(tiny_run):
    """`AutoModelForCausalLM.from_pretrained(<ckpt>/model)` is our model to 1e-5."""
    from transformers import AutoModelForCausalLM

    from automodel_cli.engine.exchange.sampling import load_writer

    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0
    ours = load_writer(Path("checkpoints/LATEST")).model.cpu().eval()
    theirs = AutoModelForCausalLM.from_pretrained("checkpoints/LATEST/model").eval()
    ids = torch.arange(32).reshape(2, 16)

    with torch.no_grad():
        difference = (ours(ids).logits - theirs(ids).logits).abs().max()

    assert difference < 1e-5


def test_accumulation_changes_nothing_but_rounding(tiny_run):
    """The same 8 samples in micro-batches of 8, 4 and 1 give the same losses and weights to rounding."""
    curves, tensors = [], []
    for size in (8, 4, 1):
        root = f"micro{size}"
        options = [f"step_scheduler.local_batch_size={size}", f"checkpoint.checkpoint_dir={root}", "model.dropout=0"]
        assert app.run(["pretrain", "-c", str(tiny_run), *(f for o in options for f in ("--set", o))]) == 0
        curves.append(torch.tensor([[m["loss"], m["grad_norm"]] for m in metrics(Path(root))]))
        tensors.append(load_file(f"{root}/LATEST/model/model.safetensors")["transformer.h.0.attn.c_attn.weight"])

    for curve, tensor in zip(curves[1:], tensors[1:], strict=True):
        torch.testing.assert_close(curve, curves[0], rtol=1e-4, atol=1e-5)
        # AdamW divides by the square root of the second moment, so rounding in a gradient near zero shows.
        torch.testing.assert_close(tensor, tensors[0], rtol=1e-2, atol=1e-4)


def test_a_second_run_in_the_same_place_is_refused(tiny_run, capsys):
    """Two runs never mix; the message names resume, --overwrite and another directory."""
    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0
    capsys.readouterr()

    assert app.run(["pretrain", "-c", str(tiny_run)]) == 4
    message = capsys.readouterr().err
    assert all(word in message for word in ("step 6", "amcli resume", "--overwrite", "checkpoint_dir"))

    before = weights(Path("checkpoints"), 6)
    assert app.run(["pretrain", "-c", str(tiny_run), "--overwrite", "--set", "seed=8"]) == 0
    assert weights(Path("checkpoints"), 6) != before
    assert len(metrics(Path("checkpoints"))) == 6


def test_resume_trains_on_and_says_what_changed(tiny_run, capsys):
    """More steps by --set; the change is said, and the saved configuration has it."""
    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0
    assert app.run(["resume", "--set", "step_scheduler.max_steps=9"]) == 0

    said = capsys.readouterr().out
    assert "changed  step_scheduler.max_steps: 6 -> 9" in said
    assert "changed  the learning rate from step 7 on: 0.00389 instead of 0 there" in said
    assert "max_steps: 9" in Path("checkpoints/step_000009/config.yaml").read_text()
    assert [m["step"] for m in metrics(Path("checkpoints"))] == list(range(1, 10))

    assert app.run(["resume"]) == 0
    assert "nothing to train" in capsys.readouterr().out


def test_resume_without_a_key_says_that_it_is_gone(tiny_run, capsys):
    """`--unset` is for `pretrain` and `resume` what it is for `config show`: the default takes its place."""
    assert app.run(["pretrain", "-c", str(tiny_run), "--unset", "step_scheduler.val_every_steps"]) == 0
    began = capsys.readouterr().out

    assert app.run(["resume", "--unset", "lr_scheduler.lr_warmup_steps", "--set", "step_scheduler.max_steps=7"]) == 0
    resumed = capsys.readouterr().out

    assert began.count("| val_loss") == 1  # at the end, and only there
    assert "lr_scheduler.lr_warmup_steps: 2 -> 0" in resumed


def test_resume_with_other_data_is_refused(tiny_run, tiny_data, capsys):
    """The rest of the samples would not be the rest: both identities are shown. Equal data may have moved."""
    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0
    moved = shutil.copytree(tiny_data, "moved")

    other = app.run(
        ["resume", "--set", f"dataset.file_pattern={moved}/val_*.bin", "--set", "step_scheduler.max_steps=9"]
    )

    said = capsys.readouterr().err
    assert other == 4
    assert "saved: seed 7, data " in said
    assert "now:   seed 7, data " in said
    equal = ["--set", f"dataset.file_pattern={moved}/train_*.bin", "--set", "step_scheduler.max_steps=9"]
    assert app.run(["resume", *equal]) == 0


@pytest.mark.parametrize(
    "name", ["config.yaml", "model/model.safetensors", "optim/optimizer.safetensors", "manifest.json"]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(tiny_run, capsys, name):
    """One flipped bit anywhere in the newest: resume names it, falls back two steps, and ends in the same weights."""
    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0
    expected = weights(Path("checkpoints"), 6)
    damaged = Path("checkpoints/step_000006") / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    capsys.readouterr()

    assert app.run(["resume"]) == 0

    said = capsys.readouterr().out
    assert "step_000006 is now broken-step_000006" in said
    assert "resuming after step 4" in said
    assert weights(Path("checkpoints"), 6) == expected


def test_resume_without_a_checkpoint_says_where_it_looked(capsys):
    """Exit code 4 and the path."""
    assert app.run(["resume"]) == 4
    assert "checkpoints" in capsys.readouterr().err


def test_the_json_summary_is_one_object_on_standard_output(tiny_run, capsys):
    """Scripts read standard output; everything else goes elsewhere."""
    assert app.run(["pretrain", "-c", str(tiny_run), "--json"]) == 0

    summary = json.loads(capsys.readouterr().out)
    assert summary["step"] == 6
    assert summary["tokens_seen"] == 6 * 8 * 16
    assert summary["val_loss"] > 0
    assert 2 < summary["unigram_entropy_nats"] < 4


def test_a_checkpoint_writes_text_again_and_again(tiny_run, capsys):
    """Equal seeds give equal text; the prompt stands first."""
    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0
    capsys.readouterr()
    texts = []
    for seed in ("1", "1", "2"):
        assert app.run(["sample", "--prompt", "KING:", "--max-new-tokens", "40", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)

    assert texts[0].startswith("KING:")
    assert texts[0] == texts[1] != texts[2]
    assert app.run(["sample", "--tokenizer", "gpt2"]) == 4
    assert "50,257 tokens, but the model knows 257" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("model.vocab_size=100", 3, "the model's vocabulary is 100"),
        ("dataset.file_pattern=nowhere/*.bin", 3, "nowhere"),
        ("dataset.seq_len=1000000", 2, "16 positions"),
        ("model.n_layers=3", 2, "did you mean `n_layer`?"),
        ("optimizer.beta=[0.9, 0.95]", 2, "did you mean `betas`?"),
        ("optimizer._target_=torch.optim.AdamX", 2, "did you mean `Adam"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(tiny_run, capsys, override, code, words):
    """One message with the numbers; no checkpoint directory is left behind."""
    assert app.run(["pretrain", "-c", str(tiny_run), "--set", override]) == code

    assert words in capsys.readouterr().err
    assert not Path("checkpoints").exists()


def test_resume_with_another_optimizer_is_refused(tiny_run, capsys):
    """Momentum is not a second moment: both optimizers are named, before torch is loaded."""
    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0

    assert app.run(["resume", "--set", "optimizer._target_=torch.optim.SGD"]) == 4
    assert "torch.optim.AdamW" in capsys.readouterr().err


def test_a_second_run_into_the_same_directory_is_refused(tiny_run, capsys):
    """Neither a new run nor a resumed one starts while another saves there."""
    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0
    capsys.readouterr()

    with run_lock(Path("checkpoints")):
        assert app.run(["pretrain", "-c", str(tiny_run), "--overwrite"]) == 4
        assert app.run(["resume", "--set", "step_scheduler.max_steps=8"]) == 4

    assert capsys.readouterr().err.count(f"process {os.getpid()}") == 2
    assert (Path("checkpoints") / "step_000006").is_dir()


def test_what_makes_another_run_of_it_needs_consent(tiny_run, capsys):
    """Refused with both values; with consent the run goes on, with other samples or a fresh optimizer."""
    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0
    changed = ["--set", "seed=8", "--set", "optimizer._target_=torch.optim.SGD", "--set", "step_scheduler.max_steps=8"]
    capsys.readouterr()

    refused = app.run(["resume", *changed])

    said = capsys.readouterr().err
    assert refused == 4
    assert "seed: 7 -> 8" in said
    assert "torch.optim.AdamW -> torch.optim.SGD" in said
    consent = ["--override-resume", "seed", "--override-resume", "optimizer._target_"]
    assert app.run(["resume", "6", *changed, *consent]) == 0
    assert metrics(Path("checkpoints"))[-1]["step"] == 8
