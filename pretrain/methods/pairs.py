"""What the methods that compare two views of a picture have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.resnet import ResNet

from pretrain.methods.method import Method, Moment, spread


class Pairs(Method):
    """A method over two views. Its first two crops are of one size; it does not look at others."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, views: list[Tensor], moment: Moment) -> Tensor:
        """The () loss of the (2 * B, 3, s, s) views."""
        features = self.backbone(views[0])
        self._last = features.detach()[: len(views[0]) // 2]
        return self.loss(features, views[0], moment)

    @abstractmethod
    def loss(self, features: Tensor, views: Tensor, moment: Moment) -> Tensor:
        """The () loss, in at least 32 bits.

        Args:
            features: (2 * B, D) of the backbone for ``views``, with their gradient.
            views: (2 * B, 3, s, s), view-major.
            moment: Of this step.
        """

    def indicators(self) -> dict[str, Tensor]:
        """Of the first view's features."""
        return spread(self._last)


def precise(x: Tensor) -> Tensor:
    """``x``, in at least 32 bits: losses are computed outside autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """(N,) cosines of the rows of two (N, D), in at least 32 bits."""
    return F.cosine_similarity(precise(x), precise(y), dim=1)


def swapped(x: Tensor) -> Tensor:
    """(2 * B, D) view-major, with the two views exchanged."""
    return x.roll(len(x) // 2, 0)
