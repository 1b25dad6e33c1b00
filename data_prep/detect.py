"""The stage ``detect``: finds the faces in every picture of a shard and decides which are kept."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from configs import Config, ConfigError
from data_prep.files import sha256_file
from data_prep.images import read_picture
from data_prep.prepare import Batch, Prepared, Resize, ahead, batches, letterbox, prepare, resize_like_package
from data_prep.stage import Shard, timed
from data_prep.tables import FACES, read_shard, table_of
from data_prep.weights import ONNX_SHA256, resnet50_weights

if TYPE_CHECKING:
    from data_prep.detector import Detections, RetinaFace

VERSION = 2


class DetectConfig(Config):
    """The detector and how it is run."""

    network: Literal["mobilenet0.25", "resnet50", "annotated", "whole"] = "mobilenet0.25"
    """The RetinaFace backbone; resnet50 is the package retina-face's own network. annotated: nothing is detected, the
    source's own boxes are the faces, as test sets with boxes of their own are evaluated. whole: each picture is one
    face from edge to edge, as corpora of aligned faces come."""
    weights: Path | None = None
    """The state dict for resnet50; unless given, the file that the package itself keeps or downloads."""
    resize: Literal["letterbox", "retinaface"] = "letterbox"
    """letterbox: into a square of detect.size; retinaface: as the package retina-face does, one size a picture."""
    size: int = Field(640, ge=64, multiple_of=32)
    """Side of the letterbox, px: larger pictures are shrunk to it, smaller ones are never enlarged."""
    allow_upscaling: bool = True
    """In resize=retinaface: are small pictures enlarged until their short side is 1024 px?"""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Detections that score less are not even recorded."""
    batch: int | None = Field(None, ge=1)
    """Pictures a forward pass; unless given, 16, but 1 for resnet50 on the CPU, which slows down on larger ones."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto takes the GPU where there is one; or cpu, cuda, cuda:1."""
    decode_threads: int | None = Field(None, ge=0)
    """Threads a process that decode ahead of the network; unless given, none on the CPU, which the processes fill,
    and one a core for a GPU, which one process feeds."""

    @model_validator(mode="after")
    def _weights_have_their_network(self) -> DetectConfig:
        if self.weights is not None and self.network != "resnet50":
            raise ValueError(
                f"detect.weights: not for detect.network={self.network}; add detect.network=resnet50"
            )
        return self


class KeepConfig(Config):
    """Which faces are kept."""

    rule: Literal["all", "best_iou", "largest_central"] = "all"
    """all faces that pass; the best detection of each annotated face; or one face a picture, the largest near
    the middle."""
    min_score: float = Field(0.9, ge=0, le=1)
    """A face that scores less is not kept."""
    min_size: float = Field(30, ge=0)
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
    listed = [row for row in read_shard(images, shard.number).to_pylist() if not row["error"]]
    if undetected := _UNDETECTED.get(detect.network):
        return _without_network(listed, undetected, keep)
    detector = _detector(detect.network, detect.weights, detect.resize, detect.device, detect.threshold)
    rows = detect_pictures(
        listed, lambda row: read_picture(row["path"], row["sha256"]), detector, detect, keep
    )
    return table_of(rows, FACES)


def _without_network(
    listed: list[dict[str, Any]], faces_of: Callable[[dict[str, Any]], Detections], keep: KeepConfig
) -> pa.Table:
    return table_of(
        [face for row in listed for face in _rows(Prepared(row, None), faces_of(row), keep)], FACES
    )


def whole_picture(row: dict[str, Any]) -> Detections:
    """The picture of a row of the image table as if all of it were one detected face, with score 1."""
    from data_prep.detector import Detections

    box = np.array([[0, 0, row["width"], row["height"]]], np.float32)
    return Detections(box, np.ones(1, np.float32), np.full((1, 5, 2), np.nan, np.float32))


def annotated_faces(row: dict[str, Any]) -> Detections:
    """The annotated faces of a row of the image table as if they had been detected, with score 1.

    Those without a box are left out; landmarks that are not annotated are NaN.
    """
    from data_prep.detector import Detections

    known = [face for face in row.get("annotations") or () if face.get("box")]
    unknown = [np.nan] * 10
    return Detections(
        np.array([face["box"] for face in known], np.float32).reshape(-1, 4),
        np.ones(len(known), np.float32),
        np.array([face.get("landmarks5") or unknown for face in known], np.float32).reshape(-1, 5, 2),
    )


_UNDETECTED: dict[str, Callable[[dict[str, Any]], Detections]] = {
    "annotated": annotated_faces,
    "whole": whole_picture,
}
"""What stands for a network where nothing is detected."""


