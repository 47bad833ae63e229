"""Preparation end to end: amcli beside the usual ways, on the same local parquet, with identical tokens.

Everything runs on two cores, in turn, several rounds, so that a busy machine slows all alike; medians are taken.
Start-up is counted. amcli also prepares the file many times over, because at its speed start-up is most of a small
run; the others get it once, and rates are compared. The tokens of all are compared byte by byte.

    python benchmarks/prep.py PARQUET [--rounds 3] [--copies 64]    writes benchmarks/results/prep.{json,md}
    python benchmarks/prep.py PARQUET --chunk-sizes                 the speed of amcli for sizes of a chunk
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PEERS = Path(__file__).parent / "prep_peers"
AMCLI = Path(sysconfig.get_path("scripts")) / "amcli"
HEADER_BYTES = 1024
CORES = sorted(os.sched_getaffinity(0))[:2]


@dataclass(frozen=True)
class Cost:
    """What one run took; memory is that of the largest process."""

    wall_seconds: float
    cpu_seconds: float
    peak_megabytes: float


@dataclass(frozen=True)
class Contestant:
    """One way to prepare data.

    Attributes:
        name: In the table.
        command: What is run, without output and inputs.
        copies: How often the file is read.
        is_amcli: Its output is a directory of shards, not one file.
        writes: Whether it writes tokens at all.
    """

    name: str
    command: list[str]
    copies: int
    is_amcli: bool = False
    writes: bool = True


def contestants(copies: int, chunk_sizes: bool) -> list[Contestant]:
    amcli = [str(AMCLI), "prep", "--tokenizer", "gpt2", "--val-tokens", "0", "--json"]
    if chunk_sizes:
        sizes = (32, 128, 256, 512, 2048)
        return [Contestant(f"chunks of {n}", [*amcli, "--chunk-size", str(n)], copies, True) for n in sizes]
    peer = [sys.executable]
    return [
        Contestant("pyarrow alone: decode the parquet", [*peer, str(PEERS / "read_only.py")], copies, writes=False),
        Contestant("amcli prep", amcli, copies, True),
        Contestant("amcli prep, the file once", amcli, 1, True),
        Contestant("rows, process pool, transformers", [*peer, str(PEERS / "rows_and_processes.py")], 1),
        Contestant("datasets.map, tiktoken", [*peer, str(PEERS / "map_and_tiktoken.py")], 1),
    ]


def run(command: list[str], directory: Path) -> Cost:
    """Run a command on the chosen cores; children that it waited for are counted."""
    environment = os.environ | {"HF_HOME": str(directory / "hf"), "HF_HUB_OFFLINE": "1"}
    begin = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, CORES),
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"{' '.join(command)} failed with {status}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def once(contestant: Contestant, inputs: list[str], directory: Path) -> tuple[Cost, int, str]:
    """Cost, number of tokens and the hash of all of them."""
    output = directory / "out"
    if contestant.is_amcli:
        cost = run([*contestant.command, "--output-dir", str(output), *inputs], directory)
    else:
        cost = run([*contestant.command, str(output), *inputs], directory)
    files = sorted(output.glob("train_*.bin")) if contestant.is_amcli else [output] * contestant.writes
    digest, num_bytes = hashlib.sha256(), 0
    for file in files:
        content = file.read_bytes()[HEADER_BYTES if contestant.is_amcli else 0 :]
        digest.update(content)
        num_bytes += len(content)
    for leftover in directory.glob("out*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return cost, num_bytes // 2, digest.hexdigest()


def measure(parquet: Path, chosen: list[Contestant], num_rounds: int) -> list[dict[str, object]]:
    costs: dict[str, list[Cost]] = {contestant.name: [] for contestant in chosen}
    tokens: dict[str, tuple[int, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for copy in range(max(contestant.copies for contestant in chosen)):
            (directory / f"in-{copy:04d}.parquet").symlink_to(parquet.resolve())
        inputs = sorted(map(str, directory.glob("in-*.parquet")))
        for _ in range(num_rounds):
            for contestant in chosen:
                cost, num_tokens, digest = once(contestant, inputs[: contestant.copies], directory)
                costs[contestant.name].append(cost)
                tokens[contestant.name] = (num_tokens, digest)
    small = {contestant.name for contestant in chosen if contestant.copies == 1 and contestant.writes}
    if len({tokens[name] for name in small}) > 1:
        raise SystemExit(f"the tokens differ: {tokens}")
    once_tokens = next((tokens[name][0] for name in small), 0)
    return [
        row(contestant, costs[contestant.name], tokens[contestant.name][0] or once_tokens * contestant.copies)
        for contestant in chosen
    ]


def row(contestant: Contestant, rounds: list[Cost], num_tokens: int) -> dict[str, object]:
    wall = statistics.median(cost.wall_seconds for cost in rounds)
    cpu = statistics.median(cost.cpu_seconds for cost in rounds)
    return {
        "name": contestant.name,
        "num_tokens": num_tokens,
        "wall_seconds": round(wall, 3),
        "mtokens_per_second": round(num_tokens / wall / 1e6, 3),
        "cpu_seconds_per_mtoken": round(cpu / num_tokens * 1e6, 4),
        "peak_megabytes": round(max(cost.peak_megabytes for cost in rounds)),
        "rounds": [asdict(cost) for cost in rounds],
    }


def ratios(rows: list[dict[str, object]]) -> list[tuple[str, float, float]]:
    """How many times amcli's rate, and the others' CPU time for each token, exceed the other."""
    ours = next((r for r in rows if r["name"] == "amcli prep"), None)
    peers = [r for r in rows if not str(r["name"]).startswith(("amcli", "pyarrow", "chunks"))]
    return [
        (
            str(r["name"]),
            ours["mtokens_per_second"] / r["mtokens_per_second"],
            r["cpu_seconds_per_mtoken"] / ours["cpu_seconds_per_mtoken"],
        )
        for r in peers
        if ours is not None
    ]


def table(rows: list[dict[str, object]], facts: dict[str, object], num_rounds: int) -> str:
    lines = [
        f"| {r['name']} | {r['num_tokens'] / 1e6:.1f} | {r['wall_seconds']:.2f} | {r['mtokens_per_second']:.2f} "
        f"| {r['cpu_seconds_per_mtoken']:.3f} | {r['peak_megabytes']} |"
        for r in rows
    ]
    return "\n".join(
        [
            "# Preparation",
            "",
            f"Medians of {num_rounds} rounds in turn on 2 cores, by `python benchmarks/prep.py`, start-up counted; "
            f"the tokens of all are identical. {', '.join(f'{name} {value}' for name, value in facts.items())}.",
            "",
            "| way | Mtokens | wall s | Mtokens/s | CPU s per Mtoken | peak MB, largest process |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            *(
                f"`amcli prep` to {name}: {speed:.0f} times the rate, 1/{cpu:.0f} of the CPU time."
                for name, speed, cpu in ratios(rows)
            ),
            "",
        ]
    )


def machine() -> dict[str, object]:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = ("amcli", "fastokens", "tokenizers", "pyarrow", "datasets", "tiktoken", "transformers")
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parquet", type=Path, help="a file with a column `text`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=64, help="how often amcli reads the file")
    parser.add_argument("--chunk-sizes", action="store_true", help="compare sizes of a chunk instead")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A busy machine slows all alike, but whoever reads the rates must know that it was busy.
    facts = {**machine(), "load average before": round(os.getloadavg()[0], 1)}
    rows = measure(options.parquet, contestants(options.copies, options.chunk_sizes), options.rounds)
    page = table(rows, facts, options.rounds)
    if not options.chunk_sizes:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "prep.json").write_text(json.dumps({"machine": facts, "ways": rows}, indent=2) + "\n")
        (RESULTS / "prep.md").write_text(page)
    sys.stdout.write(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
