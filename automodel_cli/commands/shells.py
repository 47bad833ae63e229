"""Completion in bash, zsh and fish.

Typer finds the parameter that a word belongs to and calls its `autocompletion` (`complete.py`). The classes here add
three things that Typer does not do:

- A shell adds a space after a single candidate; after `model.n_layer=` or `runs/` there must be none.
- bash ends a word at `=` and `:`, and replaces only the part after the last of them.
- `--model.n_layer 24` is an override, though no option has that name.

No error is printed into a prompt, and help texts are plain text, so that rich is not imported.
Typer has no public hook for this: `register` replaces its classes, and `pyproject.toml` pins its version.
"""

from __future__ import annotations

import os
import re
import shlex

from typer import _completion_classes, _completion_shared
from typer._completion_classes import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

# The first line of the answer is for compopt, the others are the candidates. The line and the word are
# passed as the user typed them: after bash has split them, `a=b` and `a = b` look the same.
BASH_SCRIPT = """
%(complete_func)s() {
    local lines
    mapfile -t lines < <(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORD="$2" \\
                             %(autocomplete_var)s=complete_bash "$1" 2> /dev/null)
    COMPREPLY=("${lines[@]:1}")
    if [[ -n ${lines[0]:-} ]]; then compopt ${lines[0]}; fi
}

complete -o default -F %(complete_func)s %(prog_name)s
"""

# A candidate with one of these at its end is not complete.
_OPEN_ENDS = ("=", ".", "/")
# After one of these comes a part of the configuration, never the name of a file.
_KEY_OPTIONS = ("--set", "--unset", "--explain")


def register() -> None:
    """Replaces the classes of Typer; to be called before the app runs."""
    _completion_shared._completion_scripts["bash"] = BASH_SCRIPT
    _completion_classes.BashComplete = Bash  # type: ignore[misc]  # a class stands in for its base
    _completion_classes.ZshComplete = Zsh  # type: ignore[misc]
    _completion_classes.FishComplete = Fish  # type: ignore[misc]


class _Overrides(ShellComplete):
    """Candidates for a word; rewrites `--key=value` and `--a.b.c value` into the form that Typer knows."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """Whole words, each with a plain line of help."""
        try:
            found = self._candidates(args, incomplete)
        except Exception:
            # A prompt must not show errors; the command itself will show this one.
            if os.environ.get("AMCLI_TRACEBACK", "0") not in ("", "0"):
                raise
            return []
        return [CompletionItem(value, help=_plain(help_)) for value, help_ in found]

    def _candidates(self, args: list[str], incomplete: str) -> list[tuple[str, str]]:
        before, word, prefix, cut = _as_option_and_value(args, incomplete)
        found = [(prefix + str(item.value)[cut:], item.help or "") for item in self._ask(before, word)]
        if not found and incomplete.startswith("--") and not prefix:
            dotted = [item for item in self._ask([*args, "--set"], incomplete[2:]) if "." in str(item.value)]
            return [(f"--{item.value}", item.help or "") for item in dotted]
        return found

    def _ask(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        return super().get_completions(list(args), incomplete)


class Bash(_Overrides, BashComplete):
    """bash 4.4 and newer."""

    source_template = BASH_SCRIPT

    def complete(self) -> str:
        """A line for compopt, and the candidates as bash must insert them."""
        if "COMP_WORD" not in os.environ:  # the caller is a script that Typer has written
            return super().complete()
        (_, *args, word), quote = split_line(os.environ["COMP_LINE"])
        replaced = os.environ["COMP_WORD"]
        if not quote:
            replaced = split_line(replaced)[0][-1]
        kept = len(word) - len(replaced) if word.endswith(replaced) else 0
        values = [str(item.value) for item in self.get_completions(args, word)]
        if quote and len(values) == 1 and values[0].endswith(_OPEN_ENDS):
            values.append(f"{values[0]}...")  # bash would close the quote behind a single candidate
        return "\n".join([_compopt(args, word, values), *(_quoted(value[kept:], quote) for value in values)])


class Zsh(_Overrides, ZshComplete):
    """zsh, which evaluates the answer."""

    def complete(self) -> str:
        """Commands that describe the candidates to zsh."""
        args, incomplete = self.get_completion_args()
        items = self.get_completions(args, incomplete)
        if not items:
            return "" if _is_of_configuration(args, incomplete) else "_files"
        is_open = [str(item.value).endswith(_OPEN_ENDS) for item in items]
        closed = " ".join(_described(item) for item, more in zip(items, is_open, strict=True) if not more)
        opened = " ".join(_described(item) for item, more in zip(items, is_open, strict=True) if more)
        return (
            f"local -a _amcli_closed _amcli_open; _amcli_closed=({closed}); _amcli_open=({opened}); "
            "_describe -V candidate _amcli_closed -- _amcli_open -S ''"
        )


class Fish(_Overrides, FishComplete):
    """fish, which itself adds no space after `=`, `.` and `/`."""

    def format_completion(self, item: CompletionItem) -> str:
        """Candidate and help, with a tab between them."""
        return f"{item.value}\t{item.help}" if item.help else str(item.value)


def split_line(line: str) -> tuple[list[str], str]:
    """The words of a line as a shell splits it, and the quote that is open at its end.

    >>> split_line("amcli config show --set 'seed=")
    (['amcli', 'config', 'show', '--set', 'seed='], "'")
    """
    # One more character, so that the last word is never empty.
    lexer = shlex.shlex(f"{line}_", posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    quote = ""
    try:
        for word in lexer:
            words.append(word)
    except ValueError:  # the quote is not closed yet; typeshed does not know `state`
        words.append(lexer.token)
        quote = str(vars(lexer)["state"])
    return [*words[:-1], words[-1].removesuffix("_")], quote


def _as_option_and_value(args: list[str], incomplete: str) -> tuple[list[str], str, str, int]:
    """The words before, the word to ask for, and what to put before the answer and to cut from it."""
    name, equals, value = incomplete.partition("=")
    if name.startswith("--") and "." in name:
        return [*args, "--set"], incomplete[2:], "--", 0
    if name.startswith("--") and equals:
        return [*args, name], value, f"{name}=", 0
    if args and _is_dotted(args[-1]) and not incomplete.startswith("-"):
        key = f"{args[-1][2:]}="
        return [*args[:-1], "--set"], f"{key}{incomplete}", "", len(key)
    return args, incomplete, "", 0


def _is_dotted(argument: str) -> bool:
    return argument.startswith("--") and "." in argument and "=" not in argument


def _is_of_configuration(args: list[str], incomplete: str) -> bool:
    return _as_option_and_value(args, incomplete)[0][-1:] in ([option] for option in _KEY_OPTIONS)


def _compopt(args: list[str], word: str, values: list[str]) -> str:
    """Options for bash's compopt."""
    options = ["-o nospace"] if values and all(value.endswith(_OPEN_ENDS) for value in values) else []
    # Without candidates bash would offer the files of the working directory.
    return " ".join([*options, "+o default"] if _is_of_configuration(args, word) else options)


def _quoted(value: str, quote: str) -> str:
    """A candidate as it must stand on the line, inside or outside of an open quote."""
    if quote == "'":
        return value.replace("'", "'\\''")
    if quote == '"':
        return re.sub(r'(["\\$`])', r"\\\1", value)
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", value)


def _described(item: CompletionItem) -> str:
    """`'candidate:help'` for zsh's `_describe`."""
    value = str(item.value).replace("\\", "\\\\").replace(":", "\\:")
    return shlex.quote(f"{value}:{item.help}" if item.help else value)


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
