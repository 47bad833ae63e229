"""Training speed and memory of amcli's GPT-2 beside nanoGPT's loop and transformers, from the same weights and tokens.

Every variant runs in a process of its own, in turn, several rounds, so that a busy machine slows all of them
alike; the medians of all steps but the first are compared. The losses of every variant must agree with the first
one's, to 4 digits in fp32, or the run fails: a faster loop that trains something else is no result.

    OMP_NUM_THREADS=1 python benchmarks/train.py [--shape tiny 124m] [--rounds 3] [--steps 5]

writes benchmarks/results/train-<device>.{json,md}. On a CPU, seconds are those of the processor. On a CUDA device
the shapes are larger, the sequence is 1024, compiled variants are added, and MFU follows from TFLOP/s, at
6 N + 12 L C T FLOPs a token.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from train_peers.nanogpt import GPT

RESULTS = Path(__file__).parent / "results"
VOCAB, LR, CLIP = 50_304, 6e-4, 1.0
SIZES = {
    "tiny": {"n_layer": 4, "n_embd": 128, "n_head": 4},
    "124m": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "350m": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
    "1.5b": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}
# Samples of a micro-batch and tokens of a sample.
CPU_BATCH = {"tiny": (8, 256), "124m": (2, 256)}
CUDA_BATCH = {"tiny": (64, 1024), "124m": (32, 1024), "350m": (16, 1024), "1.5b": (8, 1024)}
BASE = "nanogpt"
VARIANTS = ("nanogpt", "transformers", "amcli-whole-logits", "amcli")
Step = Callable[[torch.Tensor, torch.Tensor], float]


def model_arguments(shape: str, seq_len: int) -> dict[str, int]:
    return {"vocab_size": VOCAB, "n_positions": seq_len, **SIZES[shape]}


def autocast(device: str, precision: str) -> Any:
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def first_weights(shape: str, seq_len: int) -> torch.nn.Module:
    """Our GPT-2 with the weights that every variant starts from."""
    from automodel_cli.engine.models.gpt2 import build_gpt2_model

    torch.manual_seed(1)
    return build_gpt2_model(**model_arguments(shape, seq_len))


def plain_loop(model: torch.nn.Module, loss_of: Callable[..., torch.Tensor], device: str, precision: str) -> Step:
    """A loop as people write it: backward, clip, step, `.item()`."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=device == "cuda" or None
    )

    def step(ids: torch.Tensor, labels: torch.Tensor) -> float:
        with autocast(device, precision):
            loss = loss_of(ids.to(device), labels.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def nanogpt_step(shape: str, seq_len: int, device: str, precision: str, *, compiled: bool) -> Step:
    model = GPT(**model_arguments(shape, seq_len)).to(device)
    model.load_state_dict(first_weights(shape, seq_len).state_dict())
    return plain_loop(model, torch.compile(model) if compiled else model, device, precision)


def transformers_step(shape: str, seq_len: int, device: str, precision: str, *, compiled: bool) -> Step:
    import transformers

    from automodel_cli.engine.models.export import export_model

    exported = export_model(first_weights(shape, seq_len))
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(exported.config or {})))
    model.load_state_dict(exported.tensors, strict=False)
    model.tie_weights()
    model.to(device).train()
    called = torch.compile(model) if compiled else model
    # `shift_labels` are the labels of each position, as ours are; `labels` would be shifted by one.
    return plain_loop(model, lambda x, y: called(x, labels=y, shift_labels=y, use_cache=False).loss, device, precision)


def amcli_step(shape: str, seq_len: int, device: str, precision: str, *, compiled: bool, whole: bool) -> Step:
    """The engine's own step, optimizer and objective."""
    from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy
    from automodel_cli.engine.models.compiling import compile_model
    from automodel_cli.engine.optim.build import build_optimizer
    from automodel_cli.engine.train.device import place
    from automodel_cli.engine.train.objective import objective_of
    from automodel_cli.engine.train.step import train_step

    placement = place(device, precision, None)
    model = first_weights(shape, seq_len)
    placement.put(model)
    objective = objective_of(MaskedCrossEntropy() if whole else None, model)
    if compiled:
        cache = RESULTS / ".compiled"
        compile_model(model, mode="default", fullgraph=False, per_block=True, cache=cache)
    optimizer = build_optimizer(torch.optim.AdamW, {"lr": LR, "betas": (0.9, 0.95), "weight_decay": 0.0}, model)

    def step(ids: torch.Tensor, labels: torch.Tensor) -> float:
        batch = {"input_ids": ids, "labels": labels}
        how = {"device": placement.device, "lr": LR, "max_norm": CLIP, "autocast_dtype": placement.autocast_dtype}
        return train_step(model, objective, optimizer, [batch], **how).loss  # type: ignore[arg-type]

    return step


