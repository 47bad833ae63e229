"""`amcli prep` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from automodel_cli.commands.prep import prep
from automodel_cli.errors import DataError, UsageError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command("prep")(prep)


@pytest.fixture
def run():
    """Runs `amcli prep` with these arguments in an empty working directory; an error is raised as it is."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, arguments, catch_exceptions=False)


def test_the_summary_says_what_was_made_and_what_comes_next(run):
    """Documents, tokens, shards, unigram entropy, and the next command."""
    result = run("shakespeare")

    assert result.exit_code == 0
    assert "data/shakespeare is ready" in result.stdout
    assert "139 documents, 1 shard, unigram entropy 3.346 nats" in result.stdout
    assert result.stdout.rstrip().endswith("next: amcli pretrain")


def test_a_second_run_says_that_it_did_nothing(run):
    """And exits as well as the first."""
    run("shakespeare")

    result = run("shakespeare")

    assert result.exit_code == 0
    assert "is there already, made with the same settings" in result.stdout


def test_every_option_reaches_preparation(run, tmp_path):
    """Seen in the manifest, which --json prints as one JSON document."""
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"body": f"text {n} " * 9}) + "\n" for n in range(50)))

    result = run(
        *["mine.jsonl", "--max-tokens", "1.2k", "--val-tokens", "1_00", "--tokenizer", "bytes", "--output-dir", "out"],
        *["--shard-tokens", "500", "--text-column", "body", "--json"],
    )

    printed = json.loads(result.stdout)
    splits = printed["manifest"]["splits"]
    assert printed["directory"] == "out"
    assert splits["train"]["num_tokens"] == 1200
    assert [shard["num_tokens"] for shard in splits["train"]["shards"]] == [500, 500, 200]
    assert splits["val"]["num_tokens"] >= 100
    assert printed["manifest"]["settings"]["text_column"] == "body"


def test_the_seed_guides_options_are_understood(run, tmp_path):
    """Workers, chunks, queues, lengths, boundaries, seeds, parts and formats, all at once."""
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"text": f"text {n} " * 9}) + "\n" for n in range(50)))

    result = run(
        *["mine.jsonl", "--tokenizer", "gpt2", "--output-dir", "out", "--chunk-size", "7", "--num-workers", "3"],
        *["--prefetch", "5", "--max-length", "20", "--over-length", "split", "--eos", "--seed", "3"],
        *["--shuffle-buffer", "10", "--partition", "0/1", "--format", "legacy", "--verify", "--json"],
    )

    printed = json.loads(result.stdout)
    settings = printed["manifest"]["settings"]
    assert printed["verified"] is True
    assert printed["directory"] == "out/part-00000-of-00001"
    assert printed["tokens_per_second"] > 0
    assert set(printed["stages"]) == {"reading", "tokenizing", "writing"}
    assert (settings["max_length"], settings["over_length"], settings["eos"]) == (20, "split", True)
    assert (settings["seed"], settings["shuffle_buffer"], settings["format"]) == (3, 10, "legacy")
    assert printed["manifest"]["splits"]["train"]["longest_document_tokens"] == 20


def test_a_dry_run_says_what_would_be_done_and_does_nothing(run, tmp_path):
    """Source, tokenizer and its engine, tokens, bytes, time and directory; JSON for scripts."""
    plain = run("shakespeare", "--dry-run").stdout
    printed = json.loads(run("shakespeare", "--dry-run", "--json").stdout)

    assert "would read shakespeare" in plain
    assert "about 1.0 M tokens, 2.1 MB on disk" in plain
    assert "would write to data/shakespeare; nothing was written" in plain
    assert printed["num_tokens"] == 1_034_251
    assert not (tmp_path / "data").exists()


def test_documents_left_out_and_split_are_in_the_summary(run, tmp_path):
    """By reason, so that a broken corpus is noticed."""
    (tmp_path / "mine.jsonl").write_text('{"text": null}\n{"text": "%s"}\n{"text": "b"}\n' % ("a" * 50))

    result = run("mine.jsonl", "--tokenizer", "bytes", "--max-length", "9", "--val-tokens", "0", "--verify")

    assert "left out: 1 documents (null), the first at mine.jsonl:1\n" in result.stdout
    assert "1 documents were longer than 9 tokens" in result.stdout
    assert "every byte was read again" in result.stdout


