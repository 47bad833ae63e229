"""`amcli config`: valid YAML with origins, for people and for scripts; files to start from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
from pathlib import Path

import jsonschema
import pytest

from automodel_cli import app
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.config.template import PRESETS
from automodel_cli.engine.config.yaml_reader import parse_yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICKSTART = EXAMPLES / "quickstart.yaml"
FORMATS = ["yaml", "table", "json", "flat"]


@pytest.fixture
def config(capsys):
    """Runs `amcli config ...` and returns what it printed."""

    def run(*arguments, code=0):
        assert app.run(["config", *map(str, arguments)]) == code
        return capsys.readouterr()

    return run


@pytest.fixture
def show(config):
    """Runs `amcli config show ...`."""
    return lambda *arguments, code=0: config("show", *arguments, code=code)


@pytest.fixture
def mine(tmp_path):
    """A configuration file with one mistake in each of two lines."""
    path = tmp_path / "mine.yaml"
    path.write_text("seed: -1\nstep_scheduler:\n  max_step: 3\n")
    return path


@pytest.fixture
def on_a_terminal(terminal):
    """The output of `amcli` on a terminal of 200 columns."""

    def run(*arguments, **environment):
        clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        screen = terminal(columns=200)
        line = [sys.executable, "-m", "automodel_cli", *arguments]
        assert screen.run(line, env={**clean, "TERM": "xterm", **environment}) == 0
        return screen.close()

    return run


@pytest.mark.usefixtures("named_shards")
def test_the_output_is_yaml_that_says_where_everything_comes_from(show, tmp_path):
    """File and line, option or default stand beside each value."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("model:\n  n_layer: 6\n")

    text = show("-c", QUICKSTART, "-c", mine, "--set", "optimizer.lr=1e-3").out

    values = parse_yaml(text, source="x", kind="file").value
    assert (values["model"]["n_layer"], values["optimizer"]["lr"]) == (6, 1e-3)
    origins = {line.split(":")[0].strip(): line.split("# ")[-1] for line in text.splitlines() if "# " in line}
    assert origins["n_layer"].endswith("mine.yaml:2")
    assert origins["lr"] == "--set optimizer.lr"
    assert origins["num_workers"] == "default"


@pytest.mark.parametrize("form", [["--set", "model.n_layer=24"], ["--model.n_layer", "24"], ["--model.n_layer=24"]])
def test_the_three_forms_of_an_override_are_one(show, form):
    """`--set` and the dotted options mean the same."""
    assert json.loads(show("--json", *form).out)["config"]["model"]["n_layer"] == 24


@pytest.mark.parametrize("option", [["--json"], ["--format", "json"]])
def test_json_has_values_and_origins(show, option):
    """The keys of the JSON are stable: config, origins by dotted key, and what follows from them."""
    shown = json.loads(show(*option, "--set", "seed=3").out)

    assert set(shown) == {"config", "origins", "derived"}
    assert shown["origins"]["seed"] == "--set seed"
    assert shown["origins"]["model.n_layer"].startswith("built-in quickstart.yaml:")


def test_the_flat_form_can_be_pasted_as_overrides(show):
    """One line for each value, which gives the same configuration when it follows `--set`."""
    lines = show("--format", "flat", "--no-origins").out.splitlines()

    again = load_config(None, lines)

    assert again.values == load_config(None).values
    assert "model.n_layer=4" in lines


def test_the_table_has_a_row_for_each_value(show):
    """Key, value and origin, aligned; without origins, two columns."""
    header, *rows = show("--format", "table").out.splitlines()

    assert header.split() == ["key", "value", "origin"]
    assert {row.split()[0] for row in rows} == {
        line.split("=")[0] for line in show("--format", "flat").out.splitlines()
    }
    assert {row.index(row.split()[1]) for row in rows} == {header.index("value")}
    assert show("--format", "table", "--no-origins").out.splitlines()[0].split() == ["key", "value"]


def test_a_pipe_gets_whole_lines(show, monkeypatch):
    """A script must not lose the end of a path."""
    monkeypatch.delenv("COLUMNS", raising=False)

    text = show("--format", "table").out

    assert "…" not in text
    assert "automodel_cli.engine.data.nanogpt_dataset.NanogptDataset" in text


