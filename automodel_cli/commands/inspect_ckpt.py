"""`amcli inspect-ckpt`: what a checkpoint is, and whether it is whole."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automodel_cli.commands import complete
from automodel_cli.commands.options import CheckpointArgument, ConfigOption, JsonOption, option
from automodel_cli.errors import CheckpointError, ExitCode, UsageError

if TYPE_CHECKING:
    from automodel_cli.engine.checkpoint.foreign import ForeignTensors


def inspect_ckpt(
    path: CheckpointArgument = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare its SHA-256.")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="Show all tensors by name, with types and shapes.")] = False,
    tensor: Annotated[str | None, option(metavar="GLOB", help="Show statistics of the tensors that match.")] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Show statistics of all tensors, and what looks wrong.")
    ] = False,
    diff: Annotated[
        Path | None,
        option(
            metavar="OTHER",
            help="Show the differences from another checkpoint or directory.",
            complete=complete.checkpoints,
        ),
    ] = None,
    can_resume: Annotated[
        bool, typer.Option("--can-resume", help="Say whether a run can continue from it (with -c's configuration).")
    ] = False,
    config: ConfigOption = None,
    nproc_per_node: Annotated[
        int | None, option("--nproc-per-node", metavar="N", min=1, help="Number of ranks to continue on.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Show what a checkpoint is, and whether it is complete and undamaged.

    Reads headers and sizes only, and never runs anything that a checkpoint contains; --verify
    also compares every byte. A run's directory gives the list of its checkpoints. Hugging Face
    directories, safetensors and torch.save files and directories of torch.distributed.checkpoint
    are described too. The exit code is 4 if a checkpoint is incomplete or corrupt, or if
    --can-resume says no.

    \b
    Examples:
      amcli inspect-ckpt
      amcli inspect-ckpt checkpoints
      amcli inspect-ckpt runs/wide/BEST --verify
      amcli inspect-ckpt --tensor '*.c_attn.weight'
      amcli inspect-ckpt 200 --diff 600
      amcli inspect-ckpt downloads/gpt2 --tree
      amcli inspect-ckpt --can-resume -c my.yaml --nproc-per-node 4 --verify
      amcli inspect-ckpt --json | jq .progress.val_loss
    """
    if sum((tree, tensor is not None, stats, diff is not None, verify and not can_resume, can_resume)) > 1:
        raise UsageError("--verify, --tree, --tensor, --stats, --diff and --can-resume each ask for another output")
    if can_resume:
        _can_resume(path, config, nproc_per_node, verify=verify, as_json=json_)
        return
    if config or nproc_per_node is not None:
        raise UsageError("-c and --nproc-per-node belong to --can-resume")
    if tree or tensor is not None or stats or diff is not None:
        _tensors(path, tree=tree, pattern=tensor, diff=diff, as_json=json_)
        return

    from automodel_cli.commands import render_checkpoint, render_tensors
    from automodel_cli.engine.checkpoint.inspect import look

    foreign = _foreign(path) if path is not None else None
    if foreign is not None:
        if verify:
            raise UsageError(
                f"{path} is a {foreign.kind}, which keeps no hashes that --verify could compare",
                help="--stats reads every tensor and says what looks wrong",
            )
        render_tensors.summary(str(path), foreign, as_json=json_)
        return
    report = look(path, verify)
    render_checkpoint.report(report, as_json=json_)
    if not report.is_sound:
        raise typer.Exit(ExitCode.CHECKPOINT)


def _can_resume(
    path: Path | None, config: list[Path] | None, ranks: int | None, *, verify: bool, as_json: bool
) -> None:
    from automodel_cli.commands.render import speaker
    from automodel_cli.engine.train.continuation import can_resume

    say = speaker(as_json=False)
    answer = can_resume(path, config, ranks, verify=verify)
    if as_json:
        typer.echo(json.dumps(answer.to_dict(), indent=2))
    else:
        say(f"{answer.verdict}: {answer.path} on {answer.world_size} rank{'s'[: answer.world_size > 1]}")
        for line in answer.reasons:
            say(f"  {line}")
        for line in answer.changes:
            say(f"  changed  {line}")
    if answer.reasons:
        raise typer.Exit(ExitCode.CHECKPOINT)


def _foreign(path: Path) -> ForeignTensors | None:
    """The tensors of a path that is neither a checkpoint nor a run; else None."""
    from automodel_cli.engine.checkpoint.foreign import read_foreign
    from automodel_cli.engine.checkpoint.layout import is_checkpoint, list_steps

    is_ours = not path.exists() or (path.is_dir() and (is_checkpoint(path) or bool(list_steps(path))))
    return None if is_ours else read_foreign(path)


def _place(path: Path | None) -> tuple[str, ForeignTensors, Path | None]:
    """Name and tensors of what a path means, and the checkpoint if it is one of amcli."""
    from automodel_cli.engine.checkpoint.foreign import read_foreign
    from automodel_cli.engine.checkpoint.layout import MODEL_DIRECTORY, resolve

    found = _foreign(path) if path is not None else None
    if found is not None:
        return str(path), found, None
    directory = resolve(path)
    tensors = read_foreign(directory / MODEL_DIRECTORY)
    if tensors is None:
        raise CheckpointError(
            "it has no weights", where=str(directory), help="`amcli inspect-ckpt` says what is missing"
        )
    return str(directory), tensors, directory


def _tensors(path: Path | None, *, tree: bool, pattern: str | None, diff: Path | None, as_json: bool) -> None:
    from automodel_cli.commands import render_tensors

    name, found, directory = _place(path)
    if tree:
        render_tensors.summary(name, found, as_json=True) if as_json else render_tensors.tree(found.tensors)
        return
    if diff is not None:
        from automodel_cli.engine.checkpoint.tensor_values import compare_tensors
        from automodel_cli.engine.config.config import read_configs
        from automodel_cli.engine.config.emit import differences

        _, other, other_directory = _place(diff)
        changes = []
        if directory is not None and other_directory is not None:
            changes = differences(read_configs([directory]).masked(), read_configs([other_directory]).masked())
        render_tensors.differences(compare_tensors(found, other), changes, as_json=as_json)
        return
    from automodel_cli.engine.checkpoint.tensor_values import tensor_stats, warnings

    names = [item for item in found.stored if pattern is None or fnmatchcase(item, pattern)]
    if not names:
        names_there = ", ".join(list(found.tensors)[:4]) or "nothing"
        raise UsageError(
            f"no tensor of a safetensors file has the name {pattern!r}", help=f"there is {names_there}, ..."
        )
    numbers = [tensor_stats(item, found.stored[item]) for item in names]
    known = [item for item in numbers if item is not None]
    render_tensors.statistics(known, warnings(known), as_json=as_json)
