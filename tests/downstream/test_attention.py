"""Grad-CAM against the equations, and the sheets that show it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image

from configs import ConfigError
from downstream.attention import attention, draw_attention, overlaid
from downstream.config import Checkpoint
from downstream.features import load_network, resize
from downstream.model import TaskNetwork, save_model
from downstream.tasks import make

BOX = {"mode": "box", "image_size": 256, "face_size": 190, "border": "edge", "quality": 95}


def network(backbone: Path, name: str, **settings: object) -> TaskNetwork:
    """A task with random weights on the backbone."""
    row = Checkpoint(kind="checkpoint", name="it", path=str(backbone))
    torch.manual_seed(2)
    labels = np.random.default_rng(0).integers(0, 3, (40, 3 if name == "affect" else 1)) / 1.0
    if name == "affect":
        labels[:, :2] = labels[:, :2] / 2
    task = make(name, **settings)
    model = TaskNetwork(task, load_network(row, None), labels)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    """(3, 3, 256, 256) uint8."""
    face = skimage.data.astronaut()[:256, 100:356]
    return torch.from_numpy(np.stack([face, face[:, ::-1], face[::-1]])).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("expression", {"classes": ("neutral", "happiness", "sadness")}), ("affect", {"classes": 7})],
)
def test_it_is_equations_1_and_2(
    backbone: Path, crops: torch.Tensor, name: str, settings: dict[str, object]
) -> None:
    model = network(backbone, name, **settings)
    classes, maps = attention(model, crops)
    first = 2 if name == "affect" else 0
    for crop, label, found in zip(crops, classes, maps, strict=True):
        kept: list[torch.Tensor] = []
        hook = model.backbone.layer4.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
        scores = model(model.network.normalise(resize(crop[None], model.network.size)))[0, first:]
        hook.remove()
        assert int(scores.argmax()) == label
        (slope,) = torch.autograd.grad(scores[label], kept[0])
        alpha = slope.mean((2, 3))  # equation 1
        cam = F.relu((alpha[:, :, None, None] * kept[0]).sum(1))  # equation 2
        expected = F.interpolate(cam[None], (256, 256), mode="bilinear", align_corners=False)[0, 0]
        expected = expected / expected.max().clamp(min=1e-30)
        np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)
    assert maps.max() == 1
    assert maps.min() >= 0


def test_bright_is_where_the_map_is_high() -> None:
    heat = np.zeros((256, 256), np.float32)
    heat[100:150, 100:150] = 1
    drawn = np.asarray(overlaid(Image.new("RGB", (256, 256), (120, 120, 120)), heat)).astype(int).sum(-1)
    assert drawn[125, 125] > drawn[10, 10] + 150


def test_a_sheet_for_each_picture_with_a_face(backbone: Path, tmp_path: Path) -> None:
    files = []
    for number, classes in enumerate((("neutral", "happiness", "sadness"), ("surprise", "fear", "anger"))):
        model = network(backbone, "expression", classes=classes)
        files.append(tmp_path / f"model{number}.safetensors")
        save_model(files[-1], model, BOX, {})
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(skimage.data.astronaut()).save(pictures / "one.png")
    Image.new("RGB", (120, 90)).save(pictures / "nobody.png")
    (pictures / "torn.jpg").write_bytes(b"\xff\xd8\xff no picture")
    without = draw_attention(files, [pictures], tmp_path / "out", "cpu")
    assert {path.name for path in without} == {"nobody.png", "torn.jpg"}
    assert without[pictures / "nobody.png"] == "no face"
    (sheet,) = (tmp_path / "out").glob("*.jpg")
    with Image.open(sheet) as drawn:
        assert drawn.width > 3 * 256  # the face, and a map of each model


def test_a_file_in_the_place_of_the_folder_is_refused(backbone: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "it.safetensors", network(backbone, "expression"), BOX, {})
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "one.png")
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(ConfigError, match=r"--output: .*out cannot be a folder"):
        draw_attention([tmp_path / "it.safetensors"], [tmp_path / "one.png"], tmp_path / "out", "cpu")


def test_other_classes_than_the_predicted_can_be_explained(backbone: Path, crops: torch.Tensor) -> None:
    model = network(backbone, "expression", classes=("neutral", "happiness", "sadness"))
    said, maps = attention(model, crops)
    again, same = attention(model, crops, said)
    np.testing.assert_array_equal(again, said)
    np.testing.assert_allclose(same, maps, atol=1e-6)
    others, changed = attention(model, crops, (said + 1) % 3)
    np.testing.assert_array_equal(others, (said + 1) % 3)
    assert np.abs(changed - maps).max() > 0.1


def test_a_model_that_names_no_class_is_refused(backbone: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "pose.safetensors", network(backbone, "pose"), BOX, {})
    with pytest.raises(ConfigError, match="its task pose names no class"):
        draw_attention([tmp_path / "pose.safetensors"], [tmp_path], tmp_path / "out", "cpu")