def test_what_is_wrong_is_said_after_what_is_there(show):
    """The configuration is printed also when it does not pass, and the exit code tells."""
    printed = show("--set", "step_scheduler.max_step=3", code=2)

    assert "max_step: 3" in printed.out
    assert "did you mean `max_steps`?" in printed.err


@pytest.mark.parametrize("form", FORMATS)
def test_no_origins_prints_bare_values(show, form):
    """For a file to start from."""
    text = show("--format", form, "--no-origins").out

    assert "#" not in text
    assert "quickstart.yaml" not in text
    assert "origin" not in text


def test_what_follows_from_the_values_stands_behind_them_as_comments(show):
    """Exact numbers of the built-in run; the output is read as the same YAML with and without them."""
    printed = show("--set", "model.n_layer=5").out

    values, comments = printed.split("# derived\n")
    assert parse_yaml(printed, source="x", kind="file").value == parse_yaml(values, source="x", kind="file").value
    assert all(line.startswith("# ") for line in comments.splitlines())
    assert re.search(r"parameters +1,040,896 ", comments)
    assert re.search(r"tokens per step +2,048 ", comments)


@pytest.mark.parametrize("option", ["--no-origins", "--changed-only"])
@pytest.mark.parametrize("form", ["yaml", "json"])
def test_a_file_to_start_from_holds_only_values(show, option, form):
    """What follows is left out with the origins, and where a part of the configuration is shown."""
    assert "derived" not in show(option, "--format", form).out


def test_nothing_follows_from_a_wrong_configuration(show):
    """But from one whose data is not there yet, everything does."""
    missing = "dataset.file_pattern=nowhere/*.bin"

    assert "derived" not in show("--set", "step_scheduler.max_steps=0", code=2).out
    assert "# derived" in show("--set", missing, code=3).out


def test_changed_only_leaves_out_defaults(show):
    """What one has changed of the built-in run, and nothing else."""
    text = show("--changed-only", "--no-origins", "--set", "seed=3", "--set", "model.n_layer=4").out

    assert text == "seed: 3\n"


def test_unset_takes_a_key_out(show):
    """As often as wanted; the default of a key of ours comes back."""
    shown = json.loads(show("--json", "--unset", "model.dropout", "--unset", "seed").out)

    assert "dropout" not in shown["config"]["model"]
    assert (shown["config"]["seed"], shown["origins"]["seed"]) == (1234, "default")


def test_unset_of_an_unknown_key_is_an_error_with_the_nearest(show):
    """And shows the option with a caret below it."""
    printed = show("--unset", "model.n_layr", code=2)

    assert printed.out == ""
    assert (
        "      | --unset model.n_layr\n      |         ^^^^^^^^^^^^\n  help: did you mean `model.n_layer`?"
        in printed.err
    )


@pytest.mark.usefixtures("named_shards")
def test_check_prints_one_line_if_all_is_well(show):
    """Only the verdict."""
    assert re.fullmatch(r"the built-in configuration: \d\d checks passed\n", show("--check").out)
    assert show("--check", "-c", QUICKSTART).out.startswith(f"{QUICKSTART}: ")


@pytest.mark.usefixtures("named_shards")
def test_check_prints_all_that_is_wrong_and_nothing_else(show, mine):
    """Each with file, line, column and a caret; exit code 2."""
    printed = show("--check", "-c", QUICKSTART, "-c", mine, code=2)

    assert printed.out == ""
    assert f"{mine.name}:1:7: seed is -1" in printed.err
    assert f"{mine.name}:3:3: unknown key `step_scheduler.max_step`" in printed.err
    assert printed.err.count("^") == 2


@pytest.mark.parametrize("text", ["seed: -1\nstep_scheduler:\n  max_step: 3\n", "seed: [\n"])
def test_check_for_scripts_is_json_whatever_is_wrong(show, tmp_path, text):
    """A list of problems, also when the file cannot be read as YAML."""
    path = tmp_path / "a.yaml"
    path.write_text(text)

    verdict = json.loads(show("--check", "--json", "-c", path, code=2).out)

    assert (verdict["config"], verdict["ok"]) == (str(path), False)
    assert verdict["problems"]
    assert all(set(problem) == {"where", "message", "help"} for problem in verdict["problems"])
    sound = json.loads(show("--check", "--json").out)
    assert sound.pop("checks") > 40
    assert sound == {
        "config": "the built-in configuration",
        "ok": True,
        "problems": [],
        "not_checked": [],
        "notes": [],
    }


