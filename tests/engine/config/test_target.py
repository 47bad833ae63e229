"""`_target_`: what is built, and the five ways in which it fails."""

from __future__ import annotations

import collections
import textwrap

import pytest

from automodel_cli.engine.config.config import from_parsed
from automodel_cli.engine.config.instantiate import bind, instantiate
from automodel_cli.engine.config.yaml_reader import parse_yaml
from automodel_cli.errors import ConfigError, DataError

MODULE = """
import dataclasses

@dataclasses.dataclass
class Net:
    width: int
    depth: int = 2
    device: str = "none"

def fails(): raise ValueError("my own mistake")
def data_error(seq_len): raise __import__("automodel_cli.errors").errors.DataError("seq_len is wrong")
def text(): return "hello"
def pair(): return Net(1), "tokenizer"
def nothing(): pass
def a_class(): return Net
def leaves(): raise SystemExit(0)
class Opens:
    def __init__(self, filename, mode): open(filename, mode).close()
def archive(): return __import__("bz2").BZ2File(__file__)
VALUE = 3
"""


@pytest.fixture
def here(tmp_path):
    (tmp_path / "parts.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "broken.py").write_text("import no_such_dependency_of_mine\n")

    def config(text, kind="file"):
        return from_parsed(parse_yaml(text, source=str(tmp_path / "run.yaml"), kind=kind))

    return config


def test_an_import_path_is_called_with_the_other_keys(here):
    """A plain library callable works as it is."""
    built = instantiate(here("x: {_target_: collections.OrderedDict, a: 1}"), "x")

    assert built == collections.OrderedDict(a=1)


def test_a_file_is_found_beside_the_configuration_that_names_it(here):
    """`parts.py:Net` is relative to the YAML file, not to the working directory."""
    built = instantiate(here("x: {_target_: 'parts.py:Net', width: 7}"), "x")

    assert (built.width, built.depth) == (7, 2)


def test_inner_sections_are_built_first_also_in_lists(here):
    """Nesting is arbitrary: a section in a list in a section."""
    text = "x: {_target_: builtins.dict, parts: [{_target_: builtins.dict, a: 1}, {b: {_target_: builtins.list}}]}"

    assert instantiate(here(text), "x") == {"parts": [{"a": 1}, {"b": []}]}


def test_runtime_values_go_only_where_the_signature_names_them(here):
    """`device` reaches `Net`, `rank` does not, and what the user writes wins."""
    runtime = {"device": "cuda", "rank": 3}

    assert instantiate(here("x: {_target_: 'parts.py:Net', width: 1}"), "x", runtime).device == "cuda"
    own = here("x: {_target_: 'parts.py:Net', width: 1, device: cpu}")
    assert instantiate(own, "x", runtime).device == "cpu"


@pytest.mark.parametrize(
    ("target", "message", "help_"),
    [
        ("no_such_package.build", "the package `no_such_package` is not installed", "installed here"),
        ("collections.OrderedDic", "the module `collections` has no `OrderedDic`", "did you mean `OrderedDict`?"),
        ("collections.OrderedDict.fromkey", "has no `fromkey`", "fromkeys"),
        ("collections.abd.Mapping", "the module `collections` has no `abd`", "abc"),
        ("math.pi", "is a float, which cannot be called", ""),
        ("parts.py:Nett", "has no `Nett`", "did you mean `Net`?"),
        ("parts.py:VALUE", "is a int, which cannot be called", ""),
        ("partz.py:Net", "there is no file", "did you mean `parts.py`?"),
        ("broken.py:build", "raised ModuleNotFoundError: No module named 'no_such_dependency_of_mine'", "--traceback"),
        ("just_a_word", "neither an import path", ""),
    ],
)
def test_each_way_to_fail_has_its_own_message(here, target, message, help_):
    """A missing package, a broken module, a missing name and a non-callable are told apart."""
    with pytest.raises(ConfigError) as caught:
        instantiate(here(f"x:\n  _target_: '{target}'\n"), "x")

    assert message in str(caught.value)
    assert help_ in str(caught.value)
    assert "run.yaml:2:" in str(caught.value)
    assert "x._target_" in str(caught.value)


def test_the_users_own_import_error_is_chained(here):
    """The traceback of a broken module is the module's own."""
    with pytest.raises(ConfigError) as caught:
        instantiate(here("x: {_target_: 'broken.py:build'}"), "x")

    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("section", "message", "help_"),
    [
        ("{_target_: 'parts.py:Net', width: 1, dept: 3}", "takes no `dept`", "did you mean `depth`?"),
        ("{_target_: 'parts.py:Net', depth: 3}", "needs `width`", ""),
    ],
)
def test_keywords_are_checked_against_the_signature(here, section, message, help_):
    """`n_layers: 24` never builds twelve layers in silence."""
    with pytest.raises(ConfigError) as caught:
        instantiate(here(f"x: {section}"), "x")

    assert message in str(caught.value)
    assert help_ in str(caught.value)


