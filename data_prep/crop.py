"""The stage ``crop``: every kept face as a JPEG of fixed size, its labels moved along.

Geometry. The authors write that "the face will take approx. 190px on a 256x256 px image" (Bulat et al., 2022).
A face's size is the mean of its box's sides, (w + h) / 2: the measure of the same authors' landmark code, and
one that a turned head changes less than the width, and a raised chin less than the height. So

    scale = 190 / ((w + h) / 2),   crop = scale * (picture - centre of the box) + 128

in continuous coordinates: x to the right, y down, the middle of the first pixel at (0.5, 0.5).
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from configs import Config
from data_prep.detect import mean_side
from data_prep.images import PictureError, difference_hashes, read_picture
from data_prep.stage import Shard, timed
from data_prep.tables import PIXEL_POINTS, crop_schema, label_column, read_shard, table_of

VERSION = 2


class CropConfig(Config):
    """Geometry and encoding of the crops."""

    image_size: int = Field(256, ge=16)
    """Side of the crop, px."""
    face_size: float = Field(190, gt=0)
    """Mean side that the detected box has in the crop, px."""
    border: Literal["edge", "reflect"] = "edge"
    """Outside of the picture: its last pixels repeated, or the picture mirrored."""
    quality: int = Field(95, ge=1, le=100)
    """Of the JPEG, without chroma subsampling."""


def crop_shard(
    images: Path,
    faces: Path,
    config: CropConfig,
    labels: pa.StructType,
    shard: Shard,
) -> pa.Table:
    """The crop table of one shard: one row for every kept face."""
    pictures = {row["image_id"]: row for row in read_shard(images, shard.number).to_pylist()}
    kept: dict[str, list[dict[str, Any]]] = {}
    for face in read_shard(faces, shard.number).to_pylist():
        if face["kept"]:
            kept.setdefault(face["image_id"], []).append(face)
    rows = []
    for image_id, faces_of_image in kept.items():
        rows += _crop_picture(pictures[image_id], faces_of_image, config)
    return table_of(rows, crop_schema(labels))


def _crop_picture(
    picture: dict[str, Any], faces: list[dict[str, Any]], config: CropConfig
) -> list[dict[str, Any]]:
    rows = [_labels(picture, face, config) for face in faces]
    try:
        image = read_picture(picture["path"], picture["sha256"])
    except PictureError as error:
        return [row | {"error": str(error)} for row in rows]
    pixels = np.asarray(image)
    for row in rows:
        with timed("crop"):
            cut = crop(pixels, row["affine"], config)
        row["dhash"], row["dhash_down"] = difference_hashes(cut)
        with timed("encode"):
            row["jpeg"] = encode(cut, config.quality)
    return rows


def _labels(picture: dict[str, Any], face: dict[str, Any], config: CropConfig) -> dict[str, Any]:
    """A crop-table row without its picture: the detection and the annotation, in crop pixels."""
    affine = crop_affine(np.array(face["box"], np.float32), config)
    truth = picture["annotations"][face["annotation"]] if face["annotation"] >= 0 else {}
    moved = {
        name: move(affine, value) if name in PIXEL_POINTS and value is not None else value
        for name, value in truth.items()
        if name != "identity"
    }
    return {
        "face_id": f"{face['image_id']}#{face['face']}",
        "image_id": face["image_id"],
        "identity": truth.get("identity", -1),
        "box": move(affine, face["box"]),
        "score": face["score"],
        "landmarks5": move(affine, face["landmarks5"]),
        "face_size": face["face_size"],
        "affine": affine,
        "picture_sha256": picture["sha256"],
        "error": "",
    } | {label_column(name): value for name, value in moved.items()}


def crop_affine(box: NDArray[np.float32], config: CropConfig) -> NDArray[np.float32]:
    """(4,) box in picture px -> (6,) rows of the 2x3 matrix from picture to crop px."""
    scale = config.face_size / mean_side(box)
    x, y = (box[:2] + box[2:]) / 2
    middle = config.image_size / 2
    return np.array([scale, 0, middle - scale * x, 0, scale, middle - scale * y], np.float32)


def move(affine: NDArray[np.float32], points: list[float] | NDArray[np.float32]) -> NDArray[np.float32]:
    """x0, y0, x1, y1, ... in picture px -> the same in crop px, (2n,) float32."""
    matrix = affine.reshape(2, 3)
    return (np.asarray(points, np.float32).reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]).reshape(-1)


def crop(pixels: NDArray[np.uint8], affine: NDArray[np.float32], config: CropConfig) -> Image.Image:
    """Cut (H, W, 3) ``pixels`` along an affine of :func:`crop_affine`; bicubic, antialiased when shrinking."""
    scale = float(affine[0])
    sides = config.image_size / scale
    window = [(-affine[2] / scale, pixels.shape[1]), (-affine[5] / scale, pixels.shape[0])]
    # The filter looks this far beyond the window: without those pixels the crop's rim would be wrong.
    reach = math.ceil(2 * max(1.0, 1 / scale))
    (columns, left), (rows, top) = (_indices(start, sides, n, reach, config.border) for start, n in window)
    patch = Image.fromarray(pixels[rows[:, None], columns])
    size = (config.image_size, config.image_size)
    return patch.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + sides, top + sides))


def _indices(
    start: float, length: float, limit: int, reach: int, border: Literal["edge", "reflect"]
) -> tuple[NDArray[np.intp], float]:
    """Pixel indices along one axis that cover [start - reach, start + length + reach], each in the picture,
    and where the window starts among them.
    """
    first = math.floor(start) - reach
    wanted = np.arange(first, math.ceil(start + length) + reach)
    if border == "edge":
        return wanted.clip(0, limit - 1), start - first
    # Mirrored about the outer pixels' edges, again and again: 2 1 0 | 0 1 2 | 2 1 0.
    folded = wanted % (2 * limit)
    return np.minimum(folded, 2 * limit - 1 - folded), start - first


def encode(image: Image.Image, quality: int) -> bytes:
    """A baseline JPEG with 4:4:4 chroma that was decoded again and found whole."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    data = buffer.getvalue()
    with Image.open(io.BytesIO(data)) as again:
        again.load()
        if again.size != image.size or again.mode != "RGB":
            raise OSError(
                f"a crop of {image.size} decodes as {again.mode} {again.size}; check Pillow's JPEG codec"
            )
    return data
