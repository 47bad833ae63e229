"""The torture campaign in short; `make torture` is the long one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "torture.py"


@pytest.fixture
def torture(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("torture", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "torture", module)
    spec.loader.exec_module(module)
    return module


def test_a_few_kills_lose_nothing(tmp_path):
    """Real kills, by the clock and at sites, in one process: the same bits at the end, and no step lost."""
    output = tmp_path / "found.json"
    options = ["--kills", "3", "--seed", "5", "--layouts", "alone", "--output", str(output)]

    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["kills"] >= 3
    assert found["failures"] == 0


def test_a_run_that_ends_in_other_bits_is_found(torture, tmp_path, monkeypatch):
    """A campaign that could not fail would prove nothing."""
    good = {"step": "step_000012", "damage": [], "hashes": {"model": "a"}, "curve": [(1, 2.0, 1.0)], "left": []}
    bad = {**good, "hashes": {"model": "b"}, "left": [".step_000010.tmp-1"]}
    monkeypatch.setattr(torture, "result_of", lambda root: bad)
    known = torture.Reference(good, 1.0, {})
    one = torture.Chain(0, "alone", kills=[torture.Kill("clock", "0.1 s after its start", 4, 4)])

    assert torture.ended(one, known, tmp_path).failures == ["hashes differs", "left differs"]


def test_a_run_that_goes_on_from_an_older_step_is_found(torture):
    one = torture.Chain(0, "alone", kills=[torture.Kill("clock", "0.1 s after its start", 4, 4)])

    torture.check_start(one, torture.End(False, 0, "resuming after step 2 from checkpoints/step_000002"))

    assert one.failures == ["went on after step 2, but step 4 was saved"]
