"""The stage ``crop``: every kept face as a JPEG of fixed size, its labels moved along.

``box``. The authors write that "the face will take approx. 190px on a 256x256 px image" (Bulat et al., 2022).
A face's size is the mean of its box's sides, (w + h) / 2: the measure of the same authors' landmark code, and
one that a turned head changes less than the width, and a raised chin less than the height. So

    scale = 190 / ((w + h) / 2),   crop = scale * (picture - centre of the box) + 128

in continuous coordinates: x to the right, y down, the middle of the first pixel at (0.5, 0.5).

``align5``. What face recognition is trained and compared on: the rotation, scale and shift that bring the five
detected landmarks closest to :data:`TEMPLATE`, by least squares (Umeyama, 1991, without reflection).
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
from pydantic import Field, model_validator

from configs import Config, ConfigError
from data_prep.detect import mean_side
from data_prep.images import PictureError, difference_hashes, read_picture
from data_prep.stage import Shard, timed
from data_prep.tables import PIXEL_BOXES, PIXEL_POINTS, crop_schema, label_column, read_shard, table_of

VERSION = 3
TEMPLATE_SIDE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""(5, 2) where insightface puts eyes, nose and mouth corners in a crop of 112 x 112 px, in its coordinates: the
middle of the first pixel at 0."""
Border = Literal["edge", "reflect", "black"]


class CropConfig(Config):
    """Geometry and encoding of the crops."""

    mode: Literal["box", "align5"] = "box"
    """By the detected box, upright as it is; or turned and scaled so that the five detected landmarks lie where face
    recognition expects them."""
    image_size: int = Field(256, ge=16)
    """Side of the crop, px. In mode align5 it is 112 unless given; 224 is the other usual one."""
    face_size: float = Field(190, gt=0)
    """Mode box: mean side that the detected box has in the crop, px."""
    border: Border = "edge"
    """Outside of the picture: its last pixels repeated, the picture mirrored, or black."""
    quality: int = Field(95, ge=1, le=100)
    """Of the JPEG, without chroma subsampling."""

    @model_validator(mode="before")
    @classmethod
    def _size_of_the_template(cls, given: Any) -> Any:
        aligned = isinstance(given, dict) and given.get("mode") == "align5"
        return {"image_size": TEMPLATE_SIDE} | given if aligned else given


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
        try:
            with timed("crop"):
                cut = crop(pixels, row["affine"], config)
        except PictureError as error:
            row["error"] = str(error)
            continue
        row["dhash"], row["dhash_down"] = difference_hashes(cut)
        with timed("encode"):
            row["jpeg"] = encode(cut, config.quality)
    return rows


def _labels(picture: dict[str, Any], face: dict[str, Any], config: CropConfig) -> dict[str, Any]:
    """A crop-table row without its picture: the detection and the annotation, in crop pixels."""
    affine = crop_affine(face, config)
    truth = picture["annotations"][face["annotation"]] if face["annotation"] >= 0 else {}
    moved = {
        name: move_label(affine, name, value) if name in PIXEL_POINTS and value is not None else value
        for name, value in truth.items()
        if name != "identity"
    }
    return {
        "face_id": f"{face['image_id']}#{face['face']}",
        "image_id": face["image_id"],
        "identity": truth.get("identity", -1),
        "box": move_label(affine, "box", face["box"]),
        "score": face["score"],
        "landmarks5": None if face["landmarks5"] is None else move(affine, face["landmarks5"]),
        "face_size": face["face_size"],
        "affine": affine,
        "picture_sha256": picture["sha256"],
        "error": "",
    } | {label_column(name): value for name, value in moved.items()}


# --- geometry ------------------------------------------------------------------------------------------------


def crop_affine(face: dict[str, Any], config: CropConfig) -> NDArray[np.float32]:
    """A row of the face table -> (6,) rows of the 2x3 matrix from picture to crop px."""
    if config.mode == "align5":
        if face["landmarks5"] is None:
            raise ConfigError(
                f"crop.mode=align5: face {face['image_id']}#{face['face']} has no five landmarks; with "
                "detect.network=annotated only the source could give them"
            )
        return align_affine(np.array(face["landmarks5"]), config.image_size)
    return box_affine(np.array(face["box"], np.float32), config)


def box_affine(box: NDArray[np.float32], config: CropConfig) -> NDArray[np.float32]:
    """(4,) box in picture px -> the (6,) matrix that centres it and makes its mean side ``face_size``."""
    scale = config.face_size / mean_side(box)
    x, y = (box[:2] + box[2:]) / 2
    middle = config.image_size / 2
    return np.array([scale, 0, middle - scale * x, 0, scale, middle - scale * y], np.float32)


def align_affine(landmarks5: NDArray[np.float64], image_size: int) -> NDArray[np.float32]:
    """(10,) landmarks in picture px -> the (6,) similarity that brings them closest to the template.

    As complex numbers a similarity without reflection is z -> a z + b, so that least squares has a closed form.
    Of the same points of a photograph insightface's ``norm_crop`` makes the same crop; its own coordinates are
    less by 0.5.
    """
    template = TEMPLATE * (image_size / TEMPLATE_SIDE) + 0.5
    source, target = (points @ np.array([1, 1j]) for points in (landmarks5.reshape(5, 2), template))
    spread = source - source.mean()
    a = np.vdot(spread, target - target.mean()) / max(np.vdot(spread, spread).real, 1e-12)
    b = target.mean() - a * source.mean()
    return np.array([a.real, -a.imag, b.real, a.imag, a.real, b.imag], np.float32)


