"""A canary in the place of a secret: after a whole life of a run it stands in no output and in no file."""

from __future__ import annotations

import shutil

import pytest

from automodel_cli import app

CANARY = "CANARYd41d8cd98f"
LOSS = """
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy

class WithAccess(MaskedCrossEntropy):
    def __init__(self, api_key=None, hf_token=None):
        super().__init__()
        if (api_key, hf_token) != ({canary!r}, {canary!r}):
            raise ValueError("the secret did not arrive")
"""


@pytest.fixture
def secretive(tiny_run, monkeypatch):
    """The tiny run with a loss that insists on two secrets: one from the environment, one in the open."""
    (tiny_run.parent / "access.py").write_text(LOSS.format(canary=CANARY))
    section = f"loss_fn: {{_target_: 'access.py:WithAccess', api_key: '${{ACCESS}}', hf_token: {CANARY}}}\n"
    tiny_run.write_text(tiny_run.read_text() + section)
    monkeypatch.setenv("ACCESS", CANARY)
    return tiny_run


@pytest.fixture
def said(capfd):
    """Runs `amcli ...` and returns everything that it said on both streams."""

    def run(*arguments: object, code: int = 0) -> str:
        assert app.run([str(argument) for argument in arguments]) == code
        return "".join(capfd.readouterr())

    return run


def test_a_secret_reaches_its_target_and_nothing_else(secretive, said):
    """Trained, shown in every form, diffed, resumed and inspected: only the user's own file has the value."""
    outputs = [said("pretrain", "-c", secretive)]
    outputs += [said("config", "show", "-c", secretive, "--format", form) for form in ("yaml", "table", "json", "flat")]
    outputs.append(said("config", "show", "-c", secretive, "--check", "--json"))
    outputs.append(said("config", "show", "-c", secretive, "--explain", "loss_fn.hf_token"))
    outputs.append(said("config", "show", "-c", secretive, "--diff", "checkpoints"))
    outputs.append(said("inspect-ckpt", "checkpoints"))
    outputs.append(said("resume", "checkpoints", "-c", secretive, "--set", "step_scheduler.max_steps=8"))

    assert [output for output in outputs if CANARY in output] == []
    written = [path for path in secretive.parent.rglob("*") if path.is_file() and path != secretive]
    assert len(written) > 10
    holding = {path.name for path in written if CANARY.encode() in path.read_bytes()}
    assert {name for name in holding if not name.startswith("access.")} == set()


def test_no_error_message_shows_a_secret(secretive, said):
    """Not where the value is wrong, not where its key is, and not where its line is only quoted."""
    broken = secretive.read_text().replace("api_key:", f"password: {CANARY}, api_ky:")
    secretive.write_text(broken)

    output = said("pretrain", "-c", secretive, "--set", f"wandb.api_key=[{CANARY}", code=2)
    output += said("pretrain", "-c", secretive, code=2)

    assert CANARY not in output


def test_a_secret_that_the_checkpoint_does_not_hold_is_asked_for(secretive, said):
    """Going on from the saved configuration names the key, since `***` would not open anything."""
    said("pretrain", "-c", secretive)
    shutil.copyfile("checkpoints/step_000006/config.yaml", "again.yaml")

    output = said("resume", "-c", "again.yaml", "--set", "step_scheduler.max_steps=8", code=2)

    assert "loss_fn.hf_token" in output
    assert "does not keep" in output
