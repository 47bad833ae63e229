"""A model of one's own: any nn.Module that maps token ids (B, T) to logits (B, T, V).

    model:
      _target_: examples/custom_model.py:build_model      # relative to the YAML file that says so
      vocab_size: 257

The model returns logits, or an object with `.logits`. Where its last layer is an nn.Linear, as here,
amcli computes the loss without ever holding all logits.
"""

from __future__ import annotations

import torch
from torch import nn


class GatedRecurrence(nn.Module):
    """A small recurrent model: x + silu(gate(x)) * gru(x), layer by layer."""

    def __init__(self, vocab_size: int, width: int, num_layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(nn.GRU(width, width, batch_first=True) for _ in range(num_layers))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids (B, T) -> logits (B, T, V)."""
        x_BTC = self.embed(input_ids)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            x_BTC = x_BTC + nn.functional.silu(gate(x_BTC)) * layer(x_BTC)[0]
        return self.head(self.norm(x_BTC))


def build_model(vocab_size: int, width: int = 64, num_layers: int = 2) -> nn.Module:
    """What `_target_` calls with the other keys of the section.

    Args:
        vocab_size: Entries of the vocabulary.
        width: Channels.
        num_layers: Recurrent layers.
    """
    return GatedRecurrence(vocab_size, width, num_layers)
