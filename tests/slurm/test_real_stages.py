"""The project's own stages through a real Slurm: photographs to a backbone on 2 nodes x 2 processes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from slurm.__main__ import main
from slurm.stages import STAGES
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
# pillow: four processes that each compile FFCV would take longer than the training
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
