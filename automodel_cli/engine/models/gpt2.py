"""GPT-2 as published (Radford et al. 2019): pre-LN blocks, tanh GELU, learned positions, tied embeddings.

Lean on purpose: a forward pass for training, no key-value cache. Names of modules and the
meaning of every parameter are those of Hugging Face's GPT-2, and `export.py` converts the layout,
so that a checkpoint loads there with equal logits. Dropout acts in training only; an unknown
argument is an error.

Shapes: B batch, T sequence, C channels (`n_embd`), H heads, D head size (C / H), V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from automodel_cli.engine.models.calling import CausalLMOutput, document_mask
from automodel_cli.engine.models.document_attention import attend_in_blocks, document_blocks
from automodel_cli.errors import ConfigError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of a GPT-2, as `build_gpt2_model` takes them; the names are those of `transformers.GPT2Config`.

    Raises:
        ConfigError: A size is not a positive whole number, `n_embd` is not a multiple of `n_head`,
            or `dropout` is outside [0, 1).
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            size = getattr(self, name)
            # YAML may give text or a fraction, which torch would refuse without naming the key.
            if not isinstance(size, int) or size < 1:
                raise ConfigError(f"{name} is {size!r}, but it must be a whole number of at least 1")
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd is {self.n_embd}, but it must be a multiple of n_head = {self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}, but it must be at least 0 and below 1")


class CausalSelfAttention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.head_size = config.n_embd // config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTC: torch.Tensor, mask: torch.Tensor | BlockMask | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C); a mask (B, 1, T, T), true where a position may look, replaces the causal one."""
        # Heads by their size, not their number: a tensor-parallel rank has some of them.
        heads = (part.unflatten(2, (-1, self.head_size)) for part in self.c_attn(x_BTC).chunk(3, dim=2))
        q_BHTD, k_BHTD, v_BHTD = (part.transpose(1, 2) for part in heads)
        # `dropout_p` acts whatever the module's mode is, so it is zero outside training.
        dropout_p = self.dropout if self.training else 0.0
        if mask is None or isinstance(mask, torch.Tensor):
            y_BHTD = F.scaled_dot_product_attention(
                q_BHTD, k_BHTD, v_BHTD, attn_mask=mask, is_causal=mask is None, dropout_p=dropout_p
            )
        else:
            y_BHTD = attend_in_blocks(q_BHTD, k_BHTD, v_BHTD, mask)
        y_BTC = y_BHTD.transpose(1, 2).flatten(2)
        return self.resid_dropout(self.c_proj(y_BTC))


