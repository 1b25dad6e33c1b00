from __future__ import annotations

from io import BytesIO
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from data_prep.crop import CropConfig, box_affine, crop, encode, move

CONFIG = CropConfig()


@pytest.mark.parametrize("box", [(100, 50, 180, 170), (-20, -30, 90, 60), (3, 3, 9, 11)])
def test_the_box_is_centred_and_its_mean_side_is_190(box: tuple[float, ...]) -> None:
    affine = box_affine(np.array(box, np.float32), CONFIG)
    x0, y0, x1, y1 = move(affine, list(box))
    assert ((x1 - x0) + (y1 - y0)) / 2 == pytest.approx(190, abs=1e-3)
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((128, 128), abs=1e-3)
    assert (x1 - x0) / (y1 - y0) == pytest.approx((box[2] - box[0]) / (box[3] - box[1]), rel=1e-4)


@pytest.mark.parametrize("side", [60, 190, 700])
def test_labels_move_with_the_pixels(side: int) -> None:
    """A blob painted at a label must be found in the crop where the moved label says."""
    height, width = 900, 1100
    centre, label = (520.0, 430.0), (520.0 + 0.31 * side, 430.0 - 0.22 * side)
    y, x = np.mgrid[:height, :width] + 0.5
    blob = np.exp(-((x - label[0]) ** 2 + (y - label[1]) ** 2) / (2 * (side / 25) ** 2))
    pixels = np.repeat((blob * 255).astype(np.uint8)[..., None], 3, axis=2)
    box = np.array([centre[0] - side / 2, centre[1] - side / 2, centre[0] + side / 2, centre[1] + side / 2])
    affine = box_affine(box.astype(np.float32), CONFIG)
    found = np.asarray(crop(pixels, affine, CONFIG))[..., 0].astype(float)
    y, x = np.mgrid[:256, :256] + 0.5
    centroid = (found * x).sum() / found.sum(), (found * y).sum() / found.sum()
    assert centroid == pytest.approx(move(affine, list(label)).tolist(), abs=0.15)


def test_scale_one_copies_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    affine = box_affine(np.array([105, 95, 295, 285], np.float32), CONFIG)
    assert np.array_equal(np.asarray(crop(pixels, affine, CONFIG)), pixels[62:318, 72:328])


def test_shrinking_is_antialiased() -> None:
    checkers = np.indices((1600, 1600)).sum(0) % 2 * 255
    pixels = np.repeat(checkers.astype(np.uint8)[..., None], 3, axis=2)
    shrunk = np.asarray(
        crop(pixels, box_affine(np.array([400, 400, 1200, 1200], np.float32), CONFIG), CONFIG)
    )
    # Point sampling would give 0 and 255.
    assert np.abs(shrunk.astype(int) - 127).max() <= 12


@pytest.mark.parametrize("border", ["edge", "reflect"])
def test_outside_of_the_picture(border: Literal["edge", "reflect"]) -> None:
    config = CropConfig(border=border)
    pixels = np.random.default_rng(1).integers(0, 256, (190, 190, 3), dtype=np.uint8)
    found = np.asarray(crop(pixels, box_affine(np.array([0, 0, 190, 190], np.float32), config), config))
    mode = "edge" if border == "edge" else "symmetric"
    assert np.array_equal(found, np.pad(pixels, ((33, 33), (33, 33), (0, 0)), mode))


def test_a_picture_smaller_than_the_margin_is_mirrored_again_and_again() -> None:
    config = CropConfig(border="reflect")
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    affine = np.array([1, 0, 120, 0, 1, 120], np.float32)
    found = np.asarray(crop(pixels, affine, config))
    assert np.array_equal(found, np.pad(pixels, ((120, 120), (120, 120), (0, 0)), "symmetric"))


def test_the_jpeg_is_rgb_with_full_chroma() -> None:
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    with Image.open(BytesIO(encode(image, 95))) as again:
        assert (again.format, again.mode, again.size) == ("JPEG", "RGB", (256, 256))
        assert [component[1:3] for component in again.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
