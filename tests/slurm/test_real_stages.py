"""The project's own stages through a real Slurm: photographs to a backbone on 2 nodes x 2 processes."""

from __future__ import annotations

import importlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.beton import write_beton
from slurm.__main__ import main
from slurm.stages import STAGES
from slurm.submit import prepare
from slurm.testbed import Testbed

PHOTOS = """
output: runs/photos
source: {kind: synthetic, count: 24, picture: {mode: photograph, identity_count: 24}}
"""
PRETRAIN = """
output: runs/pretrain
epochs: 2
batch_size: 16
precision: float32
# pillow: as on a machine without FFCV
data: {path: runs/photos/set.beton, decoder: pillow}
views:
  crops: [{count: 2, size: 32, scale: [0.3, 1.0]}, {count: 2, size: 24, scale: [0.1, 0.3]}]
backbone: {architecture: resnet18, width: 0.25}
method: {prototypes: 20, hidden_dim: 32, projection_dim: 16}
optimizer: {name: sgd}
schedule: {lr: 0.04}
"""


@pytest.mark.parametrize("name", STAGES)
def test_table_names_real_schemas_and_fields(name: str) -> None:
    stage = STAGES[name]
    if stage.finished:
        module, _, function = stage.finished.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    module, _, schema = stage.schema.partition(":")
    for field in stage.inputs:
        model: Any = getattr(importlib.import_module(module), schema)
        for part in field.split("."):
            model = model.model_fields[part].annotation
    assert importlib.util.find_spec(f"{stage.room}.__main__") is not None


@pytest.mark.slurm
@pytest.mark.slow
def test_photographs_to_a_backbone(
    on_testbed: Testbed,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos.yaml").write_text(PHOTOS)
    Path("pretrain.yaml").write_text(PRETRAIN)
    small = ["cluster.memory=4GB", "cluster.cpus_per_task=1", "cluster.gpus_per_node=2", "cluster.nodes=2"]
    assert main(["submit", "data_prep", "photos.yaml", *small, "--watch"]) == 0
    rows = json.loads(Path("runs/photos/set.json").read_text())["count"]
    assert main(["submit", "pretrain", "pretrain.yaml", *small, "--watch"]) == 0
    metrics = [json.loads(line) for line in Path("runs/pretrain/metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 2 * (rows // 16)
    assert json.loads(Path("runs/pretrain/environment.json").read_text())
    job = capfd.readouterr().out.splitlines()[-1]
    assert len(list(Path("runs/pretrain/logs/001").glob(f"{job}_?_result.pkl"))) == 4
    assert main(["submit", "pretrain", "pretrain.yaml", *small, "--watch"]) == 0
    assert "is finished" in capfd.readouterr().out


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.chaos
def test_a_preempted_pretraining_goes_on_from_where_it_was_told_to_stop(
    on_testbed: Testbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No periodic checkpoint is due: the one that counts is that of the signal."""
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)).save(buffer, "JPEG")
    write_beton("runs/photos/set.beton", [buffer.getvalue()] * 64, np.arange(64), -np.ones(64, np.int64))
    Path("pretrain.yaml").write_text(PRETRAIN + "checkpoint: {every_steps: 100000}\nlog_every_steps: 1\n")
    small = ["cluster.memory=4GB", "cluster.cpus_per_task=1", "cluster.gpus_per_node=2"]
    submission = prepare("pretrain", "pretrain.yaml", [*small, "epochs=30"])
    job = submission.send()
    metrics = Path("runs/pretrain/metrics.jsonl")
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3)
    on_testbed.run("scancel", "--signal=USR2", job.job_id)

    def state() -> str:
        return on_testbed.run(
            "squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job.job_id}"
        ).strip()

    wait_until(lambda: state() == "PENDING")
    (stopped,) = (
        int(path.stem.removeprefix("step_")) for path in Path("runs/pretrain/checkpoints").glob("*.pt")
    )
    assert 3 < stopped < 120
    # Slurm holds a requeued job for two minutes.
    on_testbed.run("scontrol", "update", f"JobId={job.job_id}", "StartTime=now")
    wait_until(lambda: state() in ("COMPLETED", "FAILED"))
    log = (submission.run / f"logs/001/{job.job_id}_0_log.err").read_text()
    assert state() == "COMPLETED", log
    assert f"going on from step {stopped}" in log
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 121))


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
