"""Values that must not be printed, saved or sent, and what stands in their place.

A key is judged by the kind of its name, whatever its spelling: `api_key`, `apiKeys`, `X-Api-Key`, `gitlab_token` and
`db_password` hold secrets; `tokenizer`, `num_tokens`, `bos_token` and `best_metric_key` do not. Everything below such
a key is masked. Of any other text, the parts are masked that are secrets by their form: the password of a URL, the
signature in its query, the key in a connection string, tokens of well-known services.

A reference `${VAR}` is no secret, since it stays unresolved in everything that is written; a reference with a default
is, since the default is text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MASK = "***"

_WORD = re.compile(r"(?:[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+)[0-9]*")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A name that ends with one of these holds a secret, in the singular or the plural.
_SECRETS = _words(
    "password passwd passphrase passcode passkey pwd secret credential cred authorization auth oauth bearer cookie "
    "sig signature jwt"
)
_JOINED = re.compile(
    r".*(?:password|passwd|passphrase)|(?:api|access|account|secret|private|encryption|decryption|signing|shared|master|session|subscription|auth|"
    r"refresh|bearer|security|sas)(?:key|token)|conn(?:ection)?str(?:ing)?"
)
_CONNECTIONS = {("connection", "string"), ("connection", "str"), ("conn", "string"), ("conn", "str")}
# Words for the form in which a secret is written.
_FORMS = _words("value hash string str text plain plaintext header raw b base")
# A `key` is a secret where a word before it says what it opens, or whose it is.
_OF_KEYS = _words(
    "api access account secret private encryption decryption encrypt decrypt cipher crypto hmac signing sign shared "
    "master ssh gpg pgp rsa service subscription license licence auth session webhook deploy storage admin root client "
    "aws azure gcp google s3 gcs r2 minio wandb openai anthropic mistral cohere groq replicate comet neptune clearml "
    "langsmith hf huggingface hub github gitlab slack sendgrid stripe"
)
# A bare `key` is one in a section that says how a storage is opened.
_STORAGES = _words("storage credential credentials s3 gcs gs azure abfs fs filesystem fsspec client boto minio aws r2")
# A `token` is a secret, unless a word beside it says that it is one of a text.
_OF_TEXTS = _words(
    "bos eos pad padding unk unknown cls sep mask special add added additional extra begin beginning end start stop "
    "image audio video vision text prefix suffix middle fim infill eod eot eom boi eoi doc document separator sentinel "
    "newline space blank null empty per num number max min total count first last next prev previous new old each "
    "every word char byte sub bpe vocab vocabulary class dist distillation register latent memory query prompt "
    "response assistant system think thinking thought lang language lm input output target label pos neg draft "
    "speculative reserved placeholder dummy control domain task style by time loss cost"
)
# `tokens` are mostly counted, not secret, except behind one of these words.
_OF_TOKENS = _words(
    "api access auth oauth refresh session security bearer secret sas hf hub huggingface github gitlab slack wandb bot"
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
# `key: ` of a YAML line or `key=` of an option, dotted or quoted.
_ASSIGNMENT = re.compile(r"""(?P<key>[A-Za-z_][A-Za-z0-9_.-]*+)["']?\s*[:=]\s*(?=\S)""")
# `name=value` in a query or a connection string, `"name": "value"` in JSON; the value is looked at only behind a secret
# name, and no quantifier gives back: a long text takes time in proportion to its length.
_PAIR_BETWEEN = re.compile(r"""["']\s*+:\s*+["']|=["']?""")
_PAIR_VALUE = re.compile(r"""\$\{[^}]*+\}|[^&;,\s"'`#<>]++""")
# What is before a secret of some form, the secret, and what is behind it.
_AROUND = (
    (
        r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*+://[^/\s:@'\"]*+:",
        r"\$\{[^}]*\}|[^/\s?#'\"]+",
        "@",
    ),  # user:password@
    (r"(?<![A-Za-z])https?://", r"[^/\s:@'\"]{20,}+", "@"),  # https://token@
    (r"\b[Bb]earer\s++", r"(?=\S*[0-9])[A-Za-z0-9._~+/-]{8,}+=*+", ""),
    (
        r"(?<![\w-])(?:hf_|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|eyJ)",
        r"(?=[\w.-]*[0-9])(?=[\w.-]*[A-Z])[\w.-]{16,}+",
        "",
    ),
)
_SECRETS_BY_FORM = [re.compile(f"{before}({secret}){behind}") for before, secret, behind in _AROUND]
_MASKS_BY_FORM = [re.compile(f"{before}{re.escape(MASK)}{behind}") for before, _, behind in _AROUND]


