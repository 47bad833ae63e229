"""No key does nothing: set to another value, each changes what a run does, or a message comes."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from contextlib import chdir
from importlib.machinery import ModuleSpec
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest
import torch

from automodel_cli import app
from automodel_cli.engine.config.sections import SECTIONS, General, section_fields
from automodel_cli.engine.config.target_sections import ENGINE_KEYS
from automodel_cli.engine.data.loader import BatchLoader
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy
from automodel_cli.engine.models.gpt2 import build_gpt2_model

MASKED = "loss_fn._target_=automodel_cli.engine.loss.masked_ce.MaskedCrossEntropy"
# Another value of each key; beside it what has to be set for it to count.
VALUES: dict[str, tuple[object, ...]] = {
    "seed": (8,),
    "device": ("cuda",),
    "precision": ("bf16",),
    "deterministic": ("true",),
    "num_threads": (2,),
    "shift_labels": ("true",),
    "step_scheduler.max_steps": (900,),
    "step_scheduler.global_batch_size": (32,),
    "step_scheduler.local_batch_size": (8,),
    "step_scheduler.val_every_steps": (50,),
    "step_scheduler.val_batches": (3,),
    "step_scheduler.val_tokens": ("10K tokens",),
    "step_scheduler.ckpt_every_steps": (50,),
    "lr_scheduler.lr_decay_style": ("linear",),
    "lr_scheduler.lr_warmup_steps": (50,),
    "lr_scheduler.lr_decay_steps": (500,),
    "lr_scheduler.lr_wsd_decay_steps": (50, "lr_scheduler.lr_decay_style=WSD"),
    "lr_scheduler.lr_wsd_decay_style": (
        "cosine",
        "lr_scheduler.lr_decay_style=WSD",
        "lr_scheduler.lr_wsd_decay_steps=4",
        "lr_scheduler.lr_warmup_steps=0",
        "lr_scheduler.lr_decay_steps=6",
    ),
    "lr_scheduler.min_lr": ("1e-5",),
    "lr_scheduler._target_": ("schedules.py:cooldown",),
    "clip_grad_norm.max_norm": (0.5,),
    "dataloader.num_workers": (3,),
    "dataloader.prefetch_factor": (4,),
    "dataloader.pin_memory": ("false",),
    "dataloader.persistent_workers": ("false",),
    "dataloader.collate_fn": ("nemo_automodel.components.datasets.utils.default_collater",),
    "compile.enabled": ("true",),
    "compile.mode": ("max-autotune-no-cudagraphs", "compile.enabled=true"),
    "compile.backend": ("eager", "compile.enabled=true"),
    "compile.fullgraph": ("true", "compile.enabled=true"),
    "compile.per_block": ("false", "compile.enabled=true"),
    "activation_checkpointing.mode": ("full",),
    "activation_checkpointing.every": (2, "activation_checkpointing.mode=full"),
    "checkpoint.enabled": ("false",),
    "checkpoint.checkpoint_dir": ("elsewhere",),
    "checkpoint.model_save_format": ("torch_save",),
    "checkpoint.max_recent_checkpoints": (1, "step_scheduler.ckpt_every_steps=1"),
    "checkpoint.keep_every_steps": (1, "step_scheduler.ckpt_every_steps=1", "checkpoint.max_recent_checkpoints=1"),
    "distributed.strategy": ("ddp",),
    "distributed.dp_size": (2,),
    "distributed.tp_size": (2,),
    "distributed.cp_size": (2,),
    "distributed.pp_size": (2,),
    "distributed.dp_replicate_size": (2,),
    "distributed.sequence_parallel": ("true", "distributed.tp_size=2"),
    "distributed.reshard_after_forward": ("false", "model.n_layer=4"),
    "distributed.mp_policy": ("bf16",),
    "distributed.offload_policy": ("cpu",),
    "distributed.defer_fsdp_grad_sync": ("false", "step_scheduler.local_batch_size=1"),
    "distributed.dtype": ("bfloat16",),
    "distributed._target_": ("nemo_automodel.components.distributed.ddp.DDPManager",),
    "packed_sequence.packed_sequence_size": (64,),
    "wandb.enabled": ("false", "wandb.project=p"),
    "wandb.project": ("q", "wandb.project=p"),
    "wandb.entity": ("e", "wandb.project=p"),
    "wandb.name": ("n", "wandb.project=p"),
    "wandb.mode": ("offline", "wandb.project=p"),
    "wandb.save_dir": ("here", "wandb.project=p"),
    "tensorboard.enabled": ("false", "tensorboard.log_dir=a"),
    "tensorboard.log_dir": ("b", "tensorboard.log_dir=a"),
    "mfu.peak_tflops": (100.0,),
    "optimizer.param_groups": ("[{pattern: 'wte*', lr_mult: 0.1}]",),
    "optimizer.lr": ("1e-3",),
    "optimizer.betas": ("[0.8, 0.9]",),
    "optimizer.eps": ("1e-6",),
    "optimizer.weight_decay": (0.2,),
    "loss_fn.label_smoothing": (0.1, MASKED),
    "loss_fn.z_loss": (0.1, MASKED),
    "dataset.file_pattern": ("PARENT/val_*.bin",),
    "dataset.seq_len": (32,),
    "dataset.shuffle": ("false",),
    "dataset.shuffle_files": ("true",),
    "dataset.align_to_bos": ("true",),
    "dataset.bos_token": (10, "dataset.align_to_bos=true"),
    "dataset.document_mask": ("true",),
    "model.vocab_size": (300,),
    "model.n_positions": (256,),
    "model.n_embd": (64,),
    "model.n_layer": (3,),
    "model.n_head": (8,),
    "model.bias": ("false",),
    "model.dropout": (0.5,),
    "model.initializer_range": (0.5,),
    "model.layer_norm_epsilon": ("1e-3",),
}
# What only a longer run, several ranks or a failure shows: the tests that set the key, and show what it does.
SHOWN_BY = {
    "checkpoint.best_metric_key": "tests/engine/train/test_batches.py",
    "checkpoint.init_from": "tests/test_restore_from.py",
    "checkpoint.is_async": "tests/test_async_saves.py",
    "checkpoint.on_save_error": "tests/test_async_saves.py",
    "checkpoint.restore_from": "tests/test_restore_from.py",
    "checkpoint.save_best": "tests/test_best.py",
    "checkpoint.save_consolidated": "tests/engine/train/shard_ranks.py",
    "cpu_matmul": "tests/engine/loss/test_products.py",
    "dist_env.backend": "tests/engine/distributed/test_distributed_group.py",
    "dist_env.timeout_minutes": "tests/test_hung_ranks.py",
}
# Said to do nothing, in its meaning: it is there for the files of another tool.
NOTHING = {"recipe": "with or without it"}


def documented():
    """Every key of amcli's own sections, and every argument of its own model, data set and loss."""
    for owner in (General, *SECTIONS):
        yield from (f"{owner.name}.{name}".lstrip(".") for name in section_fields(owner))
    yield from (f"{section}.{name}" for section, keys in ENGINE_KEYS.items() for name in keys)
    for section, built in {"model": build_gpt2_model, "dataset": NanogptDataset, "loss_fn": MaskedCrossEntropy}.items():
        yield from (f"{section}.{name}" for name in inspect.signature(built).parameters if name != "device")


