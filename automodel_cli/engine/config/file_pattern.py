"""Which files a `file_pattern` means, and what to say where there are none. Standard library only.

Used by the check of a configuration and by the dataset itself, so that both find the same files
and say the same where nothing matches.
"""

from __future__ import annotations

from pathlib import Path

from automodel_cli.errors import DataError

NO_SHARDS_HELP = "`amcli prep shakespeare` makes data/shakespeare/train_*.bin and val_*.bin"

_LISTED_FILES = 6


def matching_files(pattern: Path) -> list[Path]:
    """The files that a path or glob pattern means, sorted by name.

    Raises:
        DataError: None does.
    """
    pattern = pattern.expanduser()
    # A plain path comes first: its name may hold characters that a pattern gives a meaning.
    if pattern.is_file():
        return [pattern]
    root = Path(pattern.anchor)
    found = sorted(path for path in root.glob(str(pattern.relative_to(root))) if path.is_file())
    if not found:
        raise DataError(no_match(pattern), where=str(pattern), help=NO_SHARDS_HELP)
    return found


def no_match(pattern: Path) -> str:
    """That nothing matches, and what there is in the nearest directory that exists."""
    directory = next(parent for parent in pattern.absolute().parents if parent.is_dir())
    try:
        names = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f"no file matches, and {directory} cannot be read: {error.strerror}"
    shown = ", ".join(names[:_LISTED_FILES]) or "nothing"
    more = f" and {len(names) - _LISTED_FILES} more" if len(names) > _LISTED_FILES else ""
    return f"no file matches; the nearest directory that exists is {directory}, which holds {shown}{more}"


def vocabulary_error(name: str, largest: int, vocab_size: int, where: str) -> DataError:
    """The data holds a token id that the model does not have.

    Args:
        name: Of the section of the dataset.
        largest: The largest token id in the data.
        vocab_size: Of the model.
        where: The place to look at.
    """
    return DataError(
        f"{name} holds the token id {largest}, but the model's vocabulary is {vocab_size} (ids 0 to {vocab_size - 1})",
        where=where,
        help=f"set model.vocab_size to {largest + 1} or more, or prepare the data with the model's tokenizer",
    )
