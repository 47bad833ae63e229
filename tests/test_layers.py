"""The layers of the package, and what each fast command may import."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import sysconfig
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
import torch

import automodel_cli
from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.checkpoint.snapshot import Snapshot

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "datasets", "wandb"}
# Runs one command line as the console script does, and tells on the last line what it has loaded.
PROBE = """
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted({name.partition(".")[0] for name in sys.modules}))))
from automodel_cli.app import run
raise SystemExit(run(sys.argv[1:]))
"""
IMPORT_ALL = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def contracts() -> dict[str, dict]:
    """The import contracts of pyproject.toml by id."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["id"]: contract for contract in settings["tool"]["importlinter"]["contracts"]}


def modules_below(names: list[str]) -> list[str]:
    """The named modules and all that lie in them."""
    everything = [m.name for m in pkgutil.walk_packages(automodel_cli.__path__, "automodel_cli.")]
    return [module for module in everything if any(f"{module}.".startswith(f"{name}.") for name in names)]


def run_python(
    code: str, *arguments: str, cwd: Path, environment: dict[str, str] | None = None
) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Runs `code` in a fresh interpreter; returns its result and the top-level modules that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, set(json.loads(done.stdout.splitlines()[-1])) if done.stdout else set()


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A directory with one small checkpoint under `checkpoints/`."""
    snapshot = Snapshot(
        step=3,
        config_yaml="seed: 1\n",
        model_tensors={"transformer.wte.weight": torch.zeros(4, 2)},
        model_config=None,
        optim_tensors={"transformer.wte.weight.exp_avg": torch.zeros(4, 2)},
        train_state={"step": 3},
        rng_tensors={"torch_cpu": torch.get_rng_state()},
    )
    save(tmp_path / "checkpoints", snapshot, facts={"loss": 1.0})
    return tmp_path


def test_the_import_contracts_of_pyproject_are_kept():
    """import-linter finds no import that goes up, sideways or out to torch from the light modules."""
    linter = Path(sysconfig.get_path("scripts")) / "lint-imports"

    done = subprocess.run([linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_of_the_package_stands_in_the_layers():
    """A new package or module cannot escape the contracts by not being named in them."""
    named = {name.strip(" ()") for layer in contracts()["layers"]["layers"] for name in layer.split("|")}
    top = [m.name for m in pkgutil.iter_modules(automodel_cli.__path__, "automodel_cli.")]
    rooms = [m.name for m in pkgutil.iter_modules([str(ROOT / "automodel_cli/engine")], "automodel_cli.engine.")]

    assert set(top) - {"automodel_cli.engine"} | set(rooms) <= named


@pytest.mark.parametrize("room", ["train", "distributed", "checkpoint"])
def test_the_map_of_a_large_room_names_each_of_its_files(room: str):
    """The docstring of the package says where to look, for every file and for no other."""
    package = importlib.import_module(f"automodel_cli.engine.{room}")
    files = {module.name for module in pkgutil.iter_modules(package.__path__)}

    named = set(re.findall(r"`(\w+)`", package.__doc__ or ""))

    assert named == files


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside of functions and for type checkers count, too."""
    graph = grimp.build_graph("automodel_cli", cache_dir=None, exclude_type_checking_imports=False)

    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


@pytest.mark.parametrize(("contract", "forbidden"), [("t0", HEAVY | {"numpy"}), ("t1", HEAVY)])
def test_importing_the_light_modules_loads_nothing_heavy(contract: str, forbidden: set[str]):
    """What a function imports lazily is not imported with its module, and nothing comes in indirectly."""
    modules = modules_below(contracts()[contract]["source_modules"])

    done, loaded = run_python(IMPORT_ALL, *modules, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    assert modules
    assert not loaded & forbidden


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["prep", "--help"],
        ["pretrain", "--help"],
        ["resume", "--help"],
        ["inspect-ckpt", "--help"],
        ["sample", "--help"],
        ["config", "show"],
        ["config", "show", "--json"],
        ["config", "show", "--check"],
        ["config", "show", "--plot-lr"],
        ["config", "show", "--diff", "checkpoints/step_000003"],
        ["config", "show", "--explain", "optimizer.lr"],
        ["plan"],
        ["plan", "--json"],
        ["config", "init"],
        ["config", "schema"],
        ["inspect-ckpt"],
        ["inspect-ckpt", "--json"],
    ],
    ids=" ".join,
)
def test_a_fast_command_never_loads_torch(arguments: list[str], run_directory: Path):
    """The command does its work, and neither torch nor any other heavy package is in sys.modules."""
    done, loaded = run_python(PROBE, *arguments, cwd=run_directory)

    assert done.returncode == 0, done.stdout + done.stderr
    assert not loaded & (HEAVY | {"numpy", "pydantic"})


@pytest.mark.parametrize(
    ("line", "candidate"),
    [
        ("amcli re", "resume"),
        ("amcli pretrain --set model.n_la", "model.n_layer="),
        ("amcli pretrain --set optimizer.l", "optimizer.lr="),
        ("amcli prep tiny", "tinystories"),
        ("amcli inspect-ckpt ", "checkpoints/"),
    ],
)
def test_completion_never_loads_torch(run_directory: Path, line: str, candidate: str):
    """Also where the keys come from the source of torch, and in no shell it loads rich for the help texts."""
    completing = {
        "_AMCLI_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": line,
    }

    done, loaded = run_python(PROBE, cwd=run_directory, environment=completing)

    assert done.stdout.split()[0] == candidate, done.stdout + done.stderr
    assert not loaded & (HEAVY | {"numpy", "pydantic", "rich"})
