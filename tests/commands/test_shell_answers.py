"""What a shell's completion script is answered, in the form that this shell takes."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli import app
from automodel_cli.commands.shells import _quoted, split_line


@pytest.mark.parametrize(
    ("protocol", "answer"),
    [
        (
            {
                "_AMCLI_COMPLETE": "complete_bash",
                "COMP_LINE": "amcli pretrain --set model.n_la",
                "COMP_WORD": "model.n_la",
            },
            "-o nospace +o default\nmodel.n_layer=\n",
        ),
        (
            {"_AMCLI_COMPLETE": "complete_bash", "COMP_LINE": "amcli pretrain --set device=c", "COMP_WORD": "c"},
            "+o default\ncpu\ncuda\n",
        ),
        ({"_AMCLI_COMPLETE": "complete_bash", "COMP_WORDS": "amcli\nre", "COMP_CWORD": "1"}, "resume\n"),
        ({"_AMCLI_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "amcli pretrain --output x"}, "_files\n"),
        ({"_AMCLI_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "amcli pretrain --set no.key="}, "\n"),
        (
            {"_AMCLI_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "amcli pretrain --set model.n_la"},
            "local -a _amcli_closed _amcli_open; _amcli_closed=(); "
            "_amcli_open=('model.n_layer=:Transformer blocks.'); "
            "_describe -V candidate _amcli_closed -- _amcli_open -S ''\n",
        ),
        (
            {
                "_AMCLI_COMPLETE": "complete_fish",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
                "_TYPER_COMPLETE_ARGS": "amcli pretrain --set model.n_la",
            },
            "model.n_layer=\tTransformer blocks.\n",
        ),
    ],
)
def test_each_shell_is_answered_in_its_own_form(monkeypatch, capsys, protocol, answer):
    """The variables are those that the scripts set, also the one that Typer itself writes for bash."""
    for name, value in protocol.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as ended:
        app.run([])

    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err) == (0, answer, "")


def test_a_defect_of_completion_is_not_shown_in_the_prompt(monkeypatch, capsys):
    """Except to who asks for it by AMCLI_TRACEBACK."""
    monkeypatch.setenv("_AMCLI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_LINE", "amcli prep --tokenizer ")
    monkeypatch.setenv("COMP_WORD", "")
    monkeypatch.setattr("automodel_cli.commands.complete._scan", lambda _: 1 // 0)

    with pytest.raises(SystemExit) as ended:
        app.run([])

    printed = capsys.readouterr()
    assert (ended.value.code, printed.out.strip(), printed.err) == (0, "", "")
    monkeypatch.setenv("AMCLI_TRACEBACK", "1")
    assert app.run([]) == 1


@given(st.lists(st.text(st.characters(exclude_categories=["C"]), min_size=1), min_size=1))
def test_a_line_is_split_into_the_words_of_the_shell(words):
    """The words come back, and one more begins behind a space."""
    line = shlex.join(words)

    assert split_line(line) == (words, "")
    assert split_line(f"{line} ") == ([*words, ""], "")


@given(st.text(st.characters(exclude_categories=["C"])), st.sampled_from(["", "'", '"']))
def test_a_quoted_candidate_is_read_back_by_the_shell(text, quote):
    """Whatever quote is open, the word that the program gets is the candidate."""
    line = f"printf %s x{quote}{_quoted(text, quote)}{quote}"

    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)

    assert done.stdout.decode() == f"x{text}"
