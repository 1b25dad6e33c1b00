"""Face detectors: batches of pictures of one size -> boxes, scores and five landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import batched_nms

from data_prep.anchors import Anchors
from data_prep.retinaface_mobilenet import MobileNetRetinaFace
from data_prep.weights import mobilenet_weights, resnet50_weights

NMS_IOU = 0.4


@dataclass(frozen=True)
class Detections:
    """The faces of one picture, best score first, in picture pixels."""

    boxes: NDArray[np.float32]
    """(M, 4): x0, y0, x1, y1."""
    scores: NDArray[np.float32]
    """(M,) in [0, 1]."""
    landmarks5: NDArray[np.float32]
    """(M, 5, 2): the eye on the picture's left, the other eye, nose, left and right corner of the mouth."""


class Detector(Protocol):
    """Anything that finds faces in a batch of pictures of one size."""

    def __call__(self, images: NDArray[np.uint8], scales: Sequence[float] | None = None) -> list[Detections]:
        """Find them.

        Args:
            images: (N, H, W, 3) uint8 RGB.
            scales: (N,) by how much each picture was enlarged (or, below 1, shrunk); 1 unless given.
        """


def build(
    network: Literal["mobilenet0.25", "resnet50"],
    device: str,
    threshold: float,
    *,
    weights: Path | None = None,
    like_package: bool = False,
) -> RetinaFace:
    """The detector with that ``network``; the rest goes to :class:`RetinaFace`.

    ``weights`` are those of resnet50, see :func:`data_prep.weights.resnet50_weights`.
    """
    if network == "mobilenet0.25":
        return RetinaFace(MobileNetRetinaFace.from_onnx(mobilenet_weights()), device, threshold, like_package)
    from data_prep.retinaface_resnet50 import ResNet50RetinaFace  # here: a second of imports

    return RetinaFace(
        ResNet50RetinaFace.from_file(resnet50_weights(weights)), device, threshold, like_package
    )


class RetinaFace:
    """A network that gives (offsets, scores, points) for each of its ``anchors``, as a :class:`Detector`.

    Args:
        network: A module with an attribute ``anchors``, see :class:`data_prep.anchors.Anchors`.
        device: Where it runs.
        threshold: Faces that score less are not reported.
        like_package: Follow retina-face's ``detect_faces`` in what comes after the network: boxes are cut off at
            the picture's border, and for suppression a box includes the pixels that it ends at. On a GPU
            convolutions are then fp32 throughout; without it torch's default holds, which is TF32.
    """

    def __init__(self, network: nn.Module, device: str, threshold: float, like_package: bool = False) -> None:
        assert isinstance(network.anchors, Anchors)
        self.anchors = network.anchors
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.device = torch.device(device)
        self.threshold = threshold
        self.like_package = like_package

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8], scales: Sequence[float] | None = None) -> list[Detections]:
        """See :class:`Detector`."""
        height, width = images.shape[1:3]
        batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        with self._convolutions():
            offsets, scores, points = self.network(batch)
        # Only what passes is decoded; one non-maximum suppression and one copy back serve the whole batch.
        picture, anchor = torch.nonzero(scores >= self.threshold, as_tuple=True)
        passed = scores[picture, anchor]
        anchors = self.anchors.at(height, width, self.device)[anchor]
        boxes = self.anchors.boxes(offsets[picture, anchor], anchors).reshape(-1, 2, 2)
        landmarks = self.anchors.points(points[picture, anchor], anchors)
        if self.like_package:
            boxes = boxes.clamp(min=boxes.new_zeros(2), max=boxes.new_tensor([width - 1, height - 1]))
        by = torch.tensor(scales or [1.0] * len(images), dtype=torch.float64, device=self.device)[picture]
        boxes = (boxes / by[:, None, None]).flatten(1)
        landmarks = (landmarks / by[:, None, None]).flatten(1)
        kept = self._suppress(boxes, passed, picture)
        found = torch.cat([picture[:, None], passed[:, None], boxes, landmarks], dim=1)[kept].float()
        return _split(found.cpu().numpy(), len(images))

    def _suppress(self, boxes: Tensor, scores: Tensor, picture: Tensor) -> Tensor:
        """Which of (M, 4) float64 boxes remain, best score first.

        In float64, or the distance that batched_nms puts between pictures would cost it the last bits.
        """
        if not self.like_package:
            kept: Tensor = batched_nms(boxes, scores.double(), picture, NMS_IOU)
            return kept
        # The package suppresses from NMS_IOU on, torchvision above it; the package's numbers are float32.
        ends = boxes.float().double() + boxes.new_tensor([0, 0, 1, 1])
        kept = batched_nms(ends, scores.double(), picture, float(np.nextafter(np.float32(NMS_IOU), 0)))
        return kept

    def _convolutions(self) -> AbstractContextManager[None]:
        if self.like_package and self.device.type == "cuda":
            exact: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
            return exact
        return nullcontext()


def _split(found: NDArray[np.float32], count: int) -> list[Detections]:
    """Rows (picture, score, 4 box, 10 landmarks), best first -> one Detections a picture."""
    rows = [found[found[:, 0] == picture] for picture in range(count)]
    return [Detections(row[:, 2:6], row[:, 1], row[:, 6:].reshape(-1, 5, 2)) for row in rows]
