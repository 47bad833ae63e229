"""Prepare one corpus on a Ray cluster, part by part, and join the parts.

    python examples/ray_prep.py fineweb --parts 16 --output /shared/fineweb -- --max-tokens 10B

What follows `--` goes to every `amcli prep`. The output must lie on a file system that all nodes share. A part
that fails is tried again and goes on where it stopped; finished parts are left alone, so the command can be repeated.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import ray


@ray.remote(max_retries=3, retry_exceptions=True)
def prepare(command: list[str]) -> None:
    """One part; a failure raises, and Ray tries again on any node."""
    subprocess.run(command, check=True)


def main() -> None:
    """Start a task for each part, wait for all of them, and merge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="a preset, a file or a pattern, as for `amcli prep`")
    parser.add_argument("--parts", type=int, default=16)
    parser.add_argument("--cpus", type=int, default=8, help="for each part")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("options", nargs="*", help="after --: options of `amcli prep`")
    arguments = parser.parse_args()

    ray.init()
    parts = arguments.output.with_name(f"{arguments.output.name}-parts")
    common = ["amcli", "prep", arguments.corpus, "--num-workers", str(arguments.cpus), "--output-dir", str(parts)]
    tasks = [
        prepare.options(num_cpus=arguments.cpus).remote(
            [*common, "--partition", f"{index}/{arguments.parts}", *arguments.options]
        )
        for index in range(arguments.parts)
    ]
    ray.get(tasks)
    directories = sorted(map(str, parts.glob("part-*")))
    subprocess.run(["amcli", "data", "merge", *directories, "--output", str(arguments.output)], check=True)


if __name__ == "__main__":
    main()