def test_a_users_exception_keeps_its_type_and_gains_the_place(here):
    """The note names the key, the file and the line that were being built."""
    with pytest.raises(ValueError, match="my own mistake") as caught:
        instantiate(here("x:\n  _target_: parts.py:fails\n"), "x")

    assert any("`x`" in note and "run.yaml:2" in note for note in caught.value.__notes__)


def test_an_amcli_error_of_a_part_points_to_the_argument(here):
    """A DataError about seq_len gets the line on which seq_len stands."""
    with pytest.raises(DataError) as caught:
        instantiate(here("x:\n  _target_: parts.py:data_error\n  seq_len: 9\n"), "x")

    assert "run.yaml:3" in caught.value.where


def test_bind_leaves_what_the_engine_supplies_to_the_engine(here):
    """An optimizer section needs no `params`; everything else is checked."""
    factory, arguments = bind(here("o: {_target_: torch.optim.AdamW, lr: 1e-3}"), "o", supplied=("params",))

    assert factory.__name__ == "AdamW"
    assert arguments == {"lr": 1e-3}


@pytest.mark.parametrize(
    ("section", "target", "returned"),
    [
        ("model", "parts.py:text", "returned str, not an nn.Module"),
        ("model", "parts.py:pair", "returned a tuple (Net, str), not an nn.Module"),
        ("model", "parts.py:nothing", "returned NoneType, not an nn.Module"),
        ("model", "parts.py:a_class", "returned the class Net, not an nn.Module"),
        ("dataset", "parts.py:text", "returned str, not a dataset"),
        ("dataset", "parts.py:nothing", "returned NoneType, not a dataset"),
        ("dataset", "parts.py:a_class", "returned the class Net, not a dataset"),
        ("dataset", "parts.py:pair", "returned a tuple (Net, str), not a dataset"),
        ("dataset", "parts.py:archive", "returned BZ2File, not a dataset"),
        ("dataset", "builtins.dict", "returned dict, not a dataset"),
        ("loss_fn", "parts.py:nothing", "returned NoneType, not a loss"),
        ("loss_fn", "parts.py:a_class", "returned the class Net, not a loss"),
    ],
)
def test_what_a_section_cannot_use_is_refused_before_it_is_used(here, section, target, returned):
    """By what it must offer, at its own line; a tuple is told what to return instead."""
    with pytest.raises(ConfigError) as caught:
        instantiate(here(f"{section}:\n  _target_: {target}\n"), section)

    assert caught.value.message.startswith(f"{section}._target_ {returned}")
    assert "run.yaml:2:" in caught.value.where
    assert ("return " in (caught.value.help or "")) == ("tuple" in returned or "class" in returned)


@pytest.mark.parametrize(("section", "target"), [("dataset", "bz2.BZ2File"), ("model", "parts.py:Opens")])
def test_a_class_of_another_kind_is_not_even_called(here, tmp_path, section, target):
    """`bz2.BZ2File` for writing would empty a file before anybody saw that it is no dataset."""
    file = tmp_path / "x.bz2"
    file.write_text("kept")

    with pytest.raises(ConfigError, match="not a"):
        instantiate(here(f"{section}: {{_target_: '{target}', filename: '{file}', mode: w}}"), section)

    assert file.read_text() == "kept"


def test_each_of_several_validation_sets_must_be_a_dataset(here):
    """The sets by name, and what lies inside one is free."""
    text = "validation_dataset: {web: {_target_: builtins.list}, code: {_target_: builtins.str}}"

    assert instantiate(here(text), "validation_dataset.web") == []
    with pytest.raises(ConfigError, match=r"validation_dataset\.code\._target_ returned str"):
        instantiate(here(text), "validation_dataset.code")


@pytest.mark.parametrize("target", ["parts.py:leaves", "leaves.py:build", "sys.exit"])
def test_a_part_that_ends_the_process_is_an_error(here, tmp_path, target):
    """In a call or in an import: `sys.exit(0)` must not pass for a run that succeeded."""
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")

    with pytest.raises(ConfigError, match="SystemExit"):
        instantiate(here(f"x: {{_target_: '{target}'}}"), "x")
