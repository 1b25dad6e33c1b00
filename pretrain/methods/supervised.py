"""Supervised training on a label of the set: cross-entropy, or CosFace for identities.

CosFace (Wang et al., CVPR 2018, arXiv 1801.09414, equation 4): the logits are s * cos(feature, class), those of the
true class s * (cos - m). The pooled features are the embedding; there is no layer between them and the classes, so
``backbone.safetensors`` is the whole recogniser.

The weights of the classes are divided among the ranks, as in Partial FC (An et al., CVPR 2022, arXiv 2203.15565):
each rank compares the features of *all* ranks with its own classes, and the softmax is put together from sums. With
``sample_rate`` below 1 a step sees the classes of its batch and a random part of the others.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from configs import ConfigError
from data_prep.beton import read_labels, read_manifest
from pretrain.backbones import feature_dim
from pretrain.data import DataConfig, read_rows
from pretrain.distributed import Ranks, all_reduce, gather, gather_with_gradient
from pretrain.methods.method import Method, MethodConfig, Moment, Setting, spread
from pretrain.views import uniforms


class SupervisedConfig(MethodConfig):
    """Training on a label. Defaults are those of Bulat et al. (supplement 1.2) for face recognition."""

    name: Literal["supervised"]
    column: str = Field("identity", description="of set.parquet; whole numbers, each a class")
    loss: Literal["cosface", "cross_entropy"] = "cosface"
    margin: float = Field(0.35, ge=0, lt=1, description="m of CosFace")
    scale: float = Field(
        64, gt=0, description="s of CosFace; the supplement does not give it, 64 is insightface's"
    )
    sample_rate: float = Field(
        1, gt=0, le=1, description="share of the classes that a step compares with; for very many of them"
    )
    reach: float = Field(0.01, gt=0, description="standard deviation of the classes' first weights")

    def build(self, setting: Setting) -> Method:
        """The classes of the data around ``setting.backbone``."""
        data = setting.data
        count = read_manifest(data.path).count
        rows = read_rows(data.rows, count, data.path) if data.rows else None
        classes = read_classes(data.path, self.column, rows)
        return Supervised(setting.backbone, self, classes, setting.place, setting.seed)

    def inputs(self, data: DataConfig) -> list[Path]:
        """The labels: they are not all in the .beton."""
        return [Path(data.path).with_suffix(".parquet")]


class Supervised(Method):
    """Backbone, classes and loss.

    Args:
        backbone: Maps images to (N, D) features.
        config: The method's settings.
        classes: (M,) the class of each row of the data set, 0 .. C-1, -1 where it has none.
        place: This rank.
        seed: Of the classes' first weights and of the sampled classes.
    """

    def __init__(
        self,
        backbone: ResNet,
        config: SupervisedConfig,
        classes: npt.NDArray[np.int64],
        place: Ranks,
        seed: int,
    ) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        self._classes, self._place = classes, place
        self.count = int(classes.max()) + 1
        each = -(-self.count // place.world)
        self._first = each * place.rank
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn((each * place.world, feature_dim(backbone)), generator=generator) * config.reach
        weight[self.count :] = 0  # of no class: a norm over the shard must not see them
        own = weight[self._first : self._first + each].to(place.device)
        # Not registered: neither DDP nor the main rank's state may take it for their own.
        self._shard = [nn.Parameter(own.clone())]

    @property
    def weight(self) -> nn.Parameter:
        """(C / world, D) of this rank's classes; the last rank's are filled up with classes that nobody has."""
        return self._shard[0]

    def shards(self) -> dict[str, nn.Parameter]:
        """The classes' weights."""
        return {"classes": self.weight}

    def forward(self, views: list[Tensor], moment: Moment) -> Tensor:
        """The () mean loss over the batch of *all* ranks, the same number on each of them."""
        features = torch.cat([self.backbone(group) for group in views])
        labels = self._labels(moment.rows, len(features))
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            everyone = gather_with_gradient(features, loss="shared")
            everyone_labels = torch.cat(gather(labels))
            chosen = self._chosen(everyone_labels, moment)
            logits, own = self._logits(everyone, everyone_labels, chosen)
            loss, right = _distributed_cross_entropy(logits, own)
        self._last = features.detach(), right
        return loss

    def _labels(self, rows: npt.NDArray[np.int64], samples: int) -> Tensor:
        """(N,) classes of the view-major samples."""
        labels = torch.from_numpy(self._classes[rows]).to(self.weight.device)
        return labels.repeat(samples // len(rows))

    def _chosen(self, labels: Tensor, moment: Moment) -> Tensor:
        """Numbers, within this rank's classes, of those that the step compares with, ascending."""
        mine = min(len(self.weight), max(0, self.count - self._first))
        if self.config.sample_rate == 1:
            return torch.arange(mine, device=labels.device)
        # A class of the batch is never left out; the others are drawn by the counter-based generator.
        numbers = np.arange(self._first, self._first + mine)
        drawn = torch.from_numpy(uniforms(moment.seed, moment.step, _STREAM, numbers, 1)[:, 0]).to(
            labels.device
        )
        own = labels - self._first
        drawn[own[(own >= 0) & (own < mine)]] = -1
        wanted = max(int((drawn < 0).sum()), round(self.config.sample_rate * mine))
        return drawn.argsort(stable=True)[:wanted].sort().values

    def _logits(self, features: Tensor, labels: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """(N, n) logits of the chosen classes, and where in them each sample's own class is; -1: elsewhere."""
        weight = self.weight[chosen]
        place = torch.searchsorted(chosen, labels - self._first) if len(chosen) else torch.zeros_like(labels)
        nearest = place.clamp(max=max(0, len(chosen) - 1))
        here = torch.zeros_like(labels, dtype=torch.bool)
        if len(chosen):
            here = chosen[nearest] == labels - self._first
        own = torch.where(here, nearest, -1)
        if self.config.loss == "cross_entropy":
            return F.linear(features, weight), own
        cosine = F.linear(F.normalize(features), F.normalize(weight))
        margin = torch.zeros_like(cosine)
        margin[here, own[here]] = self.config.margin
        return self.config.scale * (cosine - margin), own

    @property
    def loss_without_learning(self) -> float | None:
        """Ln C of the cross-entropy; CosFace has no such number, for its margin."""
        return math.log(self.count) if self.config.loss == "cross_entropy" else None

    def indicators(self) -> dict[str, Tensor]:
        """Of the features; and ``accuracy``, the share of the last batch whose own class, less its margin, won."""
        features, right = self._last
        return spread(features) | {"accuracy": right.float().mean()}


_STREAM = 1 << 20  # of the drawn classes; views count from 0


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits whose classes lie on several ranks."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, logits: Tensor, own: Tensor
    ) -> tuple[Tensor, Tensor]:
        samples = len(logits)
        lowest = logits.new_full((samples,), -math.inf)
        highest = all_reduce(logits.amax(1) if logits.shape[1] else lowest, "max")
        here = own >= 0
        numbers = torch.arange(samples, device=logits.device)
        true = logits.new_full((samples,), -math.inf)
        true[here] = logits[numbers[here], own[here]]
        right = all_reduce(true.clone(), "max") == highest
        exponentials = torch.exp(logits - highest[:, None])
        total = all_reduce(exponentials.sum(1))
        true = all_reduce(torch.where(here, true, 0))
        ctx.save_for_backward(exponentials / total[:, None], own)
        return (total.log() + highest - true).mean(), right

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _right: Tensor) -> tuple[Tensor, None]:
        probabilities, own = ctx.saved_tensors
        slope = probabilities.clone()
        here = own >= 0
        slope[here.nonzero()[:, 0], own[here]] -= 1
        return slope * (gradient / len(slope)), None


