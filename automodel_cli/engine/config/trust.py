"""Whose code a configuration may run.

A configuration that the user names on the command line is code, like a script. One that lies in a
checkpoint is data: it may name only what amcli itself would build, unless `--trust-config` says
that the user consents to the rest. What `blocked.py` lists is refused in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.origin import KeyPath, Origin, dotted
from automodel_cli.engine.config.target_errors import Place
from automodel_cli.errors import ConfigError

TRUST_OPTION = "--trust-config"

# Named by a checkpoint, these are built without further consent.
_BUILT_BY_AMCLI = (
    *("automodel_cli.engine.models", "automodel_cli.engine.loss", "automodel_cli.engine.optim"),
    *("automodel_cli.engine.data", "torch.optim", "torch.nn", "transformers.models", "transformers.modeling"),
)
_ROOTS = ("automodel_cli.", "torch.", "transformers.")
# Code of these is not listed before it runs: everybody who uses amcli has it.
_WELL_KNOWN = ("automodel_cli", "torch", "transformers", "datasets", "tokenizers", "numpy", "nemo_automodel")


def may_import(target: str, origin: Origin) -> bool:
    """Whether looking at what `target` names may import anything."""
    return origin.kind != "checkpoint" or target.startswith(_ROOTS)


def is_built_by_amcli(module: str) -> bool:
    """Whether a checkpoint may name what is defined in this module.

    >>> is_built_by_amcli("torch.optim.adamw"), is_built_by_amcli("torch.hub")
    (True, False)
    """
    return any(module == known or module.startswith((f"{known}.", f"{known}_")) for known in _BUILT_BY_AMCLI)


def is_well_known(module: str) -> bool:
    """Whether code of this module is nobody's surprise."""
    return module.partition(".")[0] in _WELL_KNOWN


def untrusted(target: str, place: Place) -> ConfigError:
    """A checkpoint names code that amcli would not build by itself."""
    message = f"a checkpoint's configuration names `{target}`, which is code that amcli does not know"
    help_ = f"{TRUST_OPTION} runs it, if you trust where the checkpoint comes from; or name your own file with -c"
    return place.error(message, help_)


def refuse_remote_code(config: Config, path: KeyPath, value: Any) -> None:
    """`trust_remote_code` is consent, which a checkpoint cannot give in its user's name.

    Raises:
        ConfigError: The value at `path` is one that a checkpoint sets.
    """
    origin = config.origin(path)
    if path[-1] == "trust_remote_code" and value not in (None, False) and origin.kind == "checkpoint":
        message = "a checkpoint's configuration asks to run code that it downloads"
        raise Place(origin, dotted(path)).error(message, f"{TRUST_OPTION} consents, or --set {dotted(path)}=false")


def remote_code_problems(config: Config, names: Iterator[str] | list[str]) -> list[ConfigError]:
    """Every `trust_remote_code` of these sections that a checkpoint sets."""
    found: list[ConfigError] = []

    def walk(node: Any, path: KeyPath) -> None:
        if isinstance(node, Mapping):
            for key, inner in node.items():
                walk(inner, (*path, key))
        elif isinstance(node, list):
            for index, inner in enumerate(node):
                walk(inner, (*path, index))
        elif path[-1] != TARGET:
            try:
                refuse_remote_code(config, path, node)
            except ConfigError as error:
                found.append(error)

    for name in names:
        walk(config.get(name), (name,))
    return found
