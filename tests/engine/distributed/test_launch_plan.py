from __future__ import annotations

import socket
from contextlib import nullcontext

import pytest

from automodel_cli.engine.distributed.launch_plan import (
    LaunchPlan,
    check_port,
    launch_plan,
    num_cores,
    num_gpus,
    taken_endpoint,
)
from automodel_cli.errors import UsageError


def test_one_process_needs_no_launcher():
    """Without the option, or with one rank, the command trains as it always did."""
    assert launch_plan(None) is None
    assert launch_plan("1", device="cpu") is None


def test_words_stand_for_devices(monkeypatch):
    """`auto` is the GPUs, or the cores where there are none or the run is on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")

    assert launch_plan("auto").ranks_per_node == launch_plan("gpu").ranks_per_node == 3
    assert launch_plan("cpu", max_restarts=1).ranks_per_node == num_cores()
    assert launch_plan("auto", device="cpu", max_restarts=1).ranks_per_node == num_cores()


def test_machines_multiply_the_ranks():
    """The largest number of an elastic range is what the layout is checked against."""
    plan = launch_plan("8", nnodes="1:4", rdzv_endpoint="first:29500", device="cpu")

    assert (plan.min_nodes, plan.max_nodes, plan.world_size) == (1, 4, 32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"nproc_per_node": "0"}, "at least 1"),
        ({"nproc_per_node": "some"}, "auto, gpu, cpu"),
        ({"nproc_per_node": "8"}, "this machine has 2 GPUs"),
        ({"nproc_per_node": "gpu", "device": "cpu"}, "device is `cpu`"),
        ({"nproc_per_node": "2", "nnodes": "2"}, "--rdzv-endpoint"),
        ({"nproc_per_node": "2", "nnodes": "4:2"}, "1:4"),
        ({"nproc_per_node": "2", "nnodes": "two"}, "1:4"),
        ({"nproc_per_node": "2", "nnodes": "2", "rdzv_endpoint": "a:1", "node_rank": 2}, "0 to 1"),
        ({"nproc_per_node": None, "max_restarts": 3}, "--max-restarts needs"),
    ],
)
def test_what_cannot_be_started_is_refused(monkeypatch, arguments, words):
    """Each mistake is told with its numbers, before torch is imported."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    with pytest.raises(UsageError) as caught:
        launch_plan(**arguments)

    assert words in str(caught.value)


def test_gpus_are_counted_without_a_driver(tmp_path):
    """Device files, unless the environment names what may be used."""
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()

    assert num_gpus({}, tmp_path) == 2
    assert num_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0


@pytest.mark.parametrize(
    ("node_rank", "backend", "host", "is_taken", "is_refused"),
    [
        (0, "", "localhost", True, True),
        (0, "", "localhost", False, False),
        (None, "", "localhost", True, False),  # the launcher of another rank may have opened it
        (0, "etcd-v2", "localhost", True, False),
        (0, "", "192.0.2.1", False, False),  # another machine
    ],
)
def test_a_port_that_the_first_machine_cannot_open_is_refused(node_rank, backend, host, is_taken, is_refused):
    """Before torch is imported, with the port in the message."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if is_taken:
            listener.listen()
        else:
            listener.close()
        plan = LaunchPlan(2, 2, 2, node_rank, f"{host}:{port}", backend)

        with pytest.raises(UsageError, match=f"port {port} of this machine") if is_refused else nullcontext():
            check_port(plan)

        assert (taken_endpoint(plan) is not None) is (is_taken and not backend)
