"""The stage ``detect``: finds the faces in every picture of a shard and decides which are kept."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from configs import Config, ConfigError
from data_prep.images import PictureError, read_picture
from data_prep.stage import Shard, timed
from data_prep.tables import FACES, read_shard, table_of

if TYPE_CHECKING:
    from data_prep.detector import Detections, Detector

VERSION = 1


class DetectConfig(Config):
    """The detector and how it is run."""

    network: Literal["mobilenet0.25"] = "mobilenet0.25"
    """The RetinaFace backbone."""
    size: int = Field(640, ge=64, multiple_of=32)
    """Side of the letterbox, px: larger pictures are shrunk to it, smaller ones are never enlarged."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Detections that score less are not even recorded."""
    batch: int = Field(16, ge=1)
    """Pictures a forward pass."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto takes the GPU where there is one; or cpu, cuda, cuda:1."""


class KeepConfig(Config):
    """Which faces are kept."""

    rule: Literal["all", "best_iou", "largest_central"] = "all"
    """all faces that pass; the best detection of each annotated face; or one face a picture, the largest near
    the middle."""
    min_score: float = Field(0.9, ge=0, le=1)
    """A face that scores less is not kept."""
    min_size: float = Field(32, ge=0)
    """A face whose mean side is smaller, in picture px, is not kept."""
    min_iou: float = Field(0.4, ge=0, le=1)
    """The least overlap of a detection with the annotated face that it stands for."""


@dataclass(frozen=True)
class Choice:
    """What became of each of M detections."""

    annotation: NDArray[np.int32]
    """(M,) index of the annotated face that it stands for, or -1."""
    iou: NDArray[np.float32]
    """(M,) overlap with that face, 0 without one."""
    why: list[str]
    """(M,) why it is not kept; empty: it is."""


def detect_shard(images: Path, detect: DetectConfig, keep: KeepConfig, shard: Shard) -> pa.Table:
    """The face table of one shard of the image table in folder ``images``."""
    table = read_shard(images, shard.number).to_pylist()
    listed = [row for row in table if not row["error"]]
    detector = _detector(detect.network, detect.device, detect.threshold)
    size = _letterbox_side(listed, detect.size)
    rows: list[dict[str, Any]] = []
    with _one_thread():
        for start in range(0, len(listed), detect.batch):
            rows += _detect_batch(listed[start : start + detect.batch], size, detector, keep)
    return table_of(rows, FACES)


