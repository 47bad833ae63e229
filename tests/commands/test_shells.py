"""Completion in the shells themselves: keys are pressed in a terminal, and the line is read back."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

SCRIPTS = Path(sysconfig.get_path("scripts"))
YAML = "checkpoint: {enabled: true}\nmodel: {betas: [0.9, 0.95], n_layer: 12}\n"


def environment(**more: str) -> dict[str, str]:
    """The tester's own, with amcli on the path and nothing that a shell reads at its start."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("_AMCLI", "_TYPER", "COMP_"))}
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "TERM": "dumb", "LC_ALL": "C.UTF-8", "PS1": "> ", **more}


def script(shell: str) -> str:
    """What a user sources."""
    asked = environment(_AMCLI_COMPLETE=f"source_{shell}")
    return subprocess.run([SCRIPTS / "amcli"], env=asked, capture_output=True, text=True, check=True).stdout


class Shell:
    """A shell at a pseudo-terminal, in which Ctrl-G prints the line as it stands, between marks."""

    def __init__(self, terminal, wait_until, command: list[str], setup: str, directory: Path) -> None:
        self._screen, self._wait_until, self._seen = terminal(), wait_until, 0
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment(HOME=str(directory)),
            preexec_fn=functools.partial(os.login_tty, self._screen.theirs),  # keys such as Ctrl-U need a session
        )
        self.press(f"{setup}; echo rea''dy\n")
        self.until("ready\r\n")

    def press(self, keys: str) -> None:
        self._screen.press(keys)

    def until(self, mark: str) -> str:
        """What the terminal shows up to `mark`."""
        self._wait_until(f"the shell shows {mark!r}", lambda: mark in self._screen.shown[self._seen :])
        before = self._screen.shown[self._seen :].partition(mark)[0]
        self._seen += len(before) + len(mark)
        return before

    def line_after(self, keys: str) -> str:
        """The command line after these keys; a new one is begun."""
        self.press(f"{keys}\x07")
        self.shown = self.until("<<")
        line = self.until(">>")
        self.press("\x15")  # Ctrl-U: a line of its own for each
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._screen.close()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("shell")
    (directory / "mine.yaml").write_text(YAML)
    (directory / "broken.yaml").write_text("model: [\n")
    (directory / "with space.yaml").write_text(YAML)
    (directory / "data").mkdir()
    for shell in ("bash", "zsh", "fish"):
        (directory / f"amcli.{shell}").write_text(script(shell))
    return directory


@pytest.fixture(scope="module")
def bash(workplace, terminal, wait_until):
    """As a user has it, except for the strictest mode, in which a careless script would show."""
    binding = """bind -x '"\\C-g": printf "\\n<<%s>>\\n" "$READLINE_LINE"'"""
    line = ["bash", "--norc", "--noprofile", "-i"]
    shell = Shell(terminal, wait_until, line, f"{binding}; set -u; . ./amcli.bash", workplace)
    yield shell
    shell.close()


@pytest.fixture(scope="module")
def zsh(workplace, terminal, wait_until):
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    (workplace / "rc.zsh").write_text(
        "autoload -Uz compinit; compinit -u -D\n"
        'show() { print -r -- "\n<<$BUFFER>>" }\n'
        "zle -N show; bindkey '^G' show; source ./amcli.zsh\n"
    )
    shell = Shell(terminal, wait_until, ["zsh", "-f", "-i"], "source ./rc.zsh", workplace)
    yield shell
    shell.close()


KEYS = [
    ("amcli re", "amcli resume "),
    ("amcli pretrain -c mi", "amcli pretrain -c mine.yaml "),
    ("amcli pretrain -c da", "amcli pretrain -c data/"),
    ("amcli pretrain --set mod", "amcli pretrain --set model."),
    ("amcli pretrain --set model.n_la", "amcli pretrain --set model.n_layer="),
    ("amcli pretrain --set=model.n_la", "amcli pretrain --set=model.n_layer="),
    ("amcli pretrain --model.n_la", "amcli pretrain --model.n_layer="),
    ("amcli pretrain --set 'model.n_la", "amcli pretrain --set 'model.n_layer="),
    ("amcli pretrain --set optimizer.lr=", "amcli pretrain --set optimizer.lr=0.004 "),
    ("amcli pretrain --set checkpoint.enabled=t", "amcli pretrain --set checkpoint.enabled=true "),
    ("amcli pretrain --set 'checkpoint.enabled=t", "amcli pretrain --set 'checkpoint.enabled=true' "),
    ("amcli pretrain --set=checkpoint.enabled=t", "amcli pretrain --set=checkpoint.enabled=true "),
    ("amcli pretrain --checkpoint.enabled=t", "amcli pretrain --checkpoint.enabled=true "),
    ("amcli pretrain --checkpoint.enabled t", "amcli pretrain --checkpoint.enabled true "),
    ("amcli pretrain -c mine.yaml --set model.be", "amcli pretrain -c mine.yaml --set model.betas="),
    ("amcli pretrain -c broken.yaml --set model.n_la", "amcli pretrain -c broken.yaml --set model.n_layer="),
    ("amcli pretrain --set model._target_=", "amcli pretrain --set model._target_="),
    ("amcli pretrain --set no.such.key=", "amcli pretrain --set no.such.key="),
]


