"""Manifests for clusters are well-formed: their command line is one of amcli's, and what a restart needs is there."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from automodel_cli.app import app
from automodel_cli.errors import ExitCode

EXAMPLES = Path(__file__).parents[1] / "examples"


def parsed(line: list[str]) -> dict[str, Any]:
    """The options of a command line of `amcli pretrain`, by the parser of amcli itself; nothing is run."""
    program, name, *arguments = line
    assert (program, name) == ("amcli", "pretrain")
    return get_command(app).commands[name].make_context(name, arguments).params


@pytest.fixture
def manifests() -> dict[str, dict[str, Any]]:
    """The documents of the Kubernetes example, by kind."""
    text = (EXAMPLES / "kubernetes" / "pretrain.yaml").read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_the_pods_run_a_command_line_of_amcli(manifests):
    """As many machines as pods, numbered by their index, meeting at the first pod by its name."""
    job = manifests["Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert [each["valueFrom"]["fieldRef"]["fieldPath"] for each in container["env"]] == [index]
    line = [word.replace("$(NODE_RANK)", "1") for word in (*container["command"], *container["args"])]

    options = parsed(line)

    spec, name = job["spec"], job["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    assert options["nnodes"] == str(spec["completions"]) == str(spec["parallelism"])
    assert (options["node_rank"], options["rdzv_backend"], options["resume"]) == (1, "static", "auto")
    service, port = manifests["Service"], container["ports"][0]["containerPort"]
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert options["rdzv_endpoint"] == f"{name}-0.{service['metadata']['name']}:{port}"


def test_the_service_names_the_pods_of_the_job(manifests):
    """Headless, before the pods are ready, by a label that they carry."""
    spec = manifests["Service"]["spec"]

    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True
    assert spec["selector"].items() <= manifests["Job"]["spec"]["template"]["metadata"]["labels"].items()


def test_pods_come_back_after_a_stop_and_not_after_an_error_of_the_configuration(manifests):
    """Exit code 6 and pre-emption count as no failure; there is time to save; the run lies on the shared volume."""
    job = manifests["Job"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    actions = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", ())
    }
    named = {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule}

    assert actions == {6: "Ignore", 2: "FailJob", 3: "FailJob", 4: "FailJob", 5: "FailJob"}
    assert named == {container["name"]}
    assert {"type": "DisruptionTarget"} in [
        condition for rule in job["podFailurePolicy"]["rules"] for condition in rule.get("onPodConditions", ())
    ]
    assert pod["restartPolicy"] == "Never"  # with anything else there is no such policy
    assert pod["terminationGracePeriodSeconds"] > 120
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in pod["volumes"]}
    assert set(mounts.values()) == set(claims)
    assert claims[mounts["/runs"]] is not None
    assert "checkpoint.checkpoint_dir=/runs/pretrain" in container["args"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_skypilot_runs_a_command_line_of_amcli_and_brings_it_back(tmp_path):
    """The script is run by a shell in which amcli only shows its arguments; the bucket holds the run."""
    task = yaml.safe_load((EXAMPLES / "skypilot/pretrain.yaml").read_text(encoding="utf-8"))
    stand_in = tmp_path / "amcli"
    stand_in.write_text('#!/bin/bash\nprintf "%q " amcli "$@"\n')
    stand_in.chmod(0o755)
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    sky = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}

    shown = subprocess.run(
        [bash, "-c", task["run"]],
        env={**task["envs"], **sky, "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )

    options = parsed(shlex.split(shown.stdout))
    assert (options["nnodes"], options["node_rank"], options["rdzv_endpoint"]) == ("2", 1, "10.0.0.1:29500")
    assert options["resume"] == "auto"
    assert task["num_nodes"] == 2
    assert ExitCode.INTERRUPTED in task["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert "/runs" in task["file_mounts"]
    assert "checkpoint.checkpoint_dir=/runs/pretrain" in shown.stdout
