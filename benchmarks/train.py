"""Training speed and memory of amcli's GPT-2 beside nanoGPT's loop and transformers, from the same weights and tokens.

Every variant runs in a process of its own, in turn, several rounds, so that a busy machine slows all of them
alike; the medians of all steps but the first are compared. The losses of every variant must agree with the first
one's, to 4 digits in fp32, or the run fails: a faster loop that trains something else is no result.

    OMP_NUM_THREADS=1 python benchmarks/train.py [--shape tiny 124m] [--rounds 3] [--steps 6] [--compile]

writes train-<device>.{json,md} into benchmarks/results, or where --output says. On a CPU, seconds are those of the
processor. On a CUDA device (--device cuda, the default where there is one) the shapes are larger, the sequence is 1024,
compiled variants are measured too, and MFU follows at 6 N + 12 L C T FLOPs a token. amcli's variants run in the
environment that `amcli pretrain` makes for itself; peers in the user's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from train_peers.variants import WAYS, Setting, left_out

from automodel_cli.engine.distributed.environment import ask_for_huge_pages, wait_without_spinning
from automodel_cli.engine.observe.speed import flops_per_token, peak_flops

RESULTS = Path(__file__).parent / "results"
VOCAB = 50_304
SIZES = {
    "tiny": {"n_layer": 4, "n_embd": 128, "n_head": 4},
    "124m": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "350m": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
    "1.5b": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}
# Samples of a micro-batch and tokens of a sample.
BATCHES = {
    "cpu": {"tiny": (8, 256), "124m": (2, 256)},
    "cuda": {"tiny": (64, 1024), "124m": (32, 1024), "350m": (16, 1024), "1.5b": (8, 1024)},
}
BASE = "nanogpt"
COMPILED = ("nanogpt", "amcli")


def run_variant(name: str, shape: str, precision: str, num_steps: int, device: str) -> dict[str, Any]:
    """Trains in this process; losses, seconds of every step, and the memory that was taken."""
    size, seq_len = BATCHES[device][shape]
    sizes = {"vocab_size": VOCAB, "n_positions": seq_len, **SIZES[shape]}
    way = WAYS[name.removesuffix("+compile")](Setting(sizes, device, precision, name.endswith("+compile")))
    generator = torch.Generator().manual_seed(2)
    # Few different tokens, so that there is something to learn and a wrong gradient shows in the loss.
    rows = [torch.randint(500, (size, seq_len + 1), generator=generator) for _ in range(num_steps)]
    steps = list(way([(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()) for tokens in rows]))
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    losses, seconds = ([step[place] for step in steps] for place in (0, 1))
    return {"losses": losses, "seconds": seconds[1:], "first_seconds": seconds[0], "peak_bytes": peak}


def in_own_process(
    name: str, shape: str, precision: str, num_steps: int, device: str, compiled_programs: str
) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, shape, precision, str(num_steps), device]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": compiled_programs}
    if name.startswith("amcli"):
        ask_for_huge_pages(environment)
        wait_without_spinning(environment)
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise SystemExit(f"{name}, {shape}, {precision} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace, shape: str, names: list[str]) -> list[dict[str, Any]]:
    """The rows of one shape."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as programs:
        for number in range(arguments.rounds):
            for precision in arguments.precision:
                for name in names:
                    told = f"{shape}  round {number + 1}/{arguments.rounds}  {name}  {precision}"
                    print(told, file=sys.stderr, flush=True)
                    run = in_own_process(name, shape, precision, arguments.steps, arguments.device, programs)
                    runs.setdefault((name, precision), []).append(run)
    base = runs[BASE, arguments.precision[0]]
    return [row_of(arguments.device, shape, name, precision, found, base) for (name, precision), found in runs.items()]


def row_of(
    device: str, shape: str, name: str, precision: str, found: list[dict[str, Any]], base: list[dict[str, Any]]
) -> dict[str, Any]:
    """The numbers of one variant.

    Raises:
        SystemExit: Its losses are not those of the base.
    """
    seconds, base_seconds = (statistics.median(s for run in each for s in run["seconds"]) for each in (found, base))
    worst = max(abs(a - b) for run in found for a, b in zip(run["losses"], base[0]["losses"], strict=True))
    if worst > (5e-4 if precision == "fp32" else 5e-2):
        raise SystemExit(f"{name}, {shape}, {precision} trains something else: its loss is off by {worst:.4f}")
    size, seq_len = BATCHES[device][shape]
    flops = cost_of_token(shape, seq_len) * size * seq_len / seconds
    peak = peak_flops(torch.cuda.get_device_name()) if device == "cuda" else None
    return {
        "shape": shape,
        "variant": name,
        "precision": precision,
        "ms": round(seconds * 1e3, 1),
        "tokens_per_second": round(size * seq_len / seconds),
        "times_base": round(base_seconds / seconds, 2),
        "peak_mb": round(statistics.median(run["peak_bytes"] for run in found) / 2**20),
        "first_seconds": round(statistics.median(run["first_seconds"] for run in found), 1),
        "tflops": round(flops / 1e12, 3),
        "mfu": None if peak is None else round(flops / peak, 3),
        "last_loss": round(found[0]["losses"][-1], 5),
        "worst_loss_difference": round(worst, 6),
        "losses": [round(loss, 5) for loss in found[0]["losses"]],
    }


