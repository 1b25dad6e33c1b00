"""SimSiam: two views, one network, and a gradient that is stopped (Chen and He, CVPR 2021, arXiv 2011.10566)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from pretrain.backbones import feature_dim
from pretrain.methods.layers import mlp
from pretrain.methods.method import MethodConfig, Moment, Setting
from pretrain.methods.pairs import Pairs, cosines, swapped


class SimSiamConfig(MethodConfig):
    """Defaults are those of the paper (section 3)."""

    name: Literal["simsiam"] = "simsiam"
    projection_dim: int = Field(2048, ge=2, description="width of the projector, hidden layers and output")
    hidden_dim: int = Field(512, ge=2, description="width of the predictor's hidden layer, the bottleneck")
    constant_predictor_rate: bool = Field(
        True, description="the predictor's learning rate does not decay (table 1c; 'fix-pred-lr' of the code)"
    )

    def build(self, setting: Setting) -> SimSiam:
        """SimSiam around ``setting.backbone``."""
        setting.require_two_views("SimSiam")
        return SimSiam(setting.backbone, self)


class SimSiam(Pairs):
    """A projector of three layers and a predictor of two."""

    def __init__(self, backbone: ResNet, config: SimSiamConfig) -> None:
        super().__init__(backbone)
        self.config = config
        width = config.projection_dim
        self.projector = mlp(feature_dim(backbone), width, width, width, last=True)
        self.predictor = mlp(width, config.hidden_dim, width)

    def loss(self, features: Tensor, views: Tensor, moment: Moment) -> Tensor:
        """Equation 2: -1 .. 1, -1 where the predictions are right."""
        projected = self.projector(features)
        self.note(features.chunk(2)[0], projected.chunk(2)[0])
        return -cosines(self.predictor(projected), swapped(projected.detach())).mean()

    def unscheduled(self) -> list[nn.Parameter]:
        """The predictor's, if it is meant to stay plastic."""
        return list(self.predictor.parameters()) if self.config.constant_predictor_rate else []
