"""`amcli plan`: what a run would need, before anything is started."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from automodel_cli.commands import render
from automodel_cli.commands.options import ConfigOption, JsonOption, SetOption, UnsetOption
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.config.notes import unchecked_notes
from automodel_cli.errors import DataError

if TYPE_CHECKING:
    from automodel_cli.engine.plan.parameters import CountedModel


def plan(
    config: ConfigOption = None,
    set_: SetOption = None,
    unset: UnsetOption = None,
    nproc_per_node: Annotated[
        int | None,
        typer.Option(
            "--nproc-per-node", min=1, help="Devices of one machine; as few as the layout needs unless given."
        ),
    ] = None,
    nnodes: Annotated[int, typer.Option("--nnodes", min=1, help="Machines.")] = 1,
    gpu_memory: Annotated[
        str | None, typer.Option("--gpu-memory", metavar="SIZE", help="Memory of a device, such as 80GB or 79.6GiB.")
    ] = None,
    device: Annotated[str, typer.Option(help="a100, h100, h200, b200, l40s or mi300x.")] = "h100",
    mfu: Annotated[float, typer.Option(help="Share of the peak that training reaches.", min=0.001, max=1.0)] = 0.4,
    peak_tflops: Annotated[
        float | None, typer.Option("--peak-tflops", min=0.001, help="Peak of a device, in place of its data sheet's.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Say what a run would need: memory, batch, tokens, hours.

    Nothing is started and no GPU is asked: it is arithmetic, for a machine that may be elsewhere. A model that no
    formula knows is built without memory and run once on tensors without content, which takes a few seconds.
    docs/plan.md has every formula and its source.

    \b
    Examples:
      amcli plan -c my.yaml
      amcli plan -c my.yaml --nproc-per-node 8 --device h200 --mfu 0.45
      amcli plan -c my.yaml --nproc-per-node 8 --nnodes 4 --gpu-memory 40GB --set distributed.tp_size=2
    """
    from automodel_cli.commands import render_plan
    from automodel_cli.engine.config.trust import consent_notes
    from automodel_cli.engine.plan.derive import plan as plan_of
    from automodel_cli.engine.plan.memory import device_named, memory_bytes

    chosen = device_named(device)
    capacity = None if gpu_memory is None else memory_bytes(gpu_memory)
    world_size = None if nproc_per_node is None else nproc_per_node * nnodes
    # Nothing of it runs, so there is nothing to consent to.
    final = load_config(config, set_ or [], unset or (), trust=True)
    _say_what_is_off(final, world_size)
    render.notes(consent_notes(load_config(config)), render.speaker(as_json=True))
    plan_for = partial(
        plan_of, final, world_size=world_size, device=chosen, gpu_memory=capacity, peak_tflops=peak_tflops, mfu=mfu
    )
    found = plan_for()
    if found.derived.model is None and final.get("model"):
        # Tracing runs the model's code, so here a checkpoint's configuration counts as what it is.
        model = _traced(load_config(config, set_ or [], unset or ()))
        found = plan_for(model=model) if model is not None else found
    render_plan.plan(found, as_json=json_)


def _traced(config: Config) -> CountedModel | None:
    """The model counted by a trace; None, and a note that says why, where it cannot be."""
    from automodel_cli.engine.train.traced_model import UntraceableError, traced

    try:
        return traced(config)
    except UntraceableError as error:
        render.notes([f"the model is not known by a formula, and {error}"], render.speaker(as_json=True))
        return None


def _say_what_is_off(config: Config, world_size: int | None) -> None:
    """Refuses a configuration that is wrong; data that is not there yet is only said, since a plan comes first."""
    aside = render.speaker(as_json=True)
    try:
        settings = checked(config, world_size)
        notes = (*settings.notes, *unchecked_notes(settings))
    except DataError as error:
        notes = tuple(map(str, error.problems or (error,)))
    render.notes(notes, aside)
