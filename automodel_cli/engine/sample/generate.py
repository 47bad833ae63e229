"""Autoregressive sampling, one token at a time, for any model that maps ids to logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from automodel_cli.engine.models.outputs import logits_of

# Shapes: T sequence, V vocabulary.


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    window: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    stop_id: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Yields new token ids until `max_new_tokens` or `stop_id`, which is not yielded.

    Args:
        model: Maps ids (1, T) to logits or to an object with `.logits`; put into eval mode.
        prompt_ids: At least one id to continue from.
        max_new_tokens: Most tokens to yield.
        window: Longest input that the model takes; older tokens are forgotten.
        temperature: Divides the logits; 0 takes the likeliest token each time.
        top_k: Sample among the k likeliest tokens; None among all.
        stop_id: The id that ends a document.
        seed: Equal seeds give equal text on the same device.
    """
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt_ids)
    for _ in range(max_new_tokens):
        input_ids_1T = torch.tensor([ids[-window:]], dtype=torch.int64, device=device)
        # Drawn on the CPU in fp32, so that the generator's stream is the same for every device.
        logits_V = logits_of(model(input_ids_1T))[0, -1].float().cpu()
        chosen = _draw(logits_V, temperature, top_k, generator)
        if chosen == stop_id:
            return
        ids.append(chosen)
        yield chosen


def _draw(logits_V: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V / temperature
    if top_k is not None and top_k < logits_V.numel():
        kth_largest = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < kth_largest, -torch.inf)
    return int(torch.multinomial(torch.softmax(logits_V, dim=-1), 1, generator=generator))
