"""Finds Python modules and reads their top-level names, without importing anything.

Only the finders of the top-level package are asked (`importlib.util.find_spec` imports nothing for
a name without a dot); below it the file system answers step by step, because asking for `a.b`
would import `a`. Nothing is executed, and nothing is kept on disk. A search reads a bounded
amount of source; beyond it `SourceLimitError` says so.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.engine.config.source_scope import Scope, read_scope, writes_globals

# The packages of the field stay below this: all models of transformers together are 45 MB.
MAX_BYTES_READ = 96_000_000
MAX_FILE_BYTES = 4_000_000
# Half a second for each million: what a configuration names by intention needs far less than this.
MAX_BYTES_PARSED = 2_500_000


_STAR_FROM_FILE = re.compile(rb"from \.(\w+) import \*")


class SourceLimitError(Exception):
    """There is more source than a check may read."""


@dataclass(frozen=True)
class Module:
    """A module that exists.

    Args:
        name: Dotted; for a local file, its path.
        path: Of its source; None where there is none to read.
        search: Directories of its submodules; None if it is no package.
    """

    name: str
    path: Path | None
    search: tuple[str, ...] | None = None

    @property
    def package(self) -> str:
        """What its relative imports start from."""
        return self.name if self.search is not None else self.name.rpartition(".")[0]


class Sources:
    """Modules, texts and scopes of one check; each file is read once."""

    def __init__(self, max_bytes_parsed: int = MAX_BYTES_PARSED) -> None:
        self._max_bytes_parsed = max_bytes_parsed
        self._bytes_parsed = 0
        self._modules: dict[str, Module | None] = {}
        self._texts: dict[Path, bytes] = {}
        self._scopes: dict[str, Scope] = {}
        self._bytes_read = 0

    def module(self, name: str) -> Module | None:
        """The module of a dotted name; None if it, or a package above it, does not exist."""
        if name not in self._modules:
            parent, dot, leaf = name.rpartition(".")
            if dot:
                package = self.module(parent)
                self._modules[name] = self._below(package, name, leaf) if package else None
            else:
                self._modules[name] = _top_level(name)
        return self._modules[name]

    def submodule(self, package: Module, leaf: str) -> Module | None:
        """A module directly in a package."""
        return self.module(f"{package.name}.{leaf}") if package.search is not None else None

    def file(self, path: Path) -> Module:
        """A local file as a module of its own, as it will be at run time."""
        return Module(str(path), path)

    def text(self, module: Module) -> bytes:
        """The source; empty where there is none.

        Raises:
            SourceLimitError: The file, or all files so far, are too large.
        """
        path = module.path
        if path is None or not path.is_file():
            return b""
        if path not in self._texts:
            self._texts[path] = self._read(path)
        return self._texts[path]

    def mentions(self, module: Module, word: str) -> bool:
        """Whether a word stands in a module, or in a package's files: a quick look that spares parsing them.

        Raises:
            SourceLimitError: There is too much source.
        """
        text = self.text(module)
        wanted = word.encode()
        # A module's `__getattr__` is no way in: star imports take what is there, or what `__all__` lists.
        if wanted in text or writes_globals(text):
            return True
        if b"import *" not in text or module.path is None:
            return False
        stars = [line.strip() for line in text.splitlines() if b"import *" in line]
        # Only `from .file import *` is looked into here; anything else has to be followed properly.
        files = [_STAR_FROM_FILE.fullmatch(star) for star in stars]
        beside = [module.path.parent / f"{match[1].decode()}.py" for match in files if match]
        if len(beside) < len(stars) or not all(file.is_file() for file in beside):
            return True
        return any(
            wanted in other or b"__getattr__" in other or b"import *" in other for other in map(self._read, beside)
        )

    def scope(self, module: Module) -> Scope:
        """The top-level names of a module.

        Raises:
            SyntaxError: The source cannot be parsed.
            SourceLimitError: There is too much of it.
        """
        if module.name not in self._scopes:
            text = self.text(module)
            self._bytes_parsed += len(text)
            if self._bytes_parsed > self._max_bytes_parsed:
                raise SourceLimitError(f"with {module.path} there is too much source to read for it")
            try:
                with warnings.catch_warnings(action="ignore"):  # such as those about "\\d" in a text
                    tree = ast.parse(text, filename=str(module.path))
            except (ValueError, RecursionError, MemoryError) as error:  # null bytes, absurd nesting
                raise SyntaxError(str(error), (str(module.path), None, None, None)) from error
            self._scopes[module.name] = read_scope(tree, text)
        return self._scopes[module.name]

    def _read(self, path: Path) -> bytes:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        self._bytes_read += len(data)
        if len(data) > MAX_FILE_BYTES or self._bytes_read > MAX_BYTES_READ:
            raise SourceLimitError(f"{path} is too much source to search")
        return data

    def _below(self, package: Module, name: str, leaf: str) -> Module | None:
        if package.search is None:
            return None
        # The bare leaf: with the dotted name a namespace package would look for its parent in sys.modules.
        spec = importlib.machinery.PathFinder.find_spec(leaf, list(package.search))
        return _from_spec(name, spec)


def absolute_import(module: Module, node: ast.ImportFrom) -> str | None:
    """The dotted name that `from ... import` starts from; None if it leaves the package.

    >>> node = ast.parse("from ..x import y").body[0]
    >>> absolute_import(Module("a.b.c", None), node)
    'a.x'
    """
    if not node.level:
        return node.module
    parts = module.package.split(".") if module.package else []
    if len(parts) < node.level:
        return None
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _top_level(name: str) -> Module | None:
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return None
    except ValueError:  # it is loaded, by something that left no spec
        spec = importlib.machinery.PathFinder.find_spec(name)
    return _from_spec(name, spec)


def _from_spec(name: str, spec: importlib.machinery.ModuleSpec | None) -> Module | None:
    if spec is None:
        return None
    found = spec.submodule_search_locations
    search = None if found is None else tuple(map(str, found))  # a lazy module that is loaded may hold a Path here
    path = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    if path is None and spec.origin == "frozen":
        frozen = getattr(spec.loader_state, "filename", None)
        path = Path(frozen) if frozen else None
    return Module(name, path, search)
