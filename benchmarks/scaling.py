"""Training on several ranks: tokens/s and messages per layout, and what the engine costs over a bare torch loop.

Every layout runs in a group of processes of its own, in which steps of the engine and of a bare loop take turns, with
torch's own wrapper (DistributedDataParallel, fully_shard) around the same model, loss, optimizer and data in memory:
the ratio of the medians is the overhead, and losses that differ end the run. The bytes that a rank sends are counted at
the collectives of one step, and stand beside the formulas of `benchmarks/scaling_peers/communication.py`.

    python benchmarks/scaling.py [--ranks 1 2] [--layout ddp fsdp2 tp2] [--steps 20]

writes scaling-<device>.{json,md} into benchmarks/results, or where --output says. On GPUs 1, 2, 4 and 8 ranks are
measured, as far as there are GPUs; on a CPU 1 and 2, with one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from scaling_peers.communication import (
    Traffic,
    of_context_parallel,
    of_ddp,
    of_fsdp2,
    of_tensor_parallel,
)
from scaling_peers.ways import SHAPES, Recorder, Step, bare_step, build, engine_step
from torch import nn

from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.distributed.distributed_group import distributed_group
from automodel_cli.engine.distributed.environment import RankPlace
from automodel_cli.engine.distributed.module_tree import transformer_blocks
from automodel_cli.engine.distributed.rank_group import SOLO, RankGroup

RESULTS = Path(__file__).parent / "results"
# Samples of a micro-batch, by device, and micro-batches of a step.
SAMPLES = {"cpu": 8, "cuda": 16}
ACCUMULATION = 2
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "ddp": (1, {"strategy": "ddp"}),
    "fsdp2": (1, {"strategy": "fsdp2"}),
    "hsdp": (4, {"dp_replicate_size": 2}),
    "tp2": (2, {"tp_size": 2, "dp_size": 1}),
    "cp2": (2, {"cp_size": 2, "dp_size": 1}),
}


def formula(layout: str, group: RankGroup, model: nn.Module, device: torch.device) -> Traffic:
    """What one rank should send in a step."""
    if group.is_alone:
        return Traffic(0.0, 0.0)
    all_of_them = sum(parameter.numel() for parameter in model.parameters())
    inside = sum(parameter.numel() for block in transformer_blocks(model) for parameter in block.parameters())
    shape, world = SHAPES[device.type], group.degrees.world
    sizes = (shape["n_layer"], SAMPLES[device.type], shape["n_positions"], shape["n_embd"], 2)
    width = {"accumulation": ACCUMULATION, "dtype_bytes": 2 if device.type == "cuda" else 4}
    if layout == "ddp":
        return of_ddp(all_of_them, world)
    if layout == "tp2":
        return of_tensor_parallel(*sizes, **width)
    replicas = group.degrees.dp_replicate
    sharded = of_fsdp2(
        all_of_them,
        world // replicas,
        outside_blocks=all_of_them - inside,
        accumulation=ACCUMULATION,
        replicas=replicas,
    )
    if layout == "cp2":
        attention = of_context_parallel(*sizes, **width)
        return Traffic(sharded.gathered + attention.gathered, sharded.reduced + attention.reduced)
    return sharded


def child(rank: int, world: int, store: str, layout: str, num_steps: int, kind: str) -> dict[str, Any]:
    """Measures one layout in this rank of its group."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    keys = LAYOUTS[layout][1] if world > 1 else {}
    group: RankGroup = SOLO
    if world > 1:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
            store=dist.FileStore(store, world), rank=rank, world_size=world, timeout=timedelta(minutes=5),
        )  # fmt: skip
        place = RankPlace(rank, world, rank, world, launcher="torchrun")
        group = distributed_group(place, DistributedSection(**keys), device)
    reader, readers = group.dp_rank, group.degrees.dp
    shape, samples = SHAPES[kind], SAMPLES[kind]

    def data(number: int) -> list[dict[str, Any]]:
        rows = torch.Generator().manual_seed(number * readers + reader)
        tokens = torch.randint(500, (ACCUMULATION, samples, shape["n_positions"] + 1), generator=rows).numpy()
        return [{"input_ids": block[:, :-1], "labels": block[:, 1:]} for block in tokens]

    ways: dict[str, Step] = {"amcli": engine_step(group, keys, data, device)}
    if layout in ("ddp", "fsdp2", "hsdp"):
        ways["bare"] = bare_step(world, keys, data, device)
    recorder = Recorder(device, world)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(num_steps + 2):
        # In turn, and in the other order every time, so that a busy machine slows both alike.
        for name in list(ways)[:: 1 if number % 2 else -1]:
            if not group.is_alone:
                dist.barrier()
            begin = time.perf_counter()
            if number == 1 and name == "amcli":
                with recorder:
                    losses[name].append(ways[name](number))
            else:
                losses[name].append(ways[name](number))
            if number > 1:
                seconds[name].append(time.perf_counter() - begin)
    worst = max(abs(a - b) for a, b in zip(losses["amcli"], losses.get("bare", losses["amcli"]), strict=True))
    if worst > 1e-3 if kind == "cpu" else worst > 5e-2:
        raise SystemExit(f"{layout} on {world} trains something else than the bare loop: the losses differ by {worst}")
    expected = formula(layout, group, build(device), device)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    tokens = readers * ACCUMULATION * samples * shape["n_positions"]
    return {
        "layout": layout if world > 1 else "one process",
        "ranks": world,
        "tokens_per_second": round(tokens / medians["amcli"]),
        "ms": round(medians["amcli"] * 1e3, 2),
        "bare_ms": round(medians["bare"] * 1e3, 2) if "bare" in medians else None,
        "overhead_percent": round(100 * (medians["amcli"] / medians["bare"] - 1), 2) if "bare" in medians else None,
        "sent_mb": round(sum(recorder.sent.values()) / 1e6, 3),
        "formula_mb": round(expected.total / 1e6, 3),
        "gathered_mb": round(recorder.sent["gathered"] / 1e6, 3),
        "reduced_mb": round(recorder.sent["reduced"] / 1e6, 3),
        "worst_loss_difference": round(worst, 6),
    }


