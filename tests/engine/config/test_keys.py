"""What a key means: from our table or from the source of its callable, and never made up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from automodel_cli.engine.config.config import apply_overrides
from automodel_cli.engine.config.emit import flat
from automodel_cli.engine.config.keys import REQUIRED, UNKNOWN, explain
from automodel_cli.engine.config.load import all_keys, builtin_config, load_config
from automodel_cli.engine.config.sections import SECTIONS, General, section_fields
from automodel_cli.errors import ConfigError

MINE = '''
class Base:
    """A base.

    Args:
        width: How wide.
    """

    def __init__(self, width: int, *, depth: int = 3, shape=(1, 2)):
        """Builds it.

        Args:
            depth: How deep; two lines
                of text.
        """

class Derived(Base):
    """A derived class."""

    @classmethod
    def small(cls, depth: int | None = None):
        """A small one.

        Args:
            depth: As it likes.
        """
'''


def mine(tmp_path: Path, target: str):
    """A configuration whose model is built from a file of the user's own."""
    (tmp_path / "mine.py").write_text(MINE)
    path = tmp_path / "run.yaml"
    path.write_text(f"model:\n  _target_: mine.py:{target}\n  width: 4\n")
    return load_config([path])


def test_a_key_of_ours_is_explained_by_the_table():
    """Meaning, type, default, range, and present value with its origin; what acts on it is amcli."""
    found = explain(load_config(None, ["step_scheduler.val_batches=7"]), "step_scheduler.val_batches")

    assert found.meaning == "validation batches, the first of the set; null takes all"
    assert (found.type, found.default, found.allowed) == ("a whole number or null", "50", "at least 1")
    assert (found.value, found.origin) == ("7", "--set step_scheduler.val_batches")
    assert found.used_by is None


@pytest.mark.parametrize("section", [General, *SECTIONS], ids=lambda section: section.name or "top level")
def test_every_key_of_ours_has_an_explanation(section):
    """With the value that holds, whoever has set it."""
    config = load_config(None)

    for name, item in section_fields(section).items():
        found = explain(config, f"{section.name}.{name}" if section.name else name)
        assert found.meaning != UNKNOWN
        # What few people meet is not shown before somebody sets it.
        assert (found.value is None) == item.metadata["quiet"]
        assert bool(found.origin) != item.metadata["quiet"]


@pytest.mark.parametrize("key", all_keys(builtin_config()))
def test_every_key_of_the_built_in_configuration_is_known(key):
    """No key that we ship has no meaning."""
    assert explain(load_config(None), key).meaning != UNKNOWN


def test_an_argument_of_a_callable_is_explained_by_its_source():
    """The line of the docstring, the annotation, the default, and where to read on."""
    found = explain(load_config(None), "dataset.align_to_bos")

    assert found.meaning.startswith("Begin every sample at a BOS token.")
    assert (found.type, found.default, found.value) == ("bool", "false", None)
    assert re.search(r"NanogptDataset \(.*nanogpt_dataset\.py:\d+\)$", found.used_by)


def test_an_argument_of_torch_is_explained_by_its_source():
    """Although torch assigns its docstrings after the class, and puts them together from parts."""
    config = load_config(None)

    assert explain(config, "optimizer.lr").meaning.startswith("learning rate")
    assert explain(config, "optimizer.fused").meaning.startswith("whether the fused implementation is used")
    assert explain(config, "optimizer.betas").default == "[0.9, 0.999]"
    assert "params" not in explain(config, "optimizer").keys


def test_a_class_of_ones_own_is_explained_without_being_run(tmp_path):
    """Class and constructor may both describe arguments; those of a base class count too."""
    config = mine(tmp_path, "Derived")

    assert explain(config, "model").meaning == "A derived class."
    assert explain(config, "model").keys == ("width", "depth", "shape")
    assert explain(config, "model.width").meaning == "How wide."
    assert explain(config, "model.width").default == REQUIRED
    assert explain(config, "model.depth").meaning == "How deep; two lines of text."
    assert explain(config, "model.shape").meaning == UNKNOWN
    assert explain(config, "model.shape").default == "[1, 2]"


def test_a_class_method_is_explained_by_itself(tmp_path, monkeypatch):
    """Its own docstring and parameters, not those of the class."""
    (tmp_path / "explained_package.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)

    found = explain(load_config(None, ["model={_target_: explained_package.Derived.small}"]), "model.depth")

    assert (found.meaning, found.type, found.default) == ("As it likes.", "int | None", "null")


def test_what_the_source_does_not_tell_is_unknown(tmp_path):
    """A callable that is computed, and a target that does not exist, are not guessed about."""
    (tmp_path / "mine.py").write_text("build = make()\n")
    path = tmp_path / "run.yaml"
    path.write_text("model: {_target_: 'mine.py:build', a: 1}\noptimizer: {_target_: no.such.thing, lr: 1}\n")
    config = load_config([path])

    for key in ("model.a", "optimizer.lr"):
        found = explain(config, key)
        assert (found.meaning, found.type, found.default) == (UNKNOWN, None, None)
        assert found.used_by.endswith("(not found in source)")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("step_scheduler.max_step", "step_scheduler.max_steps"),
        ("optimizer.beta", "optimizer.betas"),
        ("optimizer.amsgrat", "optimizer.amsgrad"),
        ("optimiser", "optimizer"),
        ("sead", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, near):
    """Also arguments that nobody has given are near."""
    with pytest.raises(ConfigError) as caught:
        explain(load_config(None), key)

    assert caught.value.help == f"did you mean `{near}`?"


def test_a_section_lists_its_keys():
    """Ours from the table, others from the callable."""
    config = load_config(None)

    assert explain(config, "lr_scheduler").keys == (
        "lr_decay_style",
        "lr_warmup_steps",
        "lr_decay_steps",
        "lr_wsd_decay_steps",
        "lr_wsd_decay_style",
        "min_lr",
        "_target_",
    )
    assert "n_layer" in explain(config, "model").keys


def test_an_element_of_a_list_is_explained_by_its_argument():
    """With its own value and origin."""
    config = apply_overrides(load_config(None), ["optimizer.betas.1=0.99"])

    found = explain(config, "optimizer.betas.1")

    assert found.meaning.startswith("coefficients")
    assert (found.value, found.origin) == ("0.99", "--set optimizer.betas.1")


def test_explaining_changes_no_value():
    """A question is not an edit."""
    config = load_config(None)
    before = [(key, value) for key, value, _ in flat(config)]

    explain(config, "model.n_layer")

    assert [(key, value) for key, value, _ in flat(config)] == before


def test_a_name_of_another_package_is_explained_by_what_stands_for_it():
    """Guides for NeMo AutoModel name its parts; ours take their place, and are what is described."""
    target = "model={_target_: nemo_automodel.components.models.gpt2.build_gpt2_model}"

    found = explain(load_config(None, [target]), "model.n_layer")

    assert found.meaning == "Transformer blocks."
    assert found.used_by.startswith("nemo_automodel.components.models.gpt2.build_gpt2_model (")
