"""What is offered behind each part of a command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from automodel_cli import app
from automodel_cli.commands.complete import checkpoints, config_files

YAML = """
model:
  _target_: mine.py:build
  depth: 3
  sizes: [1, 2]
  inner: {deep: 1}
dataset:
  _target_: automodel_cli.engine.data.nanogpt_dataset.NanogptDataset
  file_pattern: data/train_*.bin
"""
MODULE = '''
from typing import Literal

raise RuntimeError("completion must not run this")


def build(depth: int, reduction: Literal["sum", "mean"] = "sum", tied: bool = True, name: str | None = None):
    """A model.

    Args:
        depth: How deep it is.
    """
'''


@pytest.fixture
def workplace(tmp_path) -> Path:
    """A working directory with a configuration, the module that it names, and a few files."""
    (tmp_path / "mine.yaml").write_text(YAML)
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "other.yml").write_text("seed: 1\n")
    return tmp_path


@pytest.fixture
def offer(monkeypatch, capsys):
    """The candidates for the end of a line, each with its help; asked as fish asks."""

    def ask(line: str) -> dict[str, str]:
        monkeypatch.setenv("_AMCLI_COMPLETE", "complete_fish")
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        with pytest.raises(SystemExit) as ended:
            app.run([])
        printed = capsys.readouterr()
        assert (ended.value.code, printed.err) == (0, "")
        return dict(pair.partition("\t")[::2] for pair in printed.out.splitlines() if pair)

    return ask


def make_checkpoint(directory: Path, *, is_complete: bool = True) -> None:
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(YAML.replace("mine.py:build", "mine.py:missing").replace("depth", "width"))
    if is_complete:
        (directory / "manifest.json").write_text("{}")


def test_the_keys_of_the_builtin_configuration_follow_set(offer):
    """Without -c they come from the file that a run would use, and from the callable's signature and docstring."""
    found = offer("amcli config show --set model.n_")

    assert list(found) == ["model.n_positions=", "model.n_embd=", "model.n_layer=", "model.n_head="]
    assert found["model.n_layer="] == "Transformer blocks."


def test_arguments_that_no_file_gives_come_from_the_signature(offer, workplace):
    """The module is read, not run: it would raise."""
    found = offer("amcli pretrain -c mine.yaml --set model.")

    assert {"model.depth=", "model.reduction=", "model.tied=", "model.name=", "model._target_="} <= set(found)
    assert found["model.depth="] == "How deep it is."


def test_keys_are_offered_up_to_the_next_dot(offer, workplace):
    """Sections first, each with what is in it; then their keys."""
    top = offer("amcli pretrain -c mine.yaml --set ")

    assert {"seed=", "model.", "dataset.", "step_scheduler."} <= set(top)
    assert "max_steps" in top["step_scheduler."]
    assert not [candidate for candidate in top if not candidate.endswith(("=", "."))]
    assert list(offer("amcli pretrain -c mine.yaml --set model.inn")) == ["model.inner."]
    assert list(offer("amcli pretrain -c mine.yaml --set model.inner.")) == ["model.inner.deep="]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("checkpoint.enabled", ["true", "false"]),
        ("precision", ["auto", "fp32", "tf32", "bf16", "bf16-params", "fp8"]),
        ("distributed.strategy", ["null", "ddp", "fsdp2"]),
        ("step_scheduler.local_batch_size", ["auto"]),
        ("model.tied", ["true", "false"]),
        ("model.reduction", ["sum", "mean"]),
        ("model.name", ["null"]),
        ("model.depth", ["3"]),
        ("model.sizes", ["[1, 2]"]),
        ("clip_grad_norm.max_norm", ["null", "1.0"]),
        ("model._target_", []),
        ("model.no_such_key", []),
    ],
)
def test_values_follow_the_equals_sign(offer, workplace, key, values):
    """All of a type that has few, else the value that holds now; of a target there is nothing to guess."""
    found = offer(f"amcli pretrain -c mine.yaml --set {key}=")

    assert list(found) == [f"{key}={value}" for value in values]


