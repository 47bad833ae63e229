"""No key does nothing: set to another value, each changes what a run does, or a message comes."""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.instantiate import instantiate
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.config.sections import ENGINE_KEYS, SECTIONS, General, section_fields
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.data.order import order_of
from automodel_cli.engine.distributed import team
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.observe.build import run_sink
from automodel_cli.engine.optim.build import build_optimizer
from automodel_cli.engine.optim.lr_schedule import schedule_of
from automodel_cli.engine.optim.param_groups import group_rules
from automodel_cli.engine.plan.devices import device_named
from automodel_cli.engine.plan.plan import plan
from automodel_cli.engine.train import feeding, model_setup, saving
from automodel_cli.engine.train.device import place
from automodel_cli.engine.train.objective import objective_of
from automodel_cli.engine.train.report import speed_of
from automodel_cli.engine.train.state import TrainState
from automodel_cli.engine.train.step_scheduler import StepScheduler
from automodel_cli.errors import AmcliError

# Another value of each key; beside it what has to be set for it to count.
VALUES: dict[str, tuple[object, ...]] = {
    "seed": (7,),
    "device": ("cuda",),
    "precision": ("bf16",),
    "deterministic": ("true",),
    "num_threads": (2,),
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
    "lr_scheduler.lr_wsd_decay_style": ("cosine", "lr_scheduler.lr_decay_style=WSD"),
    "lr_scheduler.min_lr": ("1e-5",),
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
    "checkpoint.max_recent_checkpoints": (2,),
    "checkpoint.keep_every_steps": (300, "checkpoint.max_recent_checkpoints=2"),
    "distributed.strategy": ("ddp",),
    "distributed.dp_size": (2,),
    "distributed.tp_size": (2,),
    "distributed.cp_size": (2,),
    "distributed.pp_size": (2,),
    "distributed.dp_replicate_size": (2,),
    "distributed.sequence_parallel": ("true", "distributed.tp_size=2"),
    "distributed.reshard_after_forward": ("false",),
    "distributed.mp_policy": ("bf16",),
    "distributed.offload_policy": ("cpu",),
    "distributed.defer_fsdp_grad_sync": ("false", "step_scheduler.local_batch_size=1"),
    "distributed.dtype": ("bfloat16",),
    "distributed._target_": ("nemo_automodel.components.distributed.ddp.DDPManager",),
    "dist_env.backend": ("nccl",),
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
    "loss_fn.label_smoothing": (0.1,),
    "loss_fn.z_loss": (0.1,),
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
    "model.n_layer": (2,),
    "model.n_head": (8,),
    "model.bias": ("false",),
    "model.dropout": (0.5,),
    "model.initializer_range": (0.5,),
    "model.layer_norm_epsilon": ("1e-3",),
}
# What only a longer run, several ranks or a failure shows: the tests that set the key, and show what it does.
SHOWN_BY = {
    "checkpoint.best_metric_key": "tests/engine/train/test_validation.py",
    "checkpoint.init_from": "tests/test_restore_from.py",
    "checkpoint.is_async": "tests/test_async_saves.py",
    "checkpoint.on_save_error": "tests/test_async_saves.py",
    "checkpoint.restore_from": "tests/test_restore_from.py",
    "checkpoint.save_best": "tests/test_best.py",
    "checkpoint.save_consolidated": "tests/engine/train/shard_ranks.py",
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


class Recorder:
    """Keeps what it is called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args, **kwargs):
        self.calls.append((args[1:], kwargs))
        return []


@pytest.fixture
def observed(tiny_data, tmp_path, monkeypatch):
    """What a run with these settings would do, taken from the parts that are built of them; or what is said."""
    places = itertools.count()
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    def observe(overrides):
        place = tmp_path / f"{next(places)}"
        place.mkdir()
        monkeypatch.chdir(place)
        data = [
            f"dataset.file_pattern={tiny_data}/train_*.bin",
            f"validation_dataset.file_pattern={tiny_data}/val_*.bin",
        ]
        overrides = [assignment.replace("PARENT", str(tiny_data)) for assignment in overrides]
        config = load_config(None, [*data, *overrides])
        try:
            settings = checked(config)
            return {"notes": settings.notes} | parts_of(config, settings, monkeypatch)
        except AmcliError as error:
            return {"refused": str(error)}

    # Of services: their packages need not be installed, and are not asked.
    fake = ModuleType("wandb")
    vars(fake).update(init=Recorder(), Settings=dict, __spec__=ModuleSpec("wandb", None))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    yield observe
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def parts_of(config, settings, monkeypatch):
    root = Path()
    general, steps = settings.general, settings.step_scheduler
    placement = place(general.device, general.precision, general.num_threads, deterministic=bool(general.deterministic))
    torch.manual_seed(general.seed)
    model, dataset = instantiate(config, "model"), instantiate(config, "dataset")
    loss = instantiate(config, "loss_fn")
    optimizer_arguments = {k: v for k, v in config.get("optimizer").items() if k not in ("_target_", "param_groups")}
    optimizer = build_optimizer(torch.optim.AdamW, optimizer_arguments, model, group_rules(config))
    loaders, validations, compiled, published, wandb = (Recorder() for _ in range(5))
    monkeypatch.setattr(feeding, "BatchLoader", loaders)
    monkeypatch.setattr(feeding, "eval_batches", validations)
    monkeypatch.setattr(model_setup, "compile_model", compiled)
    monkeypatch.setattr(saving, "begin_saving", published)
    monkeypatch.setattr(sys.modules["wandb"], "init", wandb)
    feeding.loader_of(dataset, settings, TrainState(), None, None)
    validation = feeding.validation_of({"": dataset}, settings, None, None)
    num_validated = [len(list(batches)) for _, batches in validation.sets()] if steps.val_tokens is None else "tokens"
    how = model_setup.set_up(model, objective_of(loss, model, None), settings, placement, root)
    saving.begin_run_save(
        root, TrainState(step=1), model, optimizer, section=settings.checkpoint, config_yaml="", lr=0.1,
        placement=placement, is_best=False, is_last=False,
    )  # fmt: skip
    batch = {
        name: array[:2] for name, array in dataset.gather(order_of(dataset, general.seed).order(np.arange(4))).items()
    }
    ids = torch.as_tensor(batch["input_ids"])
    scheduler = StepScheduler(steps.max_steps, steps.val_every_steps, steps.ckpt_every_steps)
    events = [(scheduler.validates(step), scheduler.saves(step)) for step in range(1, steps.max_steps + 1)]
    with run_sink(config, settings, root, start_step=0, quiet=True)() as sink:
        sink.on_start({})
    return {
        "lr": [schedule_of(config, settings).lr(step) for step in range(0, steps.max_steps, 7)],
        "events": events,
        "placement": (placement.name, placement.precision, torch.get_num_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "loader": [kwargs for _, kwargs in loaders.calls],
        "validation": (repr(validations.calls), num_validated),
        "compiled": [kwargs for _, kwargs in compiled.calls],
        "published": [asdict(args[1]) for args, _ in published.calls],
        "file": saving._model_file(settings.checkpoint),
        "wandb": [kwargs for _, kwargs in wandb.calls],
        "files": sorted(str(path).split("events")[0] for path in root.rglob("*")),
        "how": how,
        "optimizer": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "batch": {name: array.tolist() for name, array in batch.items()},
        "model": (str(model), [parameter.double().abs().sum().item() for parameter in model.parameters()]),
        "loss": float(loss(model(ids).logits, torch.as_tensor(batch["labels"]))),
        "backend": team._backend(settings.dist_env.backend, torch.device("cpu")),
        "directory": settings.checkpoint.checkpoint_dir,
        "clip": settings.clip_grad_norm.max_norm,
        "speed": vars(speed_of(model, dataset, settings, placement)),
        "plan": repr([plan(config, world_size=ranks, device=device_named("H100")) for ranks in (4,)]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def before_by_setting():
    """What was observed without the key, by what stands beside it: for many keys the same."""
    return {}


@pytest.mark.parametrize("beside", [["wandb.project=p", "tensorboard.log_dir=a", "compile.enabled=true"]])
def test_what_is_observed_of_equal_settings_is_equal(observed, beside):
    """Else a difference would show nothing."""
    assert observed(beside) == observed(beside)


@pytest.mark.parametrize("key", VALUES)
def test_a_key_changes_something_or_a_message_comes(observed, before_by_setting, key):
    """Beside the same configuration without it."""
    value, *beside = VALUES[key]
    if tuple(beside) not in before_by_setting:
        before_by_setting[tuple(beside)] = observed(beside)
    before = before_by_setting[tuple(beside)]

    after = observed([*beside, f"{key}={value}"])

    assert "refused" not in before
    assert {name for name in after if after[name] != before.get(name)}
