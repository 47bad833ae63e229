"""Kills real training runs at random, resumes them, and compares the ends with that of an undisturbed run.

Every run is a chain: up to five SIGKILLs in a row, each hitting a run that goes on from what the one before
left behind, then one undisturbed end. Half of the kills come by the clock, at any moment from the start to the
end of the process; the others at a named site inside a save: after each stage of the commit protocol, before
or after the n-th fsync, rename, symlink, unlink, mkdir or rmdir. Runs are forked from a process that has
imported everything, so that a kill costs a fraction of a second.

    python scripts/torture.py --kills 200 --seconds 600 --seed 1 --output benchmarks/results/torture.json

The seed decides every site and every moment; a moment by the clock hits what the machine is doing then.
Exit code 1 if a run could not go on, ended in other bits, or lost a step that was committed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CONFIG = """
seed: 7
device: cpu
num_threads: 1
model:
  _target_: automodel_cli.engine.models.gpt2.build_gpt2_model
  vocab_size: 257
  n_positions: 16
  n_embd: 16
  n_layer: 2
  n_head: 2
  dropout: 0.1
dataset: &data
  _target_: automodel_cli.engine.data.nanogpt_dataset.NanogptDataset
  file_pattern: data/train_*.bin
  seq_len: 16
validation_dataset: {<<: *data, file_pattern: data/val_*.bin}
optimizer: {_target_: torch.optim.AdamW, lr: 1e-2}
lr_scheduler: {lr_decay_style: cosine, lr_warmup_steps: 2}
step_scheduler:
  {max_steps: 12, global_batch_size: 8, local_batch_size: 4, val_every_steps: 4, val_batches: 2, ckpt_every_steps: 2}
