"""What differs: the values alone decide, and both origins are told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.config.config import Config, apply_overrides, from_parsed
from automodel_cli.engine.config.diff import ABSENT, changed_only, differences
from automodel_cli.engine.config.emit import flat, to_yaml
from automodel_cli.engine.config.load import builtin_config, load_config, with_defaults
from automodel_cli.engine.config.yaml_reader import parse_yaml

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3)
trees = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner)),
)


@given(trees)
def test_nothing_differs_from_itself(tree):
    """Not even a NaN."""
    assert differences(Config(tree), Config(tree)) == []


@given(trees, trees)
def test_what_differs_one_way_differs_the_other_way(old, new):
    """Old and new change places, and nothing else changes."""
    there = {change.key: (repr(change.old), repr(change.new)) for change in differences(Config(old), Config(new))}
    back = {change.key: (repr(change.new), repr(change.old)) for change in differences(Config(new), Config(old))}

    assert there == back


def test_true_is_not_one_and_one_is_one_point_zero():
    """As the checks see it: a whole number may stand for a number, a truth value for neither."""
    old, new = Config({"a": 1, "b": 1, "c": [1]}), Config({"a": True, "b": 1.0, "c": [True]})

    assert [change.key for change in differences(old, new)] == ["a", "c"]


def test_both_origins_are_told():
    """Where the old value stood, where the new one stands, and none where a side lacks the key."""
    old = from_parsed(parse_yaml("seed: 1\ndevice: cpu\n", source="old.yaml", kind="file"))
    new = apply_overrides(from_parsed(parse_yaml("seed: 1\n", source="new.yaml", kind="file")), ["seed=2"])

    seed, device = differences(old, new)

    assert seed == ("seed", 1, 2, "old.yaml:1", "--set seed")
    assert device == ("device", "cpu", ABSENT, "old.yaml:2", None)


def test_a_file_target_equals_its_absolute_form(tmp_path):
    """A run differs in nothing from its own checkpoint, which keeps file targets absolute."""
    text = "model:\n  _target_: model.py:build\n"
    config = from_parsed(parse_yaml(text, source=str(tmp_path / "run.yaml"), kind="file"))
    saved = to_yaml(config, absolute_targets=True)

    assert differences(from_parsed(parse_yaml(saved, source="/x/config.yaml", kind="checkpoint")), config) == []


def test_changed_only_shows_the_overrides_of_the_built_in_run():
    """Without a file of one's own the built-in configuration is the base."""
    config = load_config(None, ["seed=5", "optimizer.fused=true"])

    shown = changed_only(config, built_in=True)

    assert shown.values == {"seed": 5, "optimizer": {"fused": True}}
    assert str(shown.origin(("seed",))) == "--set seed"


def test_changed_only_of_a_file_is_that_file_without_what_is_default(tmp_path):
    """Nothing is left out because the built-in run happens to have the same value."""
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1234\nprecision: fp32\nmodel: {_target_: a.b, n_layer: 4}\ncheckpoint: {enabled: true}\n")

    shown = changed_only(load_config([path]), built_in=False)

    assert shown.values == {"precision": "fp32", "model": {"_target_": "a.b", "n_layer": 4}}


def test_defaults_laid_over_what_changed_give_everything_back():
    """`--changed-only` loses nothing: with the defaults it is the whole configuration again."""
    config = with_defaults(builtin_config())

    again = with_defaults(changed_only(config, built_in=False))

    assert {key: value for key, value, _ in flat(again)} == {key: value for key, value, _ in flat(config)}
