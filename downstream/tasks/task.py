"""What a task is: labels from the table, statistics a picture, and metrics that are functions of their means.

Every metric used here (NME, MAE, CCC, ICC(3,1), ...) can be written as a function of *means over pictures* of a
few statistics: CCC for example needs the means of p, t, p^2, t^2 and p*t. Said once in this form, the metric of
any bootstrap resample is the same function of re-weighted means, so a thousand resamples are one matrix
product and the interval belongs to exactly the metric that is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from downstream.config import TaskName

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


def no_move(truth: Array, _affine: Array, _flipped: NDArray[np.bool_]) -> Array:
    """Labels that neither a similarity of the picture nor its mirror image alters."""
    return truth


@dataclass(frozen=True)
class Task:
    """One thing to read off a face.

    Attributes:
        name: Key in configs and metrics.json.
        title: Heading in tables.
        columns: The columns of set.parquet that hold its labels.
        encode: table -> (N, D) labels, in the unit of the metrics.
        clip: The range of a label; predictions are clipped into it.
        statistics: (N, D) predictions, (N, D) labels -> (N, S) statistics a picture.
        reduce: (..., S) means of the statistics -> (..., M) metrics.
        metrics: The M metrics; the first one leads.
        head: "ridge": a linear head is fitted. "none": the features themselves are the prediction.
        move: How labels follow the augmentation: labels (N, D), affine (N, 2, 3) from old to new crop pixels
            (applied after the mirroring), flipped (N,) -> labels (N, D).
    """

    name: TaskName
    title: str
    columns: tuple[str, ...]
    encode: Callable[[pa.Table], Array]
    statistics: Callable[[Array, Array], Array]
    reduce: Callable[[Array], Array]
    metrics: tuple[Metric, ...]
    clip: tuple[float, float] = (-np.inf, np.inf)
    head: Literal["ridge", "none"] = "ridge"
    move: Callable[[Array, Array, NDArray[np.bool_]], Array] = no_move

    def evaluate(self, prediction: Array, truth: Array) -> dict[str, float]:
        """The metrics of (N, D) predictions against (N, D) labels."""
        values = self.reduce(self.statistics(prediction, truth).mean(axis=0))
        return {metric.name: float(value) for metric, value in zip(self.metrics, values, strict=True)}


def matrix(table: pa.Table, column: str) -> Array:
    """A column of numbers, or of lists of one length, as (N, D)."""
    values = table.column(column).combine_chunks()
    if pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        return np.stack([np.asarray(row, dtype=np.float64) for row in values.to_pylist()])
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)[:, None]


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
