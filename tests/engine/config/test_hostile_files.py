"""No file, however it was made, costs time or memory without bound, or ends in a traceback."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples/quickstart.yaml"
MAX_BYTES_OF_ADDRESSES = 500_000_000
SHARDS = "_target_: automodel_cli.engine.data.nanogpt_dataset.NanogptDataset, seq_len: 8, file_pattern"
MODEL = "_target_: automodel_cli.engine.models.gpt2.build_gpt2_model"


def chain(first: str, each: str, length: int) -> str:
    """Anchors that refer to the one before: `each` is formatted with its number and that before it."""
    return "\n".join([first, *(each.format(i=i, before=i - 1) for i in range(1, length))])


def lines(form: str, number: int, head: str = "") -> str:
    return "\n".join([head, *(form.format(i=i) for i in range(number))])


# Name -> the text of a file that is laid over the quickstart, and what is said about it.
HOSTILE = {
    "aliases of lists": (chain("a0: &a0 [x]", "a{i}: &a{i} [" + "*a{before}," * 9 + "]", 12), "20,000 keys and values"),
    "aliases of mappings": (
        chain("a0: &a0 {x: 1}", "a{i}: &a{i} {{p: *a{before}, q: *a{before}, r: *a{before}}}", 30),
        "20,000 keys and values",
    ),
    "merges of nothing": (
        chain("a0: &a0 {}", "a{i}: &a{i} {{<<: [" + "*a{before}," * 9 + "]}}", 12),
        "20,000 keys and",
    ),
    "a merge of itself": ("a: &a {<<: *a}", "an alias refers to the value that contains it"),
    "an alias in itself": ("a: &a {b: [*a]}", "an alias refers to the value that contains it"),
    "a chain of aliases": (chain("a0: &a0 [x]", "a{i}: &a{i} [*a{before}]", 4000), "nested 32 deep"),
    "a chain of merges": (chain("a0: &a0 {x: 1}", "a{i}: &a{i} {{<<: *a{before}}}", 3000), "nested 32 deep"),
    "deep lists": ("a: " + "[" * 100_000, "nested 32 deep"),
    "deep mappings on one line": ("a: " + "{a: " * 50_000, "nested 32 deep"),
    "deep blocks": ("\n".join(" " * depth + "a:" for depth in range(700)), "nested 32 deep"),
    "deep dashes": ("- " * 100_000, "nested 32 deep"),
    "questions": ("? " * 100_000, "nested 32 deep"),
    "many values": ("a: [" + "1," * 100_000 + "]", "20,000 keys and values"),
    "many documents": ("---\n" * 60_000, "keys and values"),
    "many sections": (lines("k{i}: 1", 9_900), "more than 50 problems"),
    "many keys of ours": (lines("  max_steps{i}: 1", 9_900, "step_scheduler:"), "more than 50 problems"),
    "many arguments": (lines("  n_layer{i}: 1", 9_900, f"model:\n  {MODEL}"), "more than 50 problems"),
    "repeated keys": ("a: 1\n" * 9_000, "stands here and in line 1"),
    "too many bytes": ("#" * 300_000, "262,144 bytes"),
    "digits": ("seed: " + "1" * 250_000, "at most 400 characters"),
    "hexadecimal digits": ("seed: 0x" + "f" * 250_000, "at most 400 characters"),
    "a large number for a float": ("clip_grad_norm: {max_norm: -0x" + "f" * 380 + "}", "max_norm"),
    "large widths": ("model: {n_embd: 0x" + "f" * 300 + ", n_head: 99999999999}", ""),
    "large lengths": ("lr_scheduler: {lr_warmup_steps: 1e999999999 tokens}", "lr_warmup_steps"),
    "large weights of a blend": (f"dataset: {{{SHARDS}: [1e999999999, a, 1e-999999999, b]}}", ""),
    "a long name": ("? " + "k" * 200_000 + "\n: 1", "unknown section"),
    "a long target": ("model: {_target_: " + "a." * 100_000 + "b}", "not installed"),
    "a long path": (f"dataset: {{{SHARDS}: '" + "a/" * 100_000 + "'}", ""),
    "many patterns": (f"dataset: {{{SHARDS}: [" + '"/usr/*/*.py",' * 5_000 + "]}", "no file matches"),
    "many targets": (
        "loss_fn: {_target_: torch.nn.Sequential, a: ["
        + ",".join(f"{{_target_: transformers.models.m{i}.X}}" for i in range(3_000))
        + "]}",
        "problems",
    ),
    "variables in variables": ("seed: " + "${" * 80_000, "seed is"),
    "YAML in a variable": ("seed: '${AMCLI_NOT_SET," + "[" * 30_000 + "}'", "nested 32 deep"),
    "an object": ("a: !!python/object/apply:os.system [ls]", "is refused"),
    "a function": ("a: !!python/name:os.system", "is refused"),
    "a long tag": ("a: !!" + "x" * 200_000 + " 1", "is refused"),
    "a set": ("a: !!set {b, c}", "is refused"),
    "binary": ("a: !!binary " + "A" * 200_000, "is refused"),
    "a control character": ("a: \x1b[2J", "U+001B is not text"),
    "an escaped control character": ('"\\e[31mx": 1', "unknown section"),
    "a change of direction": ('"\\u202eabc": 1', "unknown section"),
    "an escape that does not end": ('a: "' + "\\x41" * 60_000, "unexpected end of stream"),
    "spaces": (" " * 200_000 + "x", "mapping"),
}

# Each file may take ten seconds: then SIGXCPU ends the process. The promise is two, on a machine of one's own; where
# cores are shared, processor time itself stretches, and what grows without bound passes ten as surely as two.
READ_ALL = """
import contextlib, io, json, math, resource, sys, time
from pathlib import Path
from automodel_cli import app

resource.setrlimit(resource.RLIMIT_AS, (%d, resource.RLIM_INFINITY))
for path in sorted(Path().glob("*.yaml")):
    most = math.ceil(time.process_time()) + 10
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = app.run(["config", "show", "--check", "-c", sys.argv[1], "-c", path.name])
    print(json.dumps([path.stem, code, said.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What `amcli config show --check` says about each file, in one process with bounded time and memory."""
    directory = tmp_path_factory.mktemp("hostile")
    (directory / "data/shakespeare").mkdir(parents=True)
    for name, (text, _) in HOSTILE.items():
        (directory / f"{name}.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL % MAX_BYTES_OF_ADDRESSES, str(EXAMPLE)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode} after\n{done.stdout[-200:]}\n{done.stderr}"
    return {name: (code, said) for name, code, said in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_a_few_lines(answers, name):
    """With its reason, without a traceback or a control character, whatever the file holds."""
    code, said = answers[name]

    assert code in (2, 3), said[:2000]
    assert HOSTILE[name][1] in said
    assert "Traceback" not in said
    assert len(said) < 50_000
    assert all(character.isprintable() or character == "\n" for character in said)


def test_the_bound_of_time_ends_a_process_that_takes_longer():
    """Else the test above could not fail."""
    endless = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass"

    assert subprocess.run([sys.executable, "-c", endless], check=False).returncode < 0
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] == resource.RLIM_INFINITY
