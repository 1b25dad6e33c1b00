"""What a task is: labels from the table, a head, statistics a picture, and metrics that are functions of their means.

Every metric used here (NME, MAE, CCC, ICC(3,1), ...) can be written as a function of *means over pictures* of a
few statistics: CCC for example needs the means of p, t, p^2, t^2 and p*t. Said once in this form, the metric of
any bootstrap resample is the same function of re-weighted means, so a thousand resamples are one matrix
product and the interval belongs to exactly the metric that is reported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from configs import Config, ConfigError
from downstream.heads import Head, LinearHead
from downstream.recipe import Recipe

Array = NDArray[np.float64]

SIDE = 256
"""Pixels a side of every crop in a .beton: the frame in which labels in pixels are given."""


@dataclass(frozen=True)
class Metric:
    """One reported figure.

    Attributes:
        name: Key in metrics.json.
        title: Heading in tables.
        unit: "%", "deg" or "" (a plain number).
        better: Which direction is an improvement.
    """

    name: str
    title: str
    unit: Literal["%", "deg", ""]
    better: Literal["lower", "higher"]


class Task(Config, ABC):
    """One thing to read off a face: its settings, and what follows from them.

    A task is a file in ``downstream/tasks`` with a subclass whose ``name`` is a Literal; docs/extending.md adds one.
    """

    name: str
    """Which task."""
    recipe: Recipe | None = None
    """How it is trained; null: as the run says."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Heading in tables."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns of set.parquet that hold its labels."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """The M metrics; the first one leads."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files besides the data that decide its figures; none by default."""
        return ()

    @abstractmethod
    def encode(self, table: pa.Table) -> Array:
        """The (N, D) labels, in the unit of the metrics, NaN where unknown."""

    @abstractmethod
    def statistics(self, prediction: Array, truth: Array) -> Array:
        """(N, P) predictions and (N, D) labels -> (N, S) statistics a picture."""

    def reduce(self, means: Array) -> Array:
        """(..., S) means of the statistics -> (..., M) metrics; by default the means are the metrics."""
        return means

    @property
    def class_column(self) -> int | None:
        """Which of the D label columns holds the number of a class; None: none does."""
        return None

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse a recipe that its labels cannot follow.

        Raises:
            ValueError: saying which setting.
        """
        moves = type(self).move is not Task.move
        if moves and any(phase.augmentation.crop for phase in recipe.phases):
            raise ValueError(
                f"recipe.augmentation.crop: the labels of {self.name} are places or angles in the picture; leave it "
                "out and use scale and shift"
            )
        if self.class_column is None and any(phase.oversample for phase in recipe.phases):
            raise ValueError(
                f"recipe.oversample: {self.name} has no classes to draw equally often; leave it out"
            )

    def take_over(self, head: dict[str, Tensor], other: Task) -> dict[str, Tensor]:
        """The weights of another task's head, as this task's head takes them.

        Raises:
            ConfigError: it has another form.
        """
        if self.model_dump(exclude={"recipe"}) != other.model_dump(exclude={"recipe"}):
            raise ConfigError(f"the head is of {other.name} with other settings; give both tasks the same")
        return head

    def usable(self, labels: Array) -> NDArray[np.bool_]:
        """(N,) which pictures can be learnt from and tested on: by default those of which everything is known."""
        return np.asarray(np.isfinite(labels).all(axis=1))

    def check(self, labels: Array) -> None:
        """Refuse (N, D) test labels on which a metric is undefined.

        Raises:
            ConfigError: naming the label.
        """

    def targets(self, labels: Array) -> Array:
        """The (N, P) values that a regression predicts; by default the labels."""
        return labels

    @property
    def bounds(self) -> tuple[float, float]:
        """The range of the labels, into which predictions are clipped."""
        return -np.inf, np.inf

    def clip(self, prediction: Array) -> Array:
        """(N, P) predictions of a regression, within the range of the labels."""
        return prediction.clip(*self.bounds)

    def move(self, labels: Array, _affine: Array, _flipped: NDArray[np.bool_]) -> Array:
        """How labels (N, D) follow the augmentation; by default not at all.

        Args:
            labels: Of the pictures as they were.
            _affine: (N, 2, 3) from old to new crop pixels, applied after the mirroring.
            _flipped: (N,) which pictures are mirrored.
        """
        return labels

    def head(self, widths: Sequence[int], labels: Array) -> Head:
        """What is trained on a backbone whose stages have ``widths`` channels, given (N, D) training labels."""
        return LinearHead(widths[-1], self.targets(labels), *self.bounds)

    @property
    def logits(self) -> slice | None:
        """Where in the outputs of its head the classes stand; None: it has none."""
        return None

    def mark(
        self, picture: Image.Image, prediction: Array, affine: Array, truth: Array | None = None
    ) -> None:
        """Draw onto ``picture`` what lies on the face; by default nothing does.

        Args:
            picture: RGB; changed in place.
            prediction: (P,), in crop pixels where in pixels.
            affine: (2, 3) from the picture to crop pixels.
            truth: (D,), where it is known.
        """

    def shown(self, prediction: Array, regressed: bool) -> Array:
        """(..., P) predictions as ``draw`` and ``errors`` take them; by default as they are.

        Args:
            prediction: Of a trained head, or read off features.
            regressed: Whether it is read off features, in the form of ``targets``.
        """
        return prediction

    def draw(self, picture: Image.Image, prediction: Array, truth: Array | None = None) -> Image.Image:
        """The crop with (P,) predictions, and (D,) labels where they are known, drawn over or beside it.

        A picture that is wider than the crop has the crop on its left, and something beside it already.
        """
        drawn = picture.convert("RGB").copy()
        self.mark(drawn, prediction, np.eye(2, 3), truth)
        return drawn

    def errors(self, prediction: Array, truth: Array) -> Array:
        """(N, P), (N, D) -> (N,) how wrong each picture is: by default the mean absolute error of what is known.

        It orders and captions the examples of a page, in the unit of the first metric.
        """
        return np.asarray(np.nanmean(np.abs(prediction - self.targets(truth)), axis=1), np.float64)

    def describe(self, prediction: Array, _affine: Array) -> dict[str, Any]:
        """What (P,) predictions say, as JSON; what is in pixels, in those of the source picture.

        Args:
            prediction: In crop pixels where in pixels.
            _affine: (2, 3) from source to crop pixels.
        """
        return {"values": [round(float(value), 4) for value in prediction]}

    def evaluate(self, prediction: Array, truth: Array) -> dict[str, float]:
        """The metrics of (N, P) predictions against (N, D) labels.

        Raises:
            ConfigError: there are no pictures, a label that is needed is unknown, a prediction is not finite, or a
                metric is undefined on these labels.
        """
        if not len(truth):
            raise ConfigError(f"{self.name}: there is no picture to test on")
        if not (usable := self.usable(truth)).all():
            raise ConfigError(f"{self.name}: {(~usable).sum()} test pictures lack a label; leave them out")
        if bad := (~np.isfinite(prediction)).sum():
            raise ConfigError(f"{self.name}: {bad} predictions are not numbers; lower the learning rate")
        self.check(truth)
        values = self.reduce(self.statistics(prediction, truth).mean(axis=0))
        return {metric.name: float(value) for metric, value in zip(self.metrics, values, strict=True)}


def matrix(table: pa.Table, column: str, width: int | None = None) -> Array:
    """A column of numbers, or of lists of one length, as (N, D); NaN where there is none.

    Raises:
        ConfigError: it holds something else, or lists of another length than ``width``.
    """
    values = table.column(column).combine_chunks()
    try:
        if pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
            found = _lists(values, width)
        else:
            numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
            found = np.asarray(numbers, dtype=np.float64)[:, None]
    except (ValueError, TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ConfigError(
            f"data: the labels '{column}' are neither numbers nor lists of numbers of one length; mend them"
        ) from None
    if width not in (None, found.shape[1]):
        raise ConfigError(
            f"data: the labels '{column}' have {found.shape[1]} numbers a picture instead of {width}; mend them"
        )
    return found


def _lists(values: pa.Array, width: int | None) -> Array:
    rows = values.to_pylist()
    length = next((len(row) for row in rows if row is not None), width or 0)
    empty = [None] * length
    filled = [empty if row is None else row for row in rows]
    return np.array(filled, dtype=np.float64).reshape(len(rows), length)


def points_moved(points: Array, affine: Array) -> Array:
    """(N, K, 2) points under (N, 2, 3) affines."""
    return points @ affine[:, :, :2].transpose(0, 2, 1) + affine[:, None, :, 2]


def back_to_source(affine: Array) -> Array:
    """(2, 3) source to crop -> (2, 3) crop to source."""
    square = np.vstack([affine.reshape(2, 3), [0, 0, 1]])
    return np.asarray(np.linalg.inv(square)[:2], np.float64)


def zoom_of(affine: Array) -> float:
    """(2, 3) picture to crop -> the picture's pixels to a crop pixel."""
    return float(1 / np.sqrt(abs(np.linalg.det(affine.reshape(2, 3)[:, :2]))))