def group_of(layout: str, ranks: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rank 0's measurement of a layout, in a group of processes of its own.

    Raises:
        SystemExit: A rank failed.
    """
    print(f"{layout} on {ranks}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as directory:
        words = [str(ranks), f"{directory}/store", layout, str(arguments.steps), arguments.device]
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "--child", str(rank), *words], stdout=subprocess.PIPE, text=True,
                env={**os.environ, **({"OMP_NUM_THREADS": "1"} if arguments.device == "cpu" else {})},
            )
            for rank in range(ranks)
        ]  # fmt: skip
        said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{layout} on {ranks} ranks failed")
    row: dict[str, Any] = json.loads(said[0].splitlines()[-1])
    return row


def table(rows: list[dict[str, Any]]) -> str:
    keys = ["layout", "ranks", "tokens_per_second", "ms", "bare_ms", "overhead_percent", "sent_mb", "formula_mb"]
    titles = ["layout", "ranks", "tokens/s", "ms a step", "bare ms", "overhead, %", "sent MB a step", "by formula"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        lines.append("| " + " | ".join("" if row[key] is None else str(row[key]) for key in keys) + " |")
    return "\n".join(lines)


def parse(words: list[str], *, num_gpus: int) -> argparse.Namespace:
    """The command line, with what the machine decides filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if num_gpus else "cpu")
    parser.add_argument(
        "--ranks", type=int, nargs="+", help="1 and 2; on GPUs 1, 2, 4 and 8, as far as there are so many"
    )
    parser.add_argument("--layout", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each variant")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    on_gpu = arguments.device == "cuda"
    arguments.ranks = arguments.ranks or [count for count in (1, 2, 4, 8) if count <= (num_gpus if on_gpu else 2)]
    if on_gpu and max(arguments.ranks) > num_gpus:
        parser.error(f"--ranks {max(arguments.ranks)}, but there are {num_gpus} GPUs")
    return arguments


def cases(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """Layouts and ranks that fit each other; one process has one layout."""
    several = [
        (layout, ranks)
        for ranks in arguments.ranks
        for layout in arguments.layout
        if ranks > 1 and (ranks == 2 if LAYOUTS[layout][0] == 2 else ranks >= LAYOUTS[layout][0])
    ]
    return [("ddp", 1)] * (1 in arguments.ranks) + several


def main() -> None:
    arguments = parse(sys.argv[1:], num_gpus=torch.cuda.device_count())
    if arguments.child:
        rank, world, store, layout, steps, kind = arguments.child
        print(json.dumps(child(int(rank), int(world), store, layout, int(steps), kind)), flush=True)
        os._exit(0)
    rows = [group_of(layout, ranks, arguments) for layout, ranks in cases(arguments)]
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU, one thread per rank"
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"scaling-{arguments.device}"
    settings = {"device": device, "torch": torch.__version__, "steps": arguments.steps}
    path.with_suffix(".json").write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")
    found = table(rows)
    how = "`python benchmarks/scaling.py`, medians"
    path.with_suffix(".md").write_text(f"# Several ranks\n\n{device}, torch {torch.__version__}; {how}.\n\n{found}\n")
    print(found)


if __name__ == "__main__":
    main()