def is_secret(key: str) -> bool:
    """Whether a key of this name holds a secret; of a dotted key the last name counts, and what is around a bare `key`.

    >>> [is_secret(key) for key in ("wandb.api_key", "accessToken", "storage_options.key", "db_passwords")]
    [True, True, True, True]
    >>> [is_secret(key) for key in ("tokenizer", "num_tokens", "bos_token", "key_size", "author")]
    [False, False, False, False, False]
    """
    around, _, name = key.rpartition(".")
    words = _words_of(name)
    if not words:
        return False
    if len(words) > 1 and words[0] == "secret":
        return True
    if tuple(words[-2:]) in _CONNECTIONS:
        return True
    while len(words) > 1 and words[-1] in _FORMS:
        words.pop()
    *before, last = words
    singular = last.removesuffix("s")
    if {last, singular} & _SECRETS or _JOINED.fullmatch(singular):
        return True
    if singular == "key":
        return bool(_OF_KEYS & set(before) if before else _STORAGES & set(_words_of(around.rpartition(".")[2])))
    if last == "tokens":
        return bool(_OF_TOKENS & set(before))
    return last == "token" and not _OF_TEXTS & set(before)


def masked_value(key: str, value: Any) -> Any:
    """The value as it may be shown.

    At or below a secret key that is `***`, except for null, truth values and `${VAR}`; elsewhere only the parts of a
    text that are secrets by their form.

    Args:
        key: Dotted.
        value: Nested mappings, lists and scalars.
    """
    return _masked(key, value, _is_below_secret(key))


def is_masked(key: str, value: Any) -> bool:
    """Whether the value at a dotted key is one that a mask has taken the place of, wholly or in part.

    >>> is_masked("w.api_key", "***"), is_masked("w.url", "https://me:***@host"), is_masked("w.url", "a *** b")
    (True, True, False)
    """
    if not isinstance(value, str) or MASK not in value:
        return False
    if value == MASK:
        return _is_below_secret(key)
    pairs = any(found == MASK for _, _, found in _secrets_of_pairs(value))
    return pairs or any(form.search(value) for form in _MASKS_BY_FORM)


def masked_text(line: str) -> str:
    """A line of YAML or of a command line with what follows a secret key replaced; its length is unchanged.

    Everything to the end of the line goes, since where a value ends is not for a pattern to decide. The
    length stays because carets point into the line.

    >>> masked_text("  api_key: abc def")
    '  api_key: *******'
    """
    for found in _assignments(line):
        start = found.end()
        # One line does not show what section a bare `key` belongs to.
        secret = _is_below_secret(found["key"]) or found["key"].rpartition(".")[2].lower() in ("key", "keys")
        if secret and not _REFERENCE.fullmatch(line[start:].strip()):
            return masked_message(line[:start], _stars) + _stars(line[start:])
    return masked_message(line, _stars)


def masked_message(text: str, mask: Callable[[str], str] = lambda secret: MASK) -> str:
    """A text with the parts replaced that are secrets by their form, whatever it speaks of.

    >>> masked_message("cannot open https://me:pass@host/a?part=1&sig=abc of wandb.api_key=abc")
    'cannot open https://me:***@host/a?part=1&sig=*** of wandb.api_key=***'
    """
    for start, end, secret in sorted(_secrets_in(text), reverse=True):
        if not _REFERENCE.fullmatch(secret) and secret.strip("*"):  # what is masked keeps its length
            text = text[:start] + mask(secret) + text[end:]
    return text


def _stars(secret: str) -> str:
    return "*" * len(secret)


def _masked(key: str, value: Any, is_below: bool) -> Any:
    if isinstance(value, Mapping):
        inner = {name: f"{key}.{name}" if key else str(name) for name in value}
        return {name: _masked(path, value[name], is_below or is_secret(path)) for name, path in inner.items()}
    if isinstance(value, list):
        return [_masked(key, inner, is_below) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    if is_below:
        return value if isinstance(value, str) and _REFERENCE.fullmatch(value) else MASK
    return masked_message(value) if isinstance(value, str) else value


def _is_below_secret(key: str) -> bool:
    return any(is_secret(f"{around}.{name}") for around, name in itertools.pairwise(["", *key.split(".")]))


def _words_of(name: str) -> list[str]:
    words = (word.lower() for word in _WORD.findall(name))
    return [word if word in ("s3", "r2") else word.rstrip("0123456789") for word in words]


def _secrets_in(text: str) -> list[tuple[int, int, str]]:
    """Begin, end and text of each secret; none lies inside another."""
    found = [(*match.span(1), match[1]) for form in _SECRETS_BY_FORM for match in form.finditer(text)]
    if "=" in text or ":" in text:
        found += _secrets_of_pairs(text)
    outermost: list[tuple[int, int, str]] = []
    for one in sorted(found, key=lambda span: (span[0], -span[1])):
        if not outermost or one[0] >= outermost[-1][1]:
            outermost.append(one)
    return outermost


def _secrets_of_pairs(text: str) -> Iterator[tuple[int, int, str]]:
    end = 0
    for name in _NAME.finditer(text):
        between = _PAIR_BETWEEN.match(text, name.end()) if name.start() >= end else None
        if between and _is_below_secret(name[0]) and (value := _PAIR_VALUE.match(text, between.end())):
            end = value.end()
            yield (*value.span(), value[0])


def _assignments(line: str) -> Iterator[re.Match[str]]:
    """Every place of the line that could assign a value; one may lie inside the value of another."""
    for name in _NAME.finditer(line):
        if found := _ASSIGNMENT.match(line, name.start()):
            yield found
