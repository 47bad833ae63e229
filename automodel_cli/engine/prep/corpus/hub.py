"""Data sets on the Hugging Face hub, streamed: nothing of them is stored.

`datasets` says which files make up a split of a configuration; the files are then read here, as
files on this machine are, but by ranges of bytes over the network. So every reading is of one
commit, reads only the column of the text from parquet, and goes on from any cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

from automodel_cli.engine.config.suggest import command, nearest
from automodel_cli.engine.prep.corpus.corpus import Corpus
from automodel_cli.engine.prep.corpus.files import reader_for
from automodel_cli.engine.prep.corpus.hub_file import RangeFile, Retry, TransientError, retry_after_s
from automodel_cli.engine.prep.corpus.input_file import InputFile
from automodel_cli.engine.prep.corpus.parquet_reader import ParquetReader
from automodel_cli.engine.prep.corpus.pieces import JoinedReader, Reader, name_with
from automodel_cli.engine.prep.prep_options import SourceOptions, TextDocuments
from automodel_cli.engine.prep.presets import PRESETS, HubLocation
from automodel_cli.engine.prep.source import SourceDescription
from automodel_cli.engine.shards.manifest import SourceRecord
from automodel_cli.errors import AmcliError, DataError, UsageError

_Result = TypeVar("_Result")

# The first request fails early, so that a user without a network learns it soon.
_FIRST_CONTACT_S = 15.0
_TIMEOUT_S = 10.0
_PATHS_PER_REQUEST = 500


def open_hub(location: HubLocation, options: SourceOptions) -> Corpus:
    """One split of a data set.

    Args:
        location: The data set, and what is read of it where the options name nothing else.
        options: What the user asks for.

    Raises:
        UsageError: The package `datasets` is not installed.
        DataError: There is no such data set, revision, configuration, split or column, or no network.
    """
    datasets = _import_datasets(location.path)
    ask = Retry(min(options.retry_seconds, _FIRST_CONTACT_S), options.on_wait)
    commit = ask.run(lambda: _commit(location.path, options.pinned_revision or options.revision), location.path)
    set_name = options.set_name or location.config
    builder = ask.run(lambda: _builder(datasets, location.path, set_name, commit), location.path)
    split = options.split or "train"
    column = options.text_column or location.text_column
    paths = _paths(builder, location.path, commit, split)
    sizes = ask.run(lambda: _sizes(location.path, paths, commit), location.path)
    retry = Retry(options.retry_seconds, options.on_wait)
    files = [_input_file(location.path, path, sizes[path], commit, retry) for path in paths]
    # A line of a text file is a row there, as `datasets` reads it.
    text_documents = options.text_documents or TextDocuments.LINE
    readers = [reader_for(file, column, options.max_document_bytes, text_documents) for file in files]
    _check_first(readers[0])
    name = f"{location.path} {builder.config.name} {split}"
    return Corpus(
        [JoinedReader(readers, location.title_pattern)] if location.title_pattern else readers,
        SourceDescription("hub", tuple(file.name for file in files), column, resumable=True),
        SourceRecord(name, revision=commit),
        options.max_document_bytes,
        options.on_bad_document,
    )


def _import_datasets(path: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{path} is read from the hub with the package `datasets`, which is not installed",
            help="pip install 'amcli[hub]'; `amcli prep shakespeare` and files of your own need no package",
        ) from error
    datasets.disable_progress_bars()
    return datasets


def _commit(path: str, revision: str | None) -> str:
    """The commit that a branch or tag stands for now."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    try:
        return str(_reach(lambda: api.dataset_info(path, revision=revision, timeout=_TIMEOUT_S)).sha)
    except GatedRepoError as error:
        raise DataError(
            f"the data set {path!r} is gated",
            help=f"accept its terms at {api.endpoint}/datasets/{path}, then log in with `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        refs = _reach(lambda: api.list_repo_refs(path, repo_type="dataset"))
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        raise DataError(
            f"the data set {path!r} has no revision {revision!r}; there are {_some(names)}, and commits",
            help=name_with("--revision", str(revision), names),
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        preset = nearest(path, PRESETS)
        meant = f"did you mean `{command('prep', preset)}`? " if preset else ""
        raise DataError(
            f"there is no data set {path!r} on the hub that you may read",
            help=f"{meant}A name is OWNER/NAME; for a private one log in with `hf auth login`",
        ) from error


def _builder(datasets: Any, path: str, set_name: str | None, commit: str) -> Any:
    """What `datasets` knows of a configuration: its name, and the files of its splits."""
    try:
        return _reach(lambda: datasets.load_dataset_builder(path, set_name, revision=commit))
    except ValueError as error:
        names = _reach(lambda: datasets.get_dataset_config_names(path, revision=commit))
        if set_name in names:
            raise _unreadable(path, error) from error
        found = "needs the name of a configuration" if set_name is None else f"has no configuration {set_name!r}"
        raise DataError(
            f"the data set {path!r} {found}; there are {_some(names)}",
            help=name_with("--set-name", set_name or "", names),
        ) from error
    except (RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(path, error) from error


def _paths(builder: Any, path: str, commit: str, split: str) -> list[str]:
    """The files of a split, by their paths in the repository."""
    splits = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    if split not in splits:
        raise DataError(
            f"the data set {path!r} has no split {split!r} in {builder.config.name!r}; there are {_some(splits)}",
            help=name_with("--split", split, splits),
        )
    prefix = f"hf://datasets/{path}@{commit}/"
    strange = next((str(file) for file in splits[split] if not str(file).startswith(prefix)), None)
    if strange is not None:
        raise DataError(f"the data set {path!r} names a file outside its repository: {strange}")
    return [str(file).removeprefix(prefix) for file in splits[split]]


def _sizes(path: str, paths: Sequence[str], commit: str) -> dict[str, int]:
    from huggingface_hub import HfApi

    sizes: dict[str, int] = {}
    for begin in range(0, len(paths), _PATHS_PER_REQUEST):
        asked = list(paths[begin : begin + _PATHS_PER_REQUEST])
        found = _reach(partial(HfApi().get_paths_info, path, asked, revision=commit, repo_type="dataset"))
        sizes |= {info.path: info.size for info in found}
    return sizes


def _input_file(path: str, name: str, num_bytes: int, commit: str, retry: Retry) -> InputFile:
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(path, name, repo_type="dataset", revision=commit)
    return InputFile(name, num_bytes, lambda: cast(BinaryIO, RangeFile(url, name, num_bytes, retry)))


def _check_first(reader: Reader) -> None:
    """Find out about a missing column before anything is made."""
    if isinstance(reader, ParquetReader):
        reader.check_column()
        return
    pieces = reader.pieces(None)
    for piece in pieces:
        piece.rows()
        break


def _reach(ask: Callable[[], _Result]) -> _Result:
    """Ask the hub; what may be gone at the next try becomes a `TransientError`."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return ask()
    except (AmcliError, TransientError):
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status != 429 and status < 500:
            raise
        raise TransientError(f"the server answers {status}", retry_after_s(error.response.headers)) from error
    except (ConnectionError, TimeoutError, LocalEntryNotFoundError) as error:
        raise TransientError(_first_line(error)) from error
    except Exception as error:
        # The HTTP client differs between releases, so its exceptions are recognised by the package that defines them.
        if type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise TransientError(_first_line(error)) from error
        raise


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(f"the data set {path!r} cannot be read: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _some(names: Sequence[str] | dict[str, Any]) -> str:
    shown = list(names)[:20]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")
