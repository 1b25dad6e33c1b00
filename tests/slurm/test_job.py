from __future__ import annotations

from pathlib import Path

import pytest
import submitit
from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmJobEnvironment

from slurm.job import StageJob, port, rendezvous


def test_rendezvous_is_what_torchrun_would_set(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "JOB_ID": 77, "NTASKS": 16, "JOB_NUM_NODES": 2, "NODEID": 1, "PROCID": 11, "LOCALID": 3,
        "LAUNCH_NODE_IPADDR": "10.0.0.5", "RESTART_COUNT": 2,
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert rendezvous(SlurmJobEnvironment()) == {
        "RANK": "11",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "10.0.0.5",
        "MASTER_PORT": str(port("77", "2")),
    }


def test_a_single_process_needs_no_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert rendezvous(SlurmJobEnvironment()) == {}


def test_port_differs_between_restarts_and_jobs() -> None:
    ports = [port(str(job), str(restart)) for job in range(100, 140) for restart in range(5)]
    assert all(20000 <= p < 60000 for p in ports)
    assert len(set(ports)) > 0.98 * len(ports)
    assert port("100", "0") != port("100", "1")
    assert port("100", "0") == port("100", "0")


def test_checkpoint_queues_the_same_call() -> None:
    job = StageJob("pretrain", ("a.yaml",), "/somewhere", Path("/logs"))
    again = DelayedSubmission(job)._checkpoint_function()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == job
    assert (again.args, again.kwargs) == ((), {})
