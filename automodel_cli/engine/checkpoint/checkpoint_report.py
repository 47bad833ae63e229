"""What `inspect-ckpt` reports about one checkpoint and about the directory of a run. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from automodel_cli.engine.bounded import finite
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.stored_tensors import TensorInfo

Verdict = Literal["resumable", "weights only", "incomplete", "corrupt"]
# The first match wins: a norm inside of attention (`self_attn.q_norm`) is a norm, and only what
# is in no block can be the head.
_COMPONENTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("norm", ("norm", "ln_", "ln1", "ln2", "lnf")),
    ("attention", ("attn", "attention")),
    ("mlp", ("mlp", "ffn", "feed_forward", "experts", "moe")),
    ("embedding", ("wte", "wpe", "embed_tokens", "embeddings", "embed_in", "word_embedding")),
    ("head", ("lm_head", "embed_out")),
)
_SHOWN = ("embedding", "attention", "mlp", "norm", "head", "other")


@dataclass(frozen=True)
class CheckpointReport:
    """The report on one checkpoint.

    Args:
        path: The directory.
        verdict: `resumable`, `weights only` (nothing to resume from was saved), `incomplete`
            (something is missing) or `corrupt` (something is wrong).
        verified: Every byte was compared with the manifest's SHA-256; otherwise sizes and headers were.
        problems: Why it is incomplete or corrupt, one line each.
        notes: What is odd and does no harm, one line each.
        marks: Which of `LATEST` and `BEST` point here.
        step: Optimisation steps done; from the manifest, or else from the directory's name.
        saved_at: UTC time of the save.
        progress: `tokens_seen`, `loss`, `val_loss` and so on, those that were saved.
        parameters: Parameters of the model; None if a header cannot be read.
        optimizer_dtypes: Elements of the optimizer state by their type.
        files: Size in bytes of each file that is there.
        config: The most important values of the configuration, by dotted key.
        facts: Everything else that the manifest carries.
        amcli_version: The version that wrote it.
    """

    path: str
    verdict: Verdict
    verified: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    marks: tuple[str, ...]
    step: int | None
    saved_at: str | None
    progress: dict[str, Any]
    parameters: ParameterCount | None
    optimizer_dtypes: dict[str, int]
    files: dict[str, int]
    config: dict[str, Any]
    facts: dict[str, Any]
    amcli_version: str | None

    @property
    def is_sound(self) -> bool:
        """Whether the checkpoint can be used, as far as it was looked at."""
        return self.verdict in ("resumable", "weights only")

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(self.files.values())

    @property
    def rank_bytes(self) -> dict[int, int]:
        """What each rank has written of weights and optimizer; empty where one rank has written all."""
        found: dict[int, int] = {}
        for name, num_bytes in self.files.items():
            if (rank := layout.rank_of(name)) is not None:
                found[rank] = found.get(rank, 0) + num_bytes
        return dict(sorted(found.items()))

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON can hold."""
        sizes = {"total_bytes": self.total_bytes, "rank_bytes": self.rank_bytes}
        return dict(finite({**asdict(self), **sizes}))


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model.

    Args:
        total: All stored parameters; tied ones are stored, and counted, once.
        by_component: `embedding`, `attention`, `mlp`, `norm`, `head`, `other`, those that occur.
        by_dtype: The same parameters by their type, as safetensors names it.
        num_tensors: How many tensors hold them.
        tied_head: The output layer is the token embedding.
    """

    total: int
    by_component: dict[str, int]
    by_dtype: dict[str, int]
    num_tensors: int
    tied_head: bool


@dataclass(frozen=True)
class RunReport:
    """All checkpoints of a directory, by ascending step, and what is odd about the directory."""

    path: str
    checkpoints: tuple[CheckpointReport, ...]
    notes: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether every checkpoint can be used, as far as it was looked at."""
        return all(report.is_sound for report in self.checkpoints)

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON can hold."""
        return {
            "path": self.path,
            "checkpoints": [report.to_dict() for report in self.checkpoints],
            "notes": list(self.notes),
        }


def count_parameters(tensors: Mapping[str, TensorInfo], model_config: Mapping[str, Any] | None) -> ParameterCount:
    """Counts what a weights file holds.

    Args:
        tensors: Its tensors by name.
        model_config: Contents of `config.json`, which says whether a missing head is tied.
    """
    components: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        components[component_of(name)] += tensor.num_elements
        dtypes[tensor.dtype] += tensor.num_elements
    return ParameterCount(
        total=components.total(),
        by_component={name: components[name] for name in _SHOWN if name in components},
        by_dtype=dict(dtypes.most_common()),
        num_tensors=len(tensors),
        tied_head="head" not in components and bool((model_config or {}).get("tie_word_embeddings")),
    )


def component_of(name: str) -> str:
    """The component that a parameter belongs to, by the names that models commonly use.

    >>> component_of("transformer.h.0.attn.c_attn.weight"), component_of("model.layers.0.input_layernorm.weight")
    ('attention', 'norm')
    """
    lower = name.lower()
    for component, marks in _COMPONENTS:
        if any(mark in lower for mark in marks):
            return component
    return "other"
