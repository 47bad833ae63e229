"""What the configuration classes of transformers assume for sizes that a configuration leaves out.

Importing them costs seconds, so their defaults stand here; a test compares each with the installed class.
None is what the class itself fills in: heads of keys and values from the heads, the size of a head
from the channels, the inner width of GPT-2 from the channels.
"""

from __future__ import annotations

from automodel_cli.engine.plan.shape import Family

Defaults = dict[str, int | float | bool | None]

_QWEN: Defaults = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
DEFAULTS: dict[Family, Defaults] = {
    Family.HF_GPT2: {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    Family.LLAMA: {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": None,
    },
    Family.QWEN2: _QWEN,
    Family.QWEN3: {**_QWEN, "attention_bias": False, "head_dim": 128},
}
# Other names that GPT2Config takes for its own (its `attribute_map`).
GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
# By the name of the class, and by `model_type` of a config.json.
CONFIG_CLASSES = {
    "GPT2Config": Family.HF_GPT2,
    "LlamaConfig": Family.LLAMA,
    "Qwen2Config": Family.QWEN2,
    "Qwen3Config": Family.QWEN3,
}
MODEL_TYPES = {
    "gpt2": Family.HF_GPT2,
    "llama": Family.LLAMA,
    "qwen2": Family.QWEN2,
    "qwen3": Family.QWEN3,
}
MODEL_CLASSES = {
    "GPT2LMHeadModel": Family.HF_GPT2,
    "LlamaForCausalLM": Family.LLAMA,
    "Qwen2ForCausalLM": Family.QWEN2,
    "Qwen3ForCausalLM": Family.QWEN3,
}
