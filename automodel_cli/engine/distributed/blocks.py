"""The transformer blocks of a model: what is gathered, freed and recomputed as one."""

from __future__ import annotations

from torch import nn


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of the longest list of modules of one class, in order; none for a model without such a list.

    Our GPT-2 has `transformer.h`, Hugging Face's Llama `model.layers`. A list inside a block (experts) is
    shorter in parameters than the list of blocks that holds it, and is passed over.
    """
    lists: list[nn.ModuleList] = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    alike = [members for members in lists if len({type(member) for member in members}) == 1]
    if not alike:
        return []
    return list(max(alike, key=_size))


def _size(members: nn.Module) -> int:
    return sum(parameter.numel() for parameter in members.parameters())
