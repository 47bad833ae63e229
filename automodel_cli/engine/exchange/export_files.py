"""The files beside the weights of an exported model: its README, and its tokenizer as transformers loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli.engine.prep.json_tokenizer import END_OF_TEXT, byte_alphabet
from automodel_cli.engine.prep.load_tokenizer import load_tokenizer


def model_card(
    name: str, *, facts: Mapping[str, Any], step: int, num_parameters: int, dtype: str, config_yaml: str
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        name: Name of the exported directory.
        facts: What the checkpoint's manifest says of the run.
        step: Optimisation steps done.
        num_parameters: Stored parameters, tied ones once.
        dtype: Type of the exported weights.
        config_yaml: The run's configuration, without secrets.
    """
    rows = [
        ("parameters", f"{num_parameters:,}"),
        ("weights", dtype),
        ("optimisation steps", f"{step:,}"),
        ("tokens seen", _number(facts.get("tokens_seen"))),
        ("training loss, nats per token", _number(facts.get("loss"))),
        ("validation loss, nats per token", _number(facts.get("val_loss"))),
        ("tokenizer", (facts.get("tokenizer") or {}).get("name")),
        ("trained with", ", ".join(f"{key} {value}" for key, value in (facts.get("versions") or {}).items()) or None),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows if value is not None)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [amcli, pretrained-from-scratch]
---

# {name}

A language model pre-trained with amcli. It continues text; it was not trained to follow instructions.

| | |
|---|---|
{table}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/{name}")
tokenizer = AutoTokenizer.from_pretrained("path/to/{name}")
```

## Configuration of the run

```yaml
{config_yaml.rstrip()}
```
"""


def _number(value: Any) -> str | None:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else None


def write_tokenizer(directory: Path, name: str, bos_id: int | None, max_length: int | None) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`.

    The BOS of the run begins and ends documents, so it stands for both in the files.

    Args:
        directory: Exists already.
        name: As for `load_tokenizer`.
        bos_id: The id that stood before every document of the training data, or None.
        max_length: Longest input of the model in tokens; None if it is not known.

    Raises:
        DataError: The tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(name)
    content = bytes_json() if name == "bytes" else tokenizer.json
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if content is None:
        # No tokenizer.json: what transformers itself loaded is what it can load again.
        AutoTokenizer.from_pretrained(name, trust_remote_code=False).save_pretrained(directory)
        return
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(content)
    special: dict[str, Any] = {}
    if bos_id is not None:
        special = {"bos_token": backend.id_to_token(bos_id), "eos_token": backend.id_to_token(bos_id)}
    if max_length is not None:
        special["model_max_length"] = max_length
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)


def bytes_json() -> str:
    """The tokenizer `bytes` as a `tokenizer.json`: a byte-level BPE without a single merge.

    >>> json.loads(bytes_json())["model"]["vocab"]["A"]
    65
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": 256, "content": END_OF_TEXT, **flags, "special": True}],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {character: byte for byte, character in byte_alphabet().items()} | {END_OF_TEXT: 256},
                "merges": [],
            },
        },
        ensure_ascii=False,
    )