def run_variant(name: str, shape: str, precision: str, num_steps: int, device: str) -> dict[str, Any]:
    """Trains in this process; losses, seconds of every step, and the memory that was taken beyond the start."""
    kind, compiled = name.removesuffix("+compile"), name.endswith("+compile")
    size, seq_len = (CUDA_BATCH if device == "cuda" else CPU_BATCH)[shape]
    whole = kind == "amcli-whole-logits"
    if kind == "nanogpt":
        step = nanogpt_step(shape, seq_len, device, precision, compiled=compiled)
    elif kind == "transformers":
        step = transformers_step(shape, seq_len, device, precision, compiled=compiled)
    else:
        step = amcli_step(shape, seq_len, device, precision, compiled=compiled, whole=whole)
    generator = torch.Generator().manual_seed(2)
    losses, seconds = [], []
    for _ in range(num_steps):
        # Few different tokens, so that there is something to learn and a wrong gradient shows in the loss.
        tokens = torch.randint(500, (size, seq_len + 1), generator=generator)
        # On a CPU the processor's time, of all threads: a machine that is shared stretches that of the clock.
        clock = time.perf_counter if device == "cuda" else time.process_time
        began = clock()
        losses.append(step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()))
        seconds.append(clock() - began)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"losses": losses, "seconds": seconds[1:], "first_seconds": seconds[0], "peak_bytes": peak}


def in_own_process(name: str, shape: str, precision: str, num_steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, shape, precision, str(num_steps)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{name}, {shape}, {precision} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def measure(shape: str, names: list[str], precisions: list[str], rounds: int, num_steps: int) -> list[dict[str, Any]]:
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number in range(rounds):
        for precision in precisions:
            for name in names:
                print(f"{shape}  round {number + 1}/{rounds}  {name}  {precision}", file=sys.stderr, flush=True)
                runs.setdefault((name, precision), []).append(in_own_process(name, shape, precision, num_steps))
    reference = runs[BASE, precisions[0]][0]["losses"]
    base_seconds = statistics.median(s for run in runs[BASE, precisions[0]] for s in run["seconds"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, seq_len = (CUDA_BATCH if device == "cuda" else CPU_BATCH)[shape]
    rows = []
    for (name, precision), found in runs.items():
        seconds = statistics.median(s for run in found for s in run["seconds"])
        worst = max(abs(a - b) for run in found for a, b in zip(run["losses"], reference, strict=True))
        if worst > (5e-4 if precision == "fp32" else 5e-2):
            raise SystemExit(f"{name}, {shape}, {precision} trains something else: its loss is off by {worst:.4f}")
        rows.append(
            {
                "shape": shape,
                "variant": name,
                "precision": precision,
                "ms": round(seconds * 1e3, 1),
                "tokens_per_second": round(size * seq_len / seconds),
                "times_base": round(base_seconds / seconds, 2),
                "peak_mb": round(statistics.median(run["peak_bytes"] for run in found) / 2**20),
                "first_seconds": round(statistics.median(run["first_seconds"] for run in found), 1),
                "last_loss": round(found[0]["losses"][-1], 5),
                "worst_loss_difference": round(worst, 6),
                "tflops": round(flops_per_token(shape, seq_len) * size * seq_len / seconds / 1e12, 3),
            }
        )
    return rows


def flops_per_token(shape: str, seq_len: int) -> int:
    """6 N + 12 L C T, with N the parameters without the positions."""
    layers, width = SIZES[shape]["n_layer"], SIZES[shape]["n_embd"]
    return 6 * (12 * layers * width**2 + VOCAB * width) + 12 * layers * width * seq_len


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| shape | variant | precision | ms a step | tokens/s | times nanoGPT fp32 | peak MB | TFLOP/s | last loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = ["shape", "variant", "precision", "ms", "tokens_per_second", "times_base", "peak_mb", "tflops", "last_loss"]
    return "\n".join([*lines, *("| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows)])


def cpu_name() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return f"{found[1] if found else platform.processor()}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_gpu = torch.cuda.is_available()
    batches = CUDA_BATCH if has_gpu else CPU_BATCH
    parser.add_argument("--shape", nargs="+", choices=list(batches), default=list(batches))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20 if has_gpu else 5)
    parser.add_argument("--compile", action="store_true", default=has_gpu, help="add compiled variants")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["bf16"] if has_gpu else None)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, shape, precision, num_steps = arguments.child
        print(json.dumps(run_variant(name, shape, precision, int(num_steps), "cuda" if has_gpu else "cpu")))
        return
    names = [*VARIANTS, *(f"{name}+compile" for name in (BASE, "amcli") if arguments.compile)]
    precisions = arguments.precision or ["fp32", "bf16"]
    rows = [
        row for shape in arguments.shape for row in measure(shape, names, precisions, arguments.rounds, arguments.steps)
    ]
    device = torch.cuda.get_device_name() if has_gpu else cpu_name()
    settings = {"device": device, "torch": torch.__version__, "rounds": arguments.rounds, "steps": arguments.steps}
    result = {**settings, "rows": rows}
    path = RESULTS / f"train-{'cuda' if has_gpu else 'cpu'}"
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    how = "`python benchmarks/train.py`, medians" + ("" if has_gpu else " of processor time")
    text = f"# Training speed\n\n{device}, torch {torch.__version__}; {how}.\n\n"
    path.with_suffix(".md").write_text(text + table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
