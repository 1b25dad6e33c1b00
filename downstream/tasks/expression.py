"""The expression of a face, one of a number of classes: accuracy, and accuracy of each class.

Class indices are those of the set; docs/data.md has each corpus's order. Cross-entropy is what is trained; the linear
readout is a regression on a 1 at the class among zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from scipy.special import softmax
from torch import Tensor, nn
from torch.nn import functional

from configs import ConfigError
from downstream import drawing
from downstream.heads import LinearHead
from downstream.tasks.affect import EXPRESSIONS
from downstream.tasks.task import Array, Metric, Task, matrix, ratio


class Expression(Task):
    """One of several expressions. Pictures of another class are left out."""

    name: Literal["expression"] = "expression"
    classes: tuple[str, ...] = Field(default=EXPRESSIONS, min_length=2)
    """Their names, in the order of the set's indices."""

    standardise: bool = True
    """Whether a batch norm without parameters stands before the linear layer; without it the layer sees the features
    as they are."""

    @property
    def class_column(self) -> int:
        """The only one."""
        return 0

    @property
    def title(self) -> str:
        """8 expressions."""
        return f"{len(self.classes)} expressions"

    @property
    def columns(self) -> tuple[str, ...]:
        """The index of the class."""
        return ("expression",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy, its mean over classes, that of each class."""
        return (
            Metric("accuracy", "Accuracy", "%", "higher"),
            Metric("class_accuracy", "Accuracy, mean of the classes", "%", "higher"),
            *(Metric(f"accuracy_{name}", f"Accuracy, {name}", "%", "higher") for name in self.classes),
        )

    def encode(self, table: pa.Table) -> Array:
        """(N, 1): the index of the class."""
        labels = matrix(table, "expression", 1)
        return np.where((labels >= 0) & (labels < len(self.classes)), labels, np.nan)

    def check(self, labels: Array) -> None:
        """Each class must be there."""
        missing = set(range(len(self.classes))) - set(labels[:, 0].astype(int).tolist())
        if missing:
            names = ", ".join(self.classes[i] for i in sorted(missing))
            raise ConfigError(f"tasks: expression: no test picture shows {names}; correct 'classes'")

    @property
    def logits(self) -> slice:
        """All outputs."""
        return slice(0, len(self.classes))

    def targets(self, labels: Array) -> Array:
        """A 1 at the class among zeros."""
        return np.asarray(labels == np.arange(len(self.classes)), np.float64)

    def head(self, widths: Sequence[int], labels: Array) -> LinearHead:
        """One linear layer."""
        return ClassHead(widths[-1], labels, len(self.classes), self.standardise)

    def take_over(self, head: dict[str, Tensor], other: Task) -> dict[str, Tensor]:
        """The outputs of its classes, by their names; others of the head are dropped."""
        if not isinstance(other, Expression) or other.standardise != self.standardise:
            raise ConfigError(
                f"the head is of {other.name} with another 'standardise'; give both tasks the same"
            )
        if strange := [name for name in self.classes if name not in other.classes]:
            raise ConfigError(
                f"the head does not know the class {strange[0]}; take one of {other.title} with it"
            )
        rows = [other.classes.index(name) for name in self.classes]
        by_class = {"mean", "scale", "linear.weight", "linear.bias"}
        return {name: values[rows] if name in by_class else values for name, values in head.items()}

    def statistics(self, prediction: Array, truth: Array) -> Array:
        """(N, C) scores, (N, 1) classes -> (N, 2 C): for each class whether it is the true one, and hit."""
        true = self.targets(truth)
        hit = prediction.argmax(axis=1)[:, None] == truth
        return np.concatenate([true, true * hit], axis=1)

    def reduce(self, means: Array) -> Array:
        """-> (..., 2 + C), in %; undefined for a class that a resample lacks."""
        true, hits = np.split(means, 2, axis=-1)
        each = np.where(true > 0, ratio(hits, true), np.nan)
        leading = np.stack([hits.sum(axis=-1), each.mean(axis=-1)], axis=-1)
        return 100 * np.concatenate([leading, each], axis=-1)

    def shown(self, prediction: Array, regressed: bool) -> Array:
        """Probabilities; of the linear readout its scores, which are none, within 0..1."""
        return np.asarray(prediction.clip(0, 1) if regressed else softmax(prediction, axis=-1), np.float64)

    def errors(self, prediction: Array, truth: Array) -> Array:
        """What the true class lacks of 1, %."""
        return np.asarray(100 * (1 - (prediction * self.targets(truth)).sum(axis=1)), np.float64)

    def draw(self, picture: Image.Image, prediction: Array, truth: Array | None = None) -> Image.Image:
        """Bars of the classes beside the face."""
        known = None if truth is None else self.targets(truth[None])[0]
        return drawing.bars(picture, self.classes, prediction, known, 1.0)

    def describe(self, prediction: Array, _affine: Array) -> dict[str, Any]:
        """The class, and the probability of each."""
        shares = softmax(prediction)
        named = {name: round(float(x), 4) for name, x in zip(self.classes, shares, strict=True)}
        return {"expression": self.classes[int(prediction.argmax())], "probabilities": named}


class ClassHead(LinearHead):
    """Logits; they start at the logarithmic shares of the classes.

    Args:
        width: Channels of the last stage.
        labels: (N, 1) classes of the training pictures.
        classes: C.
        standardise: Whether a batch norm stands before the layer.
    """

    def __init__(
        self, width: int, labels: NDArray[np.float64], classes: int, standardise: bool = True
    ) -> None:
        super().__init__(width, np.zeros((1, classes)))
        if not standardise:
            self.norm = nn.Identity()
        counts = np.bincount(labels[:, 0].astype(np.int64), minlength=classes)
        self.mean = torch.from_numpy(np.log((counts + 1) / (counts.sum() + classes)).astype(np.float32))

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(outputs, truth[:, 0].long())
