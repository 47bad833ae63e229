"""Validation sets: several by name, a budget in tokens, bits per byte, and what makes a checkpoint the best."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli import app
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.train.batches import bytes_per_token, up_to_tokens

TWO_SETS = """
validation_dataset:
  held:
    _target_: automodel_cli.engine.data.nanogpt_dataset.NanogptDataset
    file_pattern: DATA/val_*.bin
    seq_len: 16
  seen:
    _target_: automodel_cli.engine.data.nanogpt_dataset.NanogptDataset
    file_pattern: DATA/train_*.bin
    seq_len: 8
"""


class Sample:
    """A dataset that nobody counted bytes of."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, object]:
        return {}


@pytest.fixture
def two_sets(tiny_run, tiny_data) -> Path:
    lines = [line for line in tiny_run.read_text().splitlines() if not line.startswith("validation_dataset")]
    tiny_run.write_text("\n".join(lines) + TWO_SETS.replace("DATA", str(tiny_data)))
    return tiny_run


def validations() -> list[dict[str, float]]:
    lines = map(json.loads, Path("checkpoints/metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["event"] == "validation"]


def test_several_sets_are_reported_by_name_and_their_mean_decides(two_sets, capsys):
    """Every loss under its name, on the console too; `val_loss` is the mean."""
    assert app.run(["pretrain", "-c", str(two_sets)]) == 0

    for record in validations():
        assert record["val_loss"] == pytest.approx((record["val_loss/held"] + record["val_loss/seen"]) / 2)
        assert record["num_tokens"] == record["num_tokens/held"] + record["num_tokens/seen"]
        assert record["val_perplexity/held"] == pytest.approx(math.exp(record["val_loss/held"]))
    assert len(validations()) == 2
    assert " | held 4." in capsys.readouterr().out


def test_the_best_checkpoint_is_that_of_the_named_loss(two_sets):
    """By one set of several; by a set that is not there it is refused, with the nearest name."""
    assert app.run(["pretrain", "-c", str(two_sets), "--set", "checkpoint.best_metric_key=val_loss/seen"]) == 0

    state = json.loads(next(Path("checkpoints/LATEST/state").glob("*.json")).read_text())
    best = min(record["val_loss/seen"] for record in validations())
    assert best in [value for value in _values(state) if isinstance(value, float)]


def _values(node):
    if isinstance(node, dict):
        for value in node.values():
            yield from _values(value)
    else:
        yield node


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("checkpoint.best_metric_key=val_loss/sen", "did you mean `val_loss/seen`?"),
        ("step_scheduler.val_tokens=some", "must be a number of tokens"),
        ("step_scheduler.val_tokens=0 tokens", "at least 1 token"),
        ("validation_dataset.held._target_=null", "or sections of that kind by name"),
        ("validation_dataset.held.seq_len=17", "held.seq_len is 17, but the model has 16 positions"),
    ],
)
def test_what_cannot_be_validated_is_refused_before_the_first_step(two_sets, capsys, override, words):
    """With the rule, or the nearest name."""
    assert app.run(["pretrain", "-c", str(two_sets), "--set", override]) in (2, 3)

    assert words in capsys.readouterr().err
    assert not list(Path("checkpoints").glob("step_*"))


def test_a_budget_in_tokens_takes_the_place_of_the_batches(tiny_run):
    """64 tokens a batch: 129 tokens need three of them."""
    assert app.run(["pretrain", "-c", str(tiny_run), "--set", "step_scheduler.val_tokens=129 tokens"]) == 0

    assert {record["num_tokens"] for record in validations()} == {192}


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 60))
def test_a_budget_is_the_shortest_run_of_batches_that_reaches_it(sizes, budget):
    """Or everything, where there is less; masked labels do not count."""
    batches = [{"labels": np.array([1] * size + [-100] * 3)} for size in sizes]

    taken = list(up_to_tokens(iter(batches), budget))

    assert taken == batches[: len(taken)]
    assert sum(sizes[: len(taken)]) >= budget or len(taken) == len(batches)
    assert sum(sizes[: max(0, len(taken) - 1)]) < budget or not taken


def test_bits_per_byte_are_of_the_bytes_that_preparation_counted(tiny_data, tiny_run):
    """By hand: nats over ln 2, over the bytes of a token; a byte tokenizer has BOS tokens beside its bytes."""
    split = json.loads((tiny_data / "manifest.json").read_text())["splits"]["val"]
    expected = split["text_bytes"] / split["num_tokens"]

    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0

    assert bytes_per_token(NanogptDataset(f"{tiny_data}/val_*.bin", 16)) == expected
    assert 0.9 < expected < 1
    for record in validations():
        assert record["val_bits_per_byte"] == pytest.approx(record["val_loss"] / math.log(2) / expected)


def test_data_that_nobody_counted_has_no_bits_per_byte():
    """A number that is made up would be compared with others."""
    assert bytes_per_token(Sample()) is None
