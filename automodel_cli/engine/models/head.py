"""The head of a language model: the last linear layer, whose output is the logits, found by a trial.

A loss that works on the head's input replaces the head inside the model's own forward pass, so that
data-parallel wrappers, hooks and sharded weights see nothing unusual. That is right only where the
model returns the head's very output: the trial
compares the tensors themselves, so it finds a model that scales, caps or casts its logits, without a list of
architectures.

Shapes: B batch, T sequence, C channels, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from automodel_cli.engine.distributed.module_tree import is_meta, transformer_blocks
from automodel_cli.engine.models.calling import call, logits_of

# Hidden states (B, T, C), weight (V, C) and bias (V) or None, to a scalar.
OfHidden = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class Head:
    """The output layer of a model.

    Args:
        layer: The linear layer, in the model.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.vocab_size = layer.out_features
        self.layer = layer
        self._of_hidden: OfHidden | None = None
        # One object for all calls: with a new one, a compiled program would be compiled again.
        self._replacement: Callable[..., torch.Tensor] = self._forward

    def stay_uncompiled(self) -> None:
        """Leaves the replacement out of compiled programs, which must not hold the labels of one batch."""
        self._replacement = torch.compiler.disable(self._forward)

    @contextmanager
    def replaced(self, of_hidden: OfHidden) -> Iterator[None]:
        """Inside, the model returns `of_hidden(hidden, weight, bias)` where it returned logits."""
        self._of_hidden = of_hidden
        # An attribute of the instance hides the method of its class, and hooks around it still run.
        self.layer.__dict__["forward"] = self._replacement
        try:
            yield
        finally:
            del self.layer.__dict__["forward"]
            self._of_hidden = None

    def _forward(self, hidden_BTC: torch.Tensor) -> torch.Tensor:
        if self._of_hidden is None:
            raise RuntimeError("the head is called outside of `replaced`")
        return self._of_hidden(hidden_BTC, self.layer.weight, self.layer.bias)


class NoHeadError(Exception):
    """Why a model has no head that can be replaced, in words for the user."""


@torch.no_grad()
def find_head(model: nn.Module) -> Head:
    """Runs two tokens through the model and finds the layer whose output it returns.

    The random number generators and the model's mode are left as they were.

    Args:
        model: Not wrapped yet; one without content is tried in a shape of it that takes no memory.

    Raises:
        NoHeadError: It returns something else than the output of one of its plain linear layers.
    """
    if is_meta(model):
        layer = _found_in_its_shape(model)
        return Head(layer)
    outputs: list[tuple[nn.Linear, Any]] = []

    def keep(layer: nn.Module, _inputs: Any, output: Any) -> None:
        if type(layer) is nn.Linear and "forward" not in layer.__dict__:
            outputs.append((layer, output))

    first = next(model.parameters(), None)
    if first is None:
        raise NoHeadError(f"{type(model).__name__} has no parameter")
    device = first.device
    hooks = [layer.register_forward_hook(keep) for layer in model.modules() if isinstance(layer, nn.Linear)]
    was_training = model.training
    # In eval, so that dropout draws no number; a module that draws some anyway is undone.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            model.eval()
            logits = logits_of(call(model, {"input_ids": torch.zeros(1, 2, dtype=torch.int64, device=device)}))
        except (Exception, SystemExit) as error:  # the first step raises it again, with its place
            raise NoHeadError(f"a trial with two tokens raised {type(error).__name__}") from error
        finally:
            model.train(was_training)
            for hook in hooks:
                hook.remove()
    layers = [layer for layer, output in outputs if output is logits]
    if not layers:
        raise NoHeadError(f"{type(model).__name__} does not return the output of a linear layer as it is")
    return Head(layers[-1])


def vocab_size_by_layers(model: nn.Module, head: Head | None) -> int | None:
    """Ids of a model that does not state them: rows of an embedding, if the head has as many; None for any other."""
    rows = {layer.num_embeddings for layer in model.modules() if isinstance(layer, nn.Embedding)}
    return head.vocab_size if head is not None and head.vocab_size in rows else None


def head_or_stated(model: nn.Module) -> nn.Module | None:
    """The head that `find_head` finds, else the one that the model states, such as one whose logits are scaled."""
    try:
        return find_head(model).layer
    except NoHeadError:
        stated = getattr(model, "get_output_embeddings", None)
        return stated() if callable(stated) else None


def _found_in_its_shape(model: nn.Module) -> nn.Linear:
    """The output layer of a model on the meta device, found by trials of its shape filled with zeros.

    First of one block between what is around them, which costs nearly nothing; then in real memory, since some kernels
    (grouped products of experts) take no tensor whose elements share theirs; then of all blocks.
    """
    whole = len(transformer_blocks(model))
    trials = ((1, False), (1, True), (whole, False)) if whole > 1 else ((whole, False), (whole, True))
    failure: NoHeadError | None = None
    for number_of_blocks, has_memory in trials:
        shape = _zeros_like(model, number_of_blocks, has_memory=has_memory)
        try:
            layer = find_head(shape).layer
        except NoHeadError as error:
            failure = failure or error
            if error.__cause__ is None:  # it ran, but returned something else
                break
            continue
        name = next(name for name, module in shape.named_modules() if module is layer)
        found = model.get_submodule(name)
        if isinstance(found, nn.Linear):
            return found
    raise failure or NoHeadError(f"{type(model).__name__} has no linear layer at its end")


def _zeros_like(model: nn.Module, number_of_blocks: int, *, has_memory: bool) -> nn.Module:
    """A copy of a meta model with fewer blocks, and zeros as content: one zero in memory for a whole tensor."""
    shape = copy.deepcopy(model)
    blocks = transformer_blocks(shape)
    for module in shape.modules():
        if isinstance(module, nn.ModuleList) and blocks and list(module) == blocks:
            del module[number_of_blocks:]
    for module in shape.modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    size = tensor.shape if has_memory else ()
                    zeros = torch.zeros(size, dtype=tensor.dtype).expand(tensor.shape)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[key] = nn.Parameter(zeros, requires_grad=False) if is_parameter else zeros  # type: ignore[assignment]
    return shape
