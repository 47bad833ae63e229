"""A canary in the place of a secret: after a whole life of a run it stands in no output and in no file."""

from __future__ import annotations

import shutil

import pytest

from automodel_cli import app
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.instantiate import instantiate
from automodel_cli.errors import ConfigError

CANARY = "CANARYd41d8cd98f"
LOSS = """
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy

class WithAccess(MaskedCrossEntropy):
    def __init__(self, api_key=None, hf_token=None, storage_options=None, url=None):
        super().__init__()
        arrived = (api_key, hf_token, storage_options["key"], storage_options["headers"][0]["X-Cookie"])
        if set(arrived) != {{{canary!r}}} or url.count({canary!r}) != 2:
            raise ValueError("the secret did not arrive")
"""


@pytest.fixture
def secretive(tiny_run, monkeypatch):
    """The tiny run with a loss that insists on secrets: one from the environment, the others in the open."""
    (tiny_run.parent / "access.py").write_text(LOSS.format(canary=CANARY))
    section = (
        f"loss_fn: {{_target_: 'access.py:WithAccess', api_key: '${{ACCESS}}', hf_token: {CANARY}, storage_options: "
        f"{{key: {CANARY}, headers: [{{X-Cookie: {CANARY}}}]}}, url: 'https://me:{CANARY}@host/?part=1&sig={CANARY}'}}\n"
    )
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
    outputs.append(said("config", "show", "-c", secretive, "--explain", "loss_fn.url"))
    outputs.append(said("config", "show", "-c", secretive, "--diff", "checkpoints"))
    outputs.append(said("plan", "-c", secretive, "--json"))
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


def test_a_part_that_the_checkpoint_does_not_hold_is_asked_for_too():
    """A URL without its password would be tried, and fail somewhere else."""
    section = {"_target_": "automodel_cli.engine.loss.masked_ce.MaskedCrossEntropy", "url": "https://me:***@host"}

    with pytest.raises(ConfigError, match=r"loss_fn\.url holds a secret, which a saved configuration does not keep"):
        instantiate(Config({"loss_fn": section}), "loss_fn")


@pytest.mark.parametrize("options", [(), ("--traceback",)])
def test_the_message_of_another_library_is_masked(secretive, said, options):
    """What fails to open an address says all of it, with the password and the signature."""
    url = f"https://me:{CANARY}@host/?sig={CANARY}"
    (secretive.parent / "access.py").write_text(f"def WithAccess(**_):\n    raise OSError(f'no way to ' + {url!r})\n")

    output = said("pretrain", "-c", secretive, *options, code=1)

    assert "no way to https://me:***@host/?sig=***" in output
    without_source = [line for line in output.splitlines() if "raise OSError" not in line]
    assert CANARY not in "".join(without_source)


def test_a_mistyped_option_is_answered_without_its_value(said):
    """The answer that suggests `--set` names the key alone."""
    output = said("pretrain", "--wandb.api-key", CANARY, code=2)
    output += said("pretrain", "--set", f"wandb.api_key:{CANARY}", code=2)

    assert CANARY not in output
