"""A configuration written and read again is the same configuration."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.config.config import Config, apply_overrides, from_parsed
from automodel_cli.engine.config.emit import flat, to_flat, to_yaml
from automodel_cli.engine.config.load import builtin_config
from automodel_cli.engine.config.yaml_reader import parse_value, parse_yaml

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=12,
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
