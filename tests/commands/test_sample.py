"""`amcli sample` prints what a model writes."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from automodel_cli.commands.sample import sample
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.exchange import sampling as writer


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "a\ufffdb\n"), (False, "a\x07b\n")])
def test_a_model_does_not_steer_the_terminal(is_terminal, shown, monkeypatch, capsys):
    """A file or a pipe gets every character as it was sampled."""
    monkeypatch.setattr(layout, "resolve", lambda path: path)
    monkeypatch.setattr(
        writer, "load_writer", lambda *_, **__: SimpleNamespace(write=lambda *_, **__: ["a", "\x07", "b"])
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)

    sample(None)

    assert capsys.readouterr().out == shown