@pytest.mark.parametrize(("typed", "line"), KEYS)
def test_bash_completes_what_is_typed(bash, typed, line):
    """After one press of the tab key the line is what the user meant, spaces included."""
    assert bash.line_after(f"{typed}\t") == line


@pytest.mark.parametrize(("typed", "line"), KEYS)
def test_zsh_completes_what_is_typed(zsh, typed, line):
    """The same lines as in bash."""
    assert zsh.line_after(f"{typed}\t") == line


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ('amcli pretrain --set "model.n_la', 'amcli pretrain --set "model.n_layer='),
        ("amcli pretrain -c wi", "amcli pretrain -c with\\ space.yaml "),
        ("amcli pretrain -c 'wi", "amcli pretrain -c 'with space.yaml' "),
        ("amcli pretrain -c with\\ s", "amcli pretrain -c with\\ space.yaml "),
        (
            "amcli pretrain -c with\\ space.yaml --set model.be",
            "amcli pretrain -c with\\ space.yaml --set model.betas=",
        ),
        (
            "amcli pretrain -c mine.yaml --set model.betas=",
            r"amcli pretrain -c mine.yaml --set model.betas=\[0.9,\ 0.95\] ",
        ),
        ("X=1 amcli pretrain --set=model.n_la", "X=1 amcli pretrain --set=model.n_layer="),
        ("true && amcli pretrain --set model.n_la", "true && amcli pretrain --set model.n_layer="),
        ("amcli prep --output-dir da", "amcli prep --output-dir data/"),
    ],
)
def test_bash_quotes_what_it_inserts(bash, typed, line):
    """Spaces, brackets and quotes arrive in the program as they are."""
    assert bash.line_after(f"{typed}\t") == line


def test_bash_lists_the_keys_on_the_second_press(bash):
    """All of them, once, and no word of an error."""
    bash.line_after("amcli pretrain --set model.n_\t\t")

    listed = [word for word in bash.shown.split() if word.startswith("model.n_") and word.endswith("=")]
    assert sorted(listed) == ["model.n_embd=", "model.n_head=", "model.n_layer=", "model.n_positions="]
    assert "rror" not in bash.shown


def test_bash_without_its_word_breaks_completes_too(bash):
    """Some people take `=` and `:` out of COMP_WORDBREAKS."""
    bash.press("breaks=$COMP_WORDBREAKS; COMP_WORDBREAKS=${COMP_WORDBREAKS//[=:]/}\n")

    line = bash.line_after("amcli pretrain --set checkpoint.enabled=t\t")

    bash.press("COMP_WORDBREAKS=$breaks\n")
    assert line == "amcli pretrain --set checkpoint.enabled=true "


def test_zsh_shows_the_meaning_of_each_key(zsh):
    """In words of the table of sections."""
    zsh.line_after("amcli pretrain --set step_scheduler.\t\t")

    assert "optimisation steps of the whole run" in zsh.shown


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("typed", "candidate"),
    [
        ("amcli pretrain --set model.n_la", "model.n_layer=\tTransformer blocks."),
        ("amcli pretrain --model.n_la", "--model.n_layer=\tTransformer blocks."),
        ("amcli pretrain --set=checkpoint.enabled=t", "--set=checkpoint.enabled=true\tthe default"),
        ("amcli pretrain -c mi", "mine.yaml"),
    ],
)
def test_fish_offers_candidates_with_their_meaning(workplace, typed, candidate):
    """`complete -C` asks as the tab key does."""
    asked = ["fish", "--no-config", "-c", f"source ./amcli.fish; complete -C {shlex.quote(typed)}"]

    done = subprocess.run(
        asked, cwd=workplace, env=environment(HOME=str(workplace)), capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines() == [candidate]


def test_show_completion_prints_the_script_of_the_shell_around_it():
    """The option and the variable give the same text."""
    shown = subprocess.run(
        ["bash", "--norc", "-c", "amcli --show-completion; true"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )

    assert shown.stdout.strip() == script("bash").strip()
    assert "complete -o default -F _amcli_completion amcli" in shown.stdout


def test_install_completion_writes_the_script(tmp_path):
    """Into the home directory, where the shell finds it at its next start."""
    done = subprocess.run(
        ["bash", "--norc", "-c", "amcli --install-completion; true"],
        env=environment(HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )

    assert "bash completion installed" in done.stdout
    assert (tmp_path / ".bash_completions/amcli.sh").read_text().strip() == script("bash").strip()
