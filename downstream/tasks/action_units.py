"""Intensities 0..5 of the twelve DISFA action units: ICC(3,1) and mean absolute error.

ICC(3,1) (Shrout & Fleiss 1979) of two raters, labels and predictions: (BMS - EMS) / (BMS + EMS), which for two
raters is 2 cov / (var_p + var_t); the ddof cancels. It is computed a unit over all test pictures and then
averaged over units. A constant prediction has ICC 0.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from downstream.tasks.task import Array, Metric, Task, matrix, moments, ratio, spread

UNITS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)


def encode(table: pa.Table) -> Array:
    """(N, 12): intensities in the order of UNITS."""
    return matrix(table, "action_units")


def statistics(prediction: Array, truth: Array) -> Array:
    """(N, 12), (N, 12) -> (N, 72): for each unit five moments and the absolute error."""
    absolute = np.abs(prediction - truth)
    return np.concatenate([moments(prediction, truth), absolute[..., None]], axis=-1).reshape(len(truth), -1)


def reduce(means: Array) -> Array:
    """(..., 72) -> (..., 26): mean ICC, mean MAE, twelve ICCs, twelve MAEs."""
    means = means.reshape(*means.shape[:-1], len(UNITS), 6)
    variance_p, variance_t, covariance, _ = spread(means[..., :5])
    icc, mae = ratio(2 * covariance, variance_p + variance_t), means[..., 5]
    average = np.stack([icc.mean(axis=-1), mae.mean(axis=-1)], axis=-1)
    return np.concatenate([average, icc, mae], axis=-1)


ACTION_UNITS = Task(
    name="action_units",
    title="12 action units",
    columns=("action_units",),
    encode=encode,
    statistics=statistics,
    reduce=reduce,
    clip=(0.0, 5.0),
    metrics=(
        Metric("icc", "ICC(3,1), mean", "", "higher"),
        Metric("mae", "MAE, mean", "", "lower"),
        *(Metric(f"icc_au{unit}", f"ICC(3,1) AU{unit}", "", "higher") for unit in UNITS),
        *(Metric(f"mae_au{unit}", f"MAE AU{unit}", "", "lower") for unit in UNITS),
    ),
)
