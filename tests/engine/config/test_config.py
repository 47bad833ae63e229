"""Merging, overriding, and what becomes of the origins."""

from __future__ import annotations

import pytest

from automodel_cli.engine.config.config import apply_overrides, from_parsed, read_configs
from automodel_cli.engine.config.emit import differences, to_yaml
from automodel_cli.engine.config.yaml_reader import parse_yaml
from automodel_cli.errors import ConfigError, UsageError


def config(text, source="a.yaml"):
    return from_parsed(parse_yaml(text, source=source, kind="file"))


BASE = "model:\n  _target_: m.build\n  n_layer: 12\n  n_head: 12\noptimizer:\n  betas: [0.9, 0.95]\n"


def test_later_files_win_key_by_key_and_keep_their_origin():
    """What the second file does not mention stays, with the position in the first."""
    merged = config(BASE).merged(config("model:\n  n_layer: 24\n", source="b.yaml"))

    assert merged.values["model"] == {"_target_": "m.build", "n_layer": 24, "n_head": 12}
    assert str(merged.origin(("model", "n_layer"))) == "b.yaml:2:12"
    assert str(merged.origin(("model", "n_head"))) == "a.yaml:4:11"


def test_another_target_replaces_its_section_whole():
    """The keyword arguments of the old callable do not leak into the new one."""
    merged = config(BASE).merged(config("model:\n  _target_: other.build\n  width: 3\n"))

    assert merged.values["model"] == {"_target_": "other.build", "width": 3}


def test_merging_leaves_both_configurations_as_they_were():
    """A `Config` is a value."""
    first, second = config(BASE), config("model: {n_layer: 24}")
    first.merged(second)
    apply_overrides(first, ["model.n_layer=1", "optimizer.betas.0=0"])

    assert first.values == config(BASE).values
    assert second.values == {"model": {"n_layer": 24}}


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("model.n_layer=24", "model.n_layer", 24),
        ("optimizer.lr=2e-4", "optimizer.lr", 2e-4),
        ("optimizer.betas=[0.8, 0.9]", "optimizer.betas", [0.8, 0.9]),
        ("optimizer.betas.1=0.99", "optimizer.betas", [0.9, 0.99]),
        ("dataset.file_pattern=a=b.bin", "dataset.file_pattern", "a=b.bin"),
        ("dataset.nested.deep=1", "dataset.nested", {"deep": 1}),
        ("model.n_head=null", "model.n_head", None),
        ("model.n_head=", "model.n_head", None),
        ("model.name=none", "model.name", None),
    ],
)
def test_overrides_are_typed_as_yaml(assignment, path, value):
    """Numbers, lists, nulls and texts with `=` arrive as what they are, marked as an option."""
    changed = apply_overrides(config(BASE), [assignment])

    assert changed.get(path) == value
    assert f"# --set {assignment.partition('=')[0]}" in to_yaml(changed).replace("# a.yaml:6, --set", "# --set")


@pytest.mark.parametrize(
    ("assignment", "kind", "word"),
    [
        ("model.n_layer.x=1", ConfigError, "model.n_layer is the value 12"),
        ("optimizer.betas.2=1", ConfigError, "list of 2"),
        ("optimizer.betas.first=1", ConfigError, "list of 2"),
        ("model.n_layer", UsageError, "KEY=VALUE"),
        ("=3", UsageError, "KEY=VALUE"),
        ("model..n=3", UsageError, "KEY=VALUE"),
        ("model.n_layer=[1", ConfigError, "YAML"),
    ],
)
def test_an_override_that_has_no_place_is_an_error(assignment, kind, word):
    """Nothing is created below a scalar or beyond a list."""
    with pytest.raises(kind) as caught:
        apply_overrides(config(BASE), [assignment])

    assert word in str(caught.value)


def test_a_checkpoint_directory_stands_for_its_configuration(tmp_path):
    """`-c checkpoints/step_000200` reads the config.yaml in it, marked as data rather than code."""
    (tmp_path / "config.yaml").write_text(BASE)

    read = read_configs([tmp_path])

    assert read.get("model.n_layer") == 12
    assert read.origin(("model", "_target_")).kind == "checkpoint"


def test_differences_name_each_changed_key_once():
    """Changed, added and removed keys are told; equal ones are not."""
    changes = differences(config("a: 1\nb: 2\nc: {d: 3}"), config("a: 1\nb: 3\ne: 4"))

    assert [str(change) for change in changes] == ["b: 2 -> 3", "e: (absent) -> 4", "c.d: 3 -> (absent)"]
