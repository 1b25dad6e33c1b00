"""The project's own stages through a real Slurm: photographs to a backbone on 2 nodes x 2 processes."""

from __future__ import annotations

import importlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.beton import write_beton
from slurm import attempts
from slurm.__main__ import main
from slurm.runs import submissions
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
method: {name: swav, prototypes: 20, hidden_dim: 32, projection_dim: 16}
optimizer: {name: sgd}
schedule: {lr: 0.04}
"""


@pytest.mark.parametrize("name", STAGES)
def test_table_names_real_schemas_and_fields(name: str) -> None:
    stage = STAGES[name]
    if stage.finished:
        module, _, function = stage.finished[0].partition(":")
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
    write_noise("runs/photos/set.beton", 64)
    Path("pretrain.yaml").write_text(PRETRAIN + "checkpoint: {every_steps: 100000}\nlog_every_steps: 1\n")
    small = ["cluster.memory=4GB", "cluster.cpus_per_task=1", "cluster.gpus_per_node=2"]
    submission = prepare("pretrain", "pretrain.yaml", [*small, "epochs=30"])
    job = submission.send().note.job
    metrics = Path("runs/pretrain/metrics.jsonl")
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3)
    on_testbed.run("scancel", "--signal=USR2", job)

    wait_until(lambda: state_of(on_testbed, job) == {"PENDING"})
    (stopped,) = (
        int(path.stem.removeprefix("step_")) for path in Path("runs/pretrain/checkpoints").glob("*.pt")
    )
    assert 3 < stopped < 120
    wait_until(lambda: state_of(on_testbed, job) <= {"COMPLETED", "FAILED"})
    log = (submission.run / f"logs/001/{job}_0_log.err").read_text()
    assert state_of(on_testbed, job) == {"COMPLETED"}, log
    assert f"going on from step {stopped}" in log
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 121))


def write_noise(path: str, pictures: int) -> None:
    """One picture of noise, so many times."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)).save(buffer, "JPEG")
    jpegs = [buffer.getvalue()] * pictures
    write_beton(path, jpegs, np.arange(pictures), -np.ones(pictures, np.int64))


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