def detect_pictures(
    listed: list[dict[str, Any]],
    read: Callable[[dict[str, Any]], Image.Image],
    detector: RetinaFace,
    detect: DetectConfig,
    keep: KeepConfig,
) -> list[dict[str, Any]]:
    """Rows of the image table -> rows of the face table, in the same order, whatever the order of the work.

    Args:
        listed: Rows of pictures that are fine.
        read: Gives the picture of a row, or raises PictureError.
        detector: Made for ``detect``.
        detect: How the pictures are resized, batched and decoded.
        keep: Which faces are kept.
    """
    # A letterbox is of one size for all.
    size: Callable[[dict[str, Any]], Any] = _size_of if detect.resize == "retinaface" else lambda _: 0
    prepared = functools.partial(prepare, read=read, resize=_resize(listed, detect))
    most = batch_of(detect, detector.device.type)
    rows: dict[str, list[dict[str, Any]]] = {}
    with _one_thread(), _threads(detect.decode_threads, detector.device.type) as (decoders, feeder):
        pictures = ahead(prepared, sorted(listed, key=size), decoders, 2 * most)
        found = ahead(functools.partial(_found, detector), batches(pictures, size, most), feeder, most=2)
        for batch in found:
            for picture, faces in batch:
                rows[picture.row["image_id"]] = list(_rows(picture, faces, keep))
    return [face for row in listed for face in rows[row["image_id"]]]


def batch_of(detect: DetectConfig, device: str) -> int:
    """Pictures a forward pass on a device of that type."""
    return detect.batch or (1 if detect.network == "resnet50" and device == "cpu" else 16)


def _found(detector: RetinaFace, batch: Batch) -> list[tuple[Prepared, Detections | None]]:
    """Each picture with its faces; None where it cannot be read."""
    with timed("network"):
        found = iter(detector(batch.pixels, batch.scales) if batch.pixels is not None else ())
    return [(picture, next(found) if not picture.error else None) for picture in batch.pictures]


def _resize(listed: list[dict[str, Any]], detect: DetectConfig) -> Resize:
    if detect.resize == "retinaface":
        return functools.partial(resize_like_package, allow_upscaling=detect.allow_upscaling)
    # Small pictures need no large letterbox: the longest side, up to a multiple of 32.
    longest = max((max(_size_of(row)) for row in listed), default=32)
    return functools.partial(letterbox, size=min(detect.size, -(-longest // 32) * 32))


def _size_of(row: dict[str, Any]) -> tuple[int, int]:
    return row["width"], row["height"]


@contextmanager
def _threads(decoding: int | None, device: str) -> Iterator[tuple[Executor | None, Executor | None]]:
    """Threads that decode, and one that feeds the network while this one looks through what was found."""
    if decoding is None:
        decoding = len(os.sched_getaffinity(0)) if device == "cuda" else 0
    if not decoding:
        yield None, None
        return
    with ThreadPoolExecutor(decoding) as decoders, ThreadPoolExecutor(1) as feeder:
        try:
            yield decoders, feeder
        except BaseException:
            for pool in (decoders, feeder):
                pool.shutdown(wait=False, cancel_futures=True)
            raise


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
def _detector(
    network: Literal["mobilenet0.25", "resnet50"],
    weights: Path | None,
    resize: str,
    device: str,
    threshold: float,
) -> RetinaFace:
    # Here, not above: a run that finds every shard done must not wait for torch to load.
    from data_prep.detector import build

    like_package = resize == "retinaface"
    return build(network, _device(device), threshold, weights=weights, like_package=like_package)


def _device(wanted: str) -> str:
    """``wanted``, where auto is what this machine has."""
    import torch

    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"detect.device={wanted}: there is no GPU here; use detect.device=auto")
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def processes(detect: DetectConfig, workers: int) -> int:
    """How many processes detect: ``workers`` on the CPU, one for a GPU, which more would only share."""
    if detect.network in _UNDETECTED or detect.device == "cpu":
        return workers
    return workers if _device(detect.device) == "cpu" else 1


def weights_sha256(detect: DetectConfig) -> str:
    """The hash of the weights' file, if there is one: other weights, other faces."""
    if detect.network in _UNDETECTED:
        return ""
    return ONNX_SHA256 if detect.network == "mobilenet0.25" else sha256_file(resnet50_weights(detect.weights))


def _rows(picture: Prepared, found: Detections | None, keep: KeepConfig) -> Iterator[dict[str, Any]]:
    """The face-table rows of one picture."""
    row = picture.row
    if found is None:
        # It was fine when it was listed. Face -1 says so, for nothing may vanish from the tables.
        yield {"image_id": row["image_id"], "face": -1, "kept": False, "why": "", "error": picture.error}
        return
    boxes = found.boxes
    annotations = row.get("annotations") or ()
    annotated = np.array([a.get("box") or _NO_BOX for a in annotations], np.float32).reshape(-1, 4)
    choice = choose(boxes, found.scores, annotated, (row["width"], row["height"]), keep)
    for face, box in enumerate(boxes):
        yield {
            "image_id": row["image_id"],
            "face": face,
            "box": box,
            "score": found.scores[face],
            "landmarks5": None
            if np.isnan(found.landmarks5[face]).any()
            else found.landmarks5[face].reshape(10),
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
