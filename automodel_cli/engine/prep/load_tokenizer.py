"""Finds a tokenizer by its name.

`bytes` and `gpt2` need no network and no files but the package's own. Any other name is a directory, a
`tokenizer.json`, or a repository on the Hugging Face hub.

The file `tokenizer.json` says everything about the ids, and `tokenizer_config.json` which entries
begin and end a text. `transformers` takes most of a second to import, so it is asked only for a
tokenizer without a `tokenizer.json`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from automodel_cli.engine.bounded import parse_json, read_bytes
from automodel_cli.engine.prep.json_tokenizer import JsonTokenizer, gpt2_tokenizer
from automodel_cli.engine.prep.tokenizer import (
    ByteTokenizer,
    Encoded,
    TokenIds,
    Tokenizer,
    check_ids,
    replace_surrogates,
)
from automodel_cli.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


_CONTENT = "tokenizer.json"
_MAX_BYTES = 256 * 2**20
_TIMEOUT_S = 10.0
_ROLES = ("tokenizer_config.json", "special_tokens_map.json")
_BUILTIN: dict[str, Callable[[], Tokenizer]] = {"bytes": ByteTokenizer, "gpt2": gpt2_tokenizer}


def load_tokenizer(name: str) -> Tokenizer:
    """Find a tokenizer by name.

    Args:
        name: `bytes`, `gpt2`, a directory with a tokenizer, or a name on the Hugging Face hub.

    Raises:
        DataError: There is none of this name; the message carries the reason.
    """
    builtin = _BUILTIN.get(name)
    return _load_named(name) if builtin is None else builtin()


def _load_named(name: str) -> Tokenizer:
    path = Path(name).expanduser()
    try:
        is_content, is_directory = path.name == _CONTENT and path.is_file(), path.is_dir()
    except OSError as error:  # a name longer than any file's
        raise _not_loaded(name, error) from error
    if is_content:
        return _from_files(name, {file: path.with_name(file) for file in (_CONTENT, *_ROLES)})
    meant = _mistyped(name)
    if meant is not None and not path.exists():
        raise DataError(f"there is no tokenizer {name!r}", help=f"did you mean {meant}?")
    place, files = name, {file: path / file for file in (_CONTENT, *_ROLES)}
    if not is_directory:
        place, files = _from_hub(name)
    return _from_files(name, files) if files[_CONTENT].is_file() else _from_transformers(name, place)


def _mistyped(name: str) -> str | None:
    """The built-in tokenizer that a name is a mistyped form of.

    >>> [_mistyped(name) for name in ("gtp2", "GPT-2", "gpt2-xl", "distilgpt2", "openai/gpt2")]
    ['gpt2', 'gpt2', None, None, None]
    """
    # A strict cutoff: the oldest repositories of the hub have names without an owner, too.
    return next(iter(difflib.get_close_matches(name.lower(), list(_BUILTIN), n=1, cutoff=0.75)), None)


def _from_files(name: str, files: dict[str, Path]) -> Tokenizer:
    try:
        content = read_bytes(files[_CONTENT], _MAX_BYTES).decode()
        roles = [parse_json(read_bytes(files[file], _MAX_BYTES)) for file in _ROLES if files[file].is_file()]
    except (OSError, ValueError) as error:
        raise DataError(f"the tokenizer {name!r} cannot be read: {error}", help=_ELSE) from error
    bos, eos = (_entry(roles, role) for role in ("bos_token", "eos_token"))
    return JsonTokenizer(name, content, bos, eos)


def _entry(roles: Sequence[Any], role: str) -> str | None:
    for table in roles:
        entry = table.get(role) if isinstance(table, dict) else None
        # Older files spell an entry out as an object with its flags.
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str):
            return text
    return None


def _from_hub(name: str) -> tuple[str, dict[str, Path]]:
    """Where `transformers` finds a tokenizer of the hub, and its files; what was downloaded before needs no network."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    unreachable = _ask_hub(name)
    files = {}
    for file in (_CONTENT, *_ROLES):
        try:
            files[file] = Path(hf_hub_download(name, file, local_files_only=unreachable is not None))
        except EntryNotFoundError:
            files[file] = Path(file, "is not on the hub")
        # The client raises OSError, ValueError and errors of httpx; for the user all mean that this name
        # gives no tokenizer.
        except Exception as error:
            raise _not_loaded(name, error) from error
    if unreachable is None:
        return name, files
    try:
        return snapshot_download(name, local_files_only=True), files
    except EntryNotFoundError as error:
        raise DataError(
            f"the tokenizer {name!r} cannot be loaded: nothing of this name was downloaded before, "
            f"and the hub cannot be reached: {unreachable}",
            help=_ELSE,
        ) from error


def _ask_hub(name: str) -> str | None:
    """Ask once, without the client's own retries, which take a minute for each file; why the hub cannot be reached.

    Raises:
        DataError: There is no such repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=_TIMEOUT_S)
    except GatedRepoError:
        # Its files may be in the cache, from a user with access.
        return None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _not_loaded(name, error) from error
    # The client raises errors of its HTTP library, which differs between its releases.
    except Exception as error:
        return str(error).strip().split("\n")[0] or type(error).__name__
    return None


def _from_transformers(name: str, place: str) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        # Without an answer it would ask on standard input whether to run code that lies beside the tokenizer.
        loaded = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # as above
        if "trust_remote_code" in str(error):
            message = f"the tokenizer {name!r} is Python code of its own, which amcli does not run"
            raise DataError(message, help=_ELSE) from error
        raise _not_loaded(name, error) from error
    if loaded.is_fast:
        return JsonTokenizer(name, loaded.backend_tokenizer.to_str(), loaded.bos_token, loaded.eos_token)
    return SlowTokenizer(name, loaded)


class SlowTokenizer:
    """A tokenizer that exists only as Python code in `transformers`.

    Args:
        name: What the user calls it.
        loaded: What `AutoTokenizer` made of it.
    """

    json: str | None = None

    def __init__(self, name: str, loaded: Any) -> None:
        import hashlib

        import transformers

        vocabulary = loaded.get_vocab()
        self.name = name
        self.engine = f"transformers {transformers.__version__}"
        self._loaded = loaded
        self.vocab_size = 1 + max(vocabulary.values())
        self.unk_id: int | None = loaded.unk_token_id
        self.bos_id: int | None = loaded.bos_token_id
        self.eos_id: int | None = loaded.eos_token_id
        self.sha256 = hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()

    def encode_batch(self, texts: pa.Array) -> Encoded:
        """The ids of the texts, one after the other."""
        encoded = [self.encode(text) for text in texts.to_pylist()]
        offsets = np.cumsum([0, *(len(ids) for ids in encoded)], dtype=np.int64)
        return Encoded(np.concatenate([np.empty(0, dtype=np.uint32), *encoded]), offsets)

    def encode(self, text: str) -> TokenIds:
        """The ids of one text."""
        ids = self._loaded.encode(
            replace_surrogates(text), add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return np.array(ids, dtype=np.uint32)

    def token_id(self, token: str) -> int | None:
        """The id of one entry of the vocabulary."""
        found: int | None = self._loaded.get_vocab().get(token)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens.

        Raises:
            DataError: An id is outside the vocabulary.
        """
        checked = check_ids(ids, self.name, self.vocab_size)
        text: str = self._loaded.decode(checked, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


_ELSE = "`bytes` and `gpt2` work without network; a directory with a tokenizer.json works too"


def _not_loaded(name: str, error: Exception) -> DataError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return DataError(f"the tokenizer {name!r} cannot be loaded: {reason}", help=_ELSE)
