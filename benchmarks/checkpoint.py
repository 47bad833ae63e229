"""What a checkpoint costs a run of GPT-2 with AdamW: amcli's saves beside torch.save and torch.distributed.checkpoint.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint.py        # minutes; needs 4 GB in --directory and 6 GB of memory

Per size, one process trains on random tokens, and every way saves the same live model and optimizer, in turn, several
rounds, so that a busy machine slows all of them alike; medians are compared. Of each way:

- stands still: seconds for which no step is trained. Of a save beside the training that is the copy alone.
- steps beside: how much longer the steps took while the save was under way, in all. On a CPU that trains they
  share cores and memory with the writer; on a GPU they do not.
- stall: both together, as a share of the time of --interval steps, the default between two saves.
- until saved: from the call to the moment from which a kill loses nothing of it.
- restored: read back into the model and the optimizer. verified: every byte compared with its hash; only amcli has one.

torch.save writes one file and, here, synchronises it, as without that a power cut leaves nothing;
torch.distributed.checkpoint synchronises by itself. Neither hashes, nor keeps the last good one when it is killed, nor
removes older ones: amcli does all three.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from automodel_cli.engine import durable
from automodel_cli.engine.checkpoint.load_checkpoint import load
from automodel_cli.engine.checkpoint.manifest import verify
from automodel_cli.engine.checkpoint.snapshot import TrainState
from automodel_cli.engine.config.sections import CheckpointSection
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.models.export import import_tensors
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.optim.optimizer import load_optimizer_state
from automodel_cli.engine.train.checkpoint_content import LiveParts, begin_saving
from automodel_cli.engine.train.checkpoint_manager import CheckpointManager
from automodel_cli.engine.train.device import place
from automodel_cli.engine.train.objective import objective_of
from automodel_cli.engine.train.step import train_step
from automodel_cli.engine.train.step_scheduler import StepScheduler

RESULTS = Path(__file__).parent / "results"
VOCAB, SEQ_LEN, BATCH = 50_304, 128, 1
SIZES = {
    "30m": {"n_layer": 6, "n_embd": 384, "n_head": 6},
    "124m": {"n_layer": 12, "n_embd": 768, "n_head": 12},
}


class Training:
    """A model that is trained, and how long its steps take."""

    def __init__(self, size: dict[str, int], device: str) -> None:
        torch.manual_seed(1)
        self.placement = place(device, "auto", None)
        self.model = build_gpt2_model(VOCAB, SEQ_LEN, **size).to(self.placement.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.objective = objective_of(None, self.model)
        self.step_seconds = 0.0
        self.step()
        self.step_seconds = statistics.median(self.step() for _ in range(3))

    def step(self) -> float:
        ids = torch.randint(VOCAB, (BATCH, SEQ_LEN + 1)).numpy()
        began = time.perf_counter()
        train_step(
            self.model,
            self.objective,
            self.optimizer,
            [{"input_ids": ids[:, :-1], "labels": ids[:, 1:]}],
            device=self.placement.device,
            lr=1e-4,
            max_norm=1.0,
            autocast_dtype=self.placement.autocast_dtype,
        )
        return time.perf_counter() - began

    def num_bytes(self) -> int:
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.model.parameters(), *states))


@dataclass(frozen=True)
class Save:
    """A save that has begun: whether it is done, how to wait for it, and how to read it back."""

    is_done: Callable[[], bool]
    wait: Callable[[], object]
    restore: Callable[[], object]
    path: Path


def amcli(training: Training, root: Path, *, is_async: bool) -> Callable[[], Save]:
    """As the loop saves: a step that is due."""
    state = TrainState()
    section = CheckpointSection(is_async=is_async, max_recent_checkpoints=1)

    def begin(is_best: bool) -> Any:
        return begin_saving(
            root,
            LiveParts(state, ParallelModel(training.model), training.optimizer, ""),
            section,
            lr=1e-4,
            placement=training.placement,
            is_best=is_best,
            is_last=False,
        )

    saves = CheckpointManager(root, state, begin, section, StepScheduler(10**9, None, 1), lambda text: None)

    def save() -> Save:
        state.step += 1
        saves.save_if_due()
        return Save(
            lambda: not is_async or bool(saves.status[0]), saves.finish, restore, root / f"step_{state.step:06d}"
        )

    def restore() -> None:
        snapshot = load(root / f"step_{state.step:06d}")
        import_tensors(training.model, snapshot.model_tensors)
        load_optimizer_state(training.optimizer, training.model, snapshot.optim_tensors)

    return save


def torch_save(training: Training, root: Path) -> Callable[[], Save]:
    path = root / "state.pt"

    def save() -> Save:
        torch.save({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}, path)
        durable.sync_file(path)
        return Save(lambda: True, lambda: None, restore, path)

    def restore() -> None:
        found = torch.load(path, weights_only=True, map_location=training.placement.device)
        training.model.load_state_dict(found["model"])
        training.optimizer.load_state_dict(found["optimizer"])

    return save


def dcp_save(training: Training, root: Path, *, is_async: bool) -> Callable[[], Save]:
    def save() -> Save:
        shutil.rmtree(root, ignore_errors=True)
        model, optimizer = get_state_dict(training.model, training.optimizer)
        if not is_async:
            dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=root)
            return Save(lambda: True, lambda: None, restore, root)
        future = dcp.async_save({"model": model, "optimizer": optimizer}, checkpoint_id=root)
        return Save(future.done, future.result, restore, root)

    def restore() -> None:
        model, optimizer = get_state_dict(training.model, training.optimizer)
        found = {"model": model, "optimizer": optimizer}
        dcp.load(found, checkpoint_id=root)
        set_state_dict(
            training.model,
            training.optimizer,
            model_state_dict=found["model"],
            optim_state_dict=found["optimizer"],
        )

    return save


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def one_round(training: Training, begin: Callable[[], Save], *, verifies: bool) -> dict[str, float]:
    """Saves once while training, waits for it, and reads it back."""
    began = time.perf_counter()
    still, save = timed(begin)
    beside, steps = 0.0, 0
    while not save.is_done():
        beside += training.step()
        steps += 1
    rest, _ = timed(save.wait)
    found = {
        "stands_still_s": still + rest,
        # Both steps with and without a save vary: less than nothing is noise.
        "steps_beside_s": max(0.0, beside - steps * training.step_seconds),
        "until_saved_s": time.perf_counter() - began,
        "num_bytes": sum(path.stat().st_size for path in [save.path, *save.path.rglob("*")] if path.is_file()),
    }
    if verifies:
        found["verified_s"], damage = timed(lambda: verify(save.path))
        if damage:
            raise SystemExit(f"the checkpoint is damaged: {damage}")
    found["restored_s"], _ = timed(save.restore)
    return found


def measure(name: str, device: str, num_rounds: int, interval: int, directory: Path) -> list[dict[str, Any]]:
    training = Training(SIZES[name], device)
    ways = {
        "amcli": amcli(training, directory / "waited", is_async=False),
        "amcli, is_async": amcli(training, directory / "beside", is_async=True),
        "torch.save, synchronised": torch_save(training, directory),
        "torch dcp.save": dcp_save(training, directory / "dcp", is_async=False),
        "torch dcp.async_save": dcp_save(training, directory / "dcp-async", is_async=True),
    }
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(num_rounds + 1):
        training.step_seconds = statistics.median(training.step() for _ in range(3))
        for way, begin in ways.items():
            found = one_round(training, begin, verifies=way.startswith("amcli"))
            found["stall_share"] = (found["stands_still_s"] + found["steps_beside_s"]) / (
                interval * training.step_seconds
            )
            if number:  # the first round makes buffers and directories
                rounds[way].append(found)
                print(f"{name} round {number}: {way} stands still {found['stands_still_s']:.2f} s", file=sys.stderr)
    return [
        {
            "size": name,
            "way": way,
            "step_s": training.step_seconds,
            "state_bytes": training.num_bytes(),
            **{key: statistics.median(one[key] for one in found) for key in found[0]},
            "rounds": found,
        }
        for way, found in rounds.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| size | way | GB | stands still, s | steps beside, s | stall of the interval | until saved, s | verified, s "
        "| restored, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        verified = f"{row['verified_s']:.2f}" if "verified_s" in row else "no hash"
        lines.append(
            f"| {row['size']} | {row['way']} | {row['num_bytes'] / 1e9:.2f} | {row['stands_still_s']:.2f} "
            f"| {row['steps_beside_s']:.2f} | {row['stall_share']:.2%} | {row['until_saved_s']:.2f} "
            f"| {verified} | {row['restored_s']:.2f} |"
        )
    return "\n".join(lines)


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return f"{found[1] if found else platform.processor()}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--interval", type=int, default=200, help="steps between two saves, for the share of the stall")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure; a temporary one")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in given.sizes:
        with tempfile.TemporaryDirectory(dir=given.directory) as directory:
            rows += measure(name, given.device, given.rounds, given.interval, Path(directory))
    command = f"`python benchmarks/checkpoint.py`, medians of {given.rounds} rounds"
    how = f"{machine(given.device)}, torch {torch.__version__}; {command}"
    steps = ", ".join(f"{row['step_s']:.2f} s ({row['size']})" for row in rows[:: len(rows) // len(given.sizes)])
    path = given.output / f"checkpoint-{given.device}"
    found = {"machine": how, "interval": given.interval, "rows": rows}
    path.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    pace = f"A step takes {steps}; {given.interval} steps between two saves."
    pace += " Cores that do other work, too, slow all of it."
    page = f"# Cost of a checkpoint\n\n{how}.\n{pace}\n\n{table(rows)}\n"
    path.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
