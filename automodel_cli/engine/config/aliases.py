"""Names of NeMo AutoModel that stand for parts of amcli, so that its guide's YAML runs as printed.

They count only where that package is not installed; where it is, its own code is meant. The file
keeps the name as it was written, and one note lists the parts of amcli that are used.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "nemo_automodel"

# Modules whose contents amcli has under the same names.
_MODULES = {
    "nemo_automodel.components.models.gpt2": "automodel_cli.engine.models.gpt2",
    "nemo_automodel.components.datasets.llm.nanogpt_dataset": "automodel_cli.engine.data.nanogpt_dataset",
    "nemo_automodel.components.datasets.llm.megatron_dataset": "automodel_cli.engine.data.megatron_dataset",
    "nemo_automodel.components.loss.masked_ce": "automodel_cli.engine.loss.masked_ce",
}
# Managers that name a strategy: their keys are those of the `distributed` section.
STRATEGIES = {
    "nemo_automodel.components.distributed.ddp.DDPManager": "ddp",
    "nemo_automodel.components.distributed.fsdp2.FSDP2Manager": "fsdp2",
    "automodel_cli.engine.distributed.ddp.DDPManager": "ddp",
    "automodel_cli.engine.distributed.fsdp2.FSDP2Manager": "fsdp2",
}
# The batches of amcli hold samples of one length, which this function would only stack.
COLLATE_FN = "nemo_automodel.components.datasets.utils.default_collater"
RECIPE = "TrainFinetuneRecipeForNextTokenPrediction"

# A model class of transformers has the `from_config` of its Auto class under a private name.
_HF_FROM_CONFIG = re.compile(r"(transformers\.(?!Auto)\w+)\.from_config")


def resolved(target: str) -> str:
    """The import path that a target stands for; most stand for themselves.

    >>> resolved("transformers.GPT2LMHeadModel.from_config")
    'transformers.GPT2LMHeadModel._from_config'
    >>> resolved("torch.optim.AdamW")
    'torch.optim.AdamW'
    """
    if match := _HF_FROM_CONFIG.fullmatch(target):
        return f"{match[1]}._from_config"
    module, _, name = target.rpartition(".")
    return f"{_MODULES[module]}.{name}" if module in _MODULES and not _is_installed() else target


def own_module(file: Path) -> str | None:
    """The module of amcli that has what this file of the other package's sources has, by the end of its path.

    >>> own_module(Path("/src/nemo_automodel/components/models/gpt2.py"))
    'automodel_cli.engine.models.gpt2'
    """
    return next((ours for theirs, ours in _MODULES.items() if file.as_posix().endswith(_as_file(theirs))), None)


def _as_file(module: str) -> str:
    return f"/{module.replace('.', '/')}.py"


def substitution_note(targets: Iterable[str]) -> str | None:
    """One line about all names of the other package that stand for parts of amcli here; None if none does."""
    known = (*STRATEGIES, COLLATE_FN)
    meant = {target for target in targets if target in known or resolved(target).startswith("automodel_cli.")}
    names = sorted({target.rpartition(".")[2] for target in meant if target.startswith(f"{PACKAGE}.")})
    if not names or _is_installed():
        return None
    return f"{PACKAGE} is not installed: {_listed(names)} {'is' if len(names) == 1 else 'are'} amcli's own"


def _is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