def test_a_target_inside_a_target_has_keys_of_its_own(offer):
    """The section whose keys are asked for is the one whose callable is read."""
    found = offer(
        "amcli pretrain --set model._target_=mine.py:f --set model.config._target_=torch.optim.SGD --set model.config."
    )

    assert {"model.config._target_=", "model.config.momentum="} <= set(found)


def test_an_override_on_the_line_is_the_present_value(offer, workplace):
    """Both forms of an override count, and the last one wins."""
    assert list(offer("amcli pretrain --set seed=5 --set seed=")) == ["seed=5"]
    assert list(offer("amcli pretrain --model.n_layer 7 --set model.n_layer=")) == ["model.n_layer=7"]


def test_a_value_that_is_a_path_is_completed_as_one(offer, workplace):
    """Judged by the key's name; the pattern that is there comes first."""
    key = "dataset.file_pattern"

    assert list(offer(f"amcli pretrain -c mine.yaml --set {key}=")) == [f"{key}=data/train_*.bin"]
    assert list(offer(f"amcli pretrain -c mine.yaml --set {key}=su")) == [f"{key}=sub/"]


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("--model.red", ["--model.reduction="]),
        ("--model.reduction=s", ["--model.reduction=sum"]),
        ("--model.reduction m", ["mean"]),
        ("--set=model.red", ["--set=model.reduction="]),
        ("--set=model.reduction=s", ["--set=model.reduction=sum"]),
        ("--mode", ["--model."]),
    ],
)
def test_every_form_of_an_override_is_completed(offer, workplace, line, candidates):
    """The candidate is the whole word, since a shell compares it with what has been typed."""
    assert list(offer(f"amcli pretrain -c mine.yaml {line}")) == candidates


def test_a_command_without_overrides_offers_no_keys(offer):
    """`--model.` is an option of the training commands only."""
    assert offer("amcli inspect-ckpt --model.") == {}


def test_options_that_name_a_key_offer_keys(offer):
    """--unset and --explain take the key alone."""
    assert list(offer("amcli config show --unset optimizer.wei")) == ["optimizer.weight_decay"]
    assert list(offer("amcli config show --explain step_scheduler.max")) == ["step_scheduler.max_steps"]


@pytest.mark.parametrize("text", ["model: [", "a: 1\na: 2\n", "!!python/object:os.system {}\n", "\0", "- 1\n"])
def test_a_broken_file_on_the_line_is_passed_over(offer, workplace, text):
    """The keys of the other files are offered, or the built-in ones, and nothing is said."""
    (workplace / "broken.yaml").write_text(text)

    assert "model.depth=" in offer("amcli pretrain -c mine.yaml -c broken.yaml --set model.")
    assert "model.n_layer=" in offer("amcli pretrain -c broken.yaml --set model.")


def test_a_pipe_on_the_line_is_not_waited_for(offer, workplace):
    """Reading it would block the prompt until somebody writes."""
    os.mkfifo(workplace / "pipe.yaml")

    assert "model.n_layer=" in offer("amcli pretrain -c pipe.yaml --set model.")


@pytest.mark.parametrize(
    "line", ["amcli confg ", "amcli --bogus ", "amcli --version ", "amcli pretrain --bogus --set "]
)
def test_a_wrong_line_is_not_answered_with_an_error(offer, line):
    """Nothing is printed but candidates; `offer` refuses a word on standard error."""
    assert not any(word in candidate for candidate in offer(line) for word in ("rror", "amcli"))


