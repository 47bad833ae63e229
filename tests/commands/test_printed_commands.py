"""Every command that amcli prints runs when it is pasted into a shell, whatever the names in it hold."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from automodel_cli import app
from automodel_cli.commands.options import with_set_options
from automodel_cli.commands.render_prep import next_command
from automodel_cli.engine.config.emit import setting
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.config.suggest import command
from automodel_cli.engine.config.template import template
from automodel_cli.engine.plan.savings import Saving
from automodel_cli.engine.prep.output_dir import check_every_byte
from automodel_cli.engine.prep.prepare import PrepOptions, prepare
from automodel_cli.engine.shards.manifest import load_manifest
from automodel_cli.engine.train import checkpoint_manager
from automodel_cli.engine.train.checkpoint_content import _starting_from
from automodel_cli.engine.train.out_of_memory import Situation, _where_it_goes_on
from automodel_cli.errors import AmcliError

PACKAGE = Path(app.__file__).parent
ROOT_COMMAND = typer.main.get_command(app.app)
COMMANDS = "prep|plan|pretrain|resume|inspect-ckpt|verify-resume|export|import|sample|data|config"
# Names that a shell, a pattern, YAML or an option parser would take for something else.
WORST = "-it's $HOME: [1] *? n\u00e9 #c\n2"
AWKWARD = ["my data", WORST, "~home", "2024", "${HOME}", "\udcff"]


@pytest.fixture
def paste(capsys):
    """Runs a line as a shell would take it apart; gives the exit code and what was printed."""

    def run(line: str, *more: str, instead: tuple[str, ...] = ()) -> tuple[int, str]:
        echo = ["bash", "-c", f'printf "%s\\0" {line}']
        words = subprocess.run(echo, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"}).stdout
        program, *arguments = [os.fsdecode(word) for word in words.split(b"\0")[:-1]]
        assert program == "amcli"
        if instead:
            arguments[:1] = instead
        capsys.readouterr()
        code = app.run([*arguments, *more])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def printed_commands(text: str) -> list[str]:
    """The command lines of a text: between backticks, or behind the word that begins a line."""
    quoted = re.findall(r"`(amcli [^`]+)`", text)
    return quoted + re.findall(r"^ *(?:[a-z ]+:? +)?(amcli .+)$", text, flags=re.MULTILINE)


def parses(words: list[str]) -> bool:
    """Whether the command line knows the command and each of its options."""
    context = typer.Context(ROOT_COMMAND, info_name="amcli")
    command, rest = context.command, words
    while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
        inner = command.get_command(context, rest[0])
        if inner is None:
            return False
        context, command, rest = typer.Context(inner, info_name=rest[0], parent=context), inner, rest[1:]
    assert isinstance(command, TyperCommand | TyperGroup)
    command.make_parser(context).parse_args(args=with_set_options(rest))
    return True


@functools.cache
def nodes() -> list[tuple[Path, ast.AST]]:
    """Every node of every module of the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [(path, node) for path in paths for node in ast.walk(ast.parse(path.read_text()))]


def literals() -> list[tuple[str, str]]:
    """Every command that stands as it is in a text of the package, with its place."""
    found = []
    for path, node in nodes():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines = re.findall(rf"`(amcli (?:{COMMANDS})(?! order v)\b[^`]*)`", node.value)
            lines += re.findall(rf"^ +(amcli (?:{COMMANDS})\b.*?)(?:   .*)?$", node.value, flags=re.MULTILINE)
            found += [(f"{path.name}:{node.lineno}", line) for line in lines if "\n" not in line]
    return found


def test_commands_in_help_pages_and_messages_are_known_to_the_command_line():
    """The command and its options exist."""
    lines = literals()

    assert len(lines) > 60
    for place, line in lines:
        words = line.partition(" | ")[0].partition(" > ")[0].replace("'", "").replace('"', "").split()
        assert parses(words[1:]), f"{place}: {line}"


def test_no_command_is_put_together_without_quoting():
    """A value within a command line comes from `suggest.command`, never from the text around it."""
    offenders = []
    for path, node in nodes():
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
            if re.search(rf"amcli (?:{COMMANDS})(?! order v)\b[^`\n.|]*\0", "".join(map(str, parts))):
                offenders.append(f"{path.name}:{node.lineno}")

    assert offenders == []


