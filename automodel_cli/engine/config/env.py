"""`${VAR}` and `${VAR,default}`: looked up at the moment of use, never before.

What is printed, saved or sent anywhere keeps the unresolved text, so that a secret or a path
of one machine does not travel with a checkpoint.
"""

from __future__ import annotations

import os
import re
from typing import Any

from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.config.yaml_reader import parse_value
from automodel_cli.errors import ConfigError

_REFERENCE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:,(?P<default>[^}]*))?\}")


def resolve_env(value: Any, origin: Origin) -> Any:
    """The value with environment variables put in.

    A text that is one reference and nothing else takes the type that YAML gives the
    variable's text (`${STEPS,100}` is an integer); a reference inside longer text stays text.

    Raises:
        ConfigError: A variable is not set and has no default.
    """
    if not isinstance(value, str) or "${" not in value:
        return value

    def lookup(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        found = os.environ.get(name, default)
        if found is None:
            message = f"the environment variable {name} is not set, and `{match[0]}` gives no default"
            raise ConfigError(message, where=str(origin), help=f"export {name}=..., or write ${{{name},default}}")
        return str(found)

    whole = _REFERENCE.fullmatch(value)
    if whole:
        return parse_value(lookup(whole), source=f"${{{whole['name']}}}")
    return _REFERENCE.sub(lookup, value)
