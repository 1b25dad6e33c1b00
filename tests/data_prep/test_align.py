"""Crops that are turned and scaled by five landmarks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import skimage.transform
from numpy.typing import NDArray
from PIL import Image

import configs
from configs import ConfigError
from data_prep.__main__ import load_config
from data_prep.beton import Beton, read_labels, read_manifest
from data_prep.config import DataPrepConfig
from data_prep.crop import TEMPLATE, Border, CropConfig, align_affine, crop, crop_affine, move, move_label
from data_prep.fetch import read_member
from data_prep.images import PictureError
from data_prep.pipeline import STAGES, Pipeline
from data_prep.tables import PIXEL_POINTS, array_of
from tests.data_prep.conftest import INSIGHTFACE

ALIGNED = CropConfig(mode="align5")
ROOT = Path(__file__).parents[2]


def similarity(scale: float, degrees: float, x: float, y: float) -> NDArray[np.float32]:
    turn = np.deg2rad(degrees)
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    return np.array([cos, -sin, x, sin, cos, y], np.float32)


def inverse(affine: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.inv(np.vstack([affine.reshape(2, 3).astype(float), [0, 0, 1]])))


@pytest.mark.parametrize("size", [112, 224])
@pytest.mark.parametrize("seed", range(5))
def test_the_matrix_is_umeyamas(size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    landmarks = generator.uniform(0, 2000, 2) + generator.uniform(0.2, 9) * (
        TEMPLATE + generator.normal(0, 6, (5, 2))
    )
    expected = skimage.transform.SimilarityTransform.from_estimate(landmarks, TEMPLATE * (size / 112) + 0.5)
    found = align_affine(landmarks.reshape(-1), size).reshape(2, 3)
    np.testing.assert_allclose(found, expected.params[:2], rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def face_align(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """insightface's own file, alone: the package would bring its detectors' dependencies."""
    path = tmp_path_factory.mktemp("insightface") / "face_align.py"
    path.write_bytes(read_member(INSIGHTFACE, "insightface/utils/face_align.py"))
    spec = importlib.util.spec_from_file_location("face_align", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def somewhere(photograph: NDArray[np.uint8], seed: int) -> tuple[NDArray[np.float64], float]:
    """(5, 2) landmarks of no face, turned anyhow, and the pixels of the photograph to one of a 112 px crop."""
    generator = np.random.default_rng(seed)
    scale = float(np.exp(generator.uniform(np.log(0.3), np.log(3))))
    turn = generator.uniform(-np.pi, np.pi)
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    points = TEMPLATE - 56 + generator.normal(0, 3, (5, 2))
    middle = generator.uniform(0.2, 0.8, 2) * photograph.shape[1::-1]
    return points @ np.array([[cos, sin], [-sin, cos]]) + middle, scale


@pytest.mark.filterwarnings("ignore:.*estimate:FutureWarning")
@pytest.mark.parametrize("size", [112, 224])
@pytest.mark.parametrize("seed", range(6))
def test_the_crop_is_norm_crops(
    size: int, seed: int, face_align: ModuleType, astronaut: Image.Image, t1_image: Image.Image
) -> None:
    """The geometry to one grey level on sharp photographs. The pixels on blurred ones: norm_crop takes the four
    nearest pixels however much it shrinks, so fine detail comes out otherwise.
    """
    photograph = np.asarray(t1_image if seed % 2 else astronaut)
    landmarks, scale = somewhere(photograph, seed)
    affine = align_affine(landmarks.reshape(-1), size)
    # In norm_crop's coordinates the middle of the first pixel is at 0, in the photograph and in the crop.
    matrix = affine.reshape(2, 3).astype(float)
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5

    expected = face_align.norm_crop(photograph, landmarks - 0.5, size).astype(int)
    found = cv2.warpAffine(photograph, matrix, (size, size)).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert expected.std() > 10, "nothing was photographed there"

    smooth = cv2.GaussianBlur(photograph, (0, 0), 8 * max(1, scale * 112 / size))
    expected = face_align.norm_crop(smooth, landmarks - 0.5, size).astype(int)
    config = CropConfig(mode="align5", image_size=size, border="black")
    found = np.asarray(crop(smooth, affine, config)).astype(int)
    inner = np.pad(np.ones(np.array(photograph.shape[:2]) - 16, np.uint8), 8)
    inside = cv2.warpAffine(inner * 255, matrix, (size, size)) == 255
    difference = np.abs(found - expected)[inside]
    assert inside.mean() > 0.2
    assert (difference > 1).mean() < 1e-3
    assert difference.max() <= 2
    assert abs((found - expected)[inside].mean()) < 0.1


def test_a_mirrored_face_is_not_mirrored_back() -> None:
    mirrored = TEMPLATE * [-1, 1]
    matrix = align_affine(mirrored.reshape(-1), 112).reshape(2, 3)
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize("degrees", [0, 25, -140])
@pytest.mark.parametrize("scale", [0.12, 0.4, 0.8, 1.0, 2.5])
def test_the_pixels_are_those_of_the_function_that_was_photographed(scale: float, degrees: float) -> None:
    """Smooth waves have a value at every point, so the crop's true pixels are known without resampling any."""
    generator = np.random.default_rng(0)
    waves = generator.uniform(-0.1, 0.1, (6, 2)) * min(scale, 1)
    phases = generator.uniform(0, 2 * np.pi, 6)

    def brightness(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return 127.5 + 20 * np.sin(
            2 * np.pi * (waves @ np.stack([x.ravel(), y.ravel()])) + phases[:, None]
        ).sum(0).reshape(x.shape)

    side = int(112 / scale * 1.6)
    y, x = np.mgrid[:side, :side] + 0.5
    pixels = np.repeat(brightness(x, y).round().astype(np.uint8)[..., None], 3, 2)
    affine = similarity(scale, degrees, 0, 0)
    middle = move(affine, [side / 2 + 0.3, side / 2 - 0.2])
    affine[[2, 5]] = 56 - middle
    found = np.asarray(crop(pixels, affine, ALIGNED))[..., 0].astype(float)
    y, x = np.mgrid[:112, :112] + 0.5
    back = inverse(affine)
    where = np.tensordot(back[:2, :2], np.stack([x, y]), 1) + back[:2, 2, None, None]
    difference = np.abs(found - brightness(*where))
    assert difference.mean() < 2
    assert difference.max() < 8


@pytest.mark.parametrize("scale", [0.3, 0.9])
def test_a_photograph_is_cut_as_skimage_does(astronaut: Image.Image, scale: float) -> None:
    """skimage smooths before it shrinks; ours is resampled in another way, so they agree, but not to the bit."""
    pixels = np.asarray(astronaut)
    affine = similarity(scale, 15, 0, 0)
    affine[[2, 5]] = 56 - move(affine, [225, 120])
    # skimage puts the middle of the first pixel at 0.
    shifted = np.vstack([affine.reshape(2, 3), [0, 0, 1]]).astype(float)
    shifted[:2, 2] += shifted[:2, :2] @ [0.5, 0.5] - 0.5
    smooth = skimage.filters.gaussian(pixels, max(0, (1 / scale - 1) / 2), channel_axis=2)
    expected = 255 * skimage.transform.warp(smooth, np.linalg.inv(shifted), output_shape=(112, 112), order=3)
    difference = np.abs(
        np.asarray(crop(pixels, affine, CropConfig(mode="align5", border="black"))) - expected
    )
    assert difference.mean() < 2.5
    moved = np.roll(expected, 1, axis=1)
    assert np.abs(np.asarray(crop(pixels, affine, ALIGNED)) - moved).mean() > 2 * difference.mean()


def test_shrinking_is_antialiased() -> None:
    checkers = np.indices((1600, 1600)).sum(0) % 2 * 255
    pixels = np.repeat(checkers.astype(np.uint8)[..., None], 3, axis=2)
    affine = similarity(0.1, 20, 30, -40)
    assert np.abs(np.asarray(crop(pixels, affine, ALIGNED)).astype(int) - 127).max() <= 12


@pytest.mark.parametrize("mode", ["box", "align5"])
@pytest.mark.parametrize("border", ["edge", "reflect", "black"])
def test_outside_of_the_picture(mode: str, border: Border) -> None:
    """Turned by nothing, both modes leave the pixels of a smooth picture where numpy's padding has them."""
    config = CropConfig.model_validate({"mode": mode, "border": border, "image_size": 112})
    y, x = np.mgrid[:60, :60]
    pixels = np.stack([80 + 2 * x, 60 + 2 * y, 40 + x + y], 2).astype(np.uint8)
    found = np.asarray(crop(pixels, np.array([1, 0, 30, 0, 1, 22], np.float32), config)).astype(int)
    padding = ((22, 30), (30, 22), (0, 0))
    names = {"edge": "edge", "reflect": "symmetric", "black": "constant"}
    expected = np.pad(pixels, padding, names[border]).astype(int)  # type: ignore[call-overload]
    # Where the edges meet the resampling of a kink shows; away from them nothing may.
    away = np.ones((112, 112), bool)
    away[[*range(19, 25), *range(79, 85)]] = False
    away[:, [*range(27, 33), *range(87, 93)]] = False
    assert np.abs(found - expected)[away].max() <= (0 if mode == "box" else 1)


@pytest.mark.parametrize("name", ["box", "detector_box"])
def test_the_box_of_a_turned_face_spans_its_corners(name: str) -> None:
    affine = similarity(2, 90, 300, 0)
    assert name in PIXEL_POINTS
    assert move_label(affine, name, [10, 20, 40, 80]) == pytest.approx([140, 20, 260, 80])
    diagonal = move_label(similarity(1, 45, 0, 0), name, [0, 0, 10, 10])
    assert diagonal == pytest.approx([-(50**0.5), 0, 50**0.5, 200**0.5], abs=1e-5)


def test_landmarks_in_one_point_make_no_crop() -> None:
    affine = crop_affine({"landmarks5": [7.0] * 10}, ALIGNED)
    with pytest.raises(PictureError, match="lie in one point"):
        crop(np.zeros((20, 20, 3), np.uint8), affine, ALIGNED)


def test_the_size_is_that_of_the_template_unless_given() -> None:
    assert CropConfig().image_size == 256
    assert ALIGNED.image_size == 112
    assert CropConfig(mode="align5", image_size=224).image_size == 224
    example = configs.load(ROOT / "configs/data/vggface2_aligned.yaml", schema=DataPrepConfig)
    assert (example.crop.mode, example.crop.image_size, example.crop.border) == ("align5", 112, "black")


@pytest.mark.parametrize("size", [112, 224])
def test_a_set_of_aligned_faces(size: int, tmp_path: Path) -> None:
    """Whatever way a head is turned, its landmarks end near the template, true ones and pixels with them."""
    given = [f"output={tmp_path}", "workers=1", "source.count=4", "crop.mode=align5"]
    given += [] if size == 112 else ["crop.image_size=224"]
    config = configs.load(ROOT / "configs/data/synthetic_portraits.yaml", given, schema=DataPrepConfig)
    Pipeline(config).run(STAGES)
    labels, manifest = read_labels(tmp_path / "set.beton"), read_manifest(tmp_path / "set.beton")
    assert (manifest.image_size, manifest.crop["mode"]) == (size, "align5")
    assert Beton(tmp_path / "set.beton").image(0).shape == (size, size, 3)
    landmarks = array_of(labels["landmarks5"]).reshape(-1, 5, 2) * 112 / size
    assert np.abs(landmarks - TEMPLATE).mean() < 6
    true = array_of(labels["true_landmarks5"]).reshape(-1, 5, 2) * 112 / size
    assert np.abs(true - landmarks).mean() < 8
    affine = array_of(labels["affine"])
    np.testing.assert_allclose(affine[:, 0], affine[:, 4])
    assert np.abs(affine[:, 1]).max() > 0.01, "none of them was turned"


def test_the_report_of_aligned_faces_shows_the_rejected_ones(tmp_path: Path, t1: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "t1.jpg").write_bytes(t1)
    words = [f"output={tmp_path / 'out'}", "workers=1", "crop.mode=align5", "keep.rule=largest_central"]
    Pipeline(load_config(str(tmp_path / "in"), words)).run(STAGES)
    assert "another face is larger" in (tmp_path / "out" / "report" / "index.html").read_text()


def test_a_source_that_has_shrunk_is_refused_by_write_too(tmp_path: Path, t1: bytes) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / "in" / name).write_bytes(t1)
    config = load_config(str(tmp_path / "in"), [f"output={tmp_path / 'out'}", "workers=1", "shard_size=1"])
    Pipeline(config).run(STAGES[:3])
    (tmp_path / "in" / "c.jpg").unlink()
    with pytest.raises(ConfigError, match="the source had more pictures"):
        Pipeline(config).run(["write"])
