"""The wheel: what it contains, and that it works where the checkout is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from automodel_cli import __version__

ROOT = Path(__file__).parents[1]
GPT2_IDS = [15496, 11, 995, 0]  # "Hello, world!" in the published vocabulary
PROBE = """
import json
import automodel_cli
from automodel_cli.engine.prep.prepare import PrepOptions, prepare
from automodel_cli.engine.prep.load_tokenizer import load_tokenizer
from pathlib import Path

result = prepare(PrepOptions(source="shakespeare", output_dir=Path("shards")))
ids = load_tokenizer("gpt2").encode("Hello, world!").tolist()
print(json.dumps({"file": automodel_cli.__file__, "tokens": result.manifest.num_tokens, "ids": ids}))
"""


def project() -> dict:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """Runs a command that must succeed and returns what it printed."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that no build results of earlier versions get into it."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "automodel_cli", copy / "automodel_cli", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run([*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist"], copy)
    return next((copy / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory, far from the checkout, into which the wheel is installed."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run([*pip, "install", "--no-deps", "--no-index", "--target", target, wheel], target)
    return target


def test_the_wheel_holds_every_file_of_the_package(wheel: Path):
    """Code, data files and the typing marker: what lies in the source tree lies in the wheel, and nothing more."""
    in_tree = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "automodel_cli").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert in_wheel == in_tree
    assert {"automodel_cli/py.typed", "automodel_cli/engine/config/quickstart.yaml"} <= in_wheel


def test_the_installed_wheel_answers_outside_the_checkout(installed: Path, tmp_path: Path):
    """`python -m automodel_cli` runs from the installed files alone."""
    printed = run([sys.executable, "-P", "-m", "automodel_cli", "--version"], tmp_path, PYTHONPATH=str(installed))

    assert printed.strip() == f"amcli {__version__}"


def test_the_installed_wheel_reads_its_embedded_text_and_vocabulary(installed: Path, tmp_path: Path):
    """The text becomes shards and the merge list encodes as published, both from the installed files."""
    printed = run([sys.executable, "-P", "-c", PROBE], tmp_path, PYTHONPATH=str(installed))

    report = json.loads(printed.splitlines()[-1])
    assert Path(report["file"]).is_relative_to(installed)
    assert report["tokens"] > 900_000
    assert report["ids"] == GPT2_IDS


def test_the_constraints_pin_a_version_inside_every_range():
    """Each dependency, of the package and of its extras, has one exact pin that its range admits."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    wanted = [*project()["dependencies"], *(r for extra in project()["optional-dependencies"].values() for r in extra)]

    requirements = [Requirement(text) for text in wanted if not text.startswith("amcli[")]

    assert pinned["torch"] == "2.13.0"
    for requirement in requirements:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_constraints_hold_for_every_index():
    """Neither local versions, such as 2.13.0+cpu, nor addresses: the file serves any mirror and any device."""
    pins = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]

    assert [pin for pin in pins if "+" in pin or "/" in pin or "@" in pin] == []
