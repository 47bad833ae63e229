"""GPT-2's tokenizer for the peers, without network: as `transformers` and as `tiktoken` load it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from automodel_cli.engine.prep.json_tokenizer import byte_alphabet, gpt2_json, read_merges

BOS_ID = 50_256


def for_transformers():
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "tokenizer.json").write_text(gpt2_json(read_merges()), encoding="utf-8")
        roles = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
        return PreTrainedTokenizerFast.from_pretrained(directory)


def for_tiktoken():
    import tiktoken

    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    entries = [*byte_of, *(merge.replace(" ", "") for merge in read_merges())]
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        mergeable_ranks={bytes(byte_of[character] for character in entry): id_ for id_, entry in enumerate(entries)},
        special_tokens={"<|endoftext|>": BOS_ID},
    )
