"""YAML 1.2 values with positions, and the refusals."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.config.yaml_reader import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml
from automodel_cli.errors import ConfigError


def parse(text: str) -> object:
    return parse_yaml(text, source="x.yaml", kind="file").value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E6", 1e6),
        ("-.5", -0.5),
        ("0123", 123),
        ("1_000", 1000),
        ("0x10", 16),
        ("0o17", 15),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("none", None),
        ("null", None),
        ("~", None),
        ("", None),
        ("'12'", "12"),
        ("!!str 12", "12"),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"),
        ("1.5.2", "1.5.2"),
        ("[0.9, 0.95]", [0.9, 0.95]),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    """What PyYAML alone gets wrong (2e-4 a string, 0123 octal, yes a boolean) is right."""
    assert parse(text) == value
    assert type(parse(text)) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_is_read_as_that_float(number):
    """`repr` and the reader are inverse, so that a learning rate survives a checkpoint."""
    assert parse(f"lr: {number!r}") == {"lr": number}


# JSON writes characters beyond the basic plane as surrogate pairs, which YAML does not have.
basic_text = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]))


json_values = st.recursive(st.none() | st.booleans() | st.integers() | basic_text, st.lists, max_leaves=8)


@given(json_values)
def test_json_is_read_as_itself(value):
    """JSON is YAML 1.2: whatever a script writes as JSON is understood."""
    assert parse(json.dumps({"key": value})) == {"key": value}


def test_every_value_knows_its_line_and_column():
    """Positions are those that an editor shows, and a block is found at its key."""
    parsed = parse_yaml("model:\n  n_layer: 12\n  betas: [0.9, 0.95]\n", source="a.yaml", kind="file")

    assert str(parsed.origins["model",]) == "a.yaml:1:1"
    assert str(parsed.origins["model", "n_layer"]) == "a.yaml:2:12"
    assert str(parsed.key_origins["model", "n_layer"]) == "a.yaml:2:3"
    assert str(parsed.origins["model", "betas", 1]) == "a.yaml:3:16"


def test_merge_keys_are_laid_below_the_keys_of_the_mapping():
    """`<<` gives defaults; what the mapping says itself wins."""
    text = "base: &b {n_layer: 12, n_head: 12}\nmodel: {<<: *b, n_layer: 24}\n"

    assert parse(text)["model"] == {"n_layer": 24, "n_head": 12}


@pytest.mark.parametrize(
    ("text", "where", "word"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml:3:1", "line 1"),
        ("a: !!python/object/apply:os.system [ls]", "x.yaml:1:4", "refused"),
        ("a: !mine 3", "x.yaml:1:4", "refused"),
        ("a: &x [*x]", "x.yaml:1:4", "alias"),
        ("a: [1, 2", "x.yaml", "YAML"),
        ("? [1]\n: 2", "x.yaml:1:3", "key"),
        ("a: !!int twelve", "x.yaml:1:4", "twelve"),
        ("a: *nowhere", "x.yaml:1:4", "alias"),
    ],
)
def test_refusals_name_the_place(text, where, word):
    """Each refused construct is an error of one message with its position."""
    with pytest.raises(ConfigError) as caught:
        parse(text)

    assert caught.value.where.startswith(where)
    assert word in caught.value.message


def test_an_alias_bomb_is_refused_before_it_expands():
    """Nine levels of nine aliases would be 387 million values; the bound says so after 20,000 keys and values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]

    with pytest.raises(ConfigError, match="at most 20,000 keys and values"):
        parse("\n".join(lines))


def test_depth_and_size_are_bounded(tmp_path):
    """A file of brackets or of megabytes is refused with the bound, not with a stack overflow."""
    with pytest.raises(ConfigError, match=f"{MAX_DEPTH} deep"):
        parse("a: " + "[" * 100_000)
    large = tmp_path / "large.yaml"
    large.write_text("a: " + "x" * MAX_BYTES)
    with pytest.raises(ConfigError, match="262,144 bytes"):
        read_yaml(large)


@pytest.mark.parametrize(
    ("data", "word"), [(b"\xff\xfe\x00", "UTF-8"), (b"- 1\n- 2\n", "mapping"), (b"just text", "mapping")]
)
def test_files_that_are_no_configuration_are_refused(tmp_path, data, word):
    """Binary files and lists are told from configurations."""
    path = tmp_path / "c.yaml"
    path.write_bytes(data)

    with pytest.raises(ConfigError, match=word):
        read_yaml(path)


def test_a_missing_file_is_named(tmp_path):
    """The path that was tried is in the message."""
    with pytest.raises(ConfigError, match=r"gone\.yaml: there is no such file"):
        read_yaml(tmp_path / "gone.yaml")
