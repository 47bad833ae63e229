"""Initial weights, drawn part by part from numbers that depend on the seed and a module's name alone.

So they are the same on every number of ranks, in every layout and on every device, and no rank ever holds more than
its own part of the model and one transformer block. The rules are the model's own: `initialise(name, module)` of our
GPT-2, `_init_weights(module)` of a model of transformers, children before parents, as transformers applies them.

Every number is accounted for: a tensor that the rules leave as it was, or that they write into where it is not drawn,
raises `UndrawnError`, and the caller builds the model by its constructor instead.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from automodel_cli.engine.distributed.module_tree import transformer_blocks
from automodel_cli.engine.models.gpt2 import GPT2LMHeadModel
from automodel_cli.engine.models.sizes import is_hugging_face

# The name of a module in its model, the module: draws what the module itself holds.
Rule = Callable[[str, nn.Module], None]


class UndrawnError(Exception):
    """A tensor that no rule of the model draws; the text is for the user."""


def has_rules(kind: type) -> bool:
    """Whether models of a class state how they are initialised, apart from their constructor.

    A user's class derived from one of these does not count: its constructor may do more.
    """
    is_hugging_face_model = any(base.__name__ == "PreTrainedModel" for base in kind.__mro__)
    return kind is GPT2LMHeadModel or (is_hugging_face_model and kind.__module__.startswith("transformers."))


@torch.no_grad()
def drawn(blank: nn.Module, seed: int, wanted: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """The initial tensors of a model by name, on the CPU, one transformer block after another, then the rest.

    Args:
        blank: A meta model as it was built; it is not changed.
        seed: Seed of the run.
        wanted: Names of the only buffers that are needed, such as those that no checkpoint holds; None for everything.

    Raises:
        UndrawnError: The model's rules do not account for a tensor.
    """
    rules = _rules(blank)
    names = {module: name for name, module in blank.named_modules()}
    in_blocks: set[nn.Module] = set()
    given: set[int] = set()
    for block in transformer_blocks(blank):
        unit = _children_first(block)
        in_blocks.update(unit)
        yield from _drawn_unit(unit, names, rules, seed, wanted, given)
    versions = _versions(in_blocks)
    yield from _drawn_unit([m for m in _children_first(blank) if m not in in_blocks], names, rules, seed, wanted, given)
    if versions != _versions(in_blocks):
        raise UndrawnError("a module around the blocks draws numbers for what is in them")


def _drawn_unit(
    unit: list[nn.Module],
    names: dict[nn.Module, str],
    rules: dict[nn.Module, Rule],
    seed: int,
    wanted: Collection[str] | None,
    given: set[int],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of some modules; `given` holds the identities of tensors that other modules hold too."""
    places: list[tuple[nn.Module, dict[str, Any], str, str]] = [
        (module, tensors, key, ".".join(filter(None, (names[module], key))))
        for module in unit
        for tensors in (module._parameters, module._buffers)
        for key, tensor in tensors.items()
        if tensor is not None
    ]
    if wanted is not None:
        places = [place for place in places if place[3] in wanted]
        holders = {place[0] for place in places}
        unit = [module for module in unit if module in holders]
    blanks = [tensors[key] for _, tensors, key, _ in places]
    is_first = []
    for tensor in blanks:
        is_first.append(id(tensor) not in given)
        given.add(id(tensor))
    # A module with only tied tensors draws nothing; a parent without tensors may hold the rule for its children.
    only_tied = {place[0] for place in places}
    only_tied -= {place[0] for place, first in zip(places, is_first, strict=True) if first}
    unit = [module for module in unit if module not in only_tied]
    try:
        for value in (0, 1):
            for (_, tensors, key, _), tensor in zip(places, blanks, strict=True):
                tensors[key] = _filled(tensor, value)
            for module in unit:
                with _numbers_of(seed, names[module]):
                    rules[module](names[module], module)
            found = [tensors[key] for _, tensors, key, _ in places]
            if value == 0:
                earlier = {i: tensor for i, tensor in enumerate(found) if not _can_hold_nan(tensor)}
                if not earlier:
                    break
    finally:
        for (_, tensors, key, _), tensor in zip(places, blanks, strict=True):
            tensors[key] = tensor
    for i, ((*_, name), tensor) in enumerate(zip(places, found, strict=True)):
        if not is_first[i]:
            continue
        left = not torch.equal(tensor, earlier[i]) if i in earlier else math.isnan(tensor.sum())
        if tensor.numel() and left:
            raise UndrawnError(f"nothing draws {name}")
        yield name, tensor.detach()


def _filled(blank: torch.Tensor, value: int) -> torch.Tensor:
    """Memory for a tensor, filled with what no rule draws."""
    content = math.nan if _can_hold_nan(blank) else value
    tensor = torch.full(blank.shape, content, dtype=blank.dtype)
    return nn.Parameter(tensor, blank.requires_grad) if isinstance(blank, nn.Parameter) else tensor


def _can_hold_nan(tensor: Any) -> bool:
    return bool(tensor.is_floating_point() or tensor.is_complex())


def _children_first(module: nn.Module) -> list[nn.Module]:
    """Submodules in post-order, without duplicates."""
    found: dict[nn.Module, None] = {}
    for child in module.children():
        found.update(dict.fromkeys(_children_first(child)))
    found[module] = None
    return list(found)


def _rules(model: nn.Module) -> dict[nn.Module, Rule]:
    """The rule that draws each module: that of the innermost enclosing model that has one."""
    rules: dict[nn.Module, Rule] = {}

    def collect(module: nn.Module, rule: Rule) -> None:
        own = _rule_of(module) or rule
        for child in module.children():
            collect(child, own)
        rules.setdefault(module, own)

    rule = _rule_of(model)
    if rule is None:
        raise UndrawnError(f"{type(model).__name__} has no rules")
    collect(model, rule)
    return rules


def _rule_of(model: Any) -> Rule | None:
    if isinstance(model, GPT2LMHeadModel):
        return model.initialise
    return (lambda _name, module: model._init_weights(module)) if is_hugging_face(model) else None


@contextmanager
def _numbers_of(seed: int, name: str) -> Iterator[None]:
    """Inside, torch draws the numbers of one module; outside, the generator goes on as if nothing had been drawn."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def _versions(modules: Collection[nn.Module]) -> dict[int, int]:
    """How often each tensor was written to."""
    tensors = (t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False)))
    return {id(tensor): tensor._version for tensor in tensors}
