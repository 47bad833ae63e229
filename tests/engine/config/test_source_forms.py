"""The forms in which source says what a callable takes, and those in which it does not."""

from __future__ import annotations

import pytest

from automodel_cli.engine.config.origin import DEFAULT
from automodel_cli.engine.config.target import static_target
from automodel_cli.engine.config.target_errors import Signature
from automodel_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("def f(a, b=1, *, c, d=2, **rest): ...", "f", Signature(("a", "b", "c", "d"), frozenset("ac"), True)),
        ("def f(a, /, b): ...", "f", Signature(("b",), frozenset("b"))),
        ("f = lambda a, b=1: a", "f", Signature(("a", "b"), frozenset("a"))),
        ("def f(a): ...\ng = f", "g", Signature(("a",), frozenset("a"))),
        ("class C: pass", "C", Signature(())),
        ("class B:\n def __init__(self, a): ...\nclass C(B): ...", "C", Signature(("a",), frozenset("a"))),
        ("class C:\n def __new__(cls, a=1): ...", "C", Signature(("a",))),
        (
            """
            from dataclasses import dataclass, field, KW_ONLY
            from typing import ClassVar
            @dataclass
            class B:
                a: int
                b: list = field(default_factory=list)
                c: int = field(init=False)
            @dataclass(frozen=True)
            class C(B):
                KIND: ClassVar[str] = "x"
                _: KW_ONLY
                d: int = 3
            """,
            "C",
            Signature(("a", "b", "d"), frozenset("a")),
        ),
        (
            "try:\n import no_such as x\nexcept ImportError:\n pass\ndef f(a): ...",
            "f",
            Signature(("a",), frozenset("a")),
        ),
    ],
    ids=range(9),
)
def test_the_forms_of_a_callable(mine, source, name, expected):
    """Functions, constructors own and inherited, methods and dataclasses."""
    assert mine(source, name).signature == expected


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os\nif os.name == 'x':\n def C(a): ...\nelse:\n def C(b): ...", "more than one way"),
        ("C = make()\ndef make(): ...", "computed"),
        ("def deco(cls):\n cls.__init__ = print\n return cls\n@deco\nclass C: ...", "the decorator `deco`"),
        ("def deco(f):\n def g(*a): ...\n return g\n@deco\ndef C(a): ...", "the decorator `deco`"),
        ("class M(type): ...\nclass C(metaclass=M):\n def __init__(self, a): ...", "metaclass"),
        ("class M(type): ...\nclass B(metaclass=M): ...\nclass C(B):\n def __init__(self, a): ...", "metaclass"),
        ("class C(dict): ...", "its base `dict` cannot be followed: `dict` is built into Python"),
        ("def register(cls):\n return cls\n@register\nclass C: ...", "the decorator `register`"),
        ("import functools\n@functools.partial\ndef C(a): ...", "the decorator `functools.partial`"),
        ("import no_such_package\nclass C(no_such_package.Base): ...", "`no_such_package`, which is not installed"),
        ("class C: ...\nC.__init__ = print", "assigned after the class"),
        ("class B:\n def __init_subclass__(cls): ...\nclass C(B): ...", "may change the classes derived from it"),
        ("globals()['C'] = print", "makes some of its names"),
        ("def __getattr__(name): ...", "makes some of its names"),
        ("def C(:", "mine.py:1"),
        ("from no_such_package import *", "takes names from `no_such_package`"),
    ],
)
def test_what_python_may_change_is_left_unchecked(mine, source, reason):
    """Each construct that hides the truth from source is named."""
    found = mine(source, "C")

    assert found.signature is None
    assert reason in found.unchecked


@pytest.mark.parametrize(
    ("method", "names"),
    [("by_class", ("a",)), ("alone", ("a",)), ("inherited", ("a",)), ("plain", ("self", "a"))],
)
def test_a_method_is_looked_up_through_its_class_and_bases(package, method, names):
    """`from_config` and `from_pretrained` are mostly class methods, defined in a base."""
    name = package(
        __init__="""
            class Base:
                @classmethod
                def inherited(cls, a): ...
            class Net(Base):
                @classmethod
                def by_class(cls, a): ...
                @staticmethod
                def alone(a): ...
                def plain(self, a): ...
            """
    )

    assert static_target(f"{name}.Net.{method}", DEFAULT, "x").signature == Signature(names, frozenset(names))


def test_re_exports_are_followed_through_packages(package):
    """`from`, `import as`, star imports with and without `__all__`, and relative ones."""
    name = package(
        __init__="from .a import *\nfrom . import b as c\nfrom .b import hidden as shown\nimport json as js\n",
        a="from .b import *\n__all__ = ['first']\ndef second(x): ...\n",
        b="def first(a): ...\ndef hidden(b): ...\n",
    )

    assert static_target(f"{name}.first", DEFAULT, "x").signature == Signature(("a",), frozenset("a"))
    assert static_target(f"{name}.shown", DEFAULT, "x").signature == Signature(("b",), frozenset("b"))
    assert static_target(f"{name}.c.hidden", DEFAULT, "x").signature == Signature(("b",), frozenset("b"))
    assert "obj" in static_target(f"{name}.js.dumps", DEFAULT, "x").signature.names
    with pytest.raises(ConfigError, match="has no `second`"):
        static_target(f"{name}.second", DEFAULT, "x")


def test_a_lazy_module_is_known_by_what_it_declares(package):
    """The block that only type checkers read counts where the module replaces itself at run time."""
    name = package(
        __init__="""
            import sys
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from .real import build
            else:
                sys.modules[__name__] = make_lazy(__name__)
            """,
        real="def build(width): ...\n",
    )

    assert static_target(f"{name}.build", DEFAULT, "x").signature == Signature(("width",), frozenset(("width",)))
    with pytest.raises(ConfigError, match="did you mean `build`"):
        static_target(f"{name}.biuld", DEFAULT, "x")
