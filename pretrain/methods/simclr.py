"""SimCLR: tell the other view of a picture from all other pictures (Chen et al., ICML 2020, arXiv 2002.05709)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torchvision.models.resnet import ResNet

from pretrain.backbones import feature_dim
from pretrain.distributed import Ranks, gather_with_gradient
from pretrain.methods.layers import mlp
from pretrain.methods.method import MethodConfig, Moment, Setting
from pretrain.methods.pairs import Pairs, precise


class SimCLRConfig(MethodConfig):
    """Defaults are those of the paper's ImageNet runs (section 2, appendix B.1)."""

    name: Literal["simclr"] = "simclr"
    hidden_dim: int = Field(2048, ge=2, description="width of the projector's hidden layer")
    projection_dim: int = Field(128, ge=2)
    temperature: float = Field(0.1, gt=0)

    def build(self, setting: Setting) -> SimCLR:
        """SimCLR around ``setting.backbone``."""
        setting.require_two_views("SimCLR")
        return SimCLR(setting.backbone, self, setting.place)


class SimCLR(Pairs):
    """A projector, and the views of all ranks as negatives."""

    def __init__(self, backbone: ResNet, config: SimCLRConfig, place: Ranks) -> None:
        super().__init__(backbone)
        self.config, self._place = config, place
        self.projector = mlp(feature_dim(backbone), config.hidden_dim, config.projection_dim)

    def loss(self, features: Tensor, views: Tensor, moment: Moment) -> Tensor:
        """NT-Xent (equation 1), mean over this rank's views; the negatives are those of all ranks."""
        projected = self.projector(features)
        self.note(features.chunk(2)[0], projected.chunk(2)[0])
        with torch.autocast(projected.device.type, enabled=False):
            own = F.normalize(precise(projected))
            everyone = gather_with_gradient(own, loss="own")
            samples, first = len(own), len(own) * self._place.rank
            numbers = torch.arange(samples, device=own.device)
            logits = own @ everyone.T / self.config.temperature
            logits[numbers, first + numbers] = -torch.inf  # itself
            return F.cross_entropy(logits, first + numbers.roll(samples // 2))