class MLP(nn.Module):
    """Feed-forward layer of four times the width with GELU in its tanh form."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x_BTC), approximate="tanh")))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x_BTC: torch.Tensor, mask: torch.Tensor | BlockMask | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        x_BTC = x_BTC + self.attn(self.ln_1(x_BTC), mask)
        return x_BTC + self.mlp(self.ln_2(x_BTC))


class GPT2Body(nn.Module):
    """Embeddings, blocks and the final norm; `transformer` in Hugging Face's naming.

    Attributes:
        attends_in_blocks: Whether documents are kept apart by `document_blocks` and not by a mask of every pair;
            for a model without dropout, see `attention.py`.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.attends_in_blocks = False
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        position_ids_BT: torch.Tensor | None = None,
        document_ids_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token ids (B, T) -> hidden states (B, T, C)."""
        # Made once for all blocks; None keeps the causal kernel, which reads no mask.
        mask: torch.Tensor | BlockMask | None = None
        if document_ids_BT is not None:
            mask = document_blocks(document_ids_BT) if self.attends_in_blocks else document_mask(document_ids_BT)
        if position_ids_BT is None:
            position_ids_BT = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)[None]
        x_BTC = self.drop(self.wte(input_ids_BT) + self.wpe(position_ids_BT))
        for block in self.h:
            x_BTC = block(x_BTC, mask)
        return self.ln_f(x_BTC)


class GPT2LMHeadModel(nn.Module):
    """GPT-2 with its language-model head, whose weight is the token embedding's."""

    # How tensor-parallel ranks split it: see engine/distributed/tensor_parallel.py for the styles.
    tp_plan: ClassVar[dict[str, str]] = {
        "transformer.wte": "embedding_rowwise",
        "transformer.h.*.attn.c_attn": "fused_qkv_colwise",
        "transformer.h.*.attn.c_proj": "rowwise",
        "transformer.h.*.mlp.c_fc": "colwise",
        "transformer.h.*.mlp.c_proj": "rowwise",
        "lm_head": "colwise_gather_output",
    }
    # What is split along the sequence between the matrices, if that is asked for.
    sequence_plan: ClassVar[dict[str, str]] = {
        "transformer.wpe": "sequence_parallel",
        "transformer.h.*.ln_1": "sequence_parallel",
        "transformer.h.*.ln_2": "sequence_parallel",
        "transformer.ln_f": "sequence_parallel",
    }

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.transformer = GPT2Body(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws initial weights as GPT-2 did, in a fixed order from torch's generator."""
        for name, module in self.named_modules():
            if module is not self.lm_head:  # its weight is the token embedding's
                self.initialise(name, module)

    @torch.no_grad()
    def initialise(self, name: str, module: nn.Module) -> None:
        """Draws the initial weights that one module holds itself, from torch's generator.

        Normal with `initializer_range`; projections that end a residual branch are scaled by
        1/sqrt(2 * n_layer), so that the variance of the residual stream does not grow with depth.

        Args:
            name: Name of the module in this model.
            module: It, or one of its shapes.
        """
        std = self.config.initializer_range
        if name.endswith("c_proj"):
            std /= math.sqrt(2 * self.config.n_layer)
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2:
                parameter.normal_(std=std)
            elif key == "bias":
                parameter.zero_()
            else:
                parameter.fill_(1.0)

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token ids (B, T) -> the input of the head (B, T, C); the other arguments as in `forward`."""
        T = input_ids.shape[1]
        if self.config.n_positions < T:
            raise ConfigError(f"the sequence has {T} tokens, but the model has {self.config.n_positions} positions")
        return self.transformer(input_ids, position_ids, document_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
    ) -> CausalLMOutput:
        """Token ids (B, T) -> logits (B, T, V).

        Args:
            input_ids: Token ids.
            position_ids: Place of each token (B, T), restarted at each document of a packed sample;
                None counts from 0.
            document_ids: Document of each token (B, T): attention stays within a document; None is one document.

        Raises:
            ConfigError: The sequence is longer than the model has positions.
        """
        return CausalLMOutput(self.lm_head(self.hidden_states(input_ids, position_ids, document_ids)))


def build_gpt2_model(
    vocab_size: int,
    n_positions: int,
    n_embd: int,
    n_layer: int,
    n_head: int,
    dropout: float = 0.0,
    layer_norm_epsilon: float = 1e-5,
    initializer_range: float = 0.02,
    bias: bool = True,
) -> GPT2LMHeadModel:
    """A GPT-2 with fresh weights.

    Args:
        vocab_size: Entries of the vocabulary, V.
        n_positions: Longest sequence.
        n_embd: Channels, C; a multiple of `n_head`.
        n_layer: Transformer blocks.
        n_head: Attention heads, H.
        dropout: Probability of dropping an embedding, an attention weight or a residual branch's output.
        layer_norm_epsilon: Added to the variance in layer norms.
        initializer_range: Standard deviation of the initial weights.
        bias: Whether linear layers and layer norms have biases.

    Raises:
        ConfigError: As `GPT2Config`.

    >>> model = build_gpt2_model(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2)
    >>> model(torch.zeros(2, 8, dtype=torch.int64)).logits.shape
    torch.Size([2, 8, 11])
    """
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=n_positions,
            n_embd=n_embd,
            n_layer=n_layer,
            n_head=n_head,
            dropout=dropout,
            layer_norm_epsilon=layer_norm_epsilon,
            initializer_range=initializer_range,
            bias=bias,
        )
    )
