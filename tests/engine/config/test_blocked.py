"""What no configuration may call, under whatever name."""

from __future__ import annotations

import textwrap

import pytest

from automodel_cli.engine.config.config import from_parsed
from automodel_cli.engine.config.instantiate import instantiate
from automodel_cli.engine.config.static_target import static_target
from automodel_cli.engine.config.target import resolve_target
from automodel_cli.engine.config.yaml_reader import parse_yaml
from automodel_cli.errors import ConfigError

ALIASES = """
import builtins, functools, logging, operator, os, pathlib, pickle
from os import system as run
again = run
partial = functools.partial(logging.os.system, "true")
twice = functools.partial(functools.partial(os.system), command="true")
bound = pathlib.Path("important.txt").unlink
loader = pickle.Unpickler

@functools.wraps(eval)
def wrapped(source): return eval(source)

class Calls:
    __call__ = staticmethod(os.system)

instance = Calls()
borrowed = type("Borrowed", (), {"run": os.system}).run

def harmless(width=1): return width
def finds(): return os.system
"""

# Whoever names them, in source or at run time.
BY_NAME = [
    *("os.system", "posix.system", "logging.os.system", "os.popen", "os.execv", "os.remove", "os.fork", "os.kill"),
    *("subprocess.run", "subprocess.Popen", "asyncio.create_subprocess_shell", "multiprocessing.Process", "pty.spawn"),
    *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__", "builtins.open", "io.open"),
    *("importlib.import_module", "pkgutil.resolve_name", "pydoc.locate", "runpy.run_path", "timeit.timeit"),
    *("pickle.load", "pickle.loads", "_pickle.Unpickler", "marshal.loads", "shelve.open", "torch.load", "numpy.load"),
    *("torch.hub.load", "torch.ops.load_library", "torch.jit.load", "ctypes.CDLL", "ctypes.util.find_library"),
    *("shutil.rmtree", "pathlib.Path.unlink", "logging.config.dictConfig", "code.interact", "codecs.open"),
    *("torch.utils.cpp_extension.load", "automodel_cli.engine.config.instantiate.instantiate", "json.codecs.open"),
]
IN_A_FILE = [
    *("run", "again", "partial", "twice", "bound", "loader", "wrapped", "instance", "borrowed", "finds"),
]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "parts.py").write_text(textwrap.dedent(ALIASES))

    def of(target, kind="file"):
        text = f"x:\n  _target_: '{target}'\n"
        return from_parsed(parse_yaml(text, source=str(tmp_path / "run.yaml"), kind=kind))

    return of


@pytest.mark.parametrize("target", BY_NAME)
def test_what_is_no_part_of_a_run_is_refused_by_its_identity(config, target):
    """A file of the user's own is code, and still none of these is what it means to build."""
    origin = config(target).origin(("x", "_target_"))

    with pytest.raises(ConfigError, match="no part of a training run does that") as caught:
        resolve_target(target, origin, "x._target_")

    assert "run.yaml:2:13" in caught.value.where


@pytest.mark.parametrize("name", IN_A_FILE)
def test_an_alias_in_a_users_file_hides_nothing(config, name):
    """Partials, bound methods, wrappers, callable instances, and a part that only hands the function on."""
    with pytest.raises(ConfigError, match="no part of a training run does that"):
        instantiate(config(f"parts.py:{name}"), "x")


def test_a_library_that_gives_a_function_its_own_name_hides_nothing(config, tmp_path):
    """Judged as the very object too: its `__module__` can be written over."""
    (tmp_path / "parts.py").write_text("import codecs\nopen = codecs.open\n")
    import codecs

    original, codecs.open.__module__ = codecs.open.__module__, "parts"
    try:
        with pytest.raises(ConfigError, match="no part of a training run does that"):
            instantiate(config("parts.py:open"), "x")
    finally:
        codecs.open.__module__ = original


@pytest.mark.parametrize(
    "target", ["parts.py:harmless", "collections.OrderedDict", "os.path.join", "torch.nn.Identity", "torch.optim.AdamW"]
)
def test_parts_are_not_refused(config, target):
    """What trains models is none of these, nor is a function on text."""
    origin = config(target).origin(("x", "_target_"))

    assert callable(resolve_target(target, origin, "x._target_"))
    static_target(target, origin, "x._target_")


def test_a_checkpoint_cannot_consent_to_remote_code(config, tmp_path):
    """`trust_remote_code` in a checkpoint's own configuration is refused, also deep inside."""
    text = "x: {_target_: torch.nn.Identity, more: {trust_remote_code: true}}"
    stored = from_parsed(parse_yaml(text, source="config.yaml", kind="checkpoint"))

    with pytest.raises(ConfigError, match="code that it downloads"):
        instantiate(stored, "x")
