"""What stands on a backbone: from the maps of its four stages to the predictions of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.resnet import ResNet


def stage_maps(backbone: ResNet, images: Tensor) -> list[Tensor]:
    """(N, 3, s, s) -> the outputs of layer1 to layer4: (N, C_i, s / 4, ...), s / 8, s / 16, s / 32."""
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))
    maps = []
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        x = stage(x)
        maps.append(x)
    return maps


def stage_widths(backbone: ResNet) -> list[int]:
    """Channels of the four maps."""
    weights = backbone.state_dict()
    last = "bn3" if any(".bn3." in name for name in weights) else "bn2"
    return [
        len(weights[f"layer{i}.{len(getattr(backbone, f'layer{i}')) - 1}.{last}.weight"]) for i in range(1, 5)
    ]


class Head(nn.Module, ABC):
    """The part of a network that belongs to a task."""

    @abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of the four stages (see :func:`stage_maps`) -> outputs, (B, ...)."""

    @abstractmethod
    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """The () loss of outputs against (B, D) labels of the task, float32, NaN where unknown."""

    def predict(self, outputs: Tensor) -> Tensor:
        """Outputs -> (B, P) predictions, in the unit of the labels."""
        return outputs


class LinearHead(Head):
    """One linear layer on the pooled features of the last stage; mean squared error.

    A batch norm without parameters stands before it, so that no backbone suffers from the scale its features
    happen to have. It starts by predicting the mean label, whatever the features are; the error of each output is
    in units of the deviation of its labels.

    Args:
        width: Channels of the last stage.
        targets: (N, P) of the training pictures, NaN where unknown.
        low: Smallest prediction.
        high: Largest.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, width: int, targets: NDArray[np.float64], low: float = -np.inf, high: float = np.inf
    ) -> None:
        super().__init__()
        told = np.where(
            np.isnan(targets).all(axis=0), 0, targets
        )  # what no training picture knows starts at 0
        mean, scale = np.nanmean(told, axis=0), np.nanstd(told, axis=0)
        self.register_buffer("mean", torch.from_numpy(mean.astype(np.float32)))
        self.register_buffer("scale", torch.from_numpy(np.where(scale > 0, scale, 1).astype(np.float32)))
        self.norm: nn.Module = nn.BatchNorm1d(width, affine=False)
        self.linear = nn.Linear(width, targets.shape[1])
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.low, self.high = low, high

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, P) outputs in the unit of the labels."""
        outputs: Tensor = self.mean + self.scale * self.linear(self.norm(maps[-1].mean(dim=(2, 3))))
        return outputs

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Mean of the squared errors of what is known, each output in units of its deviation."""
        truth = truth[:, : outputs.shape[1]]  # behind the values that are predicted a label may hold more
        known = ~truth.isnan()
        error = torch.where(known, outputs - torch.where(known, truth, 0), 0) / self.scale
        return (error**2).sum() / known.sum().clamp(min=1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Clipped to the range of the labels."""
        return outputs.clamp(self.low, self.high)