@contextmanager
def _one_thread() -> Iterator[None]:
    """On one thread a sum is always added up in the same order: any number of workers gives the same bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.lru_cache(maxsize=1)
def _detector(network: str, device: str, threshold: float) -> Detector:
    # Here, not above: a run that finds every shard done must not wait for torch to load.
    import torch

    from data_prep.detector import build

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"detect.device={device}: there is no GPU here; use detect.device=auto")
    return build(network, device, threshold)


def _letterbox_side(listed: list[dict[str, Any]], limit: int) -> int:
    """A shard of small pictures needs no large letterbox: the longest side, up to a multiple of 32."""
    longest = max((max(row["width"], row["height"]) for row in listed), default=32)
    return min(limit, -(-longest // 32) * 32)


def _detect_batch(
    batch: list[dict[str, Any]], size: int, detector: Detector, keep: KeepConfig
) -> Iterator[dict[str, Any]]:
    readable, letters, scales = [], [], []
    for row in batch:
        try:
            image = read_picture(row["path"], row["sha256"])
        except PictureError as error:
            # It was fine when it was listed. Face -1 says so, for nothing may vanish from the tables.
            yield {"image_id": row["image_id"], "face": -1, "kept": False, "why": "", "error": str(error)}
            continue
        letter, scale = letterbox(image, size)
        readable.append(row)
        letters.append(letter)
        scales.append(scale)
    if readable:
        with timed("network"):
            detections = detector(np.stack(letters))
        for row, scale, found in zip(readable, scales, detections, strict=True):
            yield from _rows(row, scale, found, keep)


def letterbox(image: Image.Image, size: int) -> tuple[NDArray[np.uint8], float]:
    """The picture in the top left of (size, size, 3), shrunk if it must be, and the factor of the shrinking."""
    scale = min(1.0, size / max(image.size))
    if scale < 1:
        sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(sides, Image.Resampling.BILINEAR, reducing_gap=3.0)
    canvas = np.full((size, size, 3), (123, 117, 104), np.uint8)  # the network's mean: zero to it
    canvas[: image.height, : image.width] = np.asarray(image)
    return canvas, scale


def _rows(row: dict[str, Any], scale: float, found: Detections, keep: KeepConfig) -> Iterator[dict[str, Any]]:
    """The face-table rows of one picture."""
    boxes = found.boxes / np.float32(scale)
    annotations = row.get("annotations") or ()
    annotated = np.array([a.get("box") or _NO_BOX for a in annotations], np.float32).reshape(-1, 4)
    choice = choose(boxes, found.scores, annotated, (row["width"], row["height"]), keep)
    for face, box in enumerate(boxes):
        yield {
            "image_id": row["image_id"],
            "face": face,
            "box": box,
            "score": found.scores[face],
            "landmarks5": found.landmarks5[face].reshape(10) / np.float32(scale),
            "face_size": mean_side(box),
            "annotation": choice.annotation[face],
            "iou": choice.iou[face],
            "kept": not choice.why[face],
            "why": choice.why[face],
            "error": "",
        }


# Of an annotation that says who or what is seen, but not where: it overlaps with nothing.
_NO_BOX = (0.0, 0.0, 0.0, 0.0)


def mean_side(box: NDArray[np.float32]) -> Any:
    """(..., 4) boxes -> (...) half of width plus height, px: the size of a face throughout the project."""
    return (box[..., 2] - box[..., 0] + box[..., 3] - box[..., 1]) / 2


def choose(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    annotated: NDArray[np.float32],
    picture: tuple[int, int],
    keep: KeepConfig,
) -> Choice:
    """Decide over the M detections of one picture.

    Args:
        boxes: (M, 4) px.
        scores: (M,).
        annotated: (K, 4) boxes of the annotated faces, px; K may be 0; zeros where only the label is known.
        picture: Width and height, px.
        keep: The rule.
    """
    why = ["" for _ in boxes]
    for i, (size, score) in enumerate(zip(mean_side(boxes), scores, strict=True)):
        if score < keep.min_score:
            why[i] = f"score below {keep.min_score:g}"
        elif size < keep.min_size:
            why[i] = f"smaller than {keep.min_size:g} px"
    passed = np.array([not reason for reason in why], bool)
    annotation, overlap = _match(boxes, annotated, passed, keep.min_iou)
    if keep.rule == "largest_central" and passed.any():
        best = int(np.argmax(np.where(passed, _prominence(boxes, picture), -np.inf)))
        for i in np.flatnonzero(passed).tolist():
            why[i] = "" if i == best else "another face is larger or more central"
        if len(annotated) == 1 and not annotated.any():
            annotation[best] = 0  # what is said of the picture is said of its subject
    elif keep.rule == "best_iou":
        for i in np.flatnonzero(passed & (annotation < 0)).tolist():
            why[i] = "matches no annotated face"
    return Choice(annotation, overlap, why)


def _match(
    boxes: NDArray[np.float32], annotated: NDArray[np.float32], passed: NDArray[np.bool_], least: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Pair detections that passed with annotated faces, one to one, the largest overlap first."""
    annotation = np.full(len(boxes), -1, np.int32)
    overlap = np.zeros(len(boxes), np.float32)
    iou = pairwise_iou(boxes, annotated) * passed[:, None]
    while iou.size and iou.max() >= max(least, 1e-6):
        face, truth = np.unravel_index(iou.argmax(), iou.shape)
        annotation[face], overlap[face] = truth, iou[face, truth]
        iou[face, :] = iou[:, truth] = 0
    return annotation, overlap


def pairwise_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """(M, 4) and (K, 4) boxes -> (M, K) intersection over union."""
    corners0 = np.maximum(a[:, None, :2], b[None, :, :2])
    corners1 = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(corners1 - corners0, 0, None).prod(-1)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).prod(-1) for box in (a, b))
    iou: NDArray[np.float32] = shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-12)
    return iou


def _prominence(boxes: NDArray[np.float32], picture: tuple[int, int]) -> NDArray[np.float32]:
    """Area less twice the squared distance from the picture's middle, as insightface picks its subject."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = ((centres - np.array(picture, np.float32) / 2) ** 2).sum(-1)
    prominence: NDArray[np.float32] = (boxes[:, 2:] - boxes[:, :2]).prod(-1) - 2 * distance
    return prominence
