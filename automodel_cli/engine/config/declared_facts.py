"""What the class of an optimizer or of a loss declares of itself, as class attributes; torch-free.

The engine asks a class for these facts and compares no names: read from source where nothing may be imported
(`optimizer_facts_of`, `loss_facts_of`), from the class itself where it is there (`optimizer_facts`). A class declares
the facts that differ from the defaults below, each as a plain literal in its body; bases count as in Python. The
classes of torch and torchao cannot be asked, so theirs stand in one table here.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.source_modules import Sources
from automodel_cli.engine.config.source_names import Definition
from automodel_cli.engine.config.source_signatures import bases
from automodel_cli.engine.config.target import static_target
from automodel_cli.errors import AmcliError, ConfigError

# The loss of a run that names none, where the model allows it.
DEFAULT_LOSS = "automodel_cli.engine.loss.linear_ce.ChunkedLinearCrossEntropy"


@dataclass(frozen=True)
class OptimizerFacts:
    """Facts about an optimizer; each is the name of a class attribute.

    Args:
        state_per_parameter: Tensors of state for each parameter, in its shape and type; None where it is not known.
        state_per_matrix: The same for the matrices inside the blocks, where it differs.
        state_of_options: Further such tensors for each option that is true, or not zero: `{"momentum": 1}`.
        counts_steps: Whether an fp32 number for each parameter counts its steps. Matrices with a state of their own
            have none.
        has_fused_kernel: Whether it takes `fused=True`; the engine then passes it, unless an option chooses a kernel.
        skips_on_device: Whether `step`, with `fused=True`, changes nothing if the attribute `found_inf` of the
            optimizer is a tensor that is not 0: numbers of a step are then read while the next one is computed.
        options_of_whole: Arguments that hold for the whole optimizer, so that no group of parameters can have its own.
        can_be_saved: Whether its state consists of numbers and tensors that checkpoints can hold.
    """

    state_per_parameter: float | None = None
    state_per_matrix: float | None = None
    state_of_options: Mapping[str, float] = field(default_factory=dict)
    counts_steps: bool = False
    has_fused_kernel: bool = False
    skips_on_device: bool = False
    options_of_whole: tuple[str, ...] = ()
    can_be_saved: bool = True


@dataclass(frozen=True)
class LossFacts:
    """Facts about a loss; each is the name of a class attribute.

    Args:
        bytes_per_logit: Bytes held at the peak for each logit by a loss of whole logits. By default three fp32 numbers,
            as torch's `cross_entropy` holds them: log-probabilities, their gradient and that of the logits.
        logits_per_block: Logits that a loss which is computed with the head holds at once, on a GPU; None where it
            holds all of them. An argument `chunk_size` gives the rows of a block instead.
        least_rows: Rows that a block has in any case.
    """

    bytes_per_logit: float = 12
    logits_per_block: int | None = None
    least_rows: int = 1


_ADAM = OptimizerFacts(
    2, state_of_options={"amsgrad": 1}, counts_steps=True, has_fused_kernel=True, skips_on_device=True
)
_TENSORS_OF_TORCHAO = OptimizerFacts(can_be_saved=False)  # only torchao can split them, so the first save would fail
# By package and name of the class, whichever module of the package it is taken from.
_CANNOT_BE_ASKED = {
    ("torch.optim", "Adam"): _ADAM,
    ("torch.optim", "AdamW"): _ADAM,
    ("torch.optim", "SGD"): OptimizerFacts(0, state_of_options={"momentum": 1}),
    **{
        ("torchao", f"{kind}{bits}"): _TENSORS_OF_TORCHAO
        for kind in ("Adam", "AdamW")
        for bits in ("4bit", "8bit", "Fp8")
    },
}
_Facts = TypeVar("_Facts", OptimizerFacts, LossFacts)


def optimizer_facts(factory: Callable[..., Any]) -> OptimizerFacts:
    """The facts of a class that is there, or of whatever else makes an optimizer.

    Raises:
        ConfigError: A fact is not of its type.
    """
    name = f"{getattr(factory, '__module__', '')}.{getattr(factory, '__name__', '')}"
    found = {each.name: getattr(factory, each.name, None) for each in fields(OptimizerFacts)}
    return _in_table(name) or _checked(OptimizerFacts, found, name)


def optimizer_facts_of(config: Config) -> OptimizerFacts:
    """The facts of the optimizer that a configuration names, from source; the defaults where source does not tell.

    Raises:
        ConfigError: A fact is not of its type.
    """
    target = _target(config, "optimizer")
    return _in_table(target) or _facts_of(config, "optimizer", target, OptimizerFacts)


def loss_facts_of(config: Config) -> LossFacts:
    """The facts of the loss of a run, as `optimizer_facts_of`."""
    return _facts_of(config, "loss_fn", _target(config, "loss_fn") or DEFAULT_LOSS, LossFacts)


def facts_in_source(sources: Sources, definition: Definition, kind: type[_Facts]) -> _Facts:
    """The facts that a class and its bases declare in source.

    Raises:
        ConfigError: A fact is not of its type.
    """
    names, found = {each.name for each in fields(kind)}, dict[str, Any]()
    for base in bases(sources, definition):
        if isinstance(base, Definition):
            found = _literals(base, names) | found
    return _checked(kind, found, definition.name)


def _target(config: Config, key: str) -> str:
    section = config.get(key)
    target = section.get(TARGET) if isinstance(section, Mapping) else None
    return resolved(target) if isinstance(target, str) else ""


def _facts_of(config: Config, key: str, target: str, kind: type[_Facts]) -> _Facts:
    if not target:
        return kind()
    sources = Sources()
    try:
        definition = static_target(target, config.origin((key, TARGET)), f"{key}.{TARGET}", sources).definition
    except (AmcliError, OSError):  # the check of the configuration says what is wrong
        definition = None
    return kind() if definition is None else facts_in_source(sources, definition, kind)


def _in_table(name: str) -> OptimizerFacts | None:
    for (package, leaf), facts in _CANNOT_BE_ASKED.items():
        if name.startswith(f"{package}.") and name.rpartition(".")[2] == leaf:
            return facts
    return None


def _literals(definition: Definition, names: set[str]) -> dict[str, Any]:
    """The attributes of these names that the body of a class sets to a literal; the last statement counts."""
    found: dict[str, Any] = {}
    for node in definition.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for name in (each.id for each in targets if isinstance(each, ast.Name) and each.id in names):
            found.pop(name, None)
            with suppress(ValueError, TypeError):
                found[name] = ast.literal_eval(node.value)
    return found


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


# What a fact must be, by its annotation above: words, and the test.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": ("a whole number of at least 1", lambda value: _is_amount(value) and isinstance(value, int) and value > 0),
    "float": ("a number of at least 0", _is_amount),
    "Mapping[str, float]": (
        "a dictionary of numbers of at least 0",
        lambda value: isinstance(value, Mapping) and all(map(_is_amount, value.values())),
    ),
    "tuple[str, ...]": (
        "a tuple of names",
        lambda value: isinstance(value, tuple) and all(isinstance(name, str) for name in value),
    ),
}


def _checked(kind: type[_Facts], found: Mapping[str, Any], owner: str) -> _Facts:
    for each in fields(kind):
        words, is_right = _RULES[str(each.type).removesuffix(" | None")]
        value = found.get(each.name)
        if value is not None and not is_right(value):
            raise ConfigError(f"{owner}.{each.name} is {value!r}, but it must be {words}")
    return kind(**{name: value for name, value in found.items() if value is not None})