def test_every_documented_key_is_looked_at():
    """A key that is added gets a value here, or the test that shows what it does."""
    assert set(documented()) - {*VALUES, *SHOWN_BY, *NOTHING} == set()
    meanings = {name: item.metadata["meaning"] for name, item in section_fields(General).items()}
    assert all(words in meanings[key] for key, words in NOTHING.items())
    for key, path in SHOWN_BY.items():
        assert re.search(rf"\b{key.rpartition('.')[2]}\b", (Path(__file__).parents[1] / path).read_text()), key


# Facts of a report that differ between equal runs.
TIMED = re.compile(r"^run_id|^ *step|tok(ens)?/s|[0-9] m?s\b|[0-9] [MG]B")
VARIES = re.compile(r"time|second|share|memory|mfu|version|run_id|host|command|directory|path")


@pytest.fixture
def observed(tiny_run, tiny_data, tmp_path, monkeypatch, capsys):
    """What a run of two steps does and says with some settings, as far as it can be seen from outside."""
    places = count()
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    calls: list[str] = []

    def recorded(name, function):
        def call(*args, **kwargs):
            calls.append(
                f"{name} {sorted((k, v) for k, v in kwargs.items() if k != 'id' and isinstance(v, str | int | float))}"
            )
            return function(*args, **kwargs)

        return call

    # What only speed shows is seen where it is handed over; of services, whose packages need not be installed.
    monkeypatch.setattr(BatchLoader, "__init__", recorded("loader", BatchLoader.__init__))
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", recorded("deterministic", torch.use_deterministic_algorithms)
    )
    monkeypatch.setattr(torch, "compile", recorded("compile", lambda model=None, **_: model))
    monkeypatch.setattr(torch.nn.Module, "compile", recorded("compile", lambda *_, **__: None))
    fake = ModuleType("wandb")
    vars(fake).update(init=recorded("wandb", lambda **_: Run()), Settings=dict, __spec__=ModuleSpec("wandb", None))
    monkeypatch.setitem(sys.modules, "wandb", fake)

    def said(command, overrides):
        arguments = [part for each in overrides for part in ("--set", each.replace("PARENT", str(tiny_data)))]
        code = app.run([*command, "-c", str(tiny_run), *arguments])
        return code, "".join(capsys.readouterr())

    def observe(overrides):
        place = tmp_path / f"{next(places)}"
        place.mkdir()
        calls.clear()
        base = [
            "step_scheduler.max_steps=2",
            "step_scheduler.ckpt_every_steps=null",
            "dataset.file_pattern=PARENT/train_*.bin",
        ]
        with chdir(place):
            code, text = said(["pretrain"], [*base, *overrides])
            plan = said(["plan", "--json", "--nproc-per-node", "4"], [*base, *overrides])
            curve = said(["config", "show", "--plot-lr", "--json"], overrides)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        files = sorted(path for path in place.rglob("*") if path.is_file())
        reports = [json.loads(line) for path in files if path.name == "metrics.jsonl" for line in path.open()]
        return {
            "code": code,
            "text": [line for line in text.replace(str(place), "").splitlines() if not TIMED.search(line)],
            "reports": [stable(report) for report in reports],
            "plan": plan,
            "curve": curve,
            "calls": list(calls),
            "files": [str(path.relative_to(place)).split("events")[0] for path in files],
            "weights": [hashlib.sha256(p.read_bytes()).hexdigest() for p in files if "model" in p.parts],
        }

    return observe


class Run:
    """What `wandb.init` gives."""

    def __getattr__(self, name):
        return lambda *_, **__: None


def stable(value):
    """A report without what differs between equal runs."""
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if not VARIES.search(key)}
    return value


@pytest.fixture(scope="module")
def before_by_setting():
    """What was observed without the key, by what stands beside it: for many keys the same."""
    return {}


@pytest.mark.parametrize("beside", [["wandb.project=p", "tensorboard.log_dir=a", "compile.enabled=true"]])
def test_what_is_observed_of_equal_settings_is_equal(observed, beside):
    """Else a difference would show nothing."""
    first, second = observed(beside), observed(beside)
    assert first == second, set(map(str, first["text"])) ^ set(map(str, second["text"]))


@pytest.mark.parametrize("key", VALUES)
def test_a_key_changes_something_or_a_message_comes(observed, before_by_setting, key):
    """Beside the same configuration without it."""
    value, *beside = VALUES[key]
    if tuple(beside) not in before_by_setting:
        before_by_setting[tuple(beside)] = observed(beside)
    before = before_by_setting[tuple(beside)]

    after = observed([*beside, f"{key}={value}"])

    assert 0 in (before["code"], before["plan"][0]), before["text"]
    assert [name for name in after if after[name] != before[name]]