def move(affine: NDArray[np.float32], points: list[float] | NDArray[np.float32]) -> NDArray[np.float32]:
    """x0, y0, x1, y1, ... in picture px -> the same in crop px, (2n,) float32."""
    matrix = affine.reshape(2, 3)
    return (np.asarray(points, np.float32).reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]).reshape(-1)


def move_label(affine: NDArray[np.float32], name: str, value: list[float | None]) -> list[float | None]:
    """A label of ``PIXEL_POINTS`` in crop px. Of a box that is turned: the upright box around its corners.

    A point of which a number is unknown is unknown in the crop.
    """
    numbers = np.array(value, np.float32)  # None becomes NaN
    if name in PIXEL_BOXES:
        x0, y0, x1, y1 = numbers
        corners = move(affine, np.array([x0, y0, x1, y0, x1, y1, x0, y1])).reshape(4, 2)
        numbers = np.concatenate([corners.min(0), corners.max(0)])
    else:
        numbers = move(affine, numbers)
    return [None if math.isnan(number) else number for number in numbers.tolist()]


# --- pixels --------------------------------------------------------------------------------------------------


def crop(pixels: NDArray[np.uint8], affine: NDArray[np.float32], config: CropConfig) -> Image.Image:
    """Cut (H, W, 3) ``pixels`` along an affine of :func:`crop_affine`; bicubic, antialiased when shrinking.

    Raises:
        PictureError: there is no such crop, for all five landmarks lie in one point.
    """
    cut = _turned if config.mode == "align5" else _upright
    return cut(pixels, affine.reshape(2, 3), config.image_size, config.border)


def _upright(
    pixels: NDArray[np.uint8], matrix: NDArray[np.float32], size: int, border: Border
) -> Image.Image:
    scale = float(matrix[0, 0])
    side = size / scale
    left, top = -matrix[:, 2] / scale
    # The filter looks this far beyond the window: without those pixels the crop's rim would be wrong.
    reach = math.ceil(2 * max(1.0, 1 / scale))
    patch, x, y = _patch(pixels, (left, top, left + side, top + side), reach, border)
    window = (left - x, top - y, left - x + side, top - y + side)
    return patch.resize((size, size), Image.Resampling.BICUBIC, box=window)


def _turned(pixels: NDArray[np.uint8], matrix: NDArray[np.float32], size: int, border: Border) -> Image.Image:
    """Pillow's transform takes single pixels, however far apart. So the picture is first shrunk, antialiased, to
    twice the resolution of the crop where it has more, turned at that resolution, and then halved.
    """
    height, width = pixels.shape[:2]
    fine = 2 * math.hypot(matrix[0, 0], matrix[1, 0])
    if not fine:
        raise PictureError("its five landmarks lie in one point")
    if fine < 1:
        shrunk = max(1, round(width * fine)), max(1, round(height * fine))
        pixels = np.asarray(Image.fromarray(pixels).resize(shrunk, Image.Resampling.BICUBIC))
    back = np.linalg.inv(np.vstack([matrix.astype(np.float64), [0, 0, 1]]))[:2]  # from crop to picture px
    back *= np.array([[pixels.shape[1] / width], [pixels.shape[0] / height]])
    corners = back @ np.array([[0, size, size, 0], [0, 0, size, size], [1, 1, 1, 1]])
    patch, x, y = _patch(pixels, (*corners.min(1), *corners.max(1)), 3, border)
    back[:, :2] /= 2
    back[:, 2] -= x, y
    turn = back.reshape(-1).tolist()
    # Band by band in floating point: of whole numbers Pillow's transform cuts off the fractions.
    bands = [band.convert("F") for band in patch.split()]
    fine_size, filter_ = (2 * size, 2 * size), Image.Resampling.BICUBIC
    turned = [band.transform(fine_size, Image.Transform.AFFINE, turn, filter_) for band in bands]
    halved = np.stack([np.asarray(band.resize((size, size), filter_)) for band in turned], axis=2)
    return Image.fromarray(halved.round().clip(0, 255).astype(np.uint8))


def _patch(
    pixels: NDArray[np.uint8], window: tuple[float, float, float, float], reach: int, border: Border
) -> tuple[Image.Image, int, int]:
    """What covers ``window`` (x0, y0, x1, y1) and ``reach`` px around it, of a picture that goes on beyond its
    edges; and the picture's coordinates of the patch's corner.
    """
    x, y = (math.floor(start) - reach for start in window[:2])
    columns, rows = (
        np.arange(start, math.ceil(end) + reach) for start, end in zip((x, y), window[2:], strict=True)
    )
    height, width = pixels.shape[:2]
    patch = pixels[_inside(rows, height, border)[:, None], _inside(columns, width, border)]
    if border == "black":
        patch[(rows < 0) | (rows >= height)] = 0
        patch[:, (columns < 0) | (columns >= width)] = 0
    return Image.fromarray(patch), x, y


def _inside(wanted: NDArray[np.intp], limit: int, border: Border) -> NDArray[np.intp]:
    """The pixels along an axis of ``limit`` that stand for the ``wanted`` ones."""
    if border != "reflect":
        return wanted.clip(0, limit - 1)
    # Mirrored about the outer pixels' edges, again and again: 2 1 0 | 0 1 2 | 2 1 0.
    folded = wanted % (2 * limit)
    return np.minimum(folded, 2 * limit - 1 - folded)


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
