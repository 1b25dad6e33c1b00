"""MoCo: tell the other view of a picture from those of a queue (He et al., CVPR 2020, arXiv 1911.05722).

Its second version (Chen et al. 2020, arXiv 2003.04297) is ``head: mlp``, temperature .2 and stronger views.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from configs import ConfigError
from pretrain.backbones import feature_dim
from pretrain.distributed import Ranks, gather
from pretrain.methods.layers import follow, follower, mlp
from pretrain.methods.method import MethodConfig, Moment, Setting
from pretrain.methods.pairs import Pairs, joined, precise
from pretrain.views import uniforms


class MoCoConfig(MethodConfig):
    """Defaults are those of MoCo v2."""

    name: Literal["moco"] = "moco"
    head: Literal["linear", "mlp"] = Field("mlp", description="linear: MoCo v1")
    projection_dim: int = Field(128, ge=2)
    temperature: float = Field(0.2, gt=0, description=".07 in MoCo v1")
    momentum: float = Field(
        0.999, ge=0, le=1, description="how much of itself the key network keeps at a step"
    )
    queue_length: int = Field(65536, ge=1, description="negatives; a multiple of the batch")
    symmetric: bool = Field(
        False,
        description="each view is the query once, and the losses' mean counts; MoCo has the first one only",
    )
    shuffle: bool = Field(
        True,
        description="exchange the pictures between the ranks before the key network normalises them; without an "
        "effect where batch_norm is global or there is one rank",
    )

    def build(self, setting: Setting) -> MoCo:
        """MoCo around ``setting.backbone``."""
        setting.require_two_views("MoCo")
        keys = setting.batch_size * (2 if self.symmetric else 1)
        if self.queue_length % keys:
            raise ConfigError(
                f"method.queue_length: {self.queue_length} is not a multiple of the {keys} keys of a step; write "
                f"{keys * max(1, round(self.queue_length / keys))}"
            )
        return MoCo(setting.backbone, self, setting.place)


class MoCo(Pairs):
    """A query network, a key network that follows it, and a queue of keys, which is the same on all ranks."""

    queue: Tensor

    def __init__(self, backbone: ResNet, config: MoCoConfig, place: Ranks) -> None:
        super().__init__(backbone)
        self.config, self._place = config, place
        dim = feature_dim(backbone)
        widths = [dim, dim, config.projection_dim] if config.head == "mlp" else [dim, config.projection_dim]
        self.projector = mlp(*widths, batch_norm=False)
        self.key_backbone, self.key_projector = follower(backbone), follower(self.projector)
        # Newest first, filled with directions until there are keys.
        self.register_buffer("queue", F.normalize(torch.randn(config.queue_length, config.projection_dim)))

    def forward(self, views: list[Tensor], moment: Moment) -> Tensor:
        """The () loss; without ``symmetric`` only the first view is a query."""
        if self.config.symmetric:
            return super().forward(views, moment)
        pair = joined(views)
        return self.loss(self.backbone(pair[: len(pair) // 2]), pair, moment)

    def loss(self, features: Tensor, views: Tensor, moment: Moment) -> Tensor:
        """InfoNCE (equation 1 of the first paper), mean over this rank's queries; then the queue takes the keys.

        Args:
            features: (B, D) of the first view, or (2 * B, D) of both.
            views: (2 * B, 3, s, s).
            moment: Of this step.
        """
        projected = self.projector(features)
        batch = len(views) // 2
        self.note(features[:batch], projected[:batch])
        # The other view of each query: that of the first view is the second.
        sources = [views[batch:], views[:batch]][: len(features) // batch]
        keys = torch.cat([self._keys(source, moment, i) for i, source in enumerate(sources)])
        with torch.autocast(projected.device.type, enabled=False):
            queries = F.normalize(precise(projected))
            positive = (queries * keys).sum(1, keepdim=True)
            logits = torch.cat([positive, queries @ self.queue.T.to(queries)], 1)
            logits = logits / self.config.temperature
            loss = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
        self._enqueue(keys)
        return loss

    @torch.no_grad()
    def _keys(self, pictures: Tensor, moment: Moment, view: int) -> Tensor:
        """(B, projection_dim) unit keys of (B, 3, s, s) pictures."""
        network = nn.Sequential(self.key_backbone, self.key_projector)
        if not self.config.shuffle or self._place.world == 1:
            return F.normalize(precise(network(pictures)))
        batch, world = len(pictures), self._place.world
        numbers = np.arange(batch * world)
        drawn = uniforms(moment.seed, moment.step, _STREAM + view, numbers, 1)[:, 0]
        order = torch.from_numpy(np.argsort(drawn, kind="stable")).to(pictures.device)
        mine = order.chunk(world)[self._place.rank]
        keys = F.normalize(precise(network(torch.cat(gather(pictures))[mine])))
        # Where each picture of this rank has gone.
        back = torch.argsort(order).chunk(world)[self._place.rank]
        return torch.cat(gather(keys))[back]

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Put the keys of all ranks, view-major in the order of the batch, before those that are there."""
        parts = [part.unflatten(0, (2 if self.config.symmetric else 1, -1)) for part in gather(keys)]
        newest = torch.cat(parts, 1).flatten(0, 1)
        # A new tensor: the backward pass still needs the old one.
        self.queue = torch.cat([newest.to(self.queue), self.queue[: -len(newest)]])

    def after_step(self, moment: Moment) -> None:
        """Move the key network (equation 2)."""
        follow(self.key_backbone, self.backbone, self.config.momentum)
        follow(self.key_projector, self.projector, self.config.momentum)


_STREAM = 2 << 20  # of the shuffled pictures; views count from 0