def test_a_key_that_could_be_code_is_not_offered(offer, workplace):
    """For zsh, which evaluates the answer: keys with anything but letters, digits, `_` and `-` are left out."""
    (workplace / "evil.yaml").write_text("model: {'$(touch owned)': 1, 'a b': 2, \"x';y\": 3, fine: 4}\n")

    found = offer("amcli pretrain -c evil.yaml --set model.")

    assert "model.fine=" in found
    assert not [candidate for candidate in found if set(candidate) & set("$(' ;")]


@pytest.mark.parametrize("name", ["api_key", "password", "hf_token", "client_secret"])
def test_a_secret_is_not_put_on_the_screen(offer, workplace, name):
    """Its key is offered, and its value is not."""
    (workplace / "private.yaml").write_text(f"model: {{{name}: canary}}\n")

    assert f"model.{name}=" in offer("amcli pretrain -c private.yaml --set model.")
    assert offer(f"amcli pretrain -c private.yaml --set model.{name}=") == {}


def test_config_files_are_yaml_and_directories(offer, workplace):
    """A directory ends in a slash, and hidden ones wait for their dot."""
    (workplace / ".hidden").mkdir()

    assert list(offer("amcli pretrain -c ")) == ["mine.yaml", "sub/"]
    assert list(offer("amcli pretrain -c sub/")) == ["sub/other.yml"]
    assert config_files(".h") == [(".hidden/", "")]
    assert config_files("nowhere/") == []
    assert config_files("~/") == []


@pytest.mark.parametrize("command", ["resume", "sample", "inspect-ckpt"])
def test_checkpoints_are_offered_with_their_steps(offer, workplace, command):
    """The directory that leads to checkpoints first, then its links and steps."""
    make_checkpoint(workplace / "runs/wide/step_000010")
    make_checkpoint(workplace / "runs/wide/step_000020", is_complete=False)
    (workplace / "runs/wide/LATEST").symlink_to("step_000010")

    assert list(offer(f"amcli {command} ")) == ["runs/"]
    assert offer(f"amcli {command} runs/wide/") == {
        "runs/wide/LATEST": "the newest",
        "runs/wide/step_000010": "after step 10",
        "runs/wide/step_000020": "incomplete",
    }


def test_without_checkpoints_directories_are_offered(workplace):
    """They may lie deeper than what is looked at."""
    assert checkpoints("") == [("sub/", "")]


def test_resume_offers_the_keys_of_its_checkpoint(offer, workplace):
    """The configuration that is resumed is the checkpoint's, named or newest."""
    make_checkpoint(workplace / "checkpoints/step_000010")

    assert "model.width=" in offer("amcli resume --set model.")
    assert "model.width=" in offer("amcli resume checkpoints/step_000010 --set model.")


def test_what_the_engine_passes_is_not_offered(offer):
    """The parameters of an optimizer are no key."""
    found = offer("amcli pretrain --set optimizer.")

    assert "optimizer.lr=" in found
    assert "optimizer.params=" not in found


def test_init_offers_its_presets(offer):
    """By name."""
    assert list(offer("amcli config init --preset ")) == ["quickstart", "nanogpt-124m", "hf-llama"]


def test_prep_offers_presets_and_texts(offer, workplace):
    """Presets say what they are."""
    found = offer("amcli prep ")

    assert "no network" in found["shakespeare"]
    assert {"notes.txt", "sub/"} <= set(found)
    assert "mine.yaml" not in found


@pytest.mark.parametrize("command", ["prep", "sample"])
def test_tokenizers_are_the_embedded_ones_and_directories(offer, workplace, command):
    """A saved tokenizer is a directory."""
    assert list(offer(f"amcli {command} --tokenizer ")) == ["bytes", "gpt2", "sub/"]


def test_commands_and_options_are_offered_with_their_meaning(offer):
    """As Typer does it."""
    assert "Train a new model" in offer("amcli pre")["pretrain"]
    assert list(offer("amcli config s")) == ["show", "schema"]
    assert offer("amcli pretrain --overw") == {
        "--overwrite": "Delete the checkpoints of the run that is in the directory."
    }
