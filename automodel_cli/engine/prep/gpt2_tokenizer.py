"""The tokenizer `gpt2`: GPT-2's byte-level BPE, 50,257 entries, without any network.

The vocabulary is rebuilt from the merge list that ships with the package: the 256 bytes in
GPT-2's order, one entry per merge, then `<|endoftext|>` = 50256, which serves as BOS. Source:
Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from automodel_cli.engine.prep.json_tokenizer import JsonTokenizer
from automodel_cli.engine.prep.package_data import GPT2_MERGES, SHA256, read_asset

END_OF_TEXT = "<|endoftext|>"


def gpt2_tokenizer() -> JsonTokenizer:
    """GPT-2's tokenizer, as a `tokenizer.json` that any engine can load."""
    # The merge list determines every id, so its hash stands for the content.
    return JsonTokenizer("gpt2", gpt2_json(read_merges()), END_OF_TEXT, END_OF_TEXT, SHA256[GPT2_MERGES])


def gpt2_json(merges: Sequence[str]) -> str:
    """The content of a `tokenizer.json` for these merges, each `left right`."""
    entries = [*byte_alphabet().values(), *(merge.replace(" ", "") for merge in merges), END_OF_TEXT]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end_of_text = {
        "id": len(entries) - 1,
        "content": END_OF_TEXT,
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        "special": True,
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [end_of_text],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {entry: token for token, entry in enumerate(entries)},
                "merges": merges,
            },
        },
        ensure_ascii=False,
    )


def read_merges() -> list[str]:
    """The merges in order of priority, as pairs `left right` in GPT-2's printable alphabet."""
    # The first line is a comment with a version, the last one is empty.
    return read_asset(GPT2_MERGES).split("\n")[1:-1]


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte, in the order of the first 256 ids.

    Printable Latin-1 bytes stand for themselves and come first; the others follow from U+0100.

    >>> alphabet = byte_alphabet()
    >>> len(alphabet), alphabet[ord("A")], alphabet[ord(" ")]
    (256, 'A', 'Ġ')
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
