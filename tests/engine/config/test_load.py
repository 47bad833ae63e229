"""`--unset`: a key is gone, and everything else is as it was."""

from __future__ import annotations

import pytest

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.emit import flat
from automodel_cli.engine.config.load import all_keys, apply_unsets, builtin_config, load_config
from automodel_cli.errors import ConfigError


@pytest.mark.parametrize("key", all_keys(builtin_config()))
def test_a_key_that_is_unset_is_gone_and_the_others_stay(key):
    """For every key and every section of the built-in configuration, values and origins."""
    before = builtin_config()

    after = apply_unsets(before, [key])

    left = [leaf for leaf in flat(before) if f"{leaf[0]}.".startswith(f"{key}.") is False]
    assert [leaf for leaf in flat(after) if leaf[1] != {}] == left
    assert not after.has(key)
    assert before.has(key)


def test_a_key_of_ours_falls_back_to_its_default():
    """The file's value is gone, so the default holds, and says so."""
    config = load_config(None, unset=["step_scheduler.val_batches"])

    assert config.get("step_scheduler.val_batches") == 50
    assert config.origin(("step_scheduler", "val_batches")).kind == "default"


def test_unset_comes_after_set():
    """`--unset` wins over `--set` of the same key, wherever the two stand."""
    assert not load_config(None, ["model.bias=false"], ["model.bias"]).has("model.bias")


def test_a_key_that_nobody_has_set_may_be_unset():
    """It is at its default already, which is what was asked for."""
    assert load_config(None, unset=["dataloader.num_workers"]).get("dataloader.num_workers") == 1


@pytest.mark.parametrize(
    ("key", "help_"),
    [("model.n_layr", "did you mean `model.n_layer`?"), ("optimiser", "did you mean `optimizer`?"), ("model..x", "")],
)
def test_an_unknown_key_is_refused_with_the_nearest(key, help_):
    """A typo must not look like a success."""
    with pytest.raises(ConfigError, match="there is no key") as caught:
        apply_unsets(builtin_config(), [key])

    assert caught.value.where == f"--unset {key}"
    assert help_ in caught.value.help


def test_an_element_of_a_list_is_refused():
    """Its neighbours would move to other indices."""
    with pytest.raises(ConfigError, match="element of a list"):
        apply_unsets(Config({"a": [1, 2]}), ["a.0"])