checkpoint: {max_recent_checkpoints: 2}
"""
KILLS_IN_A_ROW = 5
OPERATIONS = ("fsync", "rename", "replace", "symlink", "unlink", "mkdir", "rmdir")
HANGS_SECONDS = 120


@dataclass(frozen=True)
class Layout:
    """How many ranks train, and how they share the model."""

    name: str
    ranks: int
    options: tuple[str, ...] = ()


LAYOUTS = {
    "alone": Layout("alone", 1),
    "ddp": Layout("ddp", 2, ("--set", "distributed.strategy=ddp")),
    "fsdp2": Layout("fsdp2", 2, ("--set", "distributed.strategy=fsdp2")),
    # Every checkpoint in the parts that the ranks hold, the last one, too.
    "parts": Layout("parts", 2, ("--set", "checkpoint.save_consolidated=false")),
    "torch_save": Layout("torch_save", 1, ("--set", "checkpoint.model_save_format=torch_save")),
    "fsdp2+torch_save": Layout("fsdp2+torch_save", 2, ("--set", "checkpoint.model_save_format=torch_save")),
}

# The same, with saves beside the training: a kill by the clock hits both at work.
LAYOUTS |= {
    f"{one.name}+async": Layout(f"{one.name}+async", one.ranks, (*one.options, "--set", "checkpoint.is_async=true"))
    for one in LAYOUTS.values()
}


@dataclass
class Kill:
    """One kill and what it left."""

    kind: str
    where: str
    saved_step: int
    committed_step: int


@dataclass
class Chain:
    """Kills in a row on one run, and how the run ended; empty `failures` is what is wanted."""

    number: int
    layout: str
    kills: list[Kill] = field(default_factory=list)
    starts_over_debris: int = 0
    debris_at_the_end: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Site:
    """A place inside a save of one rank: a stage, or a system call by its number, before or after it happens."""

    save: int
    what: str
    number: int = 0
    is_before: bool = False
    rank: int = 0

    def __str__(self) -> str:
        call = f"{'before' if self.is_before else 'after'} {self.what}"
        place = f"{call} {self.number} of save {self.save}" if self.number else f"{call}, save {self.save}"
        return f"{place}, rank {self.rank}" if self.rank else place


class Watch:
    """Counts what happens inside saves, notes every commit, and kills the process at one site."""

    def __init__(self, root: Path, rank: int, site: Site | None, killed: Callable[[], None]) -> None:
        self._root, self._rank, self._site, self._die = root, rank, site, killed
        self._saves, self._inside = 0, False
        self._calls: Counter[str] = Counter()

    def install(self) -> None:
        from automodel_cli.engine.train import checkpoint_content, checkpoint_manager

        begin, finish = checkpoint_content.begin, checkpoint_manager.finish

        def begun(*arguments: Any) -> Path:
            self._enter()
            return begin(*arguments)

        def finished(one: Any) -> Path:
            if self._rank > 0:
                self._enter()  # what rank 0 has begun
            path = finish(one, lambda stage: self._stage(stage.name, one.step))
            self._inside = False
            note(self._root, f"calls{self._rank}", json.dumps(self._calls))
            return path

        checkpoint_content.begin, checkpoint_manager.finish = begun, finished
        for name in OPERATIONS:
            setattr(os, name, self._around(name, getattr(os, name)))

    def _enter(self) -> None:
        self._saves, self._inside = self._saves + 1, True
        self._calls.clear()

    def _stage(self, name: str, step: int) -> None:
        if name == "RENAMED":
            # The commit: from here on no kill may lose this step.
            self._inside = False
            note(self._root, "commits", str(step))
            self._inside = True
        self._at(Site(self._saves, f"stage {name}", rank=self._rank))

    def _around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if not self._inside:
                return real(*arguments, **named)
            self._calls[name] += 1
            number = self._calls[name]
            self._at(Site(self._saves, name, number, is_before=True, rank=self._rank))
            result = real(*arguments, **named)
            self._at(Site(self._saves, name, number, rank=self._rank))
            return result

        return call

    def _at(self, site: Site) -> None:
        if site == self._site:
            self._die()


def note(root: Path, name: str, line: str) -> None:
    """Appends a line to a file beside the run, as one write, so that a kill leaves it whole or out."""
    descriptor = os.open(root.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def notes(root: Path, name: str) -> list[str]:
    path = root.with_suffix(f".{name}")
    return path.read_text().splitlines() if path.exists() else []


@dataclass(frozen=True)
class End:
    """How an attempt ended: by our kill, or with an exit code of its own; and what it printed."""

    is_killed: bool
    code: int
    output: str


def attempt(root: Path, layout: Layout, *, site: Site | None = None, after: float | None = None) -> End:
    """Starts or continues the run in forked processes, one per rank, until they end or one is killed.

    Args:
        root: Directory of the run's checkpoints.
        layout: See `Layout`.
        site: Where a rank kills itself.
        after: Seconds after which all are killed.
    """
    port = free_port()
    log = root.with_suffix(".log")
    log.write_bytes(b"")
    began = time.monotonic()
    ranks = {fork(lambda rank=rank: train(root, layout, rank, port, site, log)) for rank in range(layout.ranks)}
    codes: list[int] = []
    is_killed = False
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in ranks:
            ranks.discard(pid)
            codes.append(os.waitstatus_to_exitcode(status))
            if codes[-1] == -signal.SIGKILL and not is_killed:
                is_killed = True
                kill(ranks)  # as every launcher does when a rank has died
        elif after is not None and not is_killed and time.monotonic() - began > after:
            is_killed = True
            kill(ranks)
        elif time.monotonic() - began > HANGS_SECONDS:
            kill(ranks)
            codes.append(124)
        else:
            time.sleep(0.002)
    failed = [code for code in codes if code not in (0, -signal.SIGKILL)]
    # A rank that fails because its partner was killed is no failure of its own.
    is_killed = is_killed and -signal.SIGKILL in codes
    return End(is_killed, 0 if is_killed else (failed or [0])[0], log.read_text(errors="replace"))


def kill(ranks: set[int]) -> None:
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)


def fork(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def train(root: Path, layout: Layout, rank: int, port: int, site: Site | None, log: Path) -> int:
    """One rank: what `amcli pretrain --resume auto` does, in this process."""
    before = set(sys.modules)
    from automodel_cli import app

    with log.open("a", buffering=1) as output:
        sys.stdout = sys.stderr = output
        if layout.ranks > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": layout.ranks, "LOCAL_WORLD_SIZE": layout.ranks}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in place.items()})
        if site is None or site.rank == rank:
            Watch(root, rank, site, lambda: os.kill(os.getpid(), signal.SIGKILL)).install()
        own = ("--set", f"checkpoint.checkpoint_dir={root}")
        code = int(app.run(["pretrain", "-c", "torture.yaml", "--resume", "auto", *own, *layout.options]))
        if rank == 0 and root.name.startswith("straight"):
            note(root, "modules", "\n".join(name for name in list(sys.modules) if name not in before))
        return code


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def newest(root: Path) -> int:
    """The step of the newest complete checkpoint; 0 for none."""
    from automodel_cli.engine.checkpoint.layout import is_complete, list_steps

    return max((step for step, path in list_steps(root) if is_complete(path)), default=0)


def result_of(root: Path) -> dict[str, Any]:
    """What two runs must have in common: every hash of the last checkpoint, and the curve, each step once."""
    from automodel_cli.engine.checkpoint.layout import resolve
    from automodel_cli.engine.checkpoint.manifest import read_manifest, verify

    last = resolve(root)
    files = read_manifest(last).files
    records = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return {
        "step": last.name,
        "damage": [str(problem) for problem in verify(last)],
        "hashes": {name: record.sha256 for name, record in files.items() if name.endswith((".safetensors", ".bin"))},
        "curve": [(r["step"], r["loss"], r["grad_norm"]) for r in records if r["event"] == "step"],
        "left": sorted(path.name for path in root.iterdir() if path.name.startswith(".")),
    }


@dataclass(frozen=True)
class Reference:
    """The undisturbed run of a layout: its end, how long it took, and how many calls a save makes, by rank."""

    result: dict[str, Any]
    seconds: float
    calls: dict[int, dict[str, int]]


def reference(root: Path, layout: Layout) -> Reference:
    attempt(root.with_name(f"{root.name}-first"), layout)
    import_for(root.with_name(f"{root.name}-first"))
    began = time.monotonic()
    end = attempt(root, layout)
    if end.code:
        raise SystemExit(f"the undisturbed run failed:\n{end.output}")
    seconds = time.monotonic() - began
    said = {rank: notes(root, f"calls{rank}") for rank in range(layout.ranks)}
    return Reference(result_of(root), seconds, {rank: json.loads(lines[-1]) for rank, lines in said.items() if lines})


def random_site(generator: random.Random, calls_by_rank: dict[int, dict[str, int]]) -> Site:
    from automodel_cli.engine.checkpoint.save import SaveStage

    save = generator.choice((1, 1, 2))
    rank = generator.choice(list(calls_by_rank))  # of those that write
    calls = calls_by_rank[rank]
    if generator.random() < 0.3:
        stages = list(SaveStage) if rank == 0 else [SaveStage.TENSORS_WRITTEN, SaveStage.FILES_SYNCED]
        return Site(save, f"stage {generator.choice(stages).name}", rank=rank)
    name = generator.choice(list(calls))  # not by their numbers: the one rename that commits is worth as much as any
    return Site(save, name, generator.randint(1, calls[name]), generator.random() < 0.5, rank)


def chain(number: int, layout: Layout, known: Reference, directory: Path, seed: int) -> Chain:
    """Kills a run up to five times in a row, lets it end, and says what is wrong with the end."""
    generator = random.Random(f"{seed}-{number}")
    root = directory / f"chain-{number}"
    found = Chain(number, layout.name)
    for _ in range(KILLS_IN_A_ROW):
        site = random_site(generator, known.calls) if generator.random() < 0.5 else None
        after = None if site else generator.uniform(0, 0.8 * known.seconds)
        found.starts_over_debris += root.is_dir() and any(root.glob(".step_*"))
        end, before = attempt(root, layout, site=site, after=after), newest(root)
        check_start(found, end)
        if not end.is_killed:
            if end.code:
                found.failures.append(f"ended by itself with {end.code}: {end.output[-800:]}")
                return found
            return ended(found, known, root)  # the run was complete before the kill came
        committed = max(map(int, notes(root, "commits")), default=0)
        where = str(site) if site else f"{after:.3f} s after its start"
        found.kills.append(Kill("site" if site else "clock", where, before, committed))
        if before < committed:
            found.failures.append(f"step {committed} was committed, but {before} is the newest after {where}")
    last = attempt(root, layout)
    check_start(found, last)
    if last.code:
        found.failures.append(f"cannot be resumed ({last.code}): {last.output[-800:]}")
        return found
    return ended(found, known, root)


def ended(found: Chain, known: Reference, root: Path) -> Chain:
    """Compares the end of a run with that of the undisturbed one."""
    result = result_of(root)
    expected = dict(known.result)
    if found.kills and found.kills[-1].saved_step == int(result["step"].removeprefix("step_")):
        # The last save was killed after its commit: no save came after it that would have cleared up.
        found.debris_at_the_end = len(result["left"])
        expected["left"] = result["left"]
    found.failures += [f"{key} differs" for key in expected if result[key] != expected[key]]
    if not found.failures:
        shutil.rmtree(root)
    return found


def check_start(found: Chain, end: End) -> None:
    """A run must begin after the newest checkpoint that the kill before it left."""
    said = re.search(r"resuming after step (\d+)", end.output)
    expected = found.kills[-1].saved_step if found.kills else 0
    if said and int(said[1]) != expected:
        found.failures.append(f"went on after step {said[1]}, but step {expected} was saved")


def import_for(root: Path) -> None:
    """Imports what a forked run had to import, so that the next ones import nothing anew."""
    for name in notes(root, "modules"):
        with contextlib.suppress(Exception):  # some exist only inside others, or register themselves twice
            importlib.import_module(name)


def prepare_data() -> int:
    from automodel_cli.engine.prep.prepare import PrepOptions, prepare

    prepare(PrepOptions(source="shakespeare", output_dir=Path("data"), max_tokens=50_000, val_tokens=5_000))
    return 0


def campaign(layouts: list[Layout], kills: int, seconds: float, seed: int, directory: Path) -> dict[str, Any]:
    """Chains over all layouts in turn, until there are enough kills or the time is up."""
    began = time.monotonic()
    os.chdir(directory)
    Path("torture.yaml").write_text(CONFIG)
    os.waitpid(fork(prepare_data), 0)
    known = {one.name: reference(directory / f"straight-{one.name}", one) for one in dict.fromkeys(layouts)}
    chains: list[Chain] = []
    for number, layout in zip(itertools.count(), itertools.cycle(layouts), strict=False):
        done = sum(len(one.kills) for one in chains)
        if done >= kills or time.monotonic() - began > seconds:
            break
        chains.append(chain(number, layout, known[layout.name], directory, seed))
        for failure in chains[-1].failures:
            print(f"chain {number} ({layout.name}): {failure}", file=sys.stderr, flush=True)
        print(f"{done + len(chains[-1].kills)} kills in {len(chains)} chains", file=sys.stderr, flush=True)
    return report(chains, seed, time.monotonic() - began)


def report(chains: list[Chain], seed: int, seconds: float) -> dict[str, Any]:
    from automodel_cli import __version__

    table = {}
    for name in dict.fromkeys(one.layout for one in chains):
        ours = [one for one in chains if one.layout == name]
        kinds = Counter(kill.kind for one in ours for kill in one.kills)
        table[name] = {
            "runs": len(ours),
            "kills_by_clock": kinds["clock"],
            "kills_at_sites": kinds["site"],
            "five_in_a_row": sum(len(one.kills) == KILLS_IN_A_ROW for one in ours),
            "starts_over_debris": sum(one.starts_over_debris for one in ours),
            "failures": sum(len(one.failures) for one in ours),
        }
    return {
        "seed": seed,
        "command": " ".join(["python", "scripts/torture.py", *sys.argv[1:]]),
        "kills": sum(len(one.kills) for one in chains),
        "failures": sum(len(one.failures) for one in chains),
        "seconds": round(seconds, 1),
        "versions": {"amcli": __version__, "python": platform.python_version(), "system": platform.system()},
        "layouts": table,
        "chains": [asdict(one) for one in chains],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="stop after so many")
    parser.add_argument("--seconds", type=float, default=900, help="begin no further run after this time")
    parser.add_argument("--seed", type=int, default=None, help="of sites and moments; printed where it is drawn")
    names = ", ".join(LAYOUTS)
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help=f"in turn; a name may stand twice: {names}")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the result")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    output = given.output.resolve() if given.output else None
    print(f"seed {seed}", flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    directory = Path(tempfile.mkdtemp(prefix="amcli-torture-"))
    found = campaign([LAYOUTS[name] for name in given.layouts.split(",")], given.kills, given.seconds, seed, directory)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "chains"}, indent=2))
    if found["failures"]:
        print(f"the runs that failed are in {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
