"""Numbers that are read one step late change no bit of a run, and let nothing that is not finite through."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from automodel_cli.engine.checkpoint.snapshot import TrainState
from automodel_cli.engine.observe.speed import Speed
from automodel_cli.engine.optim.optimizer import build_optimizer
from automodel_cli.engine.train.step import queue_step
from automodel_cli.engine.train.step_numbers import DeviceGuard, QueuedStep, StepReports, can_guard, guard_of
from automodel_cli.errors import TrainingDivergedError

CPU = torch.device("cpu")


class Doubled(nn.Module):
    """Logits that are made of one matrix; `poison` makes them NaN."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 7)
        self.poison = False

    def forward(self, input_ids):
        return self.table(input_ids) * (float("nan") if self.poison else 1.0)


class Seen:
    """A sink that keeps what it is told."""

    def __init__(self):
        self.steps = []

    def on_step(self, stats):
        self.steps.append(stats)

    def on_message(self, text):
        raise AssertionError(text)


def loss_fn(logits, labels, *, num_label_tokens):
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / num_label_tokens


def batch(step):
    ids = torch.arange(step, step + 12).view(3, 4) % 7
    return {"input_ids": ids, "labels": (ids * 3 + 1) % 7}


class Trained:
    """A few steps as the loop takes them, with numbers that are late or not."""

    def __init__(self, *, is_late, poisoned=None, num_steps=4, kind=torch.optim.AdamW):
        self.model = Doubled()
        self.optimizer = build_optimizer(kind, {"lr": 0.1}, self.model)
        guard = DeviceGuard(self.optimizer) if is_late else None
        self.seen, self.state, self.error, self.weights = Seen(), TrainState(), None, []
        reports = StepReports(self.state, self.seen, Speed(num_steps), lambda: 0, is_late=is_late)
        try:
            for step in range(1, num_steps + 1):
                self.model.poison = step == poisoned
                how = {"device": CPU, "lr": 0.1 / step, "max_norm": 1.0, "autocast_dtype": None, "guard": guard}
                numbers = queue_step(self.model, loss_fn, self.optimizer, [batch(step)], **how)
                self.weights.append(self.model.table.weight.detach().clone())
                reports.add(QueuedStep(numbers, step, 0.1 / step, 0.0, 0.0, 12 * step))
            reports.finish()
        except TrainingDivergedError as error:
            self.error = error


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_late_numbers_change_no_bit(kind):
    """Weights, moments, and every reported number are those of a run that waits for each step."""
    late, waiting = Trained(is_late=True, kind=kind), Trained(is_late=False, kind=kind)

    assert all(torch.equal(a, b) for a, b in zip(late.weights, waiting.weights, strict=True))
    for mine, theirs in zip(late.optimizer.state.values(), waiting.optimizer.state.values(), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    numbers = [[(s.step, s.loss, s.grad_norm, s.lr, s.tokens_seen) for s in run.seen.steps] for run in (late, waiting)]
    assert numbers[0] == numbers[1]
    assert [step for step, *_ in numbers[0]] == [1, 2, 3, 4]


@pytest.mark.parametrize("poisoned", [1, 3, 4])
def test_a_step_that_is_not_finite_leaves_the_weights_of_the_step_before(poisoned):
    """The step that was queued behind it changes nothing either, and the error names the bad one, not the later."""
    run = Trained(is_late=True, poisoned=poisoned)

    good = Trained(is_late=False, num_steps=poisoned - 1)
    before = good.model.table.weight if poisoned > 1 else Doubled().table.weight
    assert torch.equal(run.model.table.weight, before)
    assert run.error is not None
    assert run.error.where == f"step {poisoned}"
    assert [stats.step for stats in run.seen.steps] == list(range(1, poisoned))
    for state, expected in zip(run.optimizer.state.values(), good.optimizer.state.values(), strict=poisoned > 1):
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_step_is_reported_when_the_next_one_has_been_queued():
    """Late means one step, not more; the end reports the last."""
    state, seen = TrainState(), Seen()
    reports = StepReports(state, seen, Speed(3), lambda: 0, is_late=True)
    model = Doubled()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    reported = []
    for step in (1, 2, 3):
        how = {"device": CPU, "lr": 0.1, "max_norm": None, "autocast_dtype": None, "guard": DeviceGuard(optimizer)}
        numbers = queue_step(model, loss_fn, optimizer, [batch(step)], **how)
        reports.add(QueuedStep(numbers, step, 0.1, 0.0, 0.0, step))
        reported.append(len(seen.steps))

    reports.finish()

    assert (reported, len(seen.steps)) == ([0, 1, 2], 3)


def test_only_optimizers_that_skip_on_the_device_are_read_late():
    """Fused AdamW is; a loop over parameters and another method are not, which is said on a GPU."""
    weight = [nn.Parameter(torch.zeros(2, 2))]
    plain, other = torch.optim.AdamW(weight, foreach=True), torch.optim.SGD(weight, lr=1.0)

    assert can_guard(torch.optim.AdamW(weight, fused=True))
    assert not can_guard(plain)
    guard, words = guard_of(other, torch.device("cuda"))
    assert guard is None
    assert words == "read after every step, as SGD cannot be told on the device to leave a step out"
    assert guard_of(torch.optim.AdamW(weight, fused=True), CPU) == (None, None)


def test_an_optimizer_that_declares_that_it_skips_on_the_device_is_guarded():
    """A user's own, by what its class says; a class that is derived from AdamW says nothing by that."""

    class Skips(torch.optim.SGD):
        skips_on_device = True

    class Derived(torch.optim.AdamW):
        pass

    weight = [nn.Parameter(torch.zeros(2, 2))]

    assert can_guard(Skips(weight, lr=1.0, fused=True))
    assert not can_guard(Derived(weight, fused=True))


@pytest.mark.gpu
def test_on_a_gpu_late_numbers_are_those_of_a_run_that_waits():
    """With real pinned copies and events."""
    runs = []
    for is_late in (True, False):
        model = Doubled().cuda()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        guard = DeviceGuard(optimizer) if is_late else None
        how = {"device": torch.device("cuda"), "lr": 0.1, "max_norm": 1.0, "autocast_dtype": None, "guard": guard}
        queued = [queue_step(model, loss_fn, optimizer, [batch(step)], **how) for step in range(5)]
        runs.append(([numbers.read() for numbers in queued], model.table.weight.detach().cpu()))

    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
