"""What there is to say about one checkpoint. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.manifest import finite
from automodel_cli.engine.checkpoint.parameters import ParameterCount

Verdict = Literal["resumable", "weights only", "incomplete", "corrupt"]


@dataclass(frozen=True)
class CheckpointReport:
    """What there is to know about one checkpoint.

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
        parameters: Of the model; None if its header cannot be read.
        optimizer_dtypes: Elements of the optimizer state by their type.
        files: Size in bytes of each file that is there.
        config: The values of the configuration that tell most, by dotted key.
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
