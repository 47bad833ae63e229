"""The shape of the model that a configuration describes, read without importing what it names.

Known are our GPT-2 and, of transformers, GPT-2, Llama, Qwen2 and Qwen3, from the keys below
`config:` or from a local `config.json`. Every other model is unknown, and the
error says why; nothing is guessed from a name, and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from automodel_cli.engine.bounded import parse_json, read_bytes
from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.plan.parameters import Family, ModelShape

OUR_GPT2 = "automodel_cli.engine.models.gpt2.build_gpt2_model"
_OUR_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
# Arguments that change no count.
_OUR_OTHERS = ("bias", "dropout", "layer_norm_epsilon", "initializer_range")
_MAX_CONFIG_BYTES = 4_000_000
_FUSED_ATTENTION = (None, "sdpa", "flash_attention_2", "flash_attention_3")


class UnknownModelError(ValueError):
    """The model cannot be counted without building it; the text says why."""


def model_shape(config: Config) -> ModelShape:
    """The shape of the section `model`.

    Args:
        config: With environment variables put in.

    Raises:
        UnknownModelError: The configuration does not give it.
    """
    section = config.get("model")
    target = section.get(TARGET) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping) or not isinstance(target, str):
        raise UnknownModelError("there is no section `model` that names what to build")
    target = resolved(target)
    if target == OUR_GPT2:
        return _our_gpt2(section)
    module, _, name = target.partition(".")
    class_name, _, method = name.partition(".")
    if module != "transformers" or method not in ("", "from_config", "_from_config"):
        _unknown(target)
    if class_name != "AutoModelForCausalLM" and class_name not in MODEL_CLASSES:
        _unknown(target)
    family, values = _hf_values(section.get("config"))
    if class_name in MODEL_CLASSES and MODEL_CLASSES[class_name] is not family:
        raise UnknownModelError(f"{class_name} is built from the configuration of {family}")
    attention = section.get("attn_implementation", values.get("attn_implementation"))
    build = _hf_gpt2 if family is Family.HF_GPT2 else _hf_llama
    return build(family, values, attention in _FUSED_ATTENTION)


def _our_gpt2(section: Mapping[str, Any]) -> ModelShape:
    for name in section:
        if name not in (TARGET, *_OUR_SIZES, *_OUR_OTHERS):
            raise UnknownModelError(f"model.{name} is not one of the arguments that the count knows")
    vocab_size, positions, channels, layers, heads = (_whole(section, name) for name in _OUR_SIZES)
    has_bias, dropout = section.get("bias", True), _number(section, "dropout", 0.0)
    return ModelShape(
        family=Family.GPT2,
        vocab_size=vocab_size,
        max_positions=positions,
        channels=channels,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_size=channels // heads,
        mlp_width=4 * channels,
        is_tied=True,
        qkv_bias=has_bias,
        output_bias=has_bias,
        mlp_bias=has_bias,
        norm_bias=has_bias,
        embedding_dropout=dropout,
        residual_dropout=dropout,
    )


def _hf_values(section: Any) -> tuple[Family, dict[str, Any]]:
    """The family and the keys of a nested `config:`, those of a `config.json` below what overrides them."""
    target = section.get(TARGET) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping) or not isinstance(target, str) or not target.startswith("transformers."):
        raise UnknownModelError("model.config is no section with a `_target_` of transformers")
    values = {name: value for name, value in section.items() if name != TARGET}
    *_, owner, name = target.split(".")
    if name in CONFIG_CLASSES:
        family = CONFIG_CLASSES[name]
    elif name == "from_pretrained" and (owner == "AutoConfig" or owner in CONFIG_CLASSES):
        stored = _stored(values.pop("pretrained_model_name_or_path", None))
        model_type = str(stored.get("model_type"))
        if (
            model_type not in MODEL_TYPES
            or CONFIG_CLASSES.get(owner, MODEL_TYPES[model_type]) != MODEL_TYPES[model_type]
        ):
            _unknown(f"a model of type {model_type}")
        family, values = MODEL_TYPES[model_type], {**stored, **values}
    else:
        _unknown(target)
    if family is Family.HF_GPT2:
        values = {GPT2_ALIASES.get(name, name): value for name, value in values.items()}
    if values.get("quantization_config") or values.get("add_cross_attention"):
        raise UnknownModelError("its weights are quantised, or it attends to a second model")
    return family, {**DEFAULTS[family], **values}


def _stored(path: Any) -> dict[str, Any]:
    """The `config.json` of a local directory."""
    file = Path(path).expanduser() / "config.json" if isinstance(path, str) and path else None
    if file is None or not file.is_file():
        raise UnknownModelError(f"{path} is no local directory with a config.json, and nothing is fetched for a plan")
    try:
        values = parse_json(read_bytes(file, _MAX_CONFIG_BYTES), allow_nan=True)
    except (OSError, ValueError) as error:
        raise UnknownModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UnknownModelError(f"{file} holds no JSON object")
    return values


def _hf_gpt2(family: Family, values: Mapping[str, Any], is_fused: bool) -> ModelShape:
    channels, heads = _whole(values, "n_embd"), _whole(values, "n_head")
    return ModelShape(
        family=family,
        vocab_size=_whole(values, "vocab_size"),
        max_positions=_whole(values, "n_positions"),
        channels=channels,
        num_layers=_whole(values, "n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_size=channels // heads,
        mlp_width=_whole(values, "n_inner", 4 * channels),
        is_tied=bool(values["tie_word_embeddings"]),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        norm_bias=True,
        embedding_dropout=_number(values, "embd_pdrop", 0.1),
        residual_dropout=_number(values, "resid_pdrop", 0.1),
        has_fused_attention=is_fused,
    )


def _hf_llama(family: Family, values: Mapping[str, Any], is_fused: bool) -> ModelShape:
    channels, heads = _whole(values, "hidden_size"), _whole(values, "num_attention_heads")
    has_bias = bool(values.get("attention_bias"))
    return ModelShape(
        family=family,
        vocab_size=_whole(values, "vocab_size"),
        max_positions=_whole(values, "max_position_embeddings"),
        channels=channels,
        num_layers=_whole(values, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_whole(values, "num_key_value_heads", heads),
        head_size=_whole(values, "head_dim", channels // heads),
        mlp_width=_whole(values, "intermediate_size"),
        is_tied=bool(values["tie_word_embeddings"]),
        # Qwen2 has biases at queries, keys and values only, and no key to change that.
        qkv_bias=family is Family.QWEN2 or has_bias,
        output_bias=family is not Family.QWEN2 and has_bias,
        mlp_bias=family is Family.LLAMA and bool(values.get("mlp_bias")),
        norm_bias=False,
        has_fused_attention=is_fused,
    )


def _whole(values: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = values.get(name)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise UnknownModelError(f"{name} is {value!r}, which is no whole number of at least 1")
    return value


def _number(values: Mapping[str, Any], name: str, default: float) -> float:
    value = values.get(name, default)
    return float(value) if isinstance(value, int | float) else default


def _unknown(what: str) -> NoReturn:
    raise UnknownModelError(f"not known without building: {what}")


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
