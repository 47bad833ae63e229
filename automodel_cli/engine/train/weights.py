"""A run's model and where its weights come from: drawn, read from a checkpoint, or taken from another tool's files.

A model whose rules of initialisation are known is built without content, spread over the ranks, and only then given
memory: each rank has what it holds, and nobody the whole. A model of transformers that is read whole
(`from_pretrained`) waits in the host's memory, and goes to the devices part by part. Any other model is what its
constructor made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from automodel_cli.engine.checkpoint.lazy_tensors import LazyTensors
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.checkpoint.weights import read_weights
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.instantiate import bind, call
from automodel_cli.engine.distributed.skeleton import all_tensors, is_skeleton, materialise, take_apart
from automodel_cli.engine.models.calling import is_hugging_face
from automodel_cli.engine.models.export import import_tensors, in_model_layout, own_tensors
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.models.initial import UndrawnError, drawn, has_rules
from automodel_cli.engine.models.stored_weights import StoredModel, adopted

if TYPE_CHECKING:
    from automodel_cli.engine.distributed.spread import Spread
    from automodel_cli.engine.distributed.team import Team

_CONSTRUCTED = "as the constructor made them"
Tensors = Iterator[tuple[str, torch.Tensor]]


class Weights:
    """What a model is filled with, once it lies on its ranks.

    Args:
        model: As `build_model` made it; a skeleton is copied, so that it may be changed afterwards.
        rebuild: Builds the model with its content.
        words: For people: what the content is that it was built with.
        content: Of a model that was taken apart.
        seed: Of the run.
        team: The ranks; None for a process alone.
        snapshot: The checkpoint to go on from, or None.
        init_from: Weights to start with, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        rebuild: Callable[[], nn.Module],
        words: str,
        content: dict[str, torch.Tensor] | None,
        seed: int,
        team: Team | None,
        snapshot: Snapshot | None,
        init_from: str | None,
    ) -> None:
        self._seed, self._rebuild, self._content = seed, rebuild, content
        self._team, self._snapshot = team, snapshot
        self._blank = copy.deepcopy(model) if is_skeleton(model) and content is None else None
        self._given: dict[str, torch.Tensor] | None = None
        self._init_from = init_from
        self.words = words if self._blank is None else f"drawn in place from seed {seed}"

    def before_spread(self, model: nn.Module) -> None:
        """Reads what must be read whole; a model that has content already is filled with it here.

        Raises:
            CheckpointError: The weights are of another architecture.
        """
        snapshot, team = self._snapshot, self._team
        if snapshot is not None:
            self.words = f"of step {snapshot.step}"
            if team is not None and self._own_parts() is None:
                self._give(model, dict(team.shared(snapshot.model_tensors if team.rank == 0 else None)))
        elif self._init_from is not None:
            self.words = f"of {self._init_from}"
            self._give(model, adopted(model, read_weights(Path(self._init_from).expanduser())))

    def after_spread(self, model: nn.Module, spread: Spread | None, device: torch.device) -> None:
        """Fills a model that has no content, or whose ranks read their own parts of it.

        Args:
            model: Spread over the ranks; a process alone gives it memory here.
            spread: How it lies on them; None for a process alone.
            device: Of a process alone.

        Raises:
            CheckpointError: The weights are of another architecture, or cannot be read any more.
        """
        if is_skeleton(model):
            materialise(model, device)
        stored = self._own_parts()
        if self._content is not None or self._blank is not None:
            wanted = None
            if self._given is not None or self._snapshot is not None:
                # What no checkpoint holds, such as the frequencies of rotary positions, is made anew in any case.
                persistent = own_tensors(model) if spread is None else spread.own_tensors()
                wanted = [name for name in all_tensors(model) if name not in persistent]
            self._fill(model, spread, self._initial(wanted))
        if self._given is not None:
            self._fill(model, spread, iter(self._given.items()))
        elif spread is not None and stored is not None:
            spread.read_model(StoredModel(model, spread.own_tensors(), stored))
        elif spread is None and self._snapshot is not None:
            import_tensors(model, self._snapshot.model_tensors)
        self._content = self._given = self._blank = None

    def _give(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        """Weights under the names of a checkpoint; a skeleton gets them once it has memory."""
        if is_skeleton(model):
            self._given = in_model_layout(model, tensors)
        else:
            import_tensors(model, tensors)

    def _own_parts(self) -> LazyTensors | None:
        """The weights of the checkpoint, if every rank reads its own parts; the answer is the same on all ranks."""
        if self._snapshot is None or self._team is None or not self._snapshot.is_seen_by_all:
            return None
        tensors = self._snapshot.model_tensors
        return tensors if isinstance(tensors, LazyTensors) else None

    def _initial(self, wanted: Collection[str] | None) -> Tensors:
        """The tensors that a new model begins with, one after another; with `wanted`, those alone."""
        if self._content is not None:
            for name in list(self._content):
                tensor = self._content.pop(name)  # freed as soon as it is where it belongs
                if wanted is None or name in wanted:
                    yield name, tensor
            return
        if self._blank is None or (wanted is not None and not wanted):
            return
        try:
            yield from drawn(self._blank, self._seed, wanted)
        except UndrawnError:
            # All of it, from one source: a model that is half of each would be neither.
            self.words = _CONSTRUCTED if wanted is None else self.words
            yield from all_tensors(self._rebuild()).items()

    def _fill(self, model: nn.Module, spread: Spread | None, tensors: Tensors) -> None:
        if spread is not None:
            spread.fill(tensors)
            return
        own = all_tensors(model)
        with torch.no_grad():
            for name, tensor in tensors:
                own[name].copy_(tensor)


def build_model(
    config: Config, device: torch.device, seed: int, team: Team | None, snapshot: Snapshot | None, init_from: str | None
) -> tuple[nn.Module, Weights]:
    """The model of a configuration, without content where it can be drawn later, and what it is filled with.

    Args:
        config: The whole configuration.
        device: What a `device` argument of the model's target is given.
        seed: Of the run.
        team: The ranks; None for a process alone.
        snapshot: The checkpoint to go on from, or None.
        init_from: Weights to start with, or None.

    Raises:
        ConfigError: The target cannot be found or does not take these arguments.
    """

    def build() -> nn.Module:
        model: nn.Module = call(factory, arguments, config, ("model",))
        return model

    def rebuild() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return build()

    factory, arguments = bind(config, "model", {"device": device})
    content = None
    if _is_drawn_later(factory):
        with torch.device("meta"):
            model = build()
        if not has_rules(type(model)) or _hides_tensors(model):
            model = build()
    else:
        model = build()
    if team is not None and not is_skeleton(model) and is_hugging_face(model) and has_rules(type(model)):
        content = take_apart(model)
    words = "read by from_pretrained" if getattr(factory, "__name__", "") == "from_pretrained" else _CONSTRUCTED
    return model, Weights(model, rebuild, words, content, seed, team, snapshot, init_from)


def _is_drawn_later(factory: Any) -> bool:
    """Whether a target makes nothing but a model of its arguments, whose content may then be drawn by its rules."""
    if factory is build_gpt2_model:
        return True
    if isinstance(factory, type):
        return has_rules(factory)
    owner = getattr(factory, "__self__", None)
    is_of_transformers = isinstance(owner, type) and owner.__module__.startswith("transformers.")
    return is_of_transformers and getattr(factory, "__name__", "") == "from_config"


def _hides_tensors(model: nn.Module) -> bool:
    """Whether a module keeps a tensor as a plain attribute, which nothing would draw."""
    return any(isinstance(value, torch.Tensor) for module in model.modules() for value in vars(module).values())
