"""BYOL: predict what a slowly moving copy says of the other view (Grill et al., NeurIPS 2020, arXiv 2006.07733)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torchvision.models.resnet import ResNet

from pretrain.backbones import feature_dim
from pretrain.methods.layers import follow, follower, mlp
from pretrain.methods.method import MethodConfig, Moment, Setting
from pretrain.methods.pairs import Pairs, cosines


class BYOLConfig(MethodConfig):
    """Defaults are those of the paper (section 3.2, appendix J)."""

    name: Literal["byol"] = "byol"
    hidden_dim: int = Field(4096, ge=2, description="width of projector and predictor")
    projection_dim: int = Field(256, ge=2)
    momentum: float = Field(
        0.996, ge=0, le=1, description="tau: how much of itself the target keeps at a step"
    )
    momentum_schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="cosine: tau rises to 1 by the end"
    )

    def build(self, setting: Setting) -> BYOL:
        """BYOL around ``setting.backbone``."""
        setting.require_two_views("BYOL")
        return BYOL(setting.backbone, self)


class BYOL(Pairs):
    """An online network with a predictor, and a target that follows it."""

    def __init__(self, backbone: ResNet, config: BYOLConfig) -> None:
        super().__init__(backbone)
        self.config = config
        self.projector = mlp(feature_dim(backbone), config.hidden_dim, config.projection_dim)
        self.predictor = mlp(config.projection_dim, config.hidden_dim, config.projection_dim)
        self.target_backbone, self.target_projector = follower(backbone), follower(self.projector)

    def loss(self, features: Tensor, views: Tensor, moment: Moment) -> Tensor:
        """Equation 2, for both orders of the views, added: 0 .. 8.

        Features of further, smaller views may follow those of the two. They predict both targets, and the mean over
        all predictions keeps the scale; BYOL itself has none (as in SwAV's multi-crop).
        """
        batch = len(views) // 2
        projected = self.projector(features)
        self.note(features[:batch], projected[:batch])
        predicted = self.predictor(projected).unflatten(0, (-1, batch))
        with torch.no_grad():
            wanted = self.target_projector(self.target_backbone(views)).unflatten(0, (2, batch))
        pairs = [cosines(p, w) for i, p in enumerate(predicted) for j, w in enumerate(wanted) if i != j]
        return 2 * (2 - 2 * torch.stack(pairs)).mean()

    def after_step(self, moment: Moment) -> None:
        """Move the target (the paper's algorithm, last line)."""
        tau = self.momentum(moment)
        follow(self.target_backbone, self.backbone, tau)
        follow(self.target_projector, self.projector, tau)

    def momentum(self, moment: Moment) -> float:
        """Tau at a step: 1 - (1 - tau_0) (cos(pi k / K) + 1) / 2."""
        if self.config.momentum_schedule == "constant":
            return self.config.momentum
        return 1 - (1 - self.config.momentum) * (math.cos(math.pi * moment.step / moment.total) + 1) / 2
