from __future__ import annotations

import subprocess
import sys

import pytest

from automodel_cli.engine.distributed.environment import (
    ALONE,
    ask_for_huge_pages,
    complete_environment,
    first_host,
    own_command,
    rank_place,
    wait_without_spinning,
)
from automodel_cli.errors import UsageError

SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "17"}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("", 0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, ("torchrun", 3, 4, 1)),
        (SRUN, ("srun", 5, 8, 1)),
        (MPIRUN, ("mpirun", 2, 4, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, ("", 0, 1, 0)),  # a batch script, not a task
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}, ("", 0, 1, 0)),
    ],
)
def test_the_launcher_tells_which_rank_this_is(environment, expected):
    """torchrun, srun and mpirun are understood; whoever was started by none of them is alone."""
    place = rank_place(environment)

    assert (place.launcher, place.rank, place.world_size, place.local_rank) == expected


def test_ranks_that_contradict_each_other_are_refused():
    """A rank beyond the number of ranks would wait for nobody."""
    with pytest.raises(UsageError, match="rank 4 of 4"):
        rank_place({"RANK": "4", "WORLD_SIZE": "4", "LOCAL_RANK": "0"})


def test_the_ranks_of_a_slurm_step_meet_at_its_first_machine():
    """Address and port are the same on every task of a job, without anybody setting them."""
    environments = [{**SRUN, "SLURM_PROCID": rank, "SLURM_STEP_NODELIST": "gpu[07-09]"} for rank in "05"]

    for environment in environments:
        complete_environment(rank_place(environment), environment)

    assert {(environment["MASTER_ADDR"], environment["MASTER_PORT"]) for environment in environments} == {
        ("gpu07", environments[0]["MASTER_PORT"])
    }


def test_mpirun_over_machines_needs_an_address():
    """Nothing in its environment names the first machine."""
    environment = dict(MPIRUN)

    with pytest.raises(UsageError, match="MASTER_ADDR is not set"):
        complete_environment(rank_place(environment), environment)


def test_a_process_alone_has_no_launcher():
    assert ALONE.speaks
    assert not ALONE.launcher
    assert first_host("") == ""


def test_a_process_of_our_own_imports_nothing_from_the_working_directory(tmp_path, monkeypatch):
    """A `typer.py` that came along with a checkpoint is not ours; who has the directory on the path, keeps it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typer.py").write_text("raise SystemExit('ran')")
    command = own_command()

    monkeypatch.syspath_prepend(str(tmp_path))

    assert subprocess.run([*command, "--version"], check=True, capture_output=True).stdout.startswith(b"amcli")
    assert "-P" in command
    assert own_command()[0] == sys.executable
    assert "-P" not in own_command()


def test_threads_sleep_by_default():
    """An environment without a choice gets one."""
    environment: dict[str, str] = {}

    wait_without_spinning(environment)

    assert environment == {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_the_users_own_choice_stands(name):
    """Whichever variable it was made with."""
    environment = {name: "7"}

    wait_without_spinning(environment)

    assert environment == {name: "7"}


@pytest.mark.parametrize(("before", "after"), [({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")])
def test_torch_is_asked_for_huge_pages_unless_the_user_has_chosen(before, after):
    """The variable that torch reads when it allocates first; a choice in the environment stands."""
    environment = dict(before)

    ask_for_huge_pages(environment)

    assert environment == {"THP_MEM_ALLOC_ENABLE": after}
