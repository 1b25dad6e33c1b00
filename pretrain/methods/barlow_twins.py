"""Barlow Twins: the components of two views' embeddings agree with themselves and with no other (Zbontar et al.,
ICML 2021, arXiv 2103.03230).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torchvision.models.resnet import ResNet

from pretrain.backbones import feature_dim
from pretrain.distributed import sum_with_gradient, world_size
from pretrain.methods.layers import mlp
from pretrain.methods.method import MethodConfig, Moment, Setting
from pretrain.methods.pairs import Pairs, precise


class BarlowTwinsConfig(MethodConfig):
    """Defaults are those of the paper (section 2.2)."""

    name: Literal["barlow_twins"] = "barlow_twins"
    projection_dim: int = Field(8192, ge=2, description="width of the projector, hidden layers and output")
    redundancy: float = Field(5e-3, ge=0, description="lambda, the weight of the off-diagonal terms")

    def build(self, setting: Setting) -> BarlowTwins:
        """Barlow Twins around ``setting.backbone``."""
        setting.require_two_views("Barlow Twins")
        return BarlowTwins(setting.backbone, self)


class BarlowTwins(Pairs):
    """A projector of three layers."""

    def __init__(self, backbone: ResNet, config: BarlowTwinsConfig) -> None:
        super().__init__(backbone)
        self.config = config
        width = config.projection_dim
        self.projector = mlp(feature_dim(backbone), width, width, width)

    def loss(self, features: Tensor, views: Tensor, moment: Moment) -> Tensor:
        """Equation 1, of the batch of all ranks and the same on each of them."""
        projected = self.projector(features)
        self.note(features.chunk(2)[0], projected.chunk(2)[0])
        with torch.autocast(projected.device.type, enabled=False):
            one, two = precise(projected).chunk(2)
            correlation = cross_correlation(one, two)
            diagonal = correlation.diagonal()
            redundant = correlation.square().sum() - diagonal.square().sum()
            return (1 - diagonal).square().sum() + self.config.redundancy * redundant


def cross_correlation(one: Tensor, two: Tensor) -> Tensor:
    """(D, D) correlation of the components of two (B, D), over the batch of all ranks: equation 2.

    As in the released code, which standardises by a batch norm: 1e-5 is added to the variances.
    """
    samples = len(one) * world_size()
    standard = []
    for x in (one, two):
        centred = x - sum_with_gradient(x.sum(0)) / samples
        variance = sum_with_gradient(centred.square().sum(0)) / samples
        standard.append(centred * torch.rsqrt(variance + 1e-5))
    return sum_with_gradient(standard[0].T @ standard[1]) / samples