@pytest.mark.parametrize("name", AWKWARD)
def test_a_command_comes_out_of_the_shell_as_it_was_meant(paste, name):
    """Words, paths and settings, whatever they hold."""
    Path(name).mkdir()
    (Path(name) / "mine.yaml").write_text("a: 3\n")
    Path("other.yaml").write_text("b: 4\n")
    value = name if name.isprintable() or "\n" in name else "no text, so no value of a configuration"
    words = ["config", "show", "-c", Path(name) / "mine.yaml", "--set", setting("c", value), "--diff", "other.yaml"]

    code, shown = paste(command(*words, "--json"))

    assert code == 0, shown
    found = {each["key"]: each["new"] and each["new"]["value"] for each in json.loads(shown)["differences"]}
    assert found == {"a": 3, "b": None, "c": value}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The embedded text in each format, and a part of it without a validation split."""
    directory = tmp_path_factory.mktemp("prepared")
    for form in ("bin", "megatron"):
        prepare(PrepOptions(source="shakespeare", output_dir=directory / form, format=form))
        prepare(PrepOptions(source="shakespeare", output_dir=directory / f"short {form}", format=form, max_tokens=9000))
    return directory


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, form) for name in AWKWARD for form in ("bin", "megatron")),
        (WORST, "short bin"),
        (WORST, "short megatron"),
    ],
)
def test_the_command_after_preparing_fits_the_data(prepared, paste, name, form):
    """Pattern, vocabulary, validation and the dataset of the format: every check passes, and the shards are found."""
    shutil.copytree(prepared / form, name)
    line = next_command(Path(name), load_manifest(Path(name)))

    code, said = paste(line, "--check", instead=("config", "show"))

    assert code == 0, said
    assert ("MegatronPretraining" in line) == (form.endswith("megatron"))


def test_the_command_after_preparing_trains(capsys, paste):
    """On files of Megatron, too: run as it is, but for one step."""
    short = ("--set", "step_scheduler.max_steps=1", "--set", "step_scheduler.val_batches=1")
    assert app.run(["prep", "shakespeare", "--format", "megatron", "--output-dir", "for megatron"]) == 0
    line = capsys.readouterr().out.partition("next: ")[2].rstrip("\n")

    code, said = paste(line, *short)

    assert code == 0, said
    assert "val_loss" in said


@pytest.mark.parametrize("name", [WORST, "${HOME}"])
def test_the_command_after_a_part_joins_all_parts(capsys, paste, name, tmp_path):
    """The shell finds them; the command after that trains on the whole."""
    for index in range(2):
        (tmp_path / f"{index}.jsonl").write_text('{"text": "some words of a text"}\n' * 30)
    for part in ("1/2", "0/2"):
        options = ["--tokenizer", "bytes", "--partition", part, f"--output-dir={name}"]
        assert app.run(["prep", "[01].jsonl", *options]) == 0
    line = capsys.readouterr().out.rpartition("next: ")[2].rstrip("\n")

    code, said = paste(line)

    assert code == 0, said
    assert (tmp_path / name / "whole/manifest.json").is_file()
    code, said = paste(printed_commands(said)[0], "--check", instead=("config", "show"))
    assert code == 0, said


def test_the_embedded_text_where_it_is_expected_needs_no_option(prepared):
    """And only there, and only in the format and with the splits of the built-in configuration."""
    place = Path("data/shakespeare")

    assert next_command(place, load_manifest(prepared / "bin")) == "amcli pretrain"
    for directory, kind in ((Path("elsewhere"), "bin"), (place, "short bin"), (place, "megatron")):
        assert next_command(directory, load_manifest(prepared / kind)).startswith("amcli pretrain --set ")


@pytest.mark.parametrize("name", [WORST, "2024"])
def test_the_commands_around_a_run_are_about_that_run(tiny_run, capsys, paste, monkeypatch, name):
    """After its end, where it is in the way, after its last step, and after a stop: each names the directory."""
    root = Path(name)
    line = ["pretrain", "-c", str(tiny_run), "--set", setting("checkpoint.checkpoint_dir", name)]
    assert app.run(line) == 0
    ended = capsys.readouterr().out
    assert app.run(line) == 4
    in_the_way = capsys.readouterr().err

    sample, inspect = printed_commands(ended)[-2:]
    assert paste(sample, "--max-new-tokens", "2")[0] == 0
    assert "step_000006" in paste(inspect)[1]
    code, finished = paste(printed_commands(in_the_way)[0])
    assert (code, "nothing to train" in finished) == (0, True)
    real, asked = checkpoint_manager.finish, []
    monkeypatch.setattr(
        checkpoint_manager, "finish", lambda *args, **named: (_stop_once(asked), real(*args, **named))[1]
    )
    code, stopped = paste(printed_commands(finished)[0])
    assert code == 6, stopped
    code, said = paste(printed_commands(stopped)[-1])
    assert code == 0, said
    assert "step_000012" in [path.name for path in root.iterdir()]
    assert not Path("checkpoints").exists()


def _stop_once(asked: list[bool]) -> None:
    if not asked:
        asked.append(True)
        signal.raise_signal(signal.SIGTERM)


def test_training_on_keeps_what_the_command_named(tiny_run, capsys, paste):
    """Its files and options come again, and a word behind `--` stays there."""
    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0
    arguments = ["resume", "-c", str(tiny_run), "--quiet", "--set", "optimizer.lr=0.5", "--", "checkpoints"]
    capsys.readouterr()
    assert app.run([*arguments[:3], *arguments[4:]]) == 0
    line = printed_commands(capsys.readouterr().out)[0]

    code, said = paste(line)

    assert code == 0, said
    assert line.endswith(" -- checkpoints")
    assert "lr: 0.5" in Path("checkpoints/step_000012/config.yaml").read_text()


@pytest.mark.parametrize("name", [WORST])
def test_the_commands_around_checkpoints_that_cannot_be_used_name_them(tiny_run, capsys, paste, name):
    """A damaged one, one that the run went on after, and weights alone."""
    line = ["pretrain", "-c", str(tiny_run), "--set", setting("checkpoint.checkpoint_dir", name)]
    assert app.run(line) == 0
    root = Path(name)
    shutil.copytree(root / "step_000006/model", "weights")
    capsys.readouterr()

    assert app.run(["resume", "--", f"{name}/step_000002"]) == 4
    went_on = capsys.readouterr().err
    assert paste(printed_commands(went_on)[0])[0] == 0
    (root / "step_000002/manifest.json").unlink()
    assert app.run(["resume", "--", f"{name}/step_000002"]) == 4
    damaged = capsys.readouterr().err
    assert "step_000006" in paste(printed_commands(damaged)[0])[1]

    imported = f"{name} too"
    assert app.run(["import", "weights", f"--out={imported}"]) == 0
    inspect, train = printed_commands(capsys.readouterr().out)
    assert "weights only" in paste(inspect)[1]
    code, said = paste(train.replace("FILE", str(tiny_run)), "--check", instead=("config", "show"))
    assert code == 0, said
    assert _starting_from(Path(imported)) == train


@pytest.mark.parametrize("name", [WORST, "${HOME}"])
def test_commands_about_damaged_data_name_their_directory(capsys, paste, name):
    """Checking what was written, and joining parts."""
    assert app.run(["prep", "shakespeare", "--max-tokens", "10K", f"--output-dir={name}", "--partition", "0/1"]) == 0
    part = next(Path(name).iterdir())
    shard = next(part.glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    capsys.readouterr()

    said = []
    with pytest.raises(AmcliError) as error:
        check_every_byte(part)
    said.append(str(error.value))
    assert app.run(["data", "merge", "--output", "whole", "--", str(part)]) == 3
    said.append(capsys.readouterr().err)

    for text in said:
        code, found = paste(printed_commands(text)[0])
        assert (code, "problem" in found) == (3, True), text


@pytest.mark.parametrize("name", [WORST, "${HOME}"])
def test_the_commands_around_a_new_configuration_name_its_file(prepared, capsys, paste, name):
    """On the terminal, and in the first lines of the file, which stay comments."""
    shutil.copytree(prepared / "bin", "data/shakespeare")

    assert app.run(["config", "init", "--", f"{name}.yaml"]) == 0
    check, train = printed_commands(capsys.readouterr().out)
    text = template("quickstart", name=f"{name}.yaml")
    within = [line.partition("      ")[0] for line in re.findall(r"^#   (amcli .+)$", text, flags=re.MULTILINE)]

    assert paste(check)[0] == 0
    assert paste(train, "--check", instead=("config", "show"))[0] == 0
    assert len(within) == 3
    assert paste(within[0])[0] == paste(within[1])[0] == 0


def test_the_command_after_running_out_of_memory_names_the_run(tiny_run, capsys, paste):
    """With the first of the changes that would help."""
    name = "it's full"
    assert app.run(["pretrain", "-c", str(tiny_run), "--set", f"checkpoint.checkpoint_dir={name}"]) == 0
    situation = Situation(load_config([tiny_run]), Path(name), None)
    named = [Saving("--set activation_checkpointing.mode=full", "", None)]

    line = printed_commands("\n".join(_where_it_goes_on(situation, named)))[0]

    code, said = paste(line)
    assert code == 0, said
    assert "activation_checkpointing.mode" in said


def test_a_suggested_command_keeps_the_words_of_the_wrong_one(capsys, paste):
    """With their quotes."""
    Path("my file.yaml").write_text("seed: 3\n")

    assert app.run(["confg", "show", "-c", "my file.yaml", "--changed-only"]) == 2

    assert "my file.yaml" in paste(printed_commands(capsys.readouterr().err)[0])[1]
