"""`torch.compile` of a model in place: names of parameters stay, and the cache belongs to the run.

Per block, one compiled program serves all blocks of a depth, and what is around them, such as a loss
that takes the place of the head, stays as it is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.distributed.module_tree import transformer_blocks
from automodel_cli.errors import ConfigError

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def compile_model(
    model: nn.Module, *, mode: str, fullgraph: bool, per_block: bool, cache: Path, backend: str = "inductor"
) -> str:
    """Compiles a model at its first call; returns what is compiled, in words.

    Args:
        model: Compiled in place.
        mode: As in `torch.compile`.
        fullgraph: Refuse what would be computed outside the compiled program.
        per_block: Compile the blocks, not the whole.
        backend: As in `torch.compile`.
        cache: Directory of compiled programs, for this run alone unless the environment names another.

    Raises:
        ConfigError: Torch has no such backend, or blocks are asked for and the model has none.
    """
    if isinstance(backend, str) and backend not in (known := torch.compiler.list_backends(None)):
        help_ = hint(backend, known, noun="backends")
        raise ConfigError(f"compile.backend is {backend!r}, which torch does not have", help=help_)
    # A process that is killed while it compiles leaves a broken file, which would break other runs.
    # Imported here: only a run that compiles pays for it.
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Torch writes its default into the variable when the directory is first asked for: that is not the user's choice.
    if os.environ.get(_CACHE_VARIABLE) in (None, default_cache_dir()):
        os.environ[_CACHE_VARIABLE] = str(cache.absolute())
    if not per_block:
        model.compile(backend=backend, mode=mode, fullgraph=fullgraph)
        return f"the whole model, {mode}"
    blocks = transformer_blocks(model)
    if not blocks:
        raise ConfigError(
            f"compile.per_block is true, but {type(model).__name__} has no list of blocks",
            help="compile.per_block: false compiles the whole model",
        )
    for block in blocks:
        block.compile(backend=backend, mode=mode, fullgraph=fullgraph)
    return f"{len(blocks)} blocks, {mode}"


def compile_seconds() -> float:
    """Seconds that this process has spent compiling so far, forward and backward programs; 0 where nothing compiles."""
    if "torch._dynamo.utils" not in sys.modules:
        return 0.0
    from torch._dynamo.utils import calculate_time_spent

    return float(calculate_time_spent().get("total_wall_time", 0.0))
