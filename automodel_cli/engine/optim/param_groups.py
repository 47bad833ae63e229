"""Which parameters decay, which learn at another rate, and which are the matrices that Muon is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.config.values import resolve_env
from automodel_cli.errors import ConfigError

# What the projection to the vocabulary is called where the model has no `get_output_embeddings`.
_HEADS = ("lm_head", "head", "output", "embed_out", "unembed")


@dataclass(frozen=True)
class GroupRule:
    """What holds for the parameters of a pattern.

    Args:
        pattern: Names as of `named_parameters`, or their ends from a dot on; `*`, `?` and `[...]` as in
            file names, and `|` between alternatives: `wte*|h.0.*`.
        lr_mult: Factor on the learning rate of every step.
        weight_decay: Replaces the optimizer's, also for norms, biases and embeddings.
        muon: Whether Muon updates them; None leaves that to their shape.
        options: Other arguments of the optimizer, for this group alone.
        where: Where the pattern stands, for errors.
    """

    pattern: str
    lr_mult: float = 1.0
    weight_decay: float | None = None
    muon: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str | None = None


def group_rules(config: Config) -> list[GroupRule]:
    """The rules of `optimizer.param_groups`, which the checks have passed."""
    rules = []
    for index, entry in enumerate(config.get("optimizer.param_groups") or ()):
        path = ("optimizer", "param_groups", index)
        values = {name: resolve_env(value, config.origin((*path, name))) for name, value in entry.items()}
        known = {name: values.pop(name) for name in ("pattern", "lr_mult", "weight_decay", "muon") if name in values}
        rules.append(GroupRule(**known, options=values, where=str(config.origin((*path, "pattern")))))
    return rules


def parameter_groups(model: nn.Module, weight_decay: float, rules: Sequence[GroupRule] = ()) -> list[dict[str, Any]]:
    """Groups for an optimizer: matrices with weight decay; norms, biases and embeddings without.

    Decay on a norm's gain or on the embedding of a rare token pulls it to zero without evidence.
    Each parameter stands once, also when it is tied, and a tied head counts as the embedding.

    Args:
        model: Its trainable parameters are grouped.
        weight_decay: Weight decay of the matrices.
        rules: The first whose pattern fits a parameter counts for it.

    Raises:
        ConfigError: An alternative of a pattern fits no parameter.
    """
    rule_of = _rules_by_parameter(model, rules)
    embeddings = _embeddings(model)
    members: dict[tuple[int, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if parameter.dim() >= 2 and id(parameter) not in embeddings else 0.0
        index = rule_of.get(id(parameter), len(rules))
        own = rules[index].weight_decay if index < len(rules) else None
        members.setdefault((index, decay if own is None else own), []).append((name, parameter))
    # Those without a rule first, those that decay before those that do not.
    ordered = sorted(members, key=lambda key: (key[0] != len(rules), key[0], -key[1]))
    return [_group(members[key], key[1], rules[key[0]] if key[0] < len(rules) else None) for key in ordered]


def hidden_matrices(model: nn.Module, rules: Sequence[GroupRule] = ()) -> frozenset[str]:
    """Names of the matrices between embedding and head, stacks of matrices (experts) among them.

    Args:
        model: Only its trainable parameters count.
        rules: One that says `muon` decides for its parameters.

    Raises:
        ConfigError: A rule sends to Muon what is no matrix, or a pattern fits no parameter.
    """
    rule_of = _rules_by_parameter(model, rules)
    outer = _embeddings(model) | _heads(model)
    names = set()
    for name, parameter in model.named_parameters():
        rule = rules[rule_of[id(parameter)]] if id(parameter) in rule_of else None
        is_matrix = parameter.dim() == 2 or (parameter.dim() == 3 and min(parameter.shape[1:]) > 1)
        if rule is not None and rule.muon and not is_matrix:
            shape = " x ".join(map(str, parameter.shape))
            raise ConfigError(
                f"`{rule.pattern}` sends {name} ({shape}) to Muon, which is for matrices", where=rule.where
            )
        wanted = is_matrix and id(parameter) not in outer if rule is None or rule.muon is None else rule.muon
        if wanted and parameter.requires_grad:
            names.add(name)
    return frozenset(names)


def _group(members: list[tuple[str, nn.Parameter]], decay: float, rule: GroupRule | None) -> dict[str, Any]:
    group: dict[str, Any] = {
        "params": [parameter for _, parameter in members],
        "param_names": [name for name, _ in members],
        "weight_decay": decay,
    }
    return group if rule is None else group | {"lr_mult": rule.lr_mult, **rule.options}


def _rules_by_parameter(model: nn.Module, rules: Sequence[GroupRule]) -> dict[int, int]:
    """The index of the first rule that fits each parameter, by the parameter's id; those without are left out."""
    # A tied parameter has several names, and `named_parameters` gives only the first by default.
    named = list(model.named_parameters(remove_duplicate=False)) if rules else []
    found: dict[int, int] = {}
    for index, rule in enumerate(rules):
        for alternative in rule.pattern.split("|"):
            matching = [parameter for name, parameter in named if _fits(name, alternative.strip())]
            if not matching:
                pattern = alternative.strip()
                raise ConfigError(
                    f"the pattern `{pattern}` of optimizer.param_groups fits no parameter",
                    where=rule.where,
                    help=hint(pattern, _candidates(name for name, _ in named), noun="parameters"),
                )
            for parameter in matching:
                found.setdefault(id(parameter), index)
    return found


def _fits(name: str, pattern: str) -> bool:
    """Whether the pattern fits a name, or its end from some dot on.

    >>> _fits("transformer.wte.weight", "wte*"), _fits("transformer.wte.weight", "te*")
    (True, False)
    """
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[begin:]), pattern) for begin in range(len(parts)))


def _candidates(names: Iterable[str]) -> list[str]:
    """What a pattern may have meant: names without numbers of layers, their ends, and whole modules."""
    found: dict[str, None] = {}
    for name in names:
        parts = ["*" if part.isdigit() else part for part in name.split(".")]
        found.update(dict.fromkeys(".".join(parts[begin:]) for begin in range(len(parts) - 1)))
        found.update(dict.fromkeys(f"{part}.*" for part in parts[:-1] if part != "*"))
    return list(found)


def _embeddings(model: nn.Module) -> set[int]:
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }


def _heads(model: nn.Module) -> set[int]:
    """Parameters of the projection to the vocabulary: of transformers' models by its method, of others by name."""
    of_model = getattr(model, "get_output_embeddings", None)
    heads = [of_model()] if callable(of_model) else []
    heads += [module for name, module in model.named_modules() if name.rpartition(".")[2] in _HEADS]
    return {id(parameter) for head in heads if head is not None for parameter in head.parameters(recurse=False)}