CHAIN = """
stages:
  - {name: list, stage: list, config: photos.yaml, array: 2}
  - {name: detect, stage: detect, config: photos.yaml, array: 2, after: [list]}
  - {name: crop, stage: crop, config: photos.yaml, array: 2, after: [detect]}
  - {name: photos, stage: write, config: photos.yaml, after: [crop]}
  - {name: faces, stage: data_prep, config: faces.yaml}
  - {name: swav, stage: pretrain, config: pretrain.yaml, after: [photos]}
  - {name: cells, stage: cells, config: downstream.yaml, array: 2, after: [faces, swav]}
  - {name: downstream, stage: downstream, config: downstream.yaml, after: [cells]}
  - {name: report, stage: report, config: report.yaml, after: [downstream]}
"""
FACES = """
output: runs/faces
source: {kind: synthetic, count: 60, picture: {mode: portrait, identity_start: 500, identity_count: 12}}
detect: {size: 256}
keep: {rule: best_iou, min_score: 0.5}
"""
DOWNSTREAM = """
data: runs/faces/set.beton
output: runs/downstream
tasks: [landmarks, pose]
fractions: [1.0]
modes: [linear, finetune]
recipe: {steps: 2}
bootstrap: {samples: 100}
initialisations:
  - {kind: checkpoint, name: pretrained, path: runs/pretrain/backbone.safetensors}
  - {kind: random, name: random, like: runs/pretrain/backbone.safetensors}
"""
REPORT = """
downstream: runs/downstream
output: runs/report/index.html
results: runs/results.json
pretrain: runs/pretrain
"""


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_chain_of_arrays_with_a_shard_that_fails(
    on_testbed: Testbed,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The dependants are removed, the reason is in the status, and after the mend only the rest is done."""
    monkeypatch.chdir(tmp_path)
    texts = {
        "chain": CHAIN, "photos": PHOTOS + "shard_size: 6\n", "faces": FACES, "pretrain": PRETRAIN,
        "downstream": DOWNSTREAM, "report": REPORT,
    }  # fmt: skip
    for name, text in texts.items():
        Path(f"{name}.yaml").write_text(text)
    names = ("list", "detect", "crop", "photos", "faces", "swav", "cells", "downstream", "report")
    small = [
        f"{name}.cluster.{x}" for name in names for x in ("memory=2GB", "cpus_per_task=1", "gpus_per_node=0")
    ]
    assert main(["submit", "list", "photos.yaml", "--array", "2", *small_of("list", small), "--watch"]) == 0
    broken = Path("runs/photos/images/00001.parquet")
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    capfd.readouterr()

    assert main(["pipeline", "chain.yaml", *small]) == 0
    queued = jobs_of(capfd.readouterr().out)
    assert list(queued) == ["detect", "crop", "photos", "faces", "swav", "cells", "downstream", "report"]
    wait_until(lambda: state_of(on_testbed, queued["report"]) == {"CANCELLED"}, 300)
    wait_until(lambda: state_of(on_testbed, queued["faces"]) == {"COMPLETED"}, 300)
    assert state_of(on_testbed, queued["detect"]) == {"COMPLETED", "FAILED"}
    assert all(
        state_of(on_testbed, queued[name]) == {"CANCELLED"} for name in ("crop", "photos", "swav", "cells")
    )
    (detect,) = (logs for logs, note in submissions(Path("runs/photos")) if note.stage == "detect")
    begun = [
        sum(event.event == "begin" for event in attempts.read(detect, f"{queued['detect']}_{part}"))
        for part in range(2)
    ]
    assert begun == [1, 2], "the part that fails is tried again, and it alone"
    assert main(["status", "runs"]) == 1
    table = capfd.readouterr().out
    assert "runs/photos/faces/00001.parquet" in table or "images/00001.parquet" in table, table
    done = {path.name for path in Path("runs/photos/faces").glob("*.json")}
    assert "00001.json" not in done
    assert {"00000.json", "00002.json"} <= done

    broken.write_bytes(whole)
    assert main(["pipeline", "chain.yaml", *small]) == 0
    out = capfd.readouterr().out
    assert "list: finished already" in out
    assert "faces: finished already" in out
    again = jobs_of(out)
    assert list(again) == ["detect", "crop", "photos", "swav", "cells", "downstream", "report"]
    wait_until(lambda: bool(state_of(on_testbed, again["report"]) & {"COMPLETED", "CANCELLED"}), 600)
    assert Path("runs/report/index.html").exists()
    assert main(["status", "runs"]) == 0, capfd.readouterr().out
    assert main(["pipeline", "chain.yaml", *small]) == 0
    assert list(jobs_of(capfd.readouterr().out)) == ["report"], "only the page is always made again"


def small_of(name: str, overrides: list[str]) -> list[str]:
    return [x.removeprefix(f"{name}.") for x in overrides if x.startswith(f"{name}.")]


def jobs_of(output: str) -> dict[str, str]:
    """Stage -> job id, from what ``pipeline`` printed."""
    lines = (line.split(": job ") for line in output.splitlines() if ": job " in line)
    return {name: rest.split(",")[0].split()[0] for name, rest in lines}


def state_of(testbed: Testbed, job: str) -> set[str]:
    return set(
        testbed.run("squeue", "--noheader", "--array", "--states=all", "--format=%T", f"--jobs={job}").split()
    )


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_thirty_two_ranks_on_four_nodes(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two steps; ``testbed`` is asked for as it skips where there is no Slurm."""
    monkeypatch.chdir(tmp_path)
    write_noise("runs/photos/set.beton", 128)
    Path("pretrain.yaml").write_text(PRETRAIN + "log_every_steps: 1\n")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        four = Testbed(Path(folder), nodes=4)
        four.start()
        try:
            monkeypatch.setenv("SLURM_CONF", str(four.conf))
            many = [
                "cluster.nodes=4",
                "cluster.gpus_per_node=8",
                "cluster.cpus_per_task=1",
                "cluster.memory=7GB",
            ]
            sent = prepare("pretrain", "pretrain.yaml", [*many, "epochs=1", "batch_size=64"]).send()
            wait_until(lambda: state_of(four, sent.note.job) <= {"COMPLETED", "FAILED"}, 900)
            log = (sent.logs / f"{sent.note.job}_0_log.err").read_text()
            assert state_of(four, sent.note.job) == {"COMPLETED"}, log
        finally:
            four.stop()
    assert sent.note.tasks == 32
    assert len(list(sent.logs.glob("*_result.pkl"))) == 32
    rows = [json.loads(line) for line in Path("runs/pretrain/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
