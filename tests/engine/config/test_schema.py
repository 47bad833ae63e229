"""The JSON Schema and the checks agree about configurations."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.load import load_config, with_defaults
from automodel_cli.engine.config.origin import DEFAULT
from automodel_cli.engine.config.schema import json_schema
from automodel_cli.engine.config.sections import SECTIONS, General, section_fields
from automodel_cli.engine.config.target_sections import top_level_names
from automodel_cli.engine.config.template import PRESETS, preset_config, template
from automodel_cli.engine.config.yaml_reader import parse_yaml, read_yaml
from automodel_cli.errors import ConfigError

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def example() -> dict:
    """A sound configuration as plain values, new for each caller."""
    return load_config(None).values


def mistakes(values: dict) -> list[str]:
    """What the schema says about values, with the path of each."""
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(values)]


def test_the_schema_is_valid_itself():
    """As JSON Schema, draft 2020-12."""
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_accepted(path):
    """As written, and with every default filled in."""
    assert EXAMPLES
    assert mistakes(read_yaml(path).value) == []
    assert mistakes(load_config([path]).values) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_what_init_writes_is_accepted(preset):
    """Also where all keys of a section are commented out."""
    assert mistakes(parse_yaml(template(preset), source="x", kind="file").value) == []


def test_every_key_of_ours_is_in_the_schema_with_its_meaning():
    """An editor has something to show for each of them."""
    schema = json_schema()

    assert list(schema["properties"]) == top_level_names()
    for name in section_fields(General):
        assert schema["properties"][name]["description"]
    for section in SECTIONS:
        described = schema["properties"][section.name]
        properties = described.get("else", described)["properties"]
        assert list(properties) == list(section_fields(section))
        assert all(described["description"] for described in properties.values())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optimiser", {"_target_": "torch.optim.AdamW", "lr": 1e-3}),
        ("step_scheduler.max_step", 3),
        ("step_scheduler.max_steps", "many"),
        ("step_scheduler.max_steps", True),
        ("step_scheduler.max_steps", 0),
        ("step_scheduler.max_steps", 1.5),
        ("step_scheduler.max_steps", None),
        ("lr_scheduler.lr_decay_style", "cosin"),
        ("clip_grad_norm.max_norm", 0),
        ("seed", -1),
        ("device", "gpu"),
        ("model", None),
        ("model", {"n_layer": 12}),
        ("model._target_", 3),
        ("optimizer", {"_target_": "torch.optim.AdamW"}),
        ("checkpoint", "here"),
        ("checkpoint.enabled", "no"),
        ("distributed.tp_size", "$TP"),
    ],
)
def test_a_typo_is_refused_where_it_stands(path, value):
    """By the schema as by the checks; the message of the schema names the place."""
    values = load_config(None).with_value(tuple(path.split(".")), value, load_config(None).origin(())).values

    found = mistakes(values)

    assert found
    assert any(path.split(".")[0] in message for message in found)
    with pytest.raises(ConfigError):
        checked(with_defaults(Config(values)))


def test_without_a_required_section_it_is_refused():
    """A configuration without a model is none."""
    values = {name: value for name, value in example().items() if name != "model"}

    assert mistakes(values) == ["$: 'model' is a required property"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("step_scheduler.max_steps", "${STEPS,100}"),
        ("checkpoint.checkpoint_dir", "${HOME}/runs"),
        ("distributed.dp_size", "none"),
        ("model.anything", {"of": ["one's", "own"]}),
        ("dataloader", None),
        ("loss_fn", None),
    ],
)
def test_what_amcli_accepts_beyond_plain_values_is_accepted(path, value, monkeypatch):
    """Environment variables, `none`, open sections, and sections whose keys are all commented out."""
    monkeypatch.setenv("STEPS", "3")

    assert mistakes(load_config(None).with_value(tuple(path.split(".")), value, DEFAULT).values) == []


KEYS = [(section, name) for section in (General, *SECTIONS) for name in section_fields(section)]
SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.5, -1.5, "cuda", "fsdp2", "x", "cosine"])


@settings(max_examples=50)  # each one checks a whole configuration
@given(st.sampled_from(KEYS), SCALARS)
def test_what_passes_the_checks_passes_the_schema(key, value):
    """Any value of any key: an editor never marks what amcli would train with."""
    section, name = key
    path = (section.name, name) if section.name else (name,)
    config = load_config(None).with_value(path, value, DEFAULT)
    try:
        checked(config)
    except ConfigError:
        return

    assert mistakes(config.values) == []


def test_presets_are_independent_of_the_working_directory():
    """They are part of the package."""
    assert all(preset_config(preset).has("model._target_") for preset in PRESETS)
