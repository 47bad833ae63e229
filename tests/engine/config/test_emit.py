"""A configuration written and read again is the same configuration, and differences are what differs."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.config.config import Config, apply_overrides, from_parsed
from automodel_cli.engine.config.emit import ABSENT, differences, flat, to_flat, to_yaml
from automodel_cli.engine.config.load import builtin_config, changed_only, load_config, with_defaults
from automodel_cli.engine.config.yaml_reader import parse_value, parse_yaml

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=12,
)
few_scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3)
trees = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(
        few_scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner)
    ),
)


@given(st.dictionaries(st.text(min_size=1), values, max_size=4), st.booleans())
def test_what_is_written_is_read_back_equal(tree, origins):
    """For any tree of plain values, with and without the origin comments."""
    text = to_yaml(Config(tree), origins=origins)

    assert (parse_yaml(text, source="x", kind="file").value or {}) == tree


def test_nan_survives():
    """NaN differs from itself, so hypothesis leaves it to us."""
    assert math.isnan(parse_yaml(to_yaml(Config({"x": math.nan})), source="x", kind="file").value["x"])


def test_origins_stand_in_one_column():
    """The comments are aligned, and name file and line or the option."""
    text = to_yaml(apply_overrides(builtin_config(), ["model.n_layer=24"]))

    comments = {line.index("  # ") for line in text.splitlines() if "  # " in line}
    assert len(comments) == 1
    assert "n_layer: 24" in text
    assert "# --set model.n_layer" in text
    assert "# built-in quickstart.yaml:" in text


def test_file_targets_become_absolute_for_a_checkpoint(tmp_path):
    """`model.py:build` means the same when the text lies in a checkpoint."""
    source = tmp_path / "run.yaml"
    config = from_parsed(parse_yaml("model: {_target_: 'model.py:build'}", source=str(source), kind="file"))

    text = to_yaml(config, absolute_targets=True)

    assert f"{tmp_path.resolve() / 'model.py'}:build" in text


names = st.text("abc_", min_size=1)  # no `=` and no `.`: an override could not name such a key
in_lists = st.lists(values, max_size=3) | scalars


@given(st.dictionaries(names, in_lists | st.dictionaries(names, in_lists, max_size=3), max_size=4), st.booleans())
def test_each_line_of_the_flat_form_is_an_override_that_gives_the_value_back(tree, origins):
    """For any values, also lists of mappings and with the origin beside it."""
    lines = to_flat(Config(tree), origins=origins).splitlines()

    again = {}
    for line in lines:
        key, _, text = line.partition("=")
        again[key] = parse_value(text, source="x")
    assert again == {key: value for key, value, _ in flat(Config(tree))}


def test_a_line_break_in_an_origin_does_not_break_the_comment():
    """A file may have any name; the text stays valid, and has no control codes."""
    config = from_parsed(parse_yaml("a: 1\n", source="new\nline\x1b[31m.yaml", kind="file"))

    text = to_yaml(config)

    assert parse_yaml(text, source="x", kind="file").value == {"a": 1}
    assert "\x1b" not in text


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
