"""The tokenizer of a run as the files that `transformers.AutoTokenizer` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from automodel_cli.engine.prep.json_tokenizer import END_OF_TEXT, byte_alphabet
from automodel_cli.engine.prep.load_tokenizer import load_tokenizer


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
