"""A run's model and the source of its weights: random, a checkpoint, or files of another tool.

A model whose rules of initialisation are known is built on the meta device, put on the ranks, and only then given
memory: each rank has what it holds, and none the whole. A model of transformers that is read whole
(`from_pretrained`) waits in the host's memory, and goes to the devices part by part. Any other model is what its
constructor made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automodel_cli.engine.checkpoint.read_tensors import LazyTensors, read_weights
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.instantiate import bind, call
from automodel_cli.engine.distributed.module_tree import all_tensors, is_meta, move_to_meta
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.models.export import import_tensors, in_model_layout
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.models.initial import UndrawnError, drawn, has_rules
from automodel_cli.engine.models.sizes import is_hugging_face
from automodel_cli.engine.models.stored_weights import StoredModel, adopted

_CONSTRUCTED = "as the constructor made them"
Tensors = Iterator[tuple[str, torch.Tensor]]


class Weights:
    """What a model is filled with, once it is on its ranks.

    Args:
        model: As `build_model` made it; a meta model is copied, so that it may be changed afterwards.
        rebuild: Builds the model with its content.
        words: Source of the content that it was built with, for users.
        content: Content of a model that was moved to the meta device.
        seed: Seed of the run.
        group: The ranks.
        snapshot: The checkpoint to resume from, or None.
        init_from: Weights to start with, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        rebuild: Callable[[], nn.Module],
        words: str,
        content: dict[str, torch.Tensor] | None,
        seed: int,
        group: RankGroup,
        snapshot: Snapshot | None,
        init_from: str | None,
    ) -> None:
        self._seed, self._rebuild, self._content = seed, rebuild, content
        self._group, self._snapshot = group, snapshot
        self._blank = copy.deepcopy(model) if is_meta(model) and content is None else None
        self._given: dict[str, torch.Tensor] | None = None
        self._init_from = init_from
        self.words = words if self._blank is None else f"drawn in place from seed {seed}"

    def read_whole(self, model: nn.Module) -> None:
        """Reads what must be read whole, before the model is parallelised; one that has memory is filled here.

        Raises:
            CheckpointError: The weights are of another architecture.
        """
        snapshot, group = self._snapshot, self._group
        if snapshot is not None:
            self.words = f"of step {snapshot.step}"
            if self._own_parts() is None:
                tensors = snapshot.model_tensors if group.rank == 0 else None
                self._give(model, dict(group.broadcast_tensors(tensors)))
        elif self._init_from is not None:
            self.words = f"of {self._init_from}"
            self._give(model, adopted(model, read_weights(Path(self._init_from).expanduser())))

    def fill(self, model: ParallelModel) -> None:
        """Fills a model whose content is undefined, or whose ranks read their own parts of it.

        Args:
            model: On its ranks.

        Raises:
            CheckpointError: The weights are of another architecture, or cannot be read any more.
        """
        stored = self._own_parts()
        if self._content is not None or self._blank is not None:
            wanted = None
            if self._given is not None or self._snapshot is not None:
                # Buffers that no checkpoint holds, such as the frequencies of rotary positions, are always drawn.
                persistent = model.own_tensors()
                wanted = [name for name in all_tensors(model.module) if name not in persistent]
            model.fill(self._initial(wanted))
        if self._given is not None:
            model.fill(self._given.items())
        elif stored is not None:
            model.read_model(StoredModel(model.module, model.own_tensors(), stored))
        self._content = self._given = self._blank = None

    def _give(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes weights under the names of a checkpoint; a meta model gets them once it has memory."""
        if is_meta(model):
            self._given = in_model_layout(model, tensors)
        else:
            import_tensors(model, tensors)

    def _own_parts(self) -> LazyTensors | None:
        """The weights of the checkpoint, if every rank reads its own parts, else None; the same on all ranks."""
        if self._snapshot is None or not self._snapshot.is_seen_by_all:
            return None
        tensors = self._snapshot.model_tensors
        return tensors if isinstance(tensors, LazyTensors) else None

    def _initial(self, wanted: Collection[str] | None) -> Tensors:
        """The initial tensors of a new model, one after another; with `wanted`, only those."""
        if self._content is not None:
            for name in list(self._content):
                tensor = self._content.pop(name)  # freed as soon as it is copied
                if wanted is None or name in wanted:
                    yield name, tensor
            return
        if self._blank is None or (wanted is not None and not wanted):
            return
        try:
            yield from drawn(self._blank, self._seed, wanted)
        except UndrawnError:
            # All tensors from one source: a model that is half of each would be neither.
            self.words = _CONSTRUCTED if wanted is None else self.words
            yield from all_tensors(self._rebuild()).items()


def build_model(
    config: Config, device: torch.device, seed: int, group: RankGroup, snapshot: Snapshot | None, init_from: str | None
) -> tuple[nn.Module, Weights]:
    """The model of a configuration, on the meta device if it can be drawn later, and what it is filled with.

    Args:
        config: The whole configuration.
        device: Passed to the model's target as `device`, if it takes one.
        seed: Seed of the run.
        group: The ranks.
        snapshot: The checkpoint to resume from, or None.
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
    if not (group.is_alone or is_meta(model)) and is_hugging_face(model) and has_rules(type(model)):
        content = move_to_meta(model)
    words = "read by from_pretrained" if getattr(factory, "__name__", "") == "from_pretrained" else _CONSTRUCTED
    return model, Weights(model, rebuild, words, content, seed, group, snapshot, init_from)


def _is_drawn_later(factory: Any) -> bool:
    """Whether a target does nothing but build a model from its arguments, so that the content may be drawn later."""
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