def test_what_would_help_documents_left_out_is_in_the_summary_and_for_scripts(run, tmp_path):
    """The size of the first, and the option with its value; in a dry run as in the summary."""
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}\n{"text": "%s"}\n' % ("x" * 50))
    arguments = ["mine.jsonl", "--tokenizer", "bytes", "--max-document-bytes", "20", "--val-tokens", "0"]
    found = "the first at mine.jsonl:2: 50 bytes"

    dry, plain = run(*arguments, "--dry-run").stdout, run(*arguments).stdout
    dry_json, again_json = (json.loads(run(*arguments, *more, "--json").stdout) for more in (["--dry-run"], []))

    for printed in (dry, plain):
        assert f"left out: 1 documents (too_large), {found}" in printed
        assert "note: too_large, first at mine.jsonl:2: raise --max-document-bytes, which is 20" in printed
    for document in (dry_json, again_json["manifest"]["reading"]):
        assert document["skipped"] == {"too_large": 1}
        assert document["first_skipped"] == {"too_large": {"where": "mine.jsonl:2", "found": "50 bytes"}}


def test_every_option_of_the_source_reaches_it(run, tmp_path):
    """Several files at once; text by lines; what is bad is left out and counted, or ends the run with its place."""
    (tmp_path / "a.txt").write_text("one\ntwo\n" + "x" * 30 + "\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n{"text": null}\n')
    arguments = ["a.txt", "b.jsonl", "--text-documents", "line", "--max-document-bytes", "20", "--val-tokens", "0"]

    printed = json.loads(run(*arguments, "--tokenizer", "bytes", "--json").stdout)

    assert printed["manifest"]["splits"]["train"]["num_documents"] == 3
    assert printed["manifest"]["settings"]["text_documents"] == "line"
    assert printed["manifest"]["settings"]["max_document_bytes"] == 20
    with pytest.raises(DataError, match=r"a\.txt:3: the document is bad: it is larger than --max-document-bytes"):
        run(*arguments, "--on-bad-doc", "fail", "--output-dir", "other")


def test_standard_input_is_a_source(tmp_path):
    """Through a pipe, as JSON lines or as text that looks like them."""
    command = [
        sys.executable,
        "-m",
        "automodel_cli",
        "prep",
        "-",
        "--val-tokens",
        "0",
        "--tokenizer",
        "bytes",
        "--json",
    ]

    for arguments, num_tokens in (["--stdin-format", "jsonl"], 4), (["--stdin-format", "text"], 16):
        done = subprocess.run(
            [*command, *arguments, "--output-dir", arguments[1]],
            input='{"text": "abc"}',
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        assert json.loads(done.stdout)["manifest"]["splits"]["train"]["num_tokens"] == num_tokens


def test_the_next_command_fits_data_of_ones_own(run, tmp_path):
    """Patterns and vocabulary are spelled out, so the line can be pasted."""
    (tmp_path / "mine.jsonl").write_text('{"text": "one"}\n')

    result = run("mine.jsonl", "--val-tokens", "0", "--tokenizer", "gpt2")

    assert result.stdout.rstrip().endswith(
        "next: amcli pretrain --set 'dataset.file_pattern=data/mine/train_*.bin' --set validation_dataset=null "
        "--set step_scheduler.val_every_steps=null --set model.vocab_size=50257"
    )


def test_overwriting_is_possible(run):
    """The refusal's own advice works."""
    run("shakespeare")

    result = run("shakespeare", "--max-tokens", "1000", "--overwrite")

    assert "1,000 tokens" in result.stdout


def test_the_list_of_presets_needs_no_source(run):
    """Names with one line each, or JSON."""
    assert run("--list").stdout.startswith("shakespeare ")
    assert {"fineweb", "c4"} <= {preset["name"] for preset in json.loads(run("--list", "--json").stdout)}


def test_a_missing_source_names_one_that_works(run):
    """A newcomer's first try."""
    with pytest.raises(UsageError, match="amcli prep shakespeare"):
        run()


def test_the_help_ends_with_examples(run):
    """Set as lines, not flowed into a paragraph."""
    lines = [line.strip() for line in run("--help").stdout.splitlines()]

    assert "amcli prep fineweb --max-tokens 500M --val-tokens 1M" in lines


def test_preparing_the_embedded_text_imports_neither_torch_nor_transformers(tmp_path):
    """It takes a fraction of a second because of that."""
    script = (
        "import sys; from automodel_cli.commands.prep import prep; prep(['shakespeare']); "
        "print({'torch', 'transformers', 'tokenizers', 'datasets'} & set(sys.modules))"
    )

    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout

    assert printed.splitlines()[-1] == "set()"


def test_progress_on_a_pipe_is_plain_lines(run, tmp_path, monkeypatch):
    """No control codes, at most one line for every tenth, and on the error stream: stdout stays the summary."""
    monkeypatch.setattr("automodel_cli.engine.prep.corpus.text_reader.PIECE_BYTES", 1 << 14)
    (tmp_path / "big.jsonl").write_text("".join(json.dumps({"text": f"{n} {'word ' * 9}"}) + "\n" for n in range(5000)))

    result = run("big.jsonl", "--tokenizer", "bytes")

    lines = result.stderr.splitlines()
    assert 1 <= len(lines) <= 9
    assert all(line.startswith("preparing big.jsonl: ") for line in lines)
    assert "\x1b" not in result.output
