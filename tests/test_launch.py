"""Launch files: what they start, and that a job whose time is up stands in the queue again."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from canopy.cli.app import app, mount

LAUNCH = Path(__file__).parents[1] / "configs" / "launch"


def stub(folder: Path, name: str, script: str) -> None:
    """Write a program that notes how it was called."""
    path = folder / name
    path.write_text(f'#!/bin/bash\necho "{name} $*" >> "$CALLS"\n{script}\n')
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Environment of a job on two nodes, whose SLURM programs only note their calls."""
    stub(tmp_path, "scontrol", '[ "$1" = show ] && printf "n1\\nn2\\n"; true')
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "SLURM_JOB_ID": "20007",
        "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip


def start(cluster: dict[str, str], *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["bash", str(LAUNCH / "pretrain.slurm"), *arguments], env=cluster)


def test_slurm_starts_a_process_a_gpu_and_resumes(tmp_path: Path, cluster: dict[str, str]) -> None:
    stub(tmp_path, "srun", "exit 3")
    assert start(cluster, "c.yaml", "runs/a", "batch=64", "loop.steps=9").wait(60) == 3, "srun's status is the job's"
    (call,) = [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("srun")]
    assert "--nnodes 2 --nproc-per-node 4" in call and "--rdzv-endpoint n1:20007" in call
    assert call.endswith("canopy pretrain c.yaml --out runs/a --resume --set batch=64 --set loop.steps=9")


def test_a_job_whose_time_is_up_ends_its_step_and_is_queued_again(tmp_path: Path, cluster: dict[str, str]) -> None:
    stub(tmp_path, "srun", "trap 'echo ended >> \"$CALLS\"; exit 143' TERM; while true; do sleep 0.1; done")
    job, calls = start(cluster, "c.yaml", "runs/a"), tmp_path / "calls"
    deadline = time.monotonic() + 60
    while not (calls.exists() and "srun" in calls.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)  # until the trap of the step is set
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0
    assert calls.read_text().splitlines()[-2:] == ["ended", "scontrol requeue 20007"]


def test_a_job_without_a_run_says_what_is_missing(cluster: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    assert start(cluster, "c.yaml").wait(60) == 1
    assert "give the folder of the run" in capfd.readouterr().err


def test_the_pods_of_kubernetes_meet_and_resume() -> None:
    service, job = yaml.safe_load_all((LAUNCH / "pretrain.kubernetes.yaml").read_text())
    spec = job["spec"]["template"]["spec"]
    arguments = spec["containers"][0]["args"]
    options = dict(argument.removeprefix("--").split("=") for argument in arguments if "=" in argument)
    assert int(options["nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(options["nproc-per-node"]) == spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert options["rdzv-endpoint"].split(":")[0] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert spec["subdomain"] == service["metadata"]["name"]
    command = arguments[arguments.index("canopy") + 1 :]
    mount(app)
    result = CliRunner().invoke(app, [*command, "--dry-run"])
    assert result.exit_code == 1 and "/config/pretrain.yaml" in str(result.exception), "the options are those there are"