def _distributed_cross_entropy(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """The () mean loss of all ranks' samples, and (N,) whether the own class has the largest logit.

    Args:
        logits: (N, n) of this rank's classes, for the samples of all ranks.
        own: (N,) column of the sample's class, -1 where it is on another rank.
    """
    loss, right = _CrossEntropy.apply(logits, own)
    return loss, right


def read_classes(path: str, column: str, rows: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """(M,) the class of each row of the .beton at ``path``, numbered without a gap; -1 where it has none.

    Args:
        path: The set.
        column: Of its set.parquet.
        rows: The rows that are trained on; None: all of them. Only their classes are numbered.

    Raises:
        ConfigError: there is no such column of whole numbers, one of the rows has no label, or there is one class.
    """
    table = read_labels(path)
    if column not in table.column_names:
        known = ", ".join(table.column_names)
        raise ConfigError(f"method.column: {path} has no label '{column}' (known: {known})")
    values = table[column].to_numpy(zero_copy_only=False)
    if not np.issubdtype(values.dtype, np.number):
        raise ConfigError(
            f"method.column: '{column}' of {path} is not a whole number a picture; it has no classes"
        )
    known_labels = np.isfinite(values) & (values >= 0)
    trained = np.arange(len(values)) if rows is None else rows
    missing = trained[~known_labels[trained]]
    if len(missing):
        raise ConfigError(
            f"method.column: {len(missing)} of {len(trained)} pictures of {path} have no '{column}', the first is "
            f"row {missing[0]}; name those that have one in data.rows"
        )
    if (values[trained] != np.floor(values[trained])).any():
        raise ConfigError(f"method.column: '{column}' of {path} holds fractions; it has no classes")
    names, numbers = np.unique(values[trained].astype(np.int64), return_inverse=True)
    if len(names) < 2:
        raise ConfigError(
            f"method.column: all pictures of {path} have the same '{column}'; there is nothing to tell"
        )
    classes = np.full(len(values), -1, np.int64)
    classes[trained] = numbers
    return classes