def test_check_says_what_it_could_not_check(show, tmp_path):
    """In the verdict; on standard error why."""
    (tmp_path / "mine.py").write_text("build = make()\n")
    model = f"model={{_target_: '{tmp_path}/mine.py:build'}}"

    printed = show("--check", "--set", model)

    assert re.search(rf"\d checks passed; not checked: the keywords of `{tmp_path}/mine.py:build`\n", printed.out)
    assert printed.err.startswith("note: ")
    assert f"the keywords of `{tmp_path}/mine.py:build` not checked: --set model: it is computed" in printed.err
    not_checked = json.loads(show("--check", "--json", "--set", model).out)["not_checked"]
    assert [each["what"] for each in not_checked] == [f"the keywords of `{tmp_path}/mine.py:build`"]


def test_code_of_the_users_own_is_listed_with_its_digest(show, tmp_path):
    """Once for each file, however many targets it holds, before anything of it runs."""
    source = tmp_path / "mine.py"
    source.write_text("def build(vocab_size=1): ...\ndef loss(): ...\n")

    parts = ["--set", f"model={{_target_: '{source}:build'}}", "--set", f"loss_fn._target_={source}:loss"]
    notes = json.loads(show("--check", "--json", *parts).out)["notes"]

    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert notes == [f"{source}:build, {source}:loss: runs code of {source}, SHA-256 {digest}"]


def test_a_checkpoints_own_code_needs_consent(show, named_shards, tmp_path):
    """It is shown as it is; to run it, `--trust-config` has to be said, and the error names it."""
    (tmp_path / "mine.py").write_text("def build(vocab_size=1): ...\n")
    stored = QUICKSTART.read_text().replace("automodel_cli.engine.models.gpt2.build_gpt2_model", "mine.py:build")
    (tmp_path / "config.yaml").write_text(stored)
    unset = [
        word
        for key in ("n_positions", "n_embd", "n_layer", "n_head", "dropout")
        for word in ("--unset", f"model.{key}")
    ]

    refused = show("-c", str(tmp_path), *unset, "--check", code=2).err

    assert "--trust-config" in refused
    assert "mine.py:build" in refused
    assert " checks passed" in show("-c", str(tmp_path), *unset, "--check", "--trust-config").out
    assert "mine.py:build" in show("-c", str(tmp_path), *unset).out


def test_diff_tells_old_and_new_value_and_both_origins(show):
    """From the other configuration to the one that is shown."""
    arguments = ["--diff", QUICKSTART, "-c", EXAMPLES / "fineweb.yaml", "--set", "model.n_layer=24"]

    rows = {row.split()[0]: re.split(r"  +", row) for row in show(*arguments).out.splitlines()}
    found = {each["key"]: each for each in json.loads(show(*arguments, "--json").out)["differences"]}

    assert rows["model.n_layer"][1:3] == ["4", "24"]
    assert rows["model.n_layer"][4] == "--set model.n_layer"
    assert found["model.n_layer"]["old"]["origin"].startswith(f"{QUICKSTART}:")
    assert found["model.n_layer"]["new"] == {"value": 24, "origin": "--set model.n_layer"}
    assert "seed" not in found


def test_diff_with_a_checkpoint_reads_its_configuration(show, tmp_path):
    """A directory with a config.yaml stands for that; a key that only one side has is told as absent."""
    checkpoint = tmp_path / "step_000100"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").touch()
    (checkpoint / "config.yaml").write_text(show("--no-origins").out)

    assert show("--diff", checkpoint).out == "no key differs\n"
    found = json.loads(show("--diff", checkpoint, "--json", "--set", "model.bias=false").out)["differences"]

    assert found == [{"key": "model.bias", "old": None, "new": {"value": False, "origin": "--set model.bias"}}]
    assert show("--diff", checkpoint.parent).out == "no key differs\n"
    assert "(absent)" in show("--diff", checkpoint, "--set", "model.bias=false").out


def test_diff_asks_no_question_of_soundness(show, mine):
    """Two broken configurations can be compared: exit code 0."""
    assert "seed" in show("-c", mine, "--diff", QUICKSTART).out


