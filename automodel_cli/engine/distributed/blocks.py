"""The transformer blocks of a model: what is gathered, freed and recomputed as one."""

from __future__ import annotations

from torch import nn


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of the longest list of modules of one class, in order; none for a model without such a list.

    Our GPT-2 has `transformer.h`, Hugging Face's Llama `model.layers`. A list inside a block (experts) is
    shorter in parameters than the list of blocks that holds it, and is passed over.
    """
    found: list[nn.Module] = []
    largest = 0
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len({type(member) for member in module}) == 1:
            size = sum(parameter.numel() for parameter in module.parameters())
            found, largest = (list(module), size) if size > largest else (found, largest)
    return found
