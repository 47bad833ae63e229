"""What to say where `-c` names no configuration: what is there instead, and what was probably meant."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.engine.config.suggest import nearest
from automodel_cli.errors import ConfigError

_SUFFIXES = (".yaml", ".yml")
_LISTED = 8


def no_configuration(path: Path, error: OSError) -> ConfigError:
    """The error about a path that cannot be read as a file.

    Args:
        path: As the user gave it.
        error: What the file system said.
    """
    if path.is_dir():
        message = "this is a directory, and neither a checkpoint (it has no config.yaml) nor a run that saved one"
        return ConfigError(message, where=str(path), help=_files_in(path))
    if not path.exists():
        return ConfigError("there is no such file", where=str(path), help=_instead_of(path))
    return ConfigError(f"cannot read the configuration: {error.strerror}", where=str(path))


def _instead_of(path: Path) -> str:
    """The most similar name beside it or in `examples`, else the files of the nearest directory."""
    if path.suffix not in _SUFFIXES and path.with_name(f"{path.name}.yaml").is_file():
        return f"did you mean {path}.yaml?"
    directory = next(parent for parent in path.absolute().parents if parent.is_dir())
    # A slip in a directory's name: the file itself may be in its neighbour.
    around = [directory, Path("examples"), *(each for each in _entries(directory) if each.is_dir())]
    names = {file.name: file for each in reversed(around) for file in _configurations(each)}
    match = nearest(path.name, names)
    return f"did you mean {_short(names[match])}?" if match else _files_in(directory)


def _files_in(directory: Path) -> str:
    names = [str(_short(file)) for file in _configurations(directory)]
    where = f"in {_short(directory)}"
    if not names:
        return f"there are no YAML files {where}; `amcli config init my.yaml` writes one"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"YAML files {where}: {', '.join(names[:_LISTED])}{more}"


def _configurations(directory: Path) -> list[Path]:
    return [file for file in _entries(directory) if file.suffix in _SUFFIXES and file.is_file()]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _short(path: Path) -> Path:
    """Relative to the working directory, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
