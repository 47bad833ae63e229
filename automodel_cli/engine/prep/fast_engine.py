"""The fast way from text to token ids, and the proof that it gives the same ids.

`fastokens` is some fifty times as fast as the reference, `tokenizers`, and known to be equal
for the vocabularies that it was compared on. For any other vocabulary that has to be shown: before it may
prepare data, it must reproduce the reference on a list of adversarial strings (once for each tokenizer
and pair of versions: the verdict is kept) and on the beginning of the data itself (every time).
On any difference the reference does the work, which costs time and never a token.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from automodel_cli.engine.bounded import parse_json, read_bytes
from automodel_cli.engine.prep.tokenizer import Encoded, Encoder, Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa


# As much of the data as the reference reads in a tenth of a second.
_SAMPLE_BYTES = 200_000
# Raise it with every change of `adversarial_texts`: verdicts on the old list are void then.
_LIST_VERSION = 1


@dataclass(frozen=True)
class Choice:
    """Which engine does the work.

    Attributes:
        encoder: The fast engine, or the tokenizer itself.
        note: Why it is not the fast one, in words for the user; `None` when nothing is to be said.
    """

    encoder: Encoder
    note: str | None = None


class FastEngine:
    """`fastokens` on the content of a `tokenizer.json`; special tokens in a text are text.

    Args:
        content: The `tokenizer.json`.

    Raises:
        ImportError: There is no `fastokens` for this machine.
        ValueError: It cannot load the content.
    """

    def __init__(self, content: str) -> None:
        # The environment is read when its threads are made; preparation brings threads of its own.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        from importlib.metadata import version

        import fastokens

        self.engine = f"fastokens {version('fastokens')}"
        self._backend = fastokens.Tokenizer.from_json_str(content)
        self._backend.no_padding()
        self._backend.no_truncation()

    def encode_batch(self, texts: pa.Array) -> Encoded:
        """The ids of the texts; other threads run meanwhile."""
        ids, offsets = self._backend.encode_batch_flat(texts.to_pylist(), split_special_tokens=True)
        return Encoded(np.frombuffer(ids, dtype="<u4"), np.frombuffer(offsets, dtype="<i8"))


class GuardedEngine:
    """The fast engine, with the reference for a batch on which it fails: hours of work must not end there.

    Args:
        fast: Proved equal.
        reference: Gives the same ids.
    """

    def __init__(self, fast: Encoder, reference: Encoder) -> None:
        self.engine = fast.engine
        self._fast = fast
        self._reference = reference

    def encode_batch(self, texts: pa.Array) -> Encoded:
        """The ids of the texts."""
        try:
            return self._fast.encode_batch(texts)
        # A panic of native code is no Exception.
        except BaseException as error:
            _reraise_interrupt(error)
            return self._reference.encode_batch(texts)


def choose_engine(tokenizer: Tokenizer, sample: pa.Array, cache: Path | None) -> Choice:
    """The fast engine where it proves itself, else the tokenizer as it is.

    Args:
        tokenizer: The reference.
        sample: Texts from the beginning of the data, as many as there are at hand.
        cache: Directory that keeps verdicts on the adversarial strings; `None` keeps none.
    """
    if tokenizer.json is None:
        return Choice(tokenizer)
    try:
        fast = FastEngine(tokenizer.json)
    except ImportError:
        return Choice(
            tokenizer, f"fastokens is not installed, so {tokenizer.engine} does the work, at a fraction of its speed"
        )
    # It raises ValueError for what it does not know; a panic of its native code is no Exception.
    except BaseException as error:
        _reraise_interrupt(error)
        return Choice(tokenizer, f"fastokens cannot load this tokenizer, so {tokenizer.engine} does the work: {error}")
    if not _is_proved(tokenizer, fast, cache) or not is_equal(tokenizer, fast, _bounded(sample)):
        return Choice(
            tokenizer, f"{fast.engine} gives other ids for this tokenizer, so {tokenizer.engine} does the work"
        )
    return Choice(GuardedEngine(fast, tokenizer))


def is_equal(reference: Encoder, other: Encoder, texts: pa.Array) -> bool:
    """Whether both give the same ids for every text."""
    expected = reference.encode_batch(texts)
    try:
        found = other.encode_batch(texts)
    except BaseException as error:
        _reraise_interrupt(error)
        return False
    return np.array_equal(expected.ids, found.ids) and np.array_equal(expected.offsets, found.offsets)


def user_cache_dir() -> Path:
    """Where verdicts are kept: `$XDG_CACHE_HOME/amcli` or `~/.cache/amcli`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "amcli"


def _is_proved(tokenizer: Tokenizer, fast: FastEngine, cache: Path | None) -> bool:
    import pyarrow as pa

    key = hashlib.sha256(f"{tokenizer.sha256} {tokenizer.engine} {fast.engine} {_LIST_VERSION}".encode()).hexdigest()
    verdict = None if cache is None else cache / "tokenizer-proofs" / f"{key[:32]}.json"
    if verdict is not None:
        known = _read_verdict(verdict)
        if known is not None:
            return known
    proved = is_equal(tokenizer, fast, pa.array(adversarial_texts(), pa.large_string()))
    if verdict is not None:
        _keep_verdict(verdict, {"equal": proved, "reference": tokenizer.engine, "engine": fast.engine})
    return proved


def _read_verdict(path: Path) -> bool | None:
    try:
        known = parse_json(read_bytes(path))["equal"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if isinstance(known, bool) else None


def _keep_verdict(path: Path, verdict: dict[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(verdict))
        temporary.replace(path)
    except OSError:
        # A home that cannot be written to costs the proof anew each time, nothing else.
        return


def _bounded(sample: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    from automodel_cli.engine.prep.tokenizer import offsets_of

    offsets = offsets_of(sample)
    wanted = int(np.searchsorted(offsets, offsets[0] + _SAMPLE_BYTES, side="right")) - 1
    # The reference would take minutes, and a hundred bytes for each token, for a document of the largest kind.
    return sample.slice(0, wanted) if wanted else pc.utf8_slice_codeunits(sample.slice(0, 1), 0, _SAMPLE_BYTES)


def _reraise_interrupt(error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        raise error


def _code_points() -> list[str]:
    # Each between letters and between spaces: what a character is decides where a word ends.
    points = [*range(0x20, 0x3000), *range(0x3000, 0x110000, 997)]
    characters = [chr(point) for point in points if not 0xD800 <= point <= 0xDFFF]
    lines = [characters[start : start + 64] for start in range(0, len(characters), 64)]
    return ["a".join(line) + " " + " ".join(line) for line in lines]


def adversarial_texts() -> Sequence[str]:
    """Strings on which tokenizers that claim to be equal have been seen to differ, 3 MB in all.

    Long runs, single words without end, control characters, spaces of every kind, combining marks, emoji joined to
    each other, digits of other scripts, contractions, and special tokens written out in the text. Every code point
    below U+3000 occurs, and some of each plane above.
    """
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
