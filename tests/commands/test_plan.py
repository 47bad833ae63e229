"""`amcli plan`: readable, scriptable, and honest about what it does not know."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from automodel_cli import app
from automodel_cli.engine.config.template import PRESETS
from automodel_cli.engine.plan.memory import MEMORY_GB

FINEWEB = Path(__file__).parents[2] / "examples/fineweb.yaml"
MEMORY = ["weights", "gradients", "optimizer", "buffers", "activations", "logits", "total"]


@pytest.fixture
def plan(capsys):
    """Runs `amcli plan ...` and returns what it printed."""

    def run(*arguments, code=0):
        assert app.run(["plan", *map(str, arguments)]) == code
        return capsys.readouterr()

    return run


def test_the_report_has_a_line_for_each_number(plan):
    """Counts, the memory by category, the batch that fits, and the time; columns are aligned."""
    lines = plan("-c", FINEWEB, "--nproc-per-node", 8).out.splitlines()

    found = {line[:22].strip(): line[22:].split("  ")[0].strip() or line[22:].split()[0] for line in lines if line}
    assert set(MEMORY) | {"parameters", "largest local batch", "time", "FLOPs of the run"} <= set(found)
    assert any(re.search(r"^parameters +124,439,808  GPT-2: embedding 38,597,376", line) for line in lines)
    assert any(re.search(r"^gradient accumulation +4  512 samples / \(16 x 8 ", line) for line in lines)
    assert any(re.search(r"^  total +\d+\.\d\d GB  fits: of 80.00 GB", line) for line in lines)


def test_json_has_the_same_numbers_under_stable_keys(plan):
    """Bytes, hours and counts; categories add up to the total."""
    found = json.loads(plan("-c", FINEWEB, "--nproc-per-node", 4, "--nnodes", 2, "--json").out)

    assert set(found) == {
        *("derived", "layout", "memory", "gpu_memory", "fits", "largest_local_batch_size"),
        *("largest_dividing_local_batch_size", "device", "peak_flops", "mfu", "hours"),
    }
    assert list(found["memory"]) == MEMORY
    assert sum(found["memory"][name] for name in MEMORY[:-1]) == found["memory"]["total"]
    assert found["layout"]["world_size"] == 8
    assert found["derived"]["parameters"]["total"] == 124_439_808


def test_config_show_prints_the_same_derived_numbers(plan, capsys):
    """One calculation behind both commands."""
    found = json.loads(plan("--json").out)["derived"]

    assert app.run(["config", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["derived"] == found


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_planned(plan, preset):
    """Before its data is there, which is said aside."""
    assert app.run(["config", "init", "my.yaml", "--preset", preset]) == 0

    printed = plan("-c", "my.yaml", "--json")

    assert "no file matches" in printed.err
    assert json.loads(printed.out[printed.out.index("{") :])["memory"]["total"] > 0


def test_options_change_what_they_say(plan):
    """A larger device, another utilisation, an override in either form."""
    base, larger, slower, deeper = (
        json.loads(plan("--json", *options).out)
        for options in ([], ["--device", "h200"], ["--mfu", "0.2"], ["--model.n_layer", "8"])
    )

    assert larger["gpu_memory"] == 141 * 10**9
    assert larger["largest_local_batch_size"] > base["largest_local_batch_size"]
    assert slower["hours"] == pytest.approx(2 * base["hours"])
    assert deeper["derived"]["parameters"]["blocks"] == 2 * base["derived"]["parameters"]["blocks"]


def test_a_batch_that_does_not_fit_is_said(plan):
    """With the batch that would."""
    text = plan("-c", FINEWEB, "--gpu-memory", "6GB").out

    assert "does not fit: of 6.00 GB" in text
    assert re.search(r"largest local batch +\d+  \d divides the 512 samples of a rank", text)


def test_an_unknown_model_and_optimizer_are_said_to_be_unknown(plan, tmp_path):
    """And everything that does not depend on them is there."""
    (tmp_path / "mine.py").write_text("def build(): ...\ndef tune(params, lr): ...\n")

    model = plan("--set", f"model={{_target_: '{tmp_path}/mine.py:build'}}").out
    optimizer = plan("--set", f"optimizer={{_target_: '{tmp_path}/mine.py:tune', lr: 1}}").out

    assert re.search(r"parameters +not known  not known without building: .*mine.py:build", model)
    assert re.search(r"tokens per step +2,048 ", model)
    assert re.search(r"  optimizer +not known  the state of this optimizer", optimizer)
    assert re.search(r"  total +not known", optimizer)
    assert re.search(r"  weights +3.37 MB", optimizer)


def test_a_model_of_ones_own_is_counted_by_a_trace(plan):
    """Parameters, FLOPs, memory and the batch that fits, as for a model with formulas."""
    own = FINEWEB.with_name("custom_model.py")
    model = f"model={{_target_: '{own}:build_model', vocab_size: 257, width: 64}}"

    found = json.loads(plan("--set", model, "--json").out)

    assert found["derived"]["model"] == "GatedRecurrence"
    assert found["derived"]["parameters"]["total"] == 91_264
    assert found["memory"]["activations"] > 0
    assert found["largest_local_batch_size"] > 1


def test_an_fp32_run_has_no_hours_by_a_bf16_peak(plan):
    """Until a peak is given."""
    assert re.search(r"time +not known .*--peak-tflops", plan("--set", "precision=fp32").out)
    assert "1 x 67 TFLOP/s x 40%" in plan("--set", "precision=fp32", "--peak-tflops", 67).out


def test_the_help_names_every_device(plan):
    """The table is not loaded for a help page, so its names stand there a second time."""
    text = " ".join(plan("--help").out.split())

    assert all(name.lower() in text for name in MEMORY_GB)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "h10"], "did you mean `h100`?"),
        (["--gpu-memory", "80"], "--gpu-memory is '80'"),
        (["--set", "step_scheduler.local_batch_size=5"], "must be a multiple of"),
        (["--nproc-per-node", "3"], "the 3 data-parallel ranks"),
        (["--set", "model.n_layers=3"], "did you mean `n_layer`?"),
        (["--mfu", "1.5"], "--mfu"),
    ],
)
def test_what_is_wrong_is_refused(plan, options, words):
    """Before any number is printed; exit code 2."""
    printed = plan(*options, code=2)

    assert printed.out == ""
    assert words in printed.err
