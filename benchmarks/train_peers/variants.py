"""The ways of training that `benchmarks/train.py` compares: each from the same weights, over the same batches.

A way takes batches and gives the loss and the seconds of every step. Peers are written as people write them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from train_peers.nanogpt import GPT

LR, CLIP, BETAS = 6e-4, 1.0, (0.9, 0.95)
Batches = list[tuple[torch.Tensor, torch.Tensor]]
Steps = Iterator[tuple[float, float]]  # loss, seconds
Way = Callable[[Batches], Steps]


@dataclass(frozen=True)
class Setting:
    """What is trained: sizes of the model as `build_gpt2_model` takes them, device, precision, `torch.compile`."""

    sizes: dict[str, int]
    device: str
    precision: str
    compiled: bool

    def clock(self) -> float:
        """On a CPU the processor's time, of all threads: a machine that is shared stretches that of the clock."""
        return time.perf_counter() if self.device == "cuda" else time.process_time()

    def autocast(self) -> Any:
        bf16 = torch.autocast(self.device, dtype=torch.bfloat16)
        return bf16 if self.precision == "bf16" else contextlib.nullcontext()

    def first_weights(self) -> torch.nn.Module:
        """Our GPT-2 with the weights that every variant starts from."""
        from automodel_cli.engine.models.gpt2 import build_gpt2_model

        torch.manual_seed(1)
        return build_gpt2_model(**self.sizes)


def plain_loop(setting: Setting, model: torch.nn.Module, loss_of: Callable[..., torch.Tensor]) -> Way:
    """A loop as people write it: backward, clip, step, `.item()`."""
    fused = setting.device == "cuda" or None
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=0.0, fused=fused)

    def steps(batches: Batches) -> Steps:
        for ids, labels in batches:
            began = setting.clock()
            with setting.autocast():
                loss = loss_of(ids.to(setting.device), labels.to(setting.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield loss.item(), setting.clock() - began

    return steps


def nanogpt(setting: Setting) -> Way:
    model = GPT(**setting.sizes).to(setting.device)
    model.load_state_dict(setting.first_weights().state_dict())
    return plain_loop(setting, model, torch.compile(model) if setting.compiled else model)


def transformers_gpt2(setting: Setting) -> torch.nn.Module:
    import transformers

    from automodel_cli.engine.models.export import export_model

    exported = export_model(setting.first_weights())
    config = transformers.GPT2Config(**{**(exported.config or {}), "use_cache": False})
    model = transformers.GPT2LMHeadModel(config)
    model.load_state_dict(exported.tensors, strict=False)
    model.tie_weights()
    return model.to(setting.device).train()


def transformers_loop(setting: Setting) -> Way:
    model = transformers_gpt2(setting)
    called = torch.compile(model) if setting.compiled else model
    # `shift_labels` are the labels of each position, as ours are; `labels` would be shifted by one.
    return plain_loop(setting, model, lambda x, y: called(x, labels=y, shift_labels=y).loss)


def transformers_trainer(setting: Setting) -> Way:
    """`transformers.Trainer` with its own optimizer; the loss of each step is kept on the way, read at the end."""
    import transformers

    model, losses, marks = transformers_gpt2(setting), [], []

    class Ordered(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __init__(self, batches: Batches) -> None:
            self.batches = batches

        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for ids, labels in self.batches:
                for x, y in zip(ids, labels, strict=True):
                    yield {"input_ids": x, "labels": y, "shift_labels": y}

    class Keeps(transformers.Trainer):
        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            losses.append((loss[0] if isinstance(loss, tuple) else loss).detach().clone())
            return loss

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(setting.clock())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if setting.device == "cuda":
                torch.cuda.synchronize()  # as `.item()` does in the plain loops
            marks.append(setting.clock())

    def steps(batches: Batches) -> Steps:
        with tempfile.TemporaryDirectory() as directory:
            arguments = transformers.TrainingArguments(
                output_dir=directory,
                per_device_train_batch_size=len(batches[0][0]),
                max_steps=len(batches),
                learning_rate=LR,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                adam_beta1=BETAS[0],
                adam_beta2=BETAS[1],
                max_grad_norm=CLIP,
                bf16=setting.precision == "bf16",
                torch_compile=setting.compiled,
                use_cpu=setting.device == "cpu",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            Keeps(model=model, args=arguments, train_dataset=Ordered(batches), callbacks=[Clock()]).train()
        for number, loss in enumerate(losses):
            yield loss.item(), marks[2 * number + 1] - marks[2 * number]

    return steps


def amcli(setting: Setting, *, whole_logits: bool = False) -> Way:
    """The engine's own step, optimizer and objective; on a GPU numbers are read one step late, as in its loop."""
    from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy
    from automodel_cli.engine.models.compiling import compile_model
    from automodel_cli.engine.optim.optimizer import build_optimizer
    from automodel_cli.engine.train.device import place
    from automodel_cli.engine.train.objective import objective_of
    from automodel_cli.engine.train.step import queue_step
    from automodel_cli.engine.train.step_numbers import guard_of

    placement = place(setting.device, setting.precision, None)
    model = setting.first_weights()
    placement.put(model)
    objective = objective_of(MaskedCrossEntropy() if whole_logits else None, model)
    if setting.compiled:
        cache = Path(tempfile.gettempdir()) / "amcli-benchmark"  # unless the environment names another
        compile_model(model, mode="default", fullgraph=False, per_block=True, cache=cache)
    optimizer = build_optimizer(torch.optim.AdamW, {"lr": LR, "betas": BETAS, "weight_decay": 0.0}, model)
    guard, _ = guard_of(optimizer, placement.device)
    how = {"device": placement.device, "lr": LR, "max_norm": CLIP, "autocast_dtype": placement.autocast_dtype}

    def steps(batches: Batches) -> Steps:
        began, pending = setting.clock(), None
        for ids, labels in batches:
            batch = {"input_ids": ids, "labels": labels}
            queued = queue_step(model, objective, optimizer, [batch], guard=guard, **how)  # type: ignore[arg-type]
            if guard is None:
                pending, queued = queued, None
            if pending is not None:
                loss = pending.read()[0]
                now = setting.clock()
                yield loss, now - began
                began = setting.clock() if guard is None else now
            pending = queued
        if pending is not None:
            yield pending.read()[0], setting.clock() - began

    return steps


WAYS: dict[str, Callable[[Setting], Way]] = {
    "nanogpt": nanogpt,
    "transformers": transformers_loop,
    "transformers-trainer": transformers_trainer,
    "amcli-whole-logits": lambda setting: amcli(setting, whole_logits=True),
    "amcli": amcli,
}


def left_out() -> dict[str, str]:
    """The peers that cannot be measured here, and why."""
    found = {}
    if importlib.util.find_spec("accelerate") is None:
        found["transformers-trainer"] = "needs accelerate: pip install 'amcli[bench]'"
    # It has no learned positions, so it could not start from the same weights and show the same losses.
    found["litgpt"] = "has no GPT-2, and its releases ask for an older torch than amcli's"
    return found
