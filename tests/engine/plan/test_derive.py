"""A plan is consistent with itself and with the numbers of the configuration."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.plan.derive import budget, derive, plan
from automodel_cli.engine.plan.memory import MEMORY_GB, device_named, memory_bytes
from automodel_cli.errors import UsageError
from tests.engine.plan.conftest import ours

H100 = device_named("h100")
SECTIONS = {
    "dataset": {"seq_len": 1024},
    "optimizer": {"_target_": "torch.optim.AdamW"},
    "step_scheduler": {"max_steps": 1000, "global_batch_size": 512, "local_batch_size": 16},
}
MODEL = ours(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12).values
CONFIG = Config({**MODEL, **SECTIONS})


def with_values(**values: object) -> Config:
    return Config({**CONFIG.values, **values})


def test_the_schedule_is_the_product_of_its_numbers():
    """512 x 1024 tokens a step; on 8 ranks, 4 passes of 16 samples each."""
    derived = derive(CONFIG, world_size=8)

    amounts = derived.schedule
    assert (amounts.tokens_per_step, amounts.accumulation, amounts.tokens) == (524_288, 4, 524_288_000)
    assert amounts.tokens_per_parameter == 524_288_000 / 124_439_808
    assert derived.flops == derived.flops_per_token * 524_288_000


def test_context_and_tensor_parallel_ranks_read_no_samples_of_their_own():
    """Of 8 ranks, 2 read different samples."""
    config = with_values(distributed={"tp_size": 2, "cp_size": 2})

    derived = derive(config, world_size=8)

    assert (derived.schedule.dp_ranks, derived.schedule.accumulation) == (2, 16)
    assert derive(config).schedule.dp_ranks == 1


def test_epochs_are_told_by_the_manifest(tiny_run):
    """Tokens of the run over tokens of its shards; nothing is said where a shard was replaced, or of a blend."""
    config = load_config([tiny_run])
    shards = config.get("dataset.file_pattern")

    amounts = derive(config).schedule

    assert amounts.tokens == 6 * 8 * 16
    assert amounts.epochs == amounts.tokens / amounts.data_tokens
    assert amounts.data_tokens == 50_000
    blend = config.with_value(("dataset", "file_pattern"), [30, shards, 70, shards], config.origin(("dataset",)))
    assert derive(blend).schedule.epochs is None


def test_a_replaced_shard_is_not_counted_by_the_old_manifest(tiny_data, tmp_path):
    """The manifest describes other data, so there is no number of epochs."""
    for path in tiny_data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dataset = {
        "_target_": "automodel_cli.engine.data.nanogpt_dataset.NanogptDataset",
        "file_pattern": str(tmp_path / "train_*.bin"),
        "seq_len": 16,
    }
    assert derive(with_values(dataset=dataset)).schedule.data_tokens == 50_000

    shard = next(tmp_path.glob("train_*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])

    assert derive(with_values(dataset=dataset)).schedule.data_tokens is None


def test_environment_variables_count(monkeypatch):
    """As they will be at the start of the run; one that is not set is not known."""
    config = with_values(step_scheduler={**SECTIONS["step_scheduler"], "max_steps": "${STEPS}"})
    monkeypatch.setenv("STEPS", "7")
    assert derive(config).schedule.tokens == 7 * 524_288

    monkeypatch.delenv("STEPS")

    assert derive(config).schedule.tokens is None


def test_the_keys_that_save_memory_are_read():
    """Each by its name in the configuration, and none without effect."""
    saving = {
        "activations": {"activation_checkpointing": {"mode": "full"}},
        "logits": {"loss_fn": {"_target_": "automodel_cli.engine.loss.linear_ce.ChunkedLinearCrossEntropy"}},
        "weights": {"precision": "bf16-params"},
        "optimizer": {"optimizer": {"_target_": "torch.optim.SGD"}},
        "buffers": {"precision": "fp32"},
    }
    masked = {"loss_fn": {"_target_": "automodel_cli.engine.loss.masked_ce.MaskedCrossEntropy"}}
    base = plan(with_values(**masked), world_size=1, device=H100).memory

    for category, values in saving.items():
        saved = plan(with_values(**{**masked, **values}), world_size=1, device=H100).memory
        assert getattr(saved, category) < getattr(base, category), category


def test_without_a_name_the_loss_is_the_chunked_one():
    """As the run itself chooses it for every model that is known here."""
    chunked = {"_target_": "automodel_cli.engine.loss.linear_ce.ChunkedLinearCrossEntropy"}

    named, unnamed = (plan(with_values(loss_fn=loss), world_size=1, device=H100) for loss in (chunked, None))

    assert unnamed.memory.logits == named.memory.logits


def test_an_unknown_model_leaves_the_rest():
    """Tokens and steps do not depend on it; memory and hours do."""
    found = plan(with_values(model={"_target_": "my.py:build"}), world_size=8, device=H100)

    assert found.derived.schedule.tokens == 524_288_000
    assert "without building: my.py:build" in found.derived.unknown
    assert (found.memory, found.hours, found.largest_local_batch, found.fits) == (None, None, None, None)


def test_an_empty_configuration_has_no_numbers():
    """Nothing is invented, and nothing fails."""
    found = plan(Config({}), world_size=None, device=H100)

    assert found.derived.parameters is None
    assert (found.derived.schedule.tokens_per_step, found.memory, found.hours) == (None, None, None)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 200),
    st.sampled_from([{}, {"tp_size": 2}, {"cp_size": 2}, {"strategy": "ddp"}, {"mp_policy": "bf16"}]),
)
def test_the_largest_batch_fits_and_the_next_does_not(gigabytes, distributed):
    """At the edge of the memory, in every layout; it never falls when the memory grows."""
    config = with_values(distributed=distributed)
    size = gigabytes * 10**9

    found, more = (plan(config, world_size=8, device=H100, gpu_memory=each) for each in (size, 2 * size))

    def fits(batch: int) -> bool:
        steps = {**SECTIONS["step_scheduler"], "local_batch_size": batch, "global_batch_size": 64 * batch}
        return plan(
            with_values(distributed=distributed, step_scheduler=steps), world_size=8, device=H100, gpu_memory=size
        ).fits

    assert found.largest_local_batch == 0 or fits(found.largest_local_batch)
    assert not fits(found.largest_local_batch + 1)
    assert more.largest_local_batch >= found.largest_local_batch


def test_the_batch_that_divides_is_one_that_can_be_set():
    """It divides a rank's 64 samples, and fits; of a rank with less memory it is smaller, down to none."""
    sizes = [
        plan(CONFIG, world_size=8, device=H100, gpu_memory=n * 10**9).largest_divisor for n in (1, 10, 40, 80, 400)
    ]

    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (0, 64)
    assert all(size == 0 or 64 % size == 0 for size in sizes)


