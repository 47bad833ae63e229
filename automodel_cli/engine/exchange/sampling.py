"""Text from a checkpoint: its model and its tokenizer, sampled one token at a time, streamed piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from automodel_cli.engine.bounded import shown
from automodel_cli.engine.checkpoint.layout import CONFIG_FILE
from automodel_cli.engine.checkpoint.load_checkpoint import load
from automodel_cli.engine.config.config import read_configs
from automodel_cli.engine.config.instantiate import instantiate
from automodel_cli.engine.models.calling import logits_of
from automodel_cli.engine.models.export import import_tensors
from automodel_cli.engine.models.head import NoHeadError, find_head, vocab_size_by_layers
from automodel_cli.engine.models.sizes import vocab_size_of
from automodel_cli.engine.prep.load_tokenizer import load_tokenizer
from automodel_cli.engine.prep.tokenizer import Tokenizer
from automodel_cli.errors import CheckpointError


@dataclass(frozen=True)
class Writer:
    """A trained model with its tokenizer.

    Args:
        window: Longest input in tokens: the `seq_len` it was trained with.
        bos_id: The id that stood before every document, or None.
    """

    model: nn.Module
    tokenizer: Tokenizer
    window: int
    bos_id: int | None

    def write(
        self, prompt: str, *, max_new_tokens: int, temperature: float, top_k: int | None, seed: int
    ) -> Iterator[str]:
        """Yields the text after the prompt, in pieces that are whole characters."""
        prompt_ids = [] if self.bos_id is None else [self.bos_id]
        if prompt:
            prompt_ids += self.tokenizer.encode(prompt).tolist()
        if not prompt_ids:
            raise CheckpointError("this tokenizer has no BOS token, so an empty prompt has nothing to start from")
        pending: list[int] = []
        new_ids = generate(
            self.model,
            prompt_ids,
            max_new_tokens=max_new_tokens,
            window=self.window,
            temperature=temperature,
            top_k=top_k,
            stop_id=self.bos_id,
            seed=seed,
        )
        for token_id in new_ids:
            pending.append(token_id)
            text = self.tokenizer.decode(pending)
            # A character may span several tokens; it shows as U+FFFD until its last byte is there.
            if not text.endswith("\N{REPLACEMENT CHARACTER}") or len(pending) > 8:
                yield text
                pending = []
        if pending:
            yield self.tokenizer.decode(pending)


def load_writer(directory: Path, tokenizer_name: str | None = None, *, trust: bool = False) -> Writer:
    """Loads the model of a checkpoint and the tokenizer its data was prepared with.

    Args:
        directory: The checkpoint.
        tokenizer_name: Use this tokenizer instead; needed where the data had no manifest.
        trust: Whether the user consents to run what its configuration names.

    Raises:
        CheckpointError: The checkpoint is broken, or does not say which tokenizer it belongs to.
    """
    snapshot = load(directory)
    config = read_configs([directory], trust=trust)
    recorded = snapshot.train_state.get("tokenizer") or {}
    name = tokenizer_name or recorded.get("name")
    if name is None:
        raise CheckpointError(
            "it does not say which tokenizer its data had",
            where=str(directory),
            help="name it: --tokenizer bytes, gpt2, a directory, or a name on the hub",
        )
    tokenizer = load_tokenizer(name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: nn.Module = instantiate(config, "model", {"device": device}).to(device)
    import_tensors(model, snapshot.model_tensors)
    vocab_size = vocab_size_of(model)
    if vocab_size is None:
        with suppress(NoHeadError):
            vocab_size = vocab_size_by_layers(model, find_head(model))
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer `{name}` has {tokenizer.vocab_size:,} tokens, but the model knows {vocab_size:,}",
            where=str(directory),
            help=f"its data was prepared with `{recorded['name']}`" if recorded else "name another --tokenizer",
        )
    window = config.get("dataset.seq_len") or config.get("model.n_positions") or 1024
    bos_id = recorded.get("bos_id", tokenizer.bos_id)
    if type(window) is not int or window < 1:
        raise CheckpointError(
            f"its configuration has an input length of {shown(window)}, not a whole number of at least 1",
            where=str(directory / CONFIG_FILE),
        )
    if vocab_size is not None and bos_id is not None and bos_id >= vocab_size:
        raise CheckpointError(
            f"a document begins with the token {bos_id:,}, but the model knows {vocab_size:,}", where=str(directory)
        )
    return Writer(model, tokenizer, window, bos_id)


# Shapes: T sequence, V vocabulary.


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    window: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    stop_id: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Yields new token ids until `max_new_tokens` or `stop_id`, which is not yielded.

    Args:
        model: Maps ids (1, T) to logits or to an object with `.logits`; put into eval mode.
        prompt_ids: At least one id to continue from.
        max_new_tokens: Most tokens to yield.
        window: Longest input that the model takes; older tokens are forgotten.
        temperature: Divides the logits; 0 takes the likeliest token each time.
        top_k: Sample among the k likeliest tokens; None among all.
        stop_id: The id that ends a document.
        seed: Equal seeds give equal text on the same device.
    """
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt_ids)
    for _ in range(max_new_tokens):
        input_ids_1T = torch.tensor([ids[-window:]], dtype=torch.int64, device=device)
        # Drawn on the CPU in fp32, so that the generator's stream is the same for every device.
        logits_V = logits_of(model(input_ids_1T))[0, -1].float().cpu()
        chosen = _draw(logits_V, temperature, top_k, generator)
        if chosen == stop_id:
            return
        ids.append(chosen)
        yield chosen


def _draw(logits_V: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V / temperature
    if top_k is not None and top_k < logits_V.numel():
        kth_largest = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < kth_largest, -torch.inf)
    return int(torch.multinomial(torch.softmax(logits_V, dim=-1), 1, generator=generator))
