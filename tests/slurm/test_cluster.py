from __future__ import annotations

import os
from pathlib import Path

import pytest

import configs
from configs import ConfigError
from slurm.cluster import Cluster, visible_gpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "processes"), [("local", None), ("university", 4), ("dgx", 64)], ids=lambda x: str(x)
)
def test_shipped_files_are_valid(name: str, processes: int | None) -> None:
    cluster = configs.load(ROOT / f"configs/cluster/{name}.yaml", schema=Cluster)
    assert processes is None or cluster.nodes * cluster.tasks == processes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("minutes: 10", "more than 10 or set allow_short"),
        ("minutes: 30\nsignal_delay_s: 900", "must be under half of the 30 minutes"),
        ("executor: local\nnodes: 2", "local executor has one node"),
        ("memory: much", "memory"),
        ("partitoin: gpu", "did you mean 'partition'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, fields: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(fields)
    with pytest.raises(ConfigError, match=message) as caught:
        configs.load(tmp_path / "c.yaml", schema=Cluster)
    assert "\n" not in str(caught.value)


def test_a_short_limit_can_be_allowed() -> None:
    assert Cluster(minutes=2, allow_short=True).minutes == 2


def test_one_process_takes_its_share() -> None:
    whole = Cluster(nodes=8, gpus_per_node=8)
    one = whole.for_stage(gpus=1)
    assert (one.nodes, one.tasks, one.gpus_per_node) == (1, 1, 1)
    assert whole.for_stage(gpus=None) == whole
    assert whole.for_stage(gpus=0).gpus_per_node == 0


def test_this_machine_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert visible_gpus() == ["4", "7"]
    here = Cluster(executor="local").for_stage(gpus=None)
    assert (here.tasks, here.gpus_per_node) == (2, 2)
    assert here.cpus_per_task == max(1, len(os.sched_getaffinity(0)) // 2)
    with pytest.raises(ConfigError, match="3 asked for, there are 2"):
        Cluster(executor="local", gpus_per_node=3).for_stage(gpus=None)
