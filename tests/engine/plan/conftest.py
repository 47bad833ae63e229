"""Sections `model` of every kind that a plan knows, and the models that they describe."""

from __future__ import annotations

import contextlib
import logging

import pytest
import torch

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.instantiate import instantiate

OURS = "automodel_cli.engine.models.gpt2.build_gpt2_model"
AUTO = "transformers.AutoModelForCausalLM.from_config"


def ours(**sizes) -> Config:
    """A configuration of our GPT-2."""
    return Config({"model": {"_target_": OURS, **sizes}})


def hf(config_class: str, target: str = AUTO, **sizes) -> Config:
    """A configuration of a model of transformers."""
    # Beyond a small vocabulary, the defaults of these ids are warned about.
    tokens = {"bos_token_id": 0, "eos_token_id": 0} if sizes.get("vocab_size", 10**6) < 50_257 else {}
    return Config(
        {"model": {"_target_": target, "config": {"_target_": f"transformers.{config_class}", **tokens, **sizes}}}
    )


def built(config: Config, device: str = "meta") -> torch.nn.Module:
    """The real model; on the meta device it takes no memory."""
    with torch.device(device) if device == "meta" else contextlib.nullcontext():
        return instantiate(config, "model")


SMALL = {"vocab_size": 211, "max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 2}
SMALL_LLAMA = {**SMALL, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL_GPT2 = {"vocab_size": 211, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.fixture(autouse=True)
def _quiet_transformers():
    """Warnings about token ids that a tiny vocabulary lacks say nothing here."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