def test_explain_tells_what_a_key_means_and_what_it_is(show):
    """One fact a line, or all of them as JSON."""
    text = show("--explain", "lr_scheduler.lr_decay_style", "--set", "lr_scheduler.lr_decay_style=linear").out
    facts = json.loads(show("--explain", "lr_scheduler.lr_decay_style", "--json").out)

    assert text.splitlines()[0] == "lr_scheduler.lr_decay_style"
    for words in ("shape of the decay", "text", "constant", "inverse-square-root or WSD", "--set lr_scheduler"):
        assert words in text
    expected = {"key", "meaning", "type", "default", "allowed", "value", "origin", "used_by", "keys"}
    assert set(facts) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["--check", "--explain", "seed"],
        ["--diff", "other.yaml", "--check"],
        ["--changed-only", "--check"],
        ["--json", "--format", "flat"],
        ["--explain", "seed", "--format", "table"],
        ["--format", "toml"],
    ],
    ids=" ".join,
)
def test_options_that_contradict_each_other_are_refused(show, arguments):
    """Rather than one of them being ignored."""
    assert show(*arguments, code=2).out == ""


@pytest.mark.parametrize(
    "arguments",
    [*(["show", "--format", form] for form in FORMATS), ["show", "--explain", "seed"], ["schema"], ["init", "-"]],
    ids=" ".join,
)
def test_a_pipe_gets_no_control_codes(config, arguments):
    """Neither colours nor anything else that a file should not hold."""
    assert re.search(r"[^\n\x20-\x7e]", config(*arguments).out) is None


@pytest.mark.usefixtures("named_shards")
def test_the_learning_rate_is_drawn_and_listed(show):
    """The same curve as a picture with labels, and as pairs of step and rate."""
    wsd = ("--plot-lr", "--set", "lr_scheduler.lr_decay_style=WSD", "--set", "optimizer.lr=8e-3")

    drawn = show(*wsd).out.splitlines()
    listed = json.loads(show(*wsd, "--json").out)

    assert drawn[0] == "learning rate: WSD (1-sqrt), 0.008 to 0.0004, warm-up 40 steps, decay from step 480 to 600"
    assert drawn[1].startswith("  8.00e-03 ")
    assert drawn[-1].split() == ["1", "step", "600", "(1,228,800", "tokens)"]
    rates = dict(listed["lr"])
    assert (rates[1], rates[40], rates[480]) == (pytest.approx(2e-4), 8e-3, 8e-3)
    assert 4e-4 < rates[600] < 8e-4
    assert listed["decay_begin_step"] == 480


@pytest.mark.usefixtures("named_shards")
def test_an_output_of_ascii_gets_a_curve_of_stars(show, monkeypatch):
    """Rather than signs that it cannot write."""
    monkeypatch.setenv("TERM", "dumb")

    text = show("--plot-lr").out

    assert text.isascii()
    assert "*" in text


def test_a_terminal_sees_origins_dimmed_unless_no_color_is_set(on_a_terminal):
    """The values stand out; without the codes the text is the same."""
    dimmed = on_a_terminal("config", "show")
    plain = on_a_terminal("config", "show", NO_COLOR="1")

    assert "\x1b[2m# default\x1b[0m" in dimmed
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[\d*m", "", dimmed) == plain


@pytest.mark.usefixtures("named_shards")
def test_init_writes_a_file_that_passes_the_check(config, tmp_path):
    """And says how to go on; what it says works."""
    told = config("init").out

    assert (tmp_path / "my.yaml").is_file()
    command = re.search(r"amcli (config show .*--check)", told)[1]
    assert config(*shlex.split(command)[1:]).out.endswith(" checks passed\n")


def test_init_overwrites_nothing_without_force(config, tmp_path):
    """A second call is an error, and the file is as it was."""
    path = tmp_path / "a.yaml"
    path.write_text("seed: 7\n")

    assert "--force" in config("init", path, code=2).err
    assert path.read_text() == "seed: 7\n"
    config("init", path, "--force")
    assert "model:" in path.read_text()


@pytest.mark.parametrize("preset", PRESETS)
def test_init_can_print_each_preset(config, preset):
    """`-` is standard output, and nothing is written."""
    assert parse_yaml(config("init", "-", "--preset", preset).out, source="x", kind="file").value["model"]


def test_init_names_the_nearest_preset(config):
    """As for any mistyped name."""
    assert "did you mean `hf-llama`?" in config("init", "-", "--preset", "hf-lama", code=2).err


def test_schema_is_json_that_accepts_what_show_prints(config):
    """The two commands are about the same thing."""
    schema = json.loads(config("schema").out)

    jsonschema.validate(json.loads(config("show", "--json").out)["config"], schema)
