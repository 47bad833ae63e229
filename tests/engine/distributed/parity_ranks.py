"""One rank of the parity test: trains every case of a table, and compares it with one process on rank 0.

Started by test_parity.py as `python parity_ranks.py STORE RANK WORLD CASES OUT`; not a test itself.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.distributed.distributed_group import distributed_group
from automodel_cli.engine.distributed.distributed_model import parallelised
from automodel_cli.engine.distributed.environment import RankPlace
from automodel_cli.engine.distributed.module_tree import move_to_meta
from automodel_cli.engine.distributed.rank_group import SOLO, RankGroup
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.optim import muon
from automodel_cli.engine.optim.optimizer import build_optimizer, optimizer_state_tensors
from automodel_cli.engine.train.objective import objective_of
from automodel_cli.engine.train.step import label_tokens, train_step

STEPS, SAMPLES, T, V = 5, 24, 16, 61  # samples for 1 to 4 ranks; a vocabulary that none of them divides
CPU = torch.device("cpu")


def build(kind: str) -> nn.Module:
    torch.manual_seed(3)
    if kind == "gpt2":
        return build_gpt2_model(vocab_size=V, n_positions=T, n_embd=32, n_layer=2, n_head=4)
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, num_key_value_heads=2, max_position_embeddings=T, **sizes))


def optimizer_of(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "muon":
        # In bf16 the iteration magnifies a last bit of the gradient to 1e-3 of a weight, in one process, too:
        # in fp32 nothing is left but the layout.
        torch.Tensor.bfloat16 = torch.Tensor.float  # type: ignore[method-assign]
        return build_optimizer(muon.MuonWithAdamW, {"lr": 0.02, "adamw_lr": 1e-3, "weight_decay": 0.1}, model)
    return build_optimizer(torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}, model)


def batch_of(step: int, begin: int, end: int, uneven: bool) -> dict[str, np.ndarray]:
    """Samples begin to end of a step; with `uneven`, some ranks have few labels."""
    generator = np.random.default_rng(step)
    ids = generator.integers(0, V, (SAMPLES, T + 1))
    labels = ids[:, 1:].copy()
    if uneven:
        labels[generator.random(labels.shape) < np.linspace(0, 0.9, SAMPLES)[:, None]] = -100
    return {"input_ids": ids[begin:end, :-1], "labels": labels[begin:end]}


def trained(
    case: dict[str, Any], group: RankGroup
) -> tuple[list[Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss and norm of each step, the weights and the optimizer's state at the end, whole."""
    model = build(case["model"])
    # Llama is on its ranks before it has content, as in a run; GPT-2 has its content already.
    content = move_to_meta(model) if case["model"] == "llama" and not group.is_alone else {}
    objective = objective_of(None, model, tp_size=group.degrees.tp)
    parallel = parallelised(model, group, DistributedSection(**case["layout"]), CPU)
    parallel.fill(content.items())
    optimizer = optimizer_of(case["optimizer"], model)
    dp, rank = group.degrees.dp, group.dp_rank
    share = SAMPLES // dp
    micro = share // case["accumulation"]
    curve = []
    for step in range(STEPS):
        begins = range(rank * share, (rank + 1) * share, micro)
        batches = [batch_of(step, begin, begin + micro, case["uneven"]) for begin in begins]
        count = label_tokens([batch_of(step, 0, SAMPLES, case["uneven"])])
        batches = [group.part_of_sequence(batch) for batch in batches]
        result = train_step(
            parallel,
            objective,
            optimizer,
            batches,
            device=CPU,
            lr=0.02 if case["optimizer"] == "muon" else 1e-3,
            max_norm=1.0,
            autocast_dtype=None,
            num_label_tokens=count,
        )
        curve.append([result.loss, result.grad_norm])
    state = optimizer_state_tensors(optimizer, model)
    return curve, parallel.whole_model(), parallel.whole_state(state)


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def first_moments(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith(("exp_avg_sq", "step"))}


def main() -> None:
    store, rank, world, cases, out = sys.argv[1:]
    torch.set_num_threads(1)
    place = RankPlace(int(rank), int(world), int(rank), int(world), launcher="torchrun")
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, int(world)),
        rank=int(rank),
        world_size=int(world),
        timeout=timedelta(seconds=60),
    )
    alone: dict[str, Any] = {}
    results = {}
    for name, case in json.loads(Path(cases).read_text()).items():
        group = distributed_group(place, DistributedSection(**case["layout"]), CPU)
        curve, weights, state = trained(case, group)
        again = trained(case, group)[1]
        if place.rank > 0:
            continue
        key = json.dumps([case[part] for part in ("model", "optimizer", "accumulation", "uneven")])
        if key not in alone:
            alone[key] = trained({**case, "layout": {}}, SOLO)
        expected_curve, expected_weights, expected_state = alone[key]
        results[name] = {
            "loss": max(abs(ours[0] - theirs[0]) for ours, theirs in zip(curve, expected_curve, strict=True)),
            "norm": max(abs(ours[1] / theirs[1] - 1) for ours, theirs in zip(curve, expected_curve, strict=True)),
            "weights": largest_difference(weights, expected_weights),
            "momentum": largest_difference(first_moments(state), first_moments(expected_state)),
            "same_state": {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in expected_state.items()},
            "same_again": all(torch.equal(again[item], weights[item]) for item in weights),
        }
    if place.rank == 0:
        Path(out).write_text(json.dumps(results))
    os._exit(0)  # a case that failed may have left a peer in a collective


if __name__ == "__main__":
    main()