def test_a_plan_fits_if_its_total_leaves_the_reserve():
    """Exactly at the edge."""
    needed = plan(CONFIG, world_size=8, device=H100).memory.total
    least = next(size for size in range(needed, 2 * needed, 10**5) if budget(size) >= needed)

    assert plan(CONFIG, world_size=8, device=H100, gpu_memory=least).fits
    assert not plan(CONFIG, world_size=8, device=H100, gpu_memory=least - 10**6).fits


def test_hours_are_operations_over_rate():
    """Twice the devices or twice the utilisation take half the time."""
    one, more, better, slower = (
        plan(CONFIG, world_size=world, device=H100, mfu=mfu, peak_tflops=peak).hours
        for world, mfu, peak in ((1, 0.4, None), (8, 0.4, None), (1, 0.8, None), (1, 0.4, 98.94))
    )

    assert one == pytest.approx(derive(CONFIG).flops / (989.4e12 * 0.4) / 3600)
    assert (more, better, slower) == pytest.approx((one / 8, one / 2, one * 10))


def test_a_bf16_peak_is_not_taken_for_fp32():
    """The hours of an fp32 run need a peak that somebody names, on the command line or in the configuration."""
    in_fp32 = with_values(precision="fp32")

    assert plan(in_fp32, world_size=1, device=H100).hours is None
    assert plan(in_fp32, world_size=1, device=H100, peak_tflops=60).hours > 0
    assert plan(with_values(precision="fp32", mfu={"peak_tflops": 60}), world_size=1, device=H100).hours > 0


@pytest.mark.parametrize("name", MEMORY_GB)
def test_every_device_has_a_peak_and_a_memory(name):
    """Under its name in any case."""
    device = device_named(name.lower())

    assert device.memory_bytes == MEMORY_GB[name] * 10**9
    assert device.peak_flops > 10**14


@pytest.mark.parametrize("text", ["80", "GB", "-1GB", "0GB", "80 XB", "1e3GB", ""])
def test_a_size_without_unit_or_value_is_refused(text):
    """With examples of what works."""
    with pytest.raises(UsageError) as caught:
        memory_bytes(text)

    assert "79.6GiB" in str(caught.value)
