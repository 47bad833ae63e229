"""Ranks that could not save together are refused before they train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import read_configs
from automodel_cli.engine.config.parallel_layout import degrees_of
from automodel_cli.engine.train import preflight
from automodel_cli.engine.train.preflight import check_shared_directory
from automodel_cli.errors import CheckpointError


@dataclass
class Others:
    """Rank 0 among ranks that answer as they are told to."""

    answers: list[str]
    rank: int = 0
    sent: list[Any] = field(default_factory=list)

    def broadcast(self, value: Any) -> Any:
        self.sent.append(value)
        return value

    def on_first_rank(self, work: Callable[[], Any]) -> Any:
        return work()

    def gather(self, value: str) -> list[str]:
        return [value, *self.answers]


def test_ranks_that_do_not_see_the_directory_are_named(tmp_path: Path) -> None:
    """With what to do about it; nothing is left in the directory."""
    group = Others(["", "rank 2 on node7", "rank 3 on node7"])

    with pytest.raises(CheckpointError) as caught:
        check_shared_directory(tmp_path / "run", group)

    assert "not seen by rank 2 on node7, rank 3 on node7" in caught.value.message
    assert "save_consolidated=every" in caught.value.help
    assert list((tmp_path / "run").iterdir()) == []


def test_ranks_that_see_it_go_on(tmp_path: Path) -> None:
    check_shared_directory(tmp_path, Others([""]))

    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_the_same_name_on_another_machine_is_not_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may even hold a file of that name, of an earlier start with the same process number."""
    monkeypatch.setattr(preflight, "_SHOWN_AFTER_SECONDS", 0.0)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / ".seen-1").write_text("of an earlier start")

    assert not preflight._appears(tmp_path / "there" / ".seen-1", "of this one")
    assert not preflight._appears(tmp_path / "there" / ".seen-2", "of this one")
    assert not preflight._appears(tmp_path / "nowhere" / ".seen-1", "of this one")


@pytest.mark.parametrize(
    ("layout", "checkpoint", "expected"),
    [
        ("", "", True),
        ("strategy: ddp", "", False),
        ("dp_replicate_size: 4", "", False),
        ("dp_replicate_size: 2", "", True),
        ("strategy: ddp, tp_size: 2", "", True),
        ("cp_size: 4", "", True),
        ("", "save_consolidated: every", False),
        ("", "save_consolidated: false", True),
        ("", "enabled: false", False),
    ],
)
def test_only_ranks_that_write_parts_must_share_a_directory(tiny_run, layout, checkpoint, expected):
    """What each rank holds whole, and what rank 0 gathers, needs no file system that all see."""
    text = tiny_run.read_text().replace("local_batch_size: 4", "local_batch_size: 1")
    inner = ", ".join(part for part in (checkpoint, "checkpoint_dir: checkpoints") if part)
    text = text.replace("checkpoint: {checkpoint_dir: checkpoints}", f"checkpoint: {{{inner}}}")
    tiny_run.write_text(f"{text}distributed: {{{layout}}}\n")
    settings = checked(read_configs([tiny_run]), 4)
    degrees = degrees_of(settings.distributed, 4)

    assert preflight.writes_parts(settings, degrees) is expected