def cost_of_token(shape: str, seq_len: int) -> int:
    """FLOPs: N are the matrices of the blocks, 12 L C^2, and the head, V C."""
    layers, width = SIZES[shape]["n_layer"], SIZES[shape]["n_embd"]
    return flops_per_token(12 * layers * width**2 + VOCAB * width, layers, width, seq_len)


def table(rows: list[dict[str, Any]], base: str) -> str:
    keys = ["shape", "variant", "precision", "ms", "tokens_per_second", "times_base", "peak_mb", "tflops"]
    titles = ["shape", "variant", "precision", "ms a step", "tokens/s", f"times {base}", "peak MB", "TFLOP/s"]
    if any(row["mfu"] is not None for row in rows):
        keys, titles = [*keys, "mfu"], [*titles, "MFU"]
    keys, titles = [*keys, "last_loss", "worst_loss_difference"], [*titles, "last loss", "largest difference"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return "\n".join([*lines, *("| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows)])


def cpu_name() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return f"{found[1] if found else platform.processor()}, {torch.get_num_threads()} threads"


def parse(words: list[str], *, has_gpu: bool) -> argparse.Namespace:
    """The command line, with what the device decides filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(BATCHES), default="cuda" if has_gpu else "cpu")
    parser.add_argument("--shape", nargs="+", choices=list(SIZES), help="all that the device is measured with")
    parser.add_argument("--variant", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], help="bf16 on a GPU, else both")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compiled variants; on a GPU they are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each run, the first uncounted; 20 on a GPU, else 6")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not has_gpu:
        parser.error("--device cuda, but torch finds no GPU here")
    shapes = BATCHES[arguments.device]
    arguments.shape = arguments.shape or list(shapes)
    if unknown := [shape for shape in arguments.shape if shape not in shapes]:
        parser.error(f"{', '.join(unknown)} on {arguments.device}: only {', '.join(shapes)} are measured there")
    on_gpu = arguments.device == "cuda"
    arguments.precision = arguments.precision or (["bf16"] if on_gpu else ["fp32", "bf16"])
    arguments.compile = on_gpu if arguments.compile is None else arguments.compile
    arguments.steps = arguments.steps or (20 if on_gpu else 6)
    if arguments.steps < 2 or arguments.rounds < 1:
        parser.error("at least 1 round of 2 steps: the first step is not counted")
    return arguments


def names_of(arguments: argparse.Namespace) -> list[str]:
    """The variants to measure; that which all are compared with comes first."""
    missing = left_out()
    for name, why in missing.items():
        print(f"left out: {name} {why}", file=sys.stderr)
    names = [BASE, *(name for name in arguments.variant if name != BASE and name not in missing)]
    return [*names, *(f"{name}+compile" for name in names if arguments.compile and name in COMPILED)]


def main() -> None:
    arguments = parse(sys.argv[1:], has_gpu=torch.cuda.is_available())
    if arguments.child:
        name, shape, precision, num_steps, device = arguments.child
        print(json.dumps(run_variant(name, shape, precision, int(num_steps), device)))
        return
    names = names_of(arguments)
    rows = [row for shape in arguments.shape for row in measure(arguments, shape, names)]
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else cpu_name()
    settings = {"device": device, "torch": torch.__version__, "rounds": arguments.rounds, "steps": arguments.steps}
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"train-{arguments.device}"
    path.with_suffix(".json").write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")
    how = f"`python benchmarks/train.py`, medians{'' if arguments.device == 'cuda' else ' of processor time'}"
    found = table(rows, f"{BASE} {arguments.precision[0]}")
    path.with_suffix(".md").write_text(f"# Training speed\n\n{device}, torch {torch.__version__}; {how}.\n\n{found}\n")
    print(found)


if __name__ == "__main__":
    main()
