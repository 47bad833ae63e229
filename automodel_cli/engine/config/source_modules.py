"""Finds Python modules and reads the statements that bind their names; nothing is imported or run.

Only the finders of the top-level package are asked (`importlib.util.find_spec` imports nothing for a name without a
dot); below it the file system answers step by step. A search reads a bounded amount of source. What source does
not show raises `Undecided`: nothing is guessed.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# The packages of the field stay below this: all models of transformers together are 45 MB.
MAX_BYTES_READ = 96_000_000
MAX_FILE_BYTES = 4_000_000
# Half a second for each million: what a configuration names by intention needs far less than this.
MAX_BYTES_PARSED = 2_500_000
# A word that is in none of transformers' modules takes 45 MB, some 60 ms; a configuration has few such mistakes.
MAX_BYTES_SEARCHED = 300_000_000

# A module that can bind names in ways that its statements do not show. `globals()["x"]` and `globals().get(` only read.
_WRITES_GLOBALS = re.compile(rb"\bglobals\(\)(?!\.get\(|\[[^\]]*\](?!\s*=[^=]))|\bexec\(")
_STAR_FROM_FILE = re.compile(rb"from \.(\w+) import \*")
_IS_LAZY = re.compile(rb"^\s*(?:def )?__getattr__\b|\bsys\.modules\[", re.MULTILINE)
# `Auto = auto_class_update(Auto, ...)` of transformers gives back the class that it was given, with other docstrings.
_UPDATERS = {"auto_class_update"}


class Undecided(Exception):
    """What source does not tell; the text completes "... is not checked: "."""

    def __init__(self, reason: str, owner: Module | None = None) -> None:
        super().__init__(reason)
        self.owner = owner  # the module that may have the name after all


@dataclass(frozen=True)
class Module:
    """A module that exists.

    Args:
        name: Dotted; for a local file, its path.
        path: Its source file; None if it has none.
        search: Directories of its submodules; None if it is no package.
    """

    name: str
    path: Path | None
    search: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """A statement that gives a name its meaning: a definition, an import (`alias`), or an assignment of `value`."""

    node: ast.stmt
    alias: ast.alias | None = None
    value: ast.expr | None = None


@dataclass(frozen=True)
class Star:
    """One `from x import *`, and whether it certainly runs: not in a branch or `try`."""

    node: ast.ImportFrom
    is_certain: bool


@dataclass
class Scope:
    """The top-level names of a module.

    Args:
        bindings: Per name, every statement that may be the one that counts at run time.
        stars: `from x import *`, in order.
        exports: `__all__`, where it is a plain list.
        declared: What only type checkers read.
        is_dynamic: Whether names may exist that no statement binds.
    """

    bindings: dict[str, list[Binding]] = field(default_factory=dict)
    stars: list[Star] = field(default_factory=list)
    exports: frozenset[str] | None = None
    declared: Scope | None = None
    is_dynamic: bool = False


class Sources:
    """The source that one check reads; each file is read once."""

    def __init__(self, *, is_bounded: bool = True) -> None:
        self._is_bounded = is_bounded
        self._bytes_parsed = self._bytes_read = self._bytes_searched = 0
        self._modules: dict[str, Module | None] = {}
        self._texts: dict[Path, bytes] = {}
        self._scopes: dict[str, Scope] = {}
        self._stars: dict[Path | None, list[Path] | None] = {}

    def module(self, name: str) -> Module | None:
        """The module of a dotted name; None if it, or a package above it, does not exist."""
        if name not in self._modules:
            parent, dot, leaf = name.rpartition(".")
            package = self.module(parent) if dot else None
            if not dot:
                self._modules[name] = _top_level(name)
            elif package is None or package.search is None:
                self._modules[name] = None
            else:
                # The bare leaf: with the dotted name a namespace package would look for its parent in sys.modules.
                spec = importlib.machinery.PathFinder.find_spec(leaf, list(package.search))
                self._modules[name] = _from_spec(name, spec)
        return self._modules[name]

    def submodule(self, package: Module, leaf: str) -> Module | None:
        """A module directly in a package."""
        return self.module(f"{package.name}.{leaf}") if package.search is not None else None

    def text(self, path: Path | None) -> bytes:
        """The source in a file; empty where there is none."""
        if path is None:
            return b""
        if path not in self._texts:
            self._texts[path] = b""
            if path.is_file():
                with path.open("rb") as stream:
                    self._texts[path] = stream.read(MAX_FILE_BYTES + 1)
            self._bytes_read += len(self._texts[path])
            if len(self._texts[path]) > MAX_FILE_BYTES or self._bytes_read > MAX_BYTES_READ:
                raise Undecided(f"{path} is too much source to search")
        return self._texts[path]

    def scope(self, module: Module) -> Scope:
        """The top-level names of a module."""
        if module.name not in self._scopes:
            text = self.text(module.path)
            self._bytes_parsed += len(text)
            if self._is_bounded and self._bytes_parsed > MAX_BYTES_PARSED:
                raise Undecided(f"with {module.path} there is too much source to read for it")
            try:
                with warnings.catch_warnings(action="ignore"):  # such as those about "\\d" in a text
                    tree = ast.parse(text, filename=str(module.path))
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # null bytes, absurd nesting
                place = f"{module.path}:{getattr(error, 'lineno', None) or 1}"
                raise Undecided(f"{place} cannot be read: {getattr(error, 'msg', error)}") from error
            self._scopes[module.name] = _read_scope(tree, text)
        return self._scopes[module.name]

    def mentions(self, module: Module, word: str) -> bool:
        """Whether a word stands in a module, or in the files that a package takes names from.

        A quick test that avoids parsing; True also where only parsing could decide.
        """
        if module.path not in self._stars:
            self._stars[module.path] = self._star_files(module)
        files = self._stars[module.path]
        texts = [] if files is None else [self.text(path) for path in files]
        self._bytes_searched += sum(map(len, texts))
        if self._is_bounded and self._bytes_searched > MAX_BYTES_SEARCHED:
            raise Undecided("with all other targets there is too much source to search for it")
        return files is None or any(_has_word(text, word) for text in texts)

    def _star_files(self, module: Module) -> list[Path] | None:
        """The file of a module and those of its star imports; None where they do not tell all of its names."""
        text = self.text(module.path)
        stars = [line.strip() for line in text.splitlines() if b"import *" in line]
        matches = [_STAR_FROM_FILE.fullmatch(star) for star in stars]
        if module.path is None or None in matches or _WRITES_GLOBALS.search(text):
            return None
        # A star import does not call the module's `__getattr__`: it takes existing names, or those in `__all__`.
        beside = [module.path.parent / f"{match[1].decode()}.py" for match in matches if match]
        is_plain = all(
            other and b"__getattr__" not in other and b"import *" not in other for other in map(self.text, beside)
        )
        return [module.path, *beside] if is_plain else None


def _has_word(text: bytes, word: str) -> bool:
    wanted = word.encode()
    return wanted in text and re.search(rb"\b%s\b" % re.escape(wanted), text) is not None


def absolute_import(module: Module, node: ast.ImportFrom) -> str | None:
    """The dotted name that `from ... import` starts from; None if it leaves the package.

    >>> absolute_import(Module("a.b.c", None), ast.parse("from ..x import y").body[0])
    'a.x'
    """
    if not node.level:
        return node.module
    package = module.name if module.search is not None else module.name.rpartition(".")[0]
    parts = package.split(".") if package else []
    if len(parts) < node.level:
        return None
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


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


def _read_scope(tree: ast.Module, text: bytes) -> Scope:
    scope = Scope(is_dynamic=bool(_WRITES_GLOBALS.search(text) or _IS_LAZY.search(text)), declared=Scope())
    _scan(tree.body, scope, is_certain=True)
    if text.count(b"__all__") == 1:  # else something may change it after it was made
        value = scope.bindings["__all__"][0].value if "__all__" in scope.bindings else None
        try:
            names = ast.literal_eval(value) if value is not None else None
        except (ValueError, TypeError):
            names = None
        is_plain = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        scope.exports = frozenset(names) if is_plain and names is not None else None
    return scope


def _scan(body: list[ast.stmt], scope: Scope, *, is_certain: bool) -> None:
    """Collects the names that statements bind; where several may count at run time (branches, `try`), all of them."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            if scope.declared is not None:
                _scan(node.body, scope.declared, is_certain=True)
            _scan(node.orelse, scope, is_certain=is_certain)
            continue
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            scope.stars.append(Star(node, is_certain))
            continue
        for name, binding in _bound_by(node):
            if is_certain:
                scope.bindings[name] = [binding]
            else:
                scope.bindings.setdefault(name, []).append(binding)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for block in ("body", "orelse", "handlers", "finalbody"):
                for inner in getattr(node, block, ()):
                    inside = inner.body if isinstance(inner, ast.ExceptHandler) else [inner]
                    _scan(inside, scope, is_certain=is_certain and isinstance(node, ast.With))


def _bound_by(node: ast.stmt) -> Iterator[tuple[str, Binding]]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name, Binding(node)
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            name = alias.asname or (alias.name if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0])
            yield name, Binding(node, alias)
    elif not (isinstance(node, ast.AnnAssign) and node.value is None):
        value = getattr(node, "value", None) if isinstance(node, ast.Assign | ast.AnnAssign) else None
        targets = [*getattr(node, "targets", ()), getattr(node, "target", None)]
        targets += [item.optional_vars for item in getattr(node, "items", ())]
        for target in filter(None, targets):
            if isinstance(target, ast.Name):
                is_update = isinstance(value, ast.Call) and ast.unparse(value.func) in _UPDATERS
                if not (is_update and isinstance(value, ast.Call) and ast.unparse(value.args[0]) == target.id):
                    yield target.id, Binding(node, value=value)
            else:
                names = (each.id for each in ast.walk(target) if isinstance(each, ast.Name))
                yield from ((name, Binding(node)) for name in names if isinstance(target, ast.Tuple | ast.List))