def refuse_constant(task: str, names: Sequence[str], labels: Array) -> None:
    """A correlation with labels that never change is undefined: say so, instead of NaN.

    Raises:
        ConfigError: a column of (N, D) labels has fewer than two different values.
    """
    for name, column in zip(names, labels.T, strict=True):
        known = column[~np.isnan(column)]
        if not len(known) or np.ptp(known) == 0:
            raise ConfigError(
                f"tasks: {task} has the same label '{name}' on every test picture, or none; "
                "take the task out or use more test people"
            )


def moments(prediction: Array, truth: Array) -> Array:
    """(N, D) and (N, D) -> (N, D, 5): p, t, p^2, t^2, p*t, from whose means CCC, PCC and ICC follow."""
    return np.stack([prediction, truth, prediction**2, truth**2, prediction * truth], axis=-1)


def spread(means: Array) -> tuple[Array, Array, Array, Array]:
    """(..., 5) means of :func:`moments` -> variance of p, of t, covariance (all ddof 0), difference of means.

    A variance below 1e-12 of the mean square is rounding, and is returned as exactly 0.
    """
    p, t, pp, tt, pt = np.moveaxis(means, -1, 0)
    variance_p, variance_t = pp - p**2, tt - t**2
    variance_p = np.where(variance_p > 1e-12 * pp, variance_p, 0.0)
    variance_t = np.where(variance_t > 1e-12 * tt, variance_t, 0.0)
    covariance = np.where((variance_p > 0) & (variance_t > 0), pt - p * t, 0.0)
    return variance_p, variance_t, covariance, p - t


def ratio(numerator: Array, denominator: Array) -> Array:
    """Numerator / denominator, and 0 where the denominator is 0: no association can be seen there."""
    safe = np.where(denominator > 0, denominator, 1.0)
    return np.where(denominator > 0, numerator / safe, 0.0)
