"""A wrong command line: the right usage, what is wrong, and what was probably meant."""

from __future__ import annotations

import pytest

from automodel_cli import app

CASES = [
    ("confg show", "`amcli` has no command `confg`", "did you mean `amcli config show`?"),
    ("train -c a.yaml", "`amcli` has no command `train`", "did you mean `amcli pretrain -c a.yaml`?"),
    ("inspect_ckpt", "`amcli` has no command `inspect_ckpt`", "did you mean `amcli inspect-ckpt`?"),
    ("config shwo", "`amcli config` has no command `shwo`", "did you mean `amcli config show`?"),
    ("show", "`amcli` has no command `show`", "did you mean `amcli config show`?"),
    ("plot", "`amcli` has no command `plot`", "the commands are: prep, plan, pretrain, "),
    ("help xyz", "`amcli` has no command `xyz`", "the commands are: prep, plan, pretrain, "),
    ("pretrain --model gpt2", "takes no option `--model`", "a section of the configuration: --set model.KEY=VALUE"),
    ("inspect-ckpt --model gpt2", "takes no option `--model`", "`amcli inspect-ckpt --help`"),
    ("pretrain --nodes 2", "takes no option `--nodes`", "did you mean --nnodes?"),
    ("xyz", "`amcli` has no command `xyz`", "the commands are: prep, plan, pretrain, "),
    ("--bogus", "`amcli` takes no option `--bogus`", "`amcli --help` shows what there is"),
    ("pretrain --ste", "`amcli pretrain` takes no option `--ste`", "did you mean --set?"),
    ("resume --jsn", "`amcli resume` takes no option `--jsn`", "did you mean --json?"),
    ("sample --temprature 1", "`amcli sample` takes no option `--temprature`", "did you mean --temperature?"),
    ("pretrain --temperature 1", "takes no option `--temperature`", "it is an option of `amcli sample`"),
    (
        "inspect-ckpt --set a=1",
        "takes no option `--set`",
        "it is an option of `amcli plan`, `amcli pretrain`, ",
    ),
    ("pretrain --max-steps 5", "takes no option `--max-steps`", "--set step_scheduler.max_steps=5"),
    ("pretrain --lr=3e-4", "takes no option `--lr`", "--set optimizer.lr=3e-4"),
    ("config show --lr --json", "takes no option `--lr`", "--set optimizer.lr=VALUE"),
    ("pretrain -x", "`amcli pretrain` takes no option `-x`", "`amcli pretrain --help` shows what there is"),
    ("pretrain my.yaml", "`amcli pretrain` takes no argument `my.yaml`", "did you mean -c my.yaml?"),
    ("pretrain seed=1", "takes no argument `seed=1`", "did you mean --set seed=1?"),
    ("inspect-ckpt a b", "`amcli inspect-ckpt` takes no argument `b`", "`amcli inspect-ckpt --help`"),
    ("pretrain --set", "`--set` needs a value", "--set KEY=VALUE"),
    ("sample --temperature hot", "'hot' is not a number", "`amcli sample --help`"),
    ("sample --top-k 1.5", "'1.5' is not a whole number", "`amcli sample --help`"),
]


@pytest.mark.parametrize(("line", "message", "help_"), CASES, ids=[case[0] for case in CASES])
def test_a_wrong_line_is_answered_with_usage_mistake_and_way_out(capsys, line, message, help_):
    """Three lines on standard error, nothing on standard output, and exit code 2."""
    assert app.run(line.split()) == 2

    printed = capsys.readouterr()
    usage, error, hint = printed.err.splitlines()
    assert usage.startswith("Usage: amcli")
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("  help: ")
    assert help_ in hint
    assert printed.out == ""


@pytest.mark.parametrize("form", [["--model.n_layer", "7"], ["--model.n_layer=7"], ["--set", "model.n_layer=7"]])
def test_a_dotted_override_is_never_taken_for_an_argument(capsys, form):
    """`amcli resume --model.n_layer 7` means the newest checkpoint, not one of the name `--model.n_layer`."""
    assert app.run(["resume", *form]) == 4

    assert "checkpoints: there is no such directory" in capsys.readouterr().err


@pytest.mark.parametrize("rest", [[], ["--json"], ["--set", "seed=1"]])
def test_a_dotted_override_needs_a_value(capsys, rest):
    """The next option is not one."""
    assert app.run(["config", "show", "--model.n_layer", *rest]) == 2

    assert "`--model.n_layer` needs a value" in capsys.readouterr().err


def test_overrides_count_in_the_order_in_which_they_stand(capsys):
    """Whatever form they have, the last one wins."""
    forms = ["--set", "seed=1", "--model.n_layer", "5", "--set", "model.n_layer=6", "--format", "flat", "--no-origins"]

    assert app.run(["config", "show", *forms]) == 0

    assert "model.n_layer=6" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("words", [[], ["prep"], ["data"], ["data", "merge"], ["config", "show"]], ids=" ".join)
def test_a_help_page_has_three_ways_in(capsys, words):
    """`-h` and `help` in front are `--help`."""
    pages = []
    for line in ([*words, "--help"], [*words, "-h"], ["help", *words]):
        assert app.run(line) == 0
        pages.append(capsys.readouterr().out)

    assert pages[0].startswith("Usage: ")
    assert pages[0] == pages[1] == pages[2]


@pytest.mark.parametrize("columns", ["60", "80", "120"])
@pytest.mark.parametrize("words", [[], ["data"], ["config"]], ids=" ".join)
def test_the_summary_of_a_command_is_a_whole_sentence(capsys, monkeypatch, words, columns):
    """On as many lines as it needs."""
    monkeypatch.setenv("COLUMNS", columns)

    assert app.run([*words, "--help"]) == 0

    page = capsys.readouterr().out
    assert "..." not in page.partition("Commands:")[2]
    assert max(map(len, page.partition("Commands:")[2].splitlines())) <= int(columns)
