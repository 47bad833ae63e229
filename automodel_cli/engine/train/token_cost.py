"""What training spends on a token in a model that is there, by the formula that `amcli plan` uses beforehand.

N of the formula are the numbers that are factors of matrix products: the matrices of all layers and the head, also
where that is the token embedding. Embeddings that are looked up, norms and biases are none. Of a mixture of experts
only the share that a token passes through counts.
"""

from __future__ import annotations

from torch import nn

from automodel_cli.engine.models.sizes import attention_width_of, experts_of, layers_of
from automodel_cli.engine.observe.speed import flops_per_token


def model_flops_per_token(model: nn.Module, seq_len: int) -> int | None:
    """FLOPs of the forward and the backward pass for one token; None for a model that does not state its sizes.

    Args:
        model: Whole or sharded. A mixture of experts states how many it has, and how many a token is sent to.
        seq_len: Tokens of a sample.
    """
    layers, width = layers_of(model), attention_width_of(model)
    if layers is None or width is None:
        return None
    experts = experts_of(model)
    if experts is not None and experts.per_token is None:
        return None
    share = experts.per_token / experts.number if experts is not None and experts.per_token is not None else 1.0
    return flops_per_token(active_products(model, share), layers, width, seq_len)


def active_products(model: nn.Module, expert_share: float = 1.0) -> int:
    """Numbers that a token is multiplied with.

    Args:
        model: Whole or sharded; a tied matrix counts once.
        expert_share: Experts that a token is sent to, over all experts.
    """
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    # A head that is tied to the token embedding is a product all the same.
    looked_up -= {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    total = 0.0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or id(parameter) in looked_up:
            continue
        total += parameter.numel() * (expert_share if ".experts." in name else 1.0)
    return round(total)
