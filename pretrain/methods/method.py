"""What a method is to the engine: networks, a loss, and what it has to keep and to tell."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from configs import Config, ConfigError
from pretrain.data import DataConfig
from pretrain.distributed import Ranks
from pretrain.views import ViewsConfig


@dataclass(frozen=True)
class Moment:
    """Where a step stands in its run; with the samples' rows it decides everything that is drawn at random."""

    step: int
    """Steps done before this one."""
    steps_per_epoch: int
    total: int
    """Steps of the whole run."""
    seed: int
    """Of the run."""
    rows: npt.NDArray[np.int64]
    """(B,) rows in the data set of this rank's samples."""

    @property
    def epoch(self) -> float:
        """Time in epochs."""
        return self.step / self.steps_per_epoch


@dataclass(frozen=True)
class Setting:
    """What a method is built from, besides its own settings."""

    backbone: ResNet
    """Its first weights are there already. What a method draws for its other networks it draws from torch's
    generator, which is seeded by the run."""
    views: ViewsConfig
    data: DataConfig
    batch_size: int
    """Over all ranks."""
    place: Ranks
    seed: int
    """Of the run."""

    def require_two_views(self, name: str, *, further: bool = False) -> None:
        """Refuse views that are no pairs, and views that nothing would look at.

        Two crops of one view each are a pair, too: so the views may differ in blur and solarization, as BYOL's do.

        Args:
            name: Of the method, for the message.
            further: Whether the method looks at crops after its two views, which then are one crop.

        Raises:
            ConfigError: the first crops are not two of one size, or there are others.
        """
        crops = self.views.crops
        pair = crops[:2] if crops[0].count == 1 and not further else crops[:1]
        alike = len({crop.size for crop in pair}) == 1 and not any(crop.plain for crop in pair)
        if sum(crop.count for crop in pair) != 2 or not alike:
            raise ConfigError(
                f"views.crops: {name} compares two views of a picture; begin with {{count: 2, size: ..., scale: ...}}"
            )
        if crops[len(pair) :] and not further:
            raise ConfigError(
                f"views.crops: {name} does not look at crops after its two views; take out those after them"
            )


class MethodConfig(Config, ABC):
    """The settings of a method, which is made from them. ``name`` is a Literal in each."""

    name: str

    @abstractmethod
    def build(self, setting: Setting) -> Method:
        """The method.

        Raises:
            ConfigError: it cannot work with this data, these views, this many ranks.
        """

    def inputs(self, data: DataConfig) -> list[Path]:
        """Files besides the pictures that decide the weights."""
        return []


class Method(nn.Module, ABC):
    """A backbone and all that trains it."""

    backbone: ResNet

    @abstractmethod
    def forward(self, views: list[Tensor], moment: Moment) -> Tensor:
        """The () loss of this rank's part of a batch; the engine averages the gradients over the ranks.

        Args:
            views: One (V_r * B, 3, s_r, s_r) tensor a resolution, view-major.
            moment: Of this step.
        """

    def compile_networks(self) -> None:
        """Let torch.compile make a graph of each network, for each resolution that it sees."""
        for network in self.children():
            network.compile(dynamic=False)

    def after_backward(self, moment: Moment) -> None:
        """Change gradients before they are applied."""

    def after_step(self, moment: Moment) -> None:
        """Change weights after the optimiser has; the moment is still that of the step."""

    @property
    def loss_without_learning(self) -> float | None:
        """The loss of a network that has learnt nothing, where there is such a number."""
        return None

    def unscheduled(self) -> list[nn.Parameter]:
        """Parameters that are trained at ``schedule.lr`` throughout."""
        return []

    def shards(self) -> dict[str, nn.Parameter]:
        """Parameters of which every rank has a part of its own, (n, ...) of n * world rows; they are no part of
        the module's own. Their gradients are not averaged.
        """
        return {}

    def rank_state(self) -> dict[str, Tensor]:
        """What else differs between ranks, (m, n, ...) each, to be joined along axis 1."""
        return {}

    def load_rank_state(self, state: dict[str, Tensor], rank: int, world: int) -> None:
        """Take this rank's part of the joined :meth:`rank_state` of any number of ranks."""

    @abstractmethod
    def indicators(self) -> dict[str, Tensor]:
        """Signs of health and collapse in the last batch of this rank, () tensors."""


@torch.no_grad()
def spread(features: Tensor) -> dict[str, Tensor]:
    """Indicators of (N, D) features.

    feature_std: Spread of the unit-length features times the root of D; 1 for independent ones, 0 when every
        sample looks the same.
    effective_rank: RankMe of the features; at most the batch and D.
    """
    features = features.float()
    return {
        "feature_std": F.normalize(features).std(0).mean() * math.sqrt(features.shape[1]),
        "effective_rank": rankme(features),
    }


def rankme(features: Tensor) -> Tensor:
    """() effective rank of (N, D) features: the exponential of the entropy of their singular values, which
    are divided by their sum, with 1e-7 added (Garrido et al. 2023, equation 1).
    """
    values = torch.linalg.svdvals(features)
    share = values / values.sum() + 1e-7
    return torch.exp(-(share * share.log()).sum())
