"""A user's own data set and model in a whole run: the contract, the exit codes, and `shift_labels`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from automodel_cli import app

OWN = '''
import numpy as np

class Own:
    """Random tokens; as labels a copy of the inputs, or the next tokens, as windows of T + 1 have them."""

    def __init__(self, form, num_samples=64, bad=None):
        self.form, self.num_samples, self.bad = form, num_samples, bad

    def __len__(self):
        return self.num_samples

    def __getitem__(self, index):
        ids = np.random.default_rng(index).integers(0, 257, 16)
        if index == self.bad:
            ids[3] = 1032
        following = np.append(ids[1:], -100)
        return {"input_ids": ids, "labels": ids.copy() if self.form == "copy" else following}

class Stream(Own):
    __getitem__ = __len__ = None

    def __iter__(self):
        return (Own.__getitem__(self, index) for index in range(self.num_samples))
'''


@pytest.fixture
def run(tiny_run, capsys):
    """Runs `pretrain` on the tiny run with data sets of the user's own; returns exit code and output."""
    Path("own.py").write_text(OWN)
    values = yaml.safe_load(tiny_run.read_text())

    def pretrain(training, validation=None, *overrides, kind="Own", **top):
        sections = {"dataset": {"_target_": f"own.py:{kind}", **training}}
        sections["validation_dataset"] = {"_target_": f"own.py:{kind}", **(validation or training)}
        Path("own.yaml").write_text(yaml.safe_dump({**values, **sections, **top}))
        options = [part for each in overrides for part in ("--set", each)]
        code = app.run(["pretrain", "-c", "own.yaml", "--overwrite", *options])
        return code, "".join(capsys.readouterr())

    return pretrain


def weights():
    return hashlib.sha256(Path("checkpoints/LATEST/model/model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["Own", "Stream"])
def test_copies_as_labels_are_refused_and_train_with_shift_labels_as_shifted_ones_do(run, kind):
    """Exit code 3 without it; with it, the weights and the count of tokens are those of labels of the next token."""
    code, output = run({"form": "copy"}, kind=kind)
    assert code == 3
    assert "equal the inputs at their own places" in output
    assert "shift_labels: true" in output

    assert run({"form": "next"}, kind=kind)[0] == 0
    expected = weights()
    code, output = run({"form": "copy"}, kind=kind, shift_labels=True)

    assert (code, weights()) == (0, expected)
    assert f"tokens {6 * 8 * 15}" in " ".join(output.split())


def test_a_validation_set_is_checked_before_the_first_step(run):
    """Not after the steps before the first validation, which would be lost."""
    for validation, message in (
        ({"form": "copy"}, "equal the inputs at their own places"),
        ({"form": "next", "bad": 2}, "sample 2 holds id 1032, the vocabulary ends at 256"),
    ):
        code, output = run({"form": "next"}, validation)

        assert code == 3
        assert message in output
        assert "own.yaml:" in output
        assert "step 1/6" not in " ".join(output.split())


def test_labels_that_are_shifted_already_are_refused_with_shift_labels(run):
    """Each would otherwise be the second token after its input; our own data sets are told so too."""
    code, output = run({"form": "next"}, shift_labels=True)

    assert code == 3
    assert "leave shift_labels out" in output
    assert app.run(["pretrain", "-c", "tiny.yaml", "--overwrite", "--set", "shift_labels=true"]) == 3


def test_a_data_set_smaller_than_a_step_is_said(run):
    """With how many samples there are, and how many a step takes."""
    code, output = run({"form": "next", "num_samples": 3})

    assert code == 0
    assert "the data set has 3 samples, but a step takes 8" in output


def test_a_model_that_does_not_state_its_vocabulary_is_known_by_its_layers(run):
    """An id beyond the embedding is named by its sample, not found by a crash in the embedding."""
    Path("model.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Embedding(257, 8), nn.Linear(8, 257))\n"
    )

    training = {"form": "next", "bad": 17, "num_samples": 48}  # of which 6 steps of 8 leave out none
    code, output = run(training, {"form": "next"}, model={"_target_": "model.py:build"})

    assert code == 3
    assert "sample 17 holds id 1032, the vocabulary ends at 256" in output


@pytest.mark.parametrize("command", [["config", "show", "--explain", "shift_labels"], ["config", "schema"]])
def test_the_key_is_known_wherever_keys_are(command, capsys):
    """Explained and completed; unknown keys are refused."""
    assert app.run(command) == 0
    assert "shift_labels" in capsys.readouterr().out


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_before_it_writes(run, capsys):
    """Of a model that states no vocabulary, the layers tell it. Without a name, the help has one that fits."""
    Path("net.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Embedding(257, 8), nn.Linear(8, 257))\n"
    )
    assert run({"form": "next"}, model={"_target_": "net.py:build"})[0] == 0

    assert app.run(["sample", "checkpoints"]) == 4
    assert "--tokenizer bytes" in capsys.readouterr().err
    assert app.run(["sample", "checkpoints", "--tokenizer", "gpt2", "--prompt", "x"]) == 4

    shown = capsys.readouterr()
    assert shown.out == ""
    assert "the tokenizer `gpt2` has 50,257 tokens, but the model knows 257" in shown.err


def test_what_an_optimizer_raises_is_said_with_its_section(run):
    """As it is of a model and of a data set."""
    code, output = run({"form": "next"}, None, "optimizer.weight_decay=-1")

    assert code == 1
    assert "Invalid weight_decay value: -1" in output
    assert "while building `optimizer` from own.yaml:" in output
