"""How the batch of a step is split among any number of ranks: nothing else changes, or what would work is said."""

from __future__ import annotations

import pytest

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import apply_overrides
from automodel_cli.engine.config.load import builtin_config
from automodel_cli.engine.plan.run_sizes import run_sizes
from automodel_cli.errors import ConfigError

pytestmark = pytest.mark.usefixtures("named_shards")


def batches(samples: int, local: object):
    """The built-in configuration with other batches."""
    sizes = [f"step_scheduler.global_batch_size={samples}", f"step_scheduler.local_batch_size={local}"]
    return apply_overrides(builtin_config(), sizes)


@pytest.mark.parametrize(
    ("samples", "local", "world_size", "taken"),
    [(16, 16, 1, 16), (16, 16, 2, 8), (16, 16, 16, 1), (48, 20, 3, 16), (48, 16, 3, 16), (512, 16, 8, 16)],
)
def test_ranks_that_share_a_step_take_at_most_their_part(samples, local, world_size, taken):
    """A configuration of one process is one of any number of ranks that can share its batch; plans know it."""
    config = batches(samples, local)

    checked(config, world_size=world_size)

    sizes = run_sizes(config, world_size)
    assert sizes.local_batch_size == taken
    assert sizes.accumulation == samples // (taken * world_size)


@pytest.mark.parametrize(
    ("samples", "local", "world_size", "rule", "help_"),
    [
        (
            16,
            32,
            1,
            "local_batch_size x data-parallel ranks = 32 x 1 = 32",
            "local_batch_size 16 keeps this global batch",
        ),
        (16, 32, 2, "local_batch_size x data-parallel ranks = 32 x 2 = 64", "local_batch_size 8 keeps"),
        (
            48,
            20,
            1,
            "20 x 1 = 20",
            "local_batch_size 16 keeps this global batch; a global batch of 40 or 60 would work",
        ),
        (48, 10, 3, "10 x 3 = 30", "local_batch_size 8 keeps this global batch; a global batch of 30 or 60 would work"),
        (16, 16, 3, "the 3 data-parallel ranks", "15 or 18 would work"),
        (16, "auto", 3, "the 3 data-parallel ranks", "15 or 18 would work"),
        (16, 4, 3, "4 x 3 = 12", "12 or 24 would work"),
    ],
)
def test_a_batch_that_cannot_be_split_is_refused_with_what_would_work(samples, local, world_size, rule, help_):
    """Above all what keeps the batch, and so the run."""
    with pytest.raises(ConfigError) as caught:
        checked(batches(samples, local), world_size=world_size)

    assert f"global_batch_size is {samples}, but it must be a multiple of\n" in caught.value.message
    assert rule in caught.value.message
    assert help_ in (caught.value.help or "")


def test_elastic_micro_batches_stay_as_they_are():
    """Their size is part of the bits: a share that is less is refused."""
    config = apply_overrides(batches(16, 16), ["deterministic=elastic"])
    checked(config, world_size=1)

    with pytest.raises(ConfigError, match="16 x 2 = 32"):
        checked(config, world_size=2)
