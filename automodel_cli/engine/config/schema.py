"""A JSON Schema of configurations, so that editors complete and check the YAML.

Generated from the table in `sections.py`: types, ranges, choices, defaults and meanings. Sections
with a `_target_` belong to their callable, so the schema asks for the `_target_` and leaves their
other keys open. It refuses nothing that `checked` accepts; rules across sections are left to that.
"""

from __future__ import annotations

from dataclasses import Field
from typing import Any

from automodel_cli.engine.bounded import MAX_WHOLE
from automodel_cli.engine.config.config import TARGET
from automodel_cli.engine.config.sections import (
    REPLACEABLE,
    SECTIONS,
    General,
    allowed_types,
    is_required,
    section_fields,
)
from automodel_cli.engine.config.target_sections import (
    ENGINE_KEYS,
    PURPOSES,
    TARGET_MEANING,
    TARGET_SECTIONS,
    VALIDATION,
    top_level_names,
)

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_REFERENCE = {
    "description": "the value of an environment variable: ${VAR}, or ${VAR,default}",
    "type": "string",
    "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_]*(,[^}]*)?\}$",
}


def json_schema() -> dict[str, Any]:
    """The schema as plain data, ready for `json.dumps`."""
    properties: dict[str, Any] = {name: _key(General, name, item) for name, item in section_fields(General).items()}
    properties |= {name: _target_section(name, required) for name, required in TARGET_SECTIONS.items()}
    properties |= {section.name: _section(section) for section in SECTIONS}
    required = [name for name, is_needed in TARGET_SECTIONS.items() if is_needed]
    required += [section.name for section in SECTIONS if _required_keys(section)]
    return {
        "$schema": DIALECT,
        "title": "Configuration of amcli",
        "type": "object",
        "properties": {name: properties.get(name, True) for name in top_level_names()},
        "required": required,
        "additionalProperties": False,
        "$defs": {"reference": _REFERENCE},
    }


def _section(section: type[Any]) -> dict[str, Any]:
    own = _own_section(section)
    if section.name not in REPLACEABLE:
        return own
    named = {"required": [TARGET], "properties": {TARGET: {"type": "string"}}}
    return {"description": own["description"], "if": named, "then": _built_section(section.name, True), "else": own}


def _own_section(section: type[Any]) -> dict[str, Any]:
    required = _required_keys(section)
    return {
        "description": (section.__doc__ or "").partition("\n")[0],
        # A section whose keys are all commented out is null.
        "type": "object" if required else ["object", "null"],
        "properties": {name: _key(section, name, item) for name, item in section_fields(section).items()},
        "required": required,
        "additionalProperties": False,
    }


def _required_keys(section: type[Any]) -> list[str]:
    return [name for name, item in section_fields(section).items() if is_required(item)]


def _target_section(name: str, required: bool) -> dict[str, Any]:
    if name == VALIDATION:
        return _validation_sets()
    return _built_section(name, required)


def _validation_sets() -> dict[str, Any]:
    """One section with a `_target_`, or several by name."""
    one = _built_section(VALIDATION, True)
    several = {"type": "object", "not": {"required": [TARGET]}, "minProperties": 1, "additionalProperties": one}
    return {"description": one["description"], "anyOf": [one, several, {"type": "null"}]}


def _built_section(name: str, required: bool) -> dict[str, Any]:
    properties: dict[str, Any] = {TARGET: {"description": TARGET_MEANING, "type": "string", "minLength": 1}}
    properties |= {key: {"description": meaning} for key, meaning in ENGINE_KEYS.get(name, {}).items()}
    if name == "optimizer":
        properties["lr"] = {"description": "learning rate after warm-up; the schedule starts from it"}
    return {
        "description": PURPOSES.get(name, ""),
        "type": "object" if required else ["object", "null"],
        "properties": properties,
        "required": [key for key in properties if key not in ENGINE_KEYS.get(name, {})],
        "additionalProperties": True,
    }


def _key(section: type[Any], name: str, item: Field[Any]) -> dict[str, Any]:
    rule, allowed = item.metadata, allowed_types(section, name)
    described: dict[str, Any] = {"description": rule["meaning"]}
    if not is_required(item):
        described["default"] = item.default
    if rule["choices"] is not None:
        value: dict[str, Any] = {"enum": list(rule["choices"])}
    else:
        names = [_JSON_TYPES[kind] for kind in allowed if kind is not str or not rule["words"]]
        value = {"type": names[0] if len(names) == 1 else names}
        if rule["minimum"] is not None:
            value["minimum"] = rule["minimum"]
        if rule["maximum"] != MAX_WHOLE:
            value["maximum"] = rule["maximum"]
        if rule["above"] is not None:
            value["exclusiveMinimum"] = rule["above"]
    if str in allowed and rule["choices"] is None and not rule["words"]:  # a reference is text already
        return described | value
    alternatives = [value, *({"const": word} for word in rule["words"]), {"$ref": "#/$defs/reference"}]
    if type(None) in allowed:
        # amcli reads `none` as null; the YAML of editors has it as text.
        alternatives.append({"const": "none"})
    return described | {"anyOf": alternatives}
