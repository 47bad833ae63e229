"""Strings on which tokenizers that claim to be equal have been seen to differ.

Long runs, single words without end, control characters, spaces of every kind, combining marks,
emoji joined to each other, digits of other scripts, contractions, and special tokens written out
in the text. Every code point below U+3000 occurs, and some of each plane above.
"""

from __future__ import annotations

from collections.abc import Sequence

# Raise it with every change of the list: verdicts that were kept then count no more.
LIST_VERSION = 1


def _code_points() -> list[str]:
    # Each between letters and between spaces: what a character is decides where a word ends.
    points = [*range(0x20, 0x3000), *range(0x3000, 0x110000, 997)]
    characters = [chr(point) for point in points if not 0xD800 <= point <= 0xDFFF]
    lines = [characters[start : start + 64] for start in range(0, len(characters), 64)]
    return ["a".join(line) + " " + " ".join(line) for line in lines]


def adversarial_texts() -> Sequence[str]:
    """The strings, 3 MB in all; built when asked for, because a verdict is kept."""
    return (
        "",
        " ",
        " " * 100_000,
        "\n" * 5000,
        " \n" * 3000,
        "\t \r\n\v\f" * 500,
        "a" * 1_000_000,
        "qwertyuiopasdfghjklzxcvbnm" * 2500,
        "aB" * 5000,
        "1" * 5000,
        "1234567890 3.14 ¹²³ Ⅷ ٣ ௧ 1e-5 0x1F",
        "!?" * 5000,
        "-" * 10_000,
        "".join(map(chr, range(0x20))) * 4,
        "x".join(map(chr, range(0x20))),
        "\x00\x01\x7f\u0080\u0085\u00a0\u1680\u2000\u200b\u2028\u2029\u202f\u205f\u3000\ufeff",
        " x\u0085y \u00a0 z\u2028\u2029 w\u3000 \u1680v",
        "e\u0301" * 1000,
        "a" + "\u0301\u0327" * 1000,
        "naïve café e\u0301 Ångström \ufb01 \u1e9b\u0323 \u0131 İ \u017f ß",
        "日本語のテキスト 한국어 العربية עברית हिन्दी ไทย 中文\uff0c。\uff01",
        "🎉👨\u200d👩\u200d👧\u200d👦🏳\ufe0f\u200d🌈" * 500,
        "👍🏽 🇩🇪🇫🇷 ☺\ufe0f \U0001f9d1\u200d\U0001f680 \U0010ffff",
        "<|endoftext|>",
        "x<|endoftext|> <|endoftext|>y<|endoftext|><|endoftext|>",
        "<s></s><unk><pad>[CLS][SEP][MASK]<|im_start|>user<|im_end|><bos><eos><|begin_of_text|>",
        "it's we'll they've I'm you'd IT'S we'LL '' 's 'x \u2019s don''t",
        "def f(x):\n    return x**2  # ok\n\n\n\tif a != b:\r\n\t\tpass\r\n",
        "https://example.org/a_b?c=d&e=%20#f user@example.org C:\\x\\y --flag=1 $HOME",
        "word  two   three    four\n\n  five \n six",
        "\ufffd\ufffe\uffff \ue000 \U000e0041",
        *_code_points(),
    )
