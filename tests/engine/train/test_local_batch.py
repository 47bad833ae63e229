"""The search for the local batch: by any probe, by trials that leave nothing behind, and agreed by all ranks."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.parallel_layout import divisors
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.distributed.rank_group import SOLO
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.plan.derive import RESERVED_SHARE
from automodel_cli.engine.train import local_batch
from automodel_cli.engine.train.device import DeviceMemory, Placement
from automodel_cli.engine.train.dry_run import DryRun, undone
from automodel_cli.engine.train.generators import rng_tensors
from automodel_cli.engine.train.local_batch import fits_by_line, largest_that_fits
from automodel_cli.engine.train.objective import Objective


@given(st.integers(1, 5000), st.integers(0, 6000))
def test_the_search_finds_the_largest_divisor_that_fits(per_rank, limit):
    """For every limit, and with no more questions than a search by halves needs twice over."""
    sizes, asked = divisors(per_rank), []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= limit

    found = largest_that_fits(sizes, fits)

    assert found == max((size for size in sizes if size <= limit), default=None)
    assert len(asked) == len(set(asked)) <= 2 * len(sizes).bit_length() + 12


def test_a_size_that_would_not_fit_is_not_tried():
    """Two trials show the line on which memory grows; a failed trial of one rank would leave the others waiting."""
    tried = []

    def peak(size: int) -> int:
        tried.append(size)
        return 100 + 10 * size

    found = largest_that_fits(divisors(64), fits_by_line(peak, 450, lambda is_so: is_so))

    assert found == 32
    assert max(tried) == 32


def test_a_trial_without_memory_does_not_fit():
    """Where the line says yes and the device no, the device is right."""
    fits = fits_by_line(lambda size: size if size < 4 else None, 100, lambda is_so: is_so)

    assert largest_that_fits([1, 2, 4, 8], fits) == 2


def test_all_ranks_take_what_the_poorest_can():
    """A size that one rank refuses is refused by all, at the same question."""
    answers = [fits_by_line(lambda size: 10 * size, limit, lambda is_so: is_so) for limit in (80, 45)]

    def agreed(size: int) -> bool:
        return all([fits(size) for fits in answers])

    assert largest_that_fits([1, 2, 4, 8], agreed) == 4


def weights_of(model: torch.nn.Module) -> str:
    """SHA-256 of all weights and buffers."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def dry_run(optimizer_class: type[torch.optim.Optimizer], peak_bytes=lambda: 0) -> DryRun:
    """A trial with a tiny model and dropout, on the CPU."""
    model = build_gpt2_model(vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=2, dropout=0.5)
    ids = torch.arange(8)[None].numpy()
    return DryRun(
        model=ParallelModel(model),
        objective=Objective(MaskedCrossEntropy(), None, ""),
        optimizer=optimizer_class(model.parameters(), lr=0.1),
        sample={"input_ids": ids, "labels": ids},
        device=torch.device("cpu"),
        autocast_dtype=None,
        peak_bytes=peak_bytes,
    )


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_a_trial_leaves_nothing_behind(optimizer_class):
    """Weights, modes, hyperparameters and generators are the same bits; gradients and state are gone."""
    trial = dry_run(optimizer_class)
    model = trial.model.module
    model.eval()
    weights, generators = weights_of(model), rng_tensors()

    with undone(model, trial.optimizer):
        trial.peak(3, passes=2)
        assert weights_of(model) != weights

    assert weights_of(model) == weights
    assert all(torch.equal(value, generators[name]) for name, value in rng_tensors().items())
    assert not trial.optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_a_trial_keeps_the_state_of_a_run_that_goes_on():
    """An optimizer that has a state does not step, so the state stays what it was."""
    trial = dry_run(torch.optim.AdamW)
    trial.peak(2, passes=1)
    before = {key: value.clone() for key, value in next(iter(trial.optimizer.state.values())).items()}

    with undone(trial.model.module, trial.optimizer):
        trial.peak(2, passes=1)

    after = next(iter(trial.optimizer.state.values()))
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_a_trial_tells_a_lack_of_memory_from_a_defect(monkeypatch):
    """The first is an answer, the second an error."""
    trial = dry_run(torch.optim.SGD)

    def failing(error: Exception):
        def forward(*_: object, **__: object) -> None:
            raise error

        return forward

    monkeypatch.setattr(trial.model.module, "forward", failing(torch.OutOfMemoryError("CUDA out of memory")))
    assert trial.peak(1, passes=1) is None
    monkeypatch.setattr(trial.model.module, "forward", failing(ValueError("a defect")))
    with pytest.raises(ValueError, match="a defect"):
        trial.peak(1, passes=1)


class FullBackward(torch.autograd.Function):
    """Passes a value on, and has no memory for its gradient."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("no memory left")


@pytest.mark.usefixtures("one_rank")
@pytest.mark.skipif(not hasattr(FSDPModule, "reset_iter_state"), reason="this torch cannot forget a pass")
def test_fsdp_trains_on_after_a_trial_without_memory():
    """Masters are put back to the bit, whatever the modules held when it failed, and the next step trains them."""
    trial = dry_run(torch.optim.AdamW)
    mesh = init_device_mesh("cpu", (1,))
    for module in (trial.model.module.transformer.h[0], trial.model.module):
        fully_shard(module, mesh=mesh, reshard_after_forward=False)
    trial = DryRun(**{**vars(trial), "optimizer": torch.optim.AdamW(trial.model.module.parameters(), lr=0.1)})
    masters = [parameter.to_local() for parameter in trial.model.module.parameters()]
    before = [master.clone() for master in masters]
    block, whole = trial.model.module.transformer.h[0], trial.model.module.transformer.h[0].forward

    with undone(trial.model.module, trial.optimizer):
        assert trial.peak(1, passes=1) is not None
        block.forward = lambda *arguments: FullBackward.apply(whole(*arguments))
        assert trial.peak(2, passes=1) is None
        block.forward = whole

    assert all(torch.equal(master, kept) for master, kept in zip(masters, before, strict=True))
    assert trial.peak(1, passes=1) is not None
    assert not any(torch.equal(master, kept) for master, kept in zip(masters, before, strict=True))


@pytest.mark.parametrize(("free", "expected"), [(10**12, 256), (0, 1)])
def test_on_a_cpu_the_estimate_and_the_cap_decide(tiny_run, monkeypatch, free, expected):
    """With memory in plenty 4,096 tokens of 16 each; with none a single sample, as an estimate is no proof."""
    from automodel_cli.engine.config.config import read_configs

    monkeypatch.setattr(local_batch, "device_memory", lambda device: DeviceMemory(0, free, 10**12))
    placement = Placement(torch.device("cpu"), None, "cpu")
    config: Config = read_configs([tiny_run])

    found, reason = local_batch._by_estimate(config, placement, 1024, SOLO)

    assert found == expected
    assert "4,096 tokens" in reason


@pytest.mark.gpu
def test_on_a_gpu_the_largest_that_fits_is_found():
    """Twice as much would exceed the limit that was searched with."""
    device = torch.device("cuda")
    trial = dry_run(torch.optim.AdamW)
    trial.model.module.to(device)
    on_gpu = DryRun(**{**vars(trial), "device": device, "peak_bytes": local_batch._peak_of_gpu(device)})
    limit = on_gpu.peak(64, passes=1) or 0

    found = local_batch._by_trial(on_gpu, 1024, int(limit / (1 - RESERVED_SHARE)), SOLO, compiles=False)

    assert 64 <= found < 1024
