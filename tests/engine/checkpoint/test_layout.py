"""Names are canonical, links stay inside, and `resolve` finds what a user means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.checkpoint import layout
from automodel_cli.errors import CheckpointError


def make_checkpoint(root: Path, step: int, complete: bool = True) -> Path:
    directory = root / layout.step_directory_name(step)
    directory.mkdir(parents=True)
    if complete:
        (directory / "manifest.json").write_text("{}")
    return directory


@given(st.integers(min_value=0, max_value=10**17))
def test_a_step_is_read_back_from_its_name(step: int) -> None:
    """For steps of any number of digits."""
    assert layout.step_of(layout.step_directory_name(step)) == step


@given(st.text() | st.from_regex(r"step_[0-9]+", fullmatch=True))
def test_a_name_is_a_step_only_if_it_is_the_one_spelling(name: str) -> None:
    """No two names mean the same step: `step_0000200` is no name, and neither are other digits."""
    step = layout.step_of(name)

    assert step is None or layout.step_directory_name(step) == name


def test_steps_are_listed_by_number_and_links_are_left_out(tmp_path: Path) -> None:
    """Ascending also beyond six digits, complete or not; a link to a directory is not a checkpoint."""
    for step in (1_000_000, 2, 999_999):
        make_checkpoint(tmp_path, step, complete=step != 2)
    make_checkpoint(tmp_path / "other", 5)
    (tmp_path / "step_000005").symlink_to(tmp_path / "other" / "step_000005")
    (tmp_path / "step_000007").write_text("a file")

    assert [step for step, _ in layout.list_steps(tmp_path)] == [2, 999_999, 1_000_000]
    assert layout.list_steps(tmp_path / "nowhere") == []


ELSEWHERE = ["../other/step_000005", "/etc", "..", ".", "step_5", "sub/step_000001", "step_000005"]


@pytest.mark.parametrize(
    ("target", "as_text"),
    [*((target, False) for target in ELSEWHERE), *((target, True) for target in (*ELSEWHERE, "", "a\0b"))],
)
def test_a_link_that_leads_elsewhere_is_refused(tmp_path: Path, target: str, as_text: bool) -> None:
    """As a link or as a text file; `step_000005` beside it is itself a link to the outside."""
    root = tmp_path / "root"
    make_checkpoint(root, 1)
    make_checkpoint(tmp_path / "other", 5)
    (root / "step_000005").symlink_to(tmp_path / "other" / "step_000005")
    if as_text:
        (root / "LATEST").write_text(target)
    else:
        (root / "LATEST").symlink_to(target)

    for path in (root, root / "LATEST"):
        with pytest.raises(CheckpointError, match="only name a checkpoint directory beside it"):
            layout.resolve(path)


@pytest.mark.parametrize("target", ["step_000001", "./step_000001", "step_000001/", "../root/step_000001"])
@pytest.mark.parametrize("as_text", [False, True])
def test_any_spelling_of_a_checkpoint_beside_it_is_followed(tmp_path: Path, target: str, as_text: bool) -> None:
    """A link that a user made with `ln -s`, or a text file where links are impossible."""
    directory = make_checkpoint(tmp_path / "root", 1)
    make_checkpoint(tmp_path / "root", 2)
    link = tmp_path / "root" / "LATEST"
    if as_text:
        link.write_text(target + "\n")
    else:
        link.symlink_to(target)

    assert layout.resolve(tmp_path / "root") == directory
    assert layout.resolve(link) == directory


def test_a_link_falls_back_to_a_text_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without links the name is written as text, and read back."""

    def refuse(self: Path, target: str, target_is_directory: bool = False) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    directory = make_checkpoint(tmp_path, 3)

    layout.point_link(tmp_path, "LATEST", directory)

    assert not (tmp_path / "LATEST").is_symlink()
    assert layout.resolve(tmp_path) == directory


def test_a_number_and_a_bare_link_mean_the_default_directory():
    """`amcli resume 3` and `amcli inspect-ckpt BEST` need no path."""
    for step in (3, 5):
        directory = Path("checkpoints") / layout.step_directory_name(step)
        directory.mkdir(parents=True)
        (directory / "manifest.json").touch()
    layout.point_link(Path("checkpoints"), "BEST", Path("checkpoints/step_000003"))

    assert layout.resolve(Path("5")) == Path("checkpoints/step_000005")
    assert layout.resolve(Path("BEST")) == Path("checkpoints/step_000003")
    with pytest.raises(CheckpointError, match=r"step_000003, step_000005"):
        layout.resolve(Path("4"))


def test_nothing_named_means_the_default_directory() -> None:
    """`resolve()` is `checkpoints/LATEST` of the working directory."""
    directory = make_checkpoint(Path("checkpoints"), 4)
    layout.point_link(Path("checkpoints"), "LATEST", directory)

    assert layout.resolve() == Path("checkpoints/step_000004")


def test_without_latest_the_highest_complete_step_is_taken(tmp_path: Path) -> None:
    """Also if LATEST points to what is gone."""
    make_checkpoint(tmp_path, 1)
    complete = make_checkpoint(tmp_path, 2)
    make_checkpoint(tmp_path, 3, complete=False)
    assert layout.resolve(tmp_path) == complete

    (tmp_path / "LATEST").symlink_to("step_000009")

    assert layout.resolve(tmp_path) == complete


def test_a_checkpoint_is_taken_as_named_whatever_its_state(tmp_path: Path) -> None:
    """Incomplete and set-aside checkpoints can be looked at."""
    incomplete = make_checkpoint(tmp_path, 3, complete=False)
    aside = incomplete.with_name("broken-step_000004")
    aside.mkdir()

    assert layout.resolve(incomplete) == incomplete
    assert layout.resolve(aside) == aside


def test_what_is_not_there_is_answered_with_what_is(tmp_path: Path) -> None:
    """The error lists the checkpoints beside the one that was named, or those of the default directory."""
    make_checkpoint(tmp_path, 1)
    make_checkpoint(tmp_path, 2, complete=False)

    with pytest.raises(CheckpointError) as beside:
        layout.resolve(tmp_path / "step_000009")
    with pytest.raises(CheckpointError) as default:
        layout.resolve(Path("nowhere"), default_root=tmp_path)
    with pytest.raises(CheckpointError) as best:
        layout.resolve(tmp_path / "BEST")

    for caught in (beside, default, best):
        assert "step_000001, step_000002 (incomplete)" in str(caught.value)


def test_a_directory_without_checkpoints_and_a_file_are_refused(tmp_path: Path) -> None:
    """Each says what it is."""
    (tmp_path / "file").write_text("")

    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        layout.resolve(tmp_path)
    with pytest.raises(CheckpointError, match="this is a file"):
        layout.resolve(tmp_path / "file")


def test_an_announced_checkpoint_counts_as_soon_as_it_is_there(tmp_path: Path) -> None:
    """Between its rename and the move of LATEST a killed save is done; before the rename it never was."""
    first = make_checkpoint(tmp_path, 1)
    layout.point_link(tmp_path, "LATEST", first)
    layout.announce_links(tmp_path, ("LATEST",), 2)
    assert layout.resolve(tmp_path) == first

    second = make_checkpoint(tmp_path, 2)

    assert layout.resolve(tmp_path) == second
    layout.settle_links(tmp_path)
    assert str((tmp_path / "LATEST").readlink()) == "step_000002"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step_000001", "step_000002"]
