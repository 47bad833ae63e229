"""The README of an exported model: what it is, how it was trained, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(
    name: str, *, facts: Mapping[str, Any], step: int, num_parameters: int, dtype: str, config_yaml: str
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        name: Of the exported directory.
        facts: What the checkpoint's manifest says of the run.
        step: Optimisation steps done.
        num_parameters: Stored parameters, tied ones once.
        dtype: Of the exported weights.
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
