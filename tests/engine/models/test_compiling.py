"""Compiling changes no name, and its cache is the run's own."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from automodel_cli.engine.models.compiling import compile_model, compile_seconds
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.train.objective import objective_of
from automodel_cli.errors import ConfigError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    # As torch leaves it when something has asked for its directory before.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    return tmp_path / "compiled"


@pytest.mark.parametrize("per_block", [True, False])
def test_a_compiled_model_keeps_its_names_and_its_loss(cache, per_block):
    """With the chunked loss in place of the head; what compiling took is counted."""
    torch.manual_seed(0)
    model = build_gpt2_model(vocab_size=61, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    batch = {"input_ids": torch.arange(32).reshape(2, 16), "labels": torch.arange(32).reshape(2, 16)}
    objective = objective_of(None, model)
    names, expected = list(model.state_dict()), objective(model, batch, 32)
    before = compile_seconds()

    # The default back end needs a C++ compiler; this one takes the same way through torch.compile.
    objective.head.stay_uncompiled()
    words = compile_model(model, mode="default", fullgraph=False, per_block=per_block, cache=cache, backend="aot_eager")
    loss = objective(model, batch, 32)
    loss.backward()

    assert words.startswith("2 blocks" if per_block else "the whole model")
    assert list(model.state_dict()) == names
    torch.testing.assert_close(loss, expected)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert compile_seconds() > before
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache)


def test_blocks_that_are_not_there_are_refused(cache):
    """With what would work."""
    with pytest.raises(ConfigError, match="Embedding has no list of blocks"):
        compile_model(nn.Embedding(3, 3), mode="default", fullgraph=False, per_block=True, cache=cache)


@pytest.mark.parametrize("per_block", [True, False])
def test_later_steps_compile_nothing_again(cache, per_block):
    """The labels of a batch, and the replacement of the head, are no part of a compiled program."""
    model = build_gpt2_model(vocab_size=61, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    objective = objective_of(None, model)
    objective.head.stay_uncompiled()
    counter = CompileCounter()
    compile_model(model, mode="default", fullgraph=False, per_block=per_block, cache=cache, backend=counter)
    counts = []
    for seed in range(4):
        torch.manual_seed(seed)
        ids = torch.randint(61, (2, 16))
        objective(model, {"input_ids": ids, "labels": ids}, 32).backward()
        counts.append(counter.frame_count)

    assert counts[0] > 0
    assert counts == counts[:1] * 4


def test_a_backend_that_torch_does_not_have_is_no_defect(cache):
    """It is refused with the name that was meant, before anything is compiled."""
    model = build_gpt2_model(vocab_size=61, n_positions=16, n_embd=16, n_layer=2, n_head=2)

    with pytest.raises(ConfigError, match=r"compile\.backend is 'inducter'") as caught:
        compile_model(model, mode="default", fullgraph=False, per_block=True, cache=cache, backend="inducter")

    assert "inductor" in str(caught.value.help)
