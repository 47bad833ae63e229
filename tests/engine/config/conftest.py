"""Source files that the tests of this directory look into."""

from __future__ import annotations

import importlib
import sys
import textwrap

import pytest

from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.config.target import static_target


@pytest.fixture
def mine(tmp_path):
    """Looks up an object of a file of the user's own, beside its configuration."""

    def look_up(source, name):
        (tmp_path / "mine.py").write_text(textwrap.dedent(source))
        origin = Origin("file", str(tmp_path / "run.yaml"), 2, 12)
        return static_target(f"mine.py:{name}", origin, "model._target_")

    return look_up


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package that can be imported, and returns its name."""

    def write(**files):
        root = tmp_path / "amcli_test_package"
        for name, source in files.items():
            path = root / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return root.name

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in [name for name in sys.modules if name.startswith("amcli_test_package")]:
        del sys.modules[name]
