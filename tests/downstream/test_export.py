"""A trained task as ONNX says what torch says, to 1e-4 of the labels' unit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from configs import ConfigError
from downstream.config import Checkpoint
from downstream.export import export_model
from downstream.features import load_network
from downstream.model import TaskNetwork, load_model, save_model
from downstream.morphable.convert import synthetic_model
from downstream.morphable.model import save_model as save_face
from downstream.tasks import make
from downstream.tasks.recognition import Recognition

RNG = np.random.default_rng(5)
PICTURES = RNG.integers(0, 256, (5, 3, 48, 48), dtype=np.uint8)
CAMERA = np.array([[2, 0, 0, 128], [0, -2, 0, 128], [0, 0, 2, 0]], float).reshape(-1)
FITS = np.concatenate(
    [np.zeros((4, 138)), CAMERA * RNG.uniform(0.9, 1.1, (4, 1)), RNG.uniform(0, 1, (4, 48))], axis=1
)
"""Yaw, size and 68 points, which no head sees; camera; coefficients."""
TASKS = {
    "landmarks": ({"channels": 16}, RNG.uniform(40, 200, (4, 136))),
    "landmarks by quarters": (
        {"channels": 8, "stride": 2, "points": 98, "decode": "quarter"},
        np.zeros((4, 196)),
    ),
    "landmarks by coordinates": ({"head_kind": "linear", "points": 29}, RNG.uniform(40, 200, (4, 58))),
    "pose": ({}, RNG.uniform(-60, 60, (4, 3))),
    "affect with classes": ({"classes": 7}, np.column_stack([RNG.uniform(-1, 1, (7, 2)), np.arange(7)])),
    "action_units": ({}, RNG.uniform(0, 5, (4, 12))),
    "expression": ({}, np.arange(8.0)[:, None]),
    "mesh": ({"labels": "synthetic", "yaw_bins": ()}, FITS),
    "mesh of vertices": ({"labels": "synthetic", "yaw_bins": (), "head_kind": "mesh"}, FITS),
}


def model_file(folder: Path, backbone: Path, name: str) -> Path:
    """As a training leaves it, but with random weights in the last layer, too: it starts with zeros."""
    settings, labels = TASKS[name]
    if name.startswith("mesh"):
        save_face(folder / "face.safetensors", synthetic_model())
        settings = {**settings, "model": folder / "face.safetensors"}
    network = load_network(Checkpoint(kind="checkpoint", name="it", path=str(backbone)), None)
    torch.manual_seed(3)
    model = TaskNetwork(make(name.split()[0], **settings), network, labels)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    last = next(layer for name in ("maps", "linear", "last") if (layer := getattr(model.head, name, None)))
    nn.init.normal_(last.weight, std=0.05)
    if hasattr(model.head, "maps"):
        nn.init.ones_(
            last.bias
        )  # a trained head's maxima are near 1; where all is 0 the decoding divides noise by noise
    save_model(
        folder / "model.safetensors",
        model,
        {"mode": "box"},
        {"row": "it", "mode": "finetune", "fraction": "1", "inputs": "abc"},
    )
    return folder / "model.safetensors"


@pytest.mark.parametrize("name", TASKS)
def test_it_says_what_torch_says(name: str, backbone: Path, tmp_path: Path) -> None:
    source, target = model_file(tmp_path, backbone, name), tmp_path / "out.onnx"
    kind = "float32" if name == "pose" else "uint8"
    card = export_model(source, target, kind)  # type: ignore[arg-type]
    model, _ = load_model(source)
    expected = model.predict(torch.from_numpy(PICTURES))
    assert expected.std(axis=0).max() > 1e-2, "the pictures must matter"
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (found,) = session.run(None, {"images": PICTURES[:count].astype(kind)})
        # Vertices are sums of hundreds of products of numbers about 100: float32 has no more digits.
        atol = 1e-3 if name.startswith("mesh") else 1e-4
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=atol)
    told = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert json.loads(told["task"])["name"] == model.task.name
    assert json.loads(told["crop"]) == {"mode": "box"}
    assert f"(N, {expected.shape[1]})" in card.read_text()


def test_every_task_that_is_trained_here_is_exported() -> None:
    from downstream.tasks import TASKS as KNOWN

    heads = {name for name, kind in KNOWN.items() if not issubclass(kind, Recognition)}
    assert heads == {name.split()[0] for name in TASKS}


def test_the_card_shows_the_figures_of_this_model_only(backbone: Path, tmp_path: Path) -> None:
    source = model_file(tmp_path, backbone, "pose")
    common = {"task": "pose", "metric": "mae", "low": 1.0, "high": 9.0, "fraction": 1.0, "mode": "finetune"}
    common |= {"unit": "deg", "subset": "all"}
    figures = [
        common | {"row": "it", "value": 5.25},
        common | {"row": "other", "value": 6.25},
        common | {"row": "it", "value": 7.25, "fraction": 0.1},
    ]
    path = tmp_path / "metrics.json"
    tree = {"measurements": figures, "data": {"synthetic": True}, "inputs": "abc"}
    path.write_text(json.dumps(tree))
    text = export_model(source, tmp_path / "out.onnx", "uint8", path).read_text()
    assert "| it | pose | finetune | 100 % | mae (°) | 5.25 [1, 9] |" in text
    assert "6.25" not in text
    assert "7.25" not in text
    path.write_text(json.dumps(tree | {"inputs": "xyz"}))
    with pytest.raises(ConfigError, match="of another evaluation than the one that trained it"):
        export_model(source, tmp_path / "late.onnx", "uint8", path)
    path.write_text(json.dumps(tree | {"measurements": figures[1:]}))
    with pytest.raises(ConfigError, match="has no figure of subset all, row it, task pose, mode finetune"):
        export_model(source, tmp_path / "late.onnx", "uint8", path)
    assert not [*tmp_path.glob("*late*")], "the card is checked before anything is written"


def test_another_suffix_and_another_file_are_refused(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"call it out\.onnx"):
        export_model(backbone, tmp_path / "out.pth")
    with pytest.raises(ConfigError, match="holds no trained task"):
        export_model(backbone, tmp_path / "out.onnx")


def test_a_trained_task_is_no_backbone(backbone: Path, tmp_path: Path) -> None:
    source = model_file(tmp_path, backbone, "pose")
    with pytest.raises(ConfigError, match="holds a trained task, not a backbone"):
        load_network(Checkpoint(kind="checkpoint", name="it", path=str(source)), None)
