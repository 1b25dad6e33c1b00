"""Valence and arousal in [-1, 1], and the expression: CCC, PCC, RMSE, SAGR, accuracy.

CCC = 2 cov / (var_p + var_t + (mean_p - mean_t)^2) (Lin 1989) with ddof 0 in all three moments; PCC is the same
for any ddof; RMSE is over all pictures at once, not a mean of batches; SAGR is the share of pictures in which
sign(p) = sign(t), where 0 agrees with 0 only (Nicolaou et al. 2011). A constant prediction has CCC 0 and PCC 0.

One linear layer gives valence, arousal and the logits of the expression (Bulat et al. 2022, supplement). The loss is
RMSE + (1 - CCC) of each of the two, and cross-entropy; that the two terms are simply added is by inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from downstream import drawing
from downstream.heads import LinearHead
from downstream.tasks.task import Array, Metric, Task, matrix, moments, ratio, refuse_constant, spread

_OUTPUTS = ("valence", "arousal")
EXPRESSIONS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
"""AffectNet's order."""


class Affect(Task):
    """Valence and arousal; with ``classes`` the expression too."""

    name: Literal["affect"] = "affect"
    classes: Literal[0, 7, 8] = 0
    """Expressions to tell apart, AffectNet's first 7 or 8 (the papers do not agree); 0: none. Pictures of another
    class are left out."""

    @property
    def class_column(self) -> int | None:
        """The one after valence and arousal."""
        return 2 if self.classes else None

    @property
    def title(self) -> str:
        """Valence and arousal."""
        return f"Valence, arousal, {self.classes} expressions" if self.classes else "Valence and arousal"

    @property
    def columns(self) -> tuple[str, ...]:
        """Two numbers, and the class."""
        return (*_OUTPUTS, *(["expression"] if self.classes else []))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Mean CCC; of each of the two CCC, PCC, RMSE, SAGR; accuracy."""
        each = (
            metric
            for output in _OUTPUTS
            for metric in (
                Metric(f"ccc_{output}", f"CCC {output}", "", "higher"),
                Metric(f"pcc_{output}", f"PCC {output}", "", "higher"),
                Metric(f"rmse_{output}", f"RMSE {output}", "", "lower"),
                Metric(f"sagr_{output}", f"SAGR {output}", "", "higher"),
            )
        )
        accuracy = [Metric("accuracy", "Accuracy", "%", "higher")] if self.classes else []
        return (Metric("ccc", "CCC, mean", "", "higher"), *each, *accuracy)

    def encode(self, table: pa.Table) -> Array:
        """(N, 2): valence, arousal in [-1, 1]; (N, 3) with the class. Numbers outside, as -2, are unknown."""
        two = np.concatenate([matrix(table, name, 1) for name in _OUTPUTS], axis=1)
        two = np.where(np.abs(two) <= 1, two, np.nan)
        if not self.classes:
            return two
        expression = matrix(table, "expression", 1)
        told = (expression >= 0) & (expression < self.classes)
        return np.concatenate([two, np.where(told, expression, np.nan)], axis=1)

    def check(self, labels: Array) -> None:
        """Both must vary."""
        refuse_constant(self.name, _OUTPUTS, labels[:, :2])

    @property
    def logits(self) -> slice | None:
        """After valence and arousal."""
        return slice(2, 2 + self.classes) if self.classes else None

    def targets(self, labels: Array) -> Array:
        """Valence, arousal, and a 1 at the class among zeros."""
        if not self.classes:
            return labels
        return np.concatenate([labels[:, :2], labels[:, 2:] == np.arange(self.classes)], axis=1)

    def clip(self, prediction: Array) -> Array:
        """Valence and arousal to [-1, 1]; the scores of the classes stay."""
        return np.concatenate([prediction[:, :2].clip(-1, 1), prediction[:, 2:]], axis=1)

    def head(self, widths: Sequence[int], labels: Array) -> LinearHead:
        """One linear layer."""
        return AffectHead(widths[-1], labels, self.classes)

    def statistics(self, prediction: Array, truth: Array) -> Array:
        """-> (N, 14 or 15): for valence then arousal, five moments, squared error, agreement of signs; and hit."""
        p, t = prediction[:, :2], truth[:, :2]
        agree = np.sign(p) == np.sign(t)
        each = np.concatenate([moments(p, t), ((p - t) ** 2)[..., None], agree[..., None]], axis=-1)
        hit = [(prediction[:, 2:].argmax(axis=1) == truth[:, 2])[:, None]] if self.classes else []
        return np.concatenate([each.reshape(len(truth), -1), *hit], axis=1)

    def reduce(self, means: Array) -> Array:
        """-> (..., 9 or 10): as ``metrics``."""
        two = means[..., :14].reshape(*means.shape[:-1], 2, 7)
        variance_p, variance_t, covariance, shift = spread(two[..., :5])
        ccc = ratio(2 * covariance, variance_p + variance_t + shift**2)
        pcc = ratio(covariance, np.sqrt(variance_p * variance_t))
        ccc, pcc = (
            np.where(variance_t > 0, value, np.nan) for value in (ccc, pcc)
        )  # of a resample of one label
        each = np.stack([ccc, pcc, np.sqrt(two[..., 5]), two[..., 6]], axis=-1)
        each = each.reshape(*each.shape[:-2], 8)
        return np.concatenate([ccc.mean(axis=-1, keepdims=True), each, 100 * means[..., 14:]], axis=-1)

    def errors(self, prediction: Array, truth: Array) -> Array:
        """Mean of the two absolute errors."""
        return np.asarray(np.abs(prediction[:, :2] - truth[:, :2]).mean(axis=1), np.float64)

    def draw(self, picture: Image.Image, prediction: Array, truth: Array | None = None) -> Image.Image:
        """The plane of valence and arousal beside the face."""
        caption = self._expression(prediction) if self.classes else ""
        return drawing.plane(picture, prediction[:2], None if truth is None else truth[:2], caption)

    def describe(self, prediction: Array, _affine: Array) -> dict[str, Any]:
        """Valence, arousal, and the expression."""
        said: dict[str, Any] = {
            name: round(float(x), 3) for name, x in zip(_OUTPUTS, prediction[:2], strict=True)
        }
        return said | ({"expression": self._expression(prediction)} if self.classes else {})

    def _expression(self, prediction: Array) -> str:
        return EXPRESSIONS[int(prediction[2:].argmax())]


class AffectHead(LinearHead):
    """Valence and arousal start at their mean, the classes at their logarithmic shares.

    Args:
        width: Channels of the last stage.
        labels: (N, 2 or 3) of the training pictures.
        classes: Number of expressions, 0 for none.
    """

    def __init__(self, width: int, labels: NDArray[np.float64], classes: int) -> None:
        counts = np.bincount(labels[:, 2].astype(np.int64), minlength=classes) if classes else np.zeros(0)
        shares = np.log((counts + 1) / (counts.sum() + max(1, classes)))
        # The scale of a logit is 1: a deviation that was computed from labels is not its unit.
        spreads = np.concatenate([labels[:, :2].std(axis=0), np.ones(classes)])
        middle = np.concatenate([labels[:, :2].mean(axis=0), shares])
        super().__init__(width, np.stack([middle - spreads, middle + spreads]))

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """RMSE + 1 - CCC of valence and of arousal, + cross-entropy."""
        p, t = outputs[:, :2], truth[:, :2]
        # The root has no slope at 0.
        rmse = torch.sqrt(((p - t) ** 2).mean(dim=0) + 1e-8)
        ccc = concordance(p, t)
        loss = (rmse + 1 - ccc).sum()
        if truth.shape[1] > 2:
            loss = loss + functional.cross_entropy(outputs[:, 2:], truth[:, 2].long())
        return loss

    def predict(self, outputs: Tensor) -> Tensor:
        """Valence and arousal within [-1, 1]."""
        return torch.cat([outputs[:, :2].clamp(-1, 1), outputs[:, 2:]], dim=1)


def concordance(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B, D), (B, D) -> (D,) CCC with ddof 0; 0 where neither varies nor differs."""
    p, t = prediction - prediction.mean(dim=0), truth - truth.mean(dim=0)
    shift = prediction.mean(dim=0) - truth.mean(dim=0)
    below = (p**2).mean(dim=0) + (t**2).mean(dim=0) + shift**2
    return 2 * (p * t).mean(dim=0) / below.clamp(min=1e-8)
