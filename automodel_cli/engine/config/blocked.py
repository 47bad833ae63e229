"""What no part of a training run is, whoever names it: refused by what the object is, not by its spelling.

Processes, evaluated text, unpickling, deleted or overwritten files, native libraries and imports by
name. `logging.os.system`, a `functools.partial` over it and a bound method are all judged by the own
module and name of what they lead to; a name alone (`why_refused`) is judged where only source is read.
What a user's own function does inside is the user's: this is about what YAML may call directly.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

# Why -> modules of which nothing may be called, and single callables. Modules include what lies below them.
_MODULES = {
    "starts processes or touches files": ("os", "posix", "nt", "shutil", "_io", "io", "tempfile"),
    "starts processes": (
        *("subprocess", "_posixsubprocess", "pty", "asyncio.subprocess", "asyncio.unix_events", "psutil", "pexpect"),
        *("multiprocessing", "torch.multiprocessing", "concurrent.futures.process", "webbrowser", "pip", "ensurepip"),
        *("venv", "distutils", "setuptools", "automodel_cli.app", "automodel_cli.commands"),
    ),
    "runs text as code": (
        *("code", "codeop", "runpy", "timeit", "profile", "cProfile", "trace", "pdb", "bdb", "doctest", "IPython"),
        *("torch.utils.cpp_extension", "pandas.core.computation", "numexpr", "numpy.f2py"),
    ),
    "imports and calls what a text names": (
        *("importlib", "_frozen_importlib", "_frozen_importlib_external", "_imp", "pkgutil", "pydoc", "zipimport"),
        *("logging.config", "hydra", "torch.hub", "torch.package", "transformers.dynamic_module_utils"),
        "automodel_cli.engine.config",
    ),
    "unpickles, which runs what the file says": (
        *("pickle", "_pickle", "pickletools", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"),
        *("torch.serialization", "torch.jit._serialization", "torch.distributed.checkpoint", "pandas.io.pickle"),
    ),
    "calls native code": ("ctypes", "_ctypes", "cffi", "_cffi_backend", "numpy.ctypeslib"),
}
_NAMES = {
    "runs text as code": ("builtins.eval", "builtins.exec", "builtins.compile", "builtins.breakpoint"),
    "imports and calls what a text names": ("builtins.__import__", "site.addsitedir"),
    "opens files to write": ("builtins.open", "codecs.open", "gzip.open", "bz2.open", "lzma.open"),
    "starts processes": ("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
    "unpickles, which runs what the file says": (
        *("numpy.load", "numpy.lib._npyio_impl.load", "numpy.lib.npyio.load", "torch.load", "pandas.read_pickle"),
    ),
    "calls native code": ("torch._ops._Ops.load_library", "torch._classes._Classes.load_library"),
}
_PATH_METHODS = ("unlink", "rmdir", "rename", "replace", "write_text", "write_bytes", "touch", "chmod", "open")

_WHY_MODULE = {module: why for why, modules in _MODULES.items() for module in modules}
_WHY_NAME = {name: why for why, names in _NAMES.items() for name in names}
_MAX_LAYERS = 16  # of partials and wrappers around what is called in the end


def why_refused(module: str, name: str) -> str | None:
    """What a callable of this own module and name does that no part of a run may; None if nothing is known.

    >>> why_refused("posix", "system")
    'starts processes or touches files'
    >>> why_refused("torch.optim.adamw", "AdamW")
    """
    dotted = f"{module}.{name}"
    if module.partition(".")[0] == "pathlib" and name.rpartition(".")[2] in _PATH_METHODS:
        return "deletes or overwrites files"
    parts = dotted.split(".")
    # `os.path` is a module of its own, with functions on text.
    if dotted in _WHY_NAME or parts[:2] == ["os", "path"]:
        return _WHY_NAME.get(dotted)
    above = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return next((_WHY_MODULE[package] for package in above if package in _WHY_MODULE), None)


def refusal(found: object) -> str | None:
    """`posix.system starts processes ...` if calling `found` comes down to something refused, else None."""
    for layer in _layers(found):
        module, name = _own_name(layer)
        why = why_refused(module, name) or _WHY_NAME.get(_alias_of(layer) or "")
        if why:
            return f"`{module}.{name}` {why}"
    return None


def _layers(found: object, depth: int = 0) -> Iterator[object]:
    """What a call of `found` leads to: itself, and what partials, bound methods and wrappers hold."""
    if depth > _MAX_LAYERS:
        return
    yield found
    inner: list[object] = []
    if isinstance(found, functools.partial | functools.partialmethod):
        inner += [found.func, *found.args, *found.keywords.values()]
    elif isinstance(found, types.MethodType):
        inner += [found.__func__, found.__self__ if isinstance(found.__self__, type) else type(found.__self__)]
    elif isinstance(found, types.BuiltinMethodType) and not isinstance(found.__self__, types.ModuleType | None):
        inner.append(found.__self__ if isinstance(found.__self__, type) else type(found.__self__))
    elif isinstance(found, types.FunctionType):
        wrapped = found.__dict__.get("__wrapped__")
        inner += [] if wrapped is None else [wrapped]
    elif not isinstance(found, type) and not isinstance(found, types.BuiltinMethodType):
        # Looked up without running a `__getattr__` of the object itself.
        method = inspect.getattr_static(type(found), "__call__", None)
        inner += [] if method is None or isinstance(method, types.WrapperDescriptorType) else [type(found), method]
    for each in inner:
        if callable(each):
            yield from _layers(each, depth + 1)


def _own_name(found: object) -> tuple[str, str]:
    owner = getattr(found, "__objclass__", None)  # of a method written in C
    module = getattr(owner if isinstance(owner, type) else found, "__module__", None)
    name = getattr(found, "__qualname__", None) or type(found).__qualname__
    return (module if isinstance(module, str) else "builtins"), str(name)


def _alias_of(found: Any) -> str | None:
    """The refused name that this very object is, where a library has given it another name of its own."""
    for name in _WHY_NAME:
        module, _, leaf = name.rpartition(".")
        if module in sys.modules and getattr(sys.modules[module], leaf, None) is found:
            return name
    return None
