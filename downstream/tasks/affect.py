"""Valence and arousal in [-1, 1]: CCC, PCC, RMSE and SAGR.

CCC = 2 cov / (var_p + var_t + (mean_p - mean_t)^2) (Lin 1989) with ddof 0 in all three moments; PCC is the same
for any ddof; RMSE is over all pictures at once, not a mean of batches; SAGR is the share of pictures in which
sign(p) = sign(t), where 0 agrees with 0 only (Nicolaou et al. 2011). A constant prediction has CCC 0 and PCC 0.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from downstream.tasks.task import Array, Metric, Task, matrix, moments, ratio, spread

_OUTPUTS = ("valence", "arousal")


def encode(table: pa.Table) -> Array:
    """(N, 2): valence, arousal in [-1, 1]."""
    return np.concatenate([matrix(table, name) for name in _OUTPUTS], axis=1)


def statistics(prediction: Array, truth: Array) -> Array:
    """(N, 2), (N, 2) -> (N, 14): for valence then arousal, five moments, squared error, agreement of signs."""
    squared = (prediction - truth) ** 2
    agree = np.sign(prediction) == np.sign(truth)
    each = np.concatenate([moments(prediction, truth), squared[..., None], agree[..., None]], axis=-1)
    return each.reshape(len(truth), -1)


def reduce(means: Array) -> Array:
    """(..., 14) -> (..., 9): mean CCC, then CCC, PCC, RMSE, SAGR of valence, then of arousal."""
    means = means.reshape(*means.shape[:-1], 2, 7)
    variance_p, variance_t, covariance, shift = spread(means[..., :5])
    ccc = ratio(2 * covariance, variance_p + variance_t + shift**2)
    pcc = ratio(covariance, np.sqrt(variance_p * variance_t))
    each = np.stack([ccc, pcc, np.sqrt(means[..., 5]), means[..., 6]], axis=-1)
    return np.concatenate([ccc.mean(axis=-1, keepdims=True), each.reshape(*each.shape[:-2], 8)], axis=-1)


AFFECT = Task(
    name="affect",
    title="Valence and arousal",
    columns=_OUTPUTS,
    encode=encode,
    statistics=statistics,
    reduce=reduce,
    clip=(-1.0, 1.0),
    metrics=(
        Metric("ccc", "CCC, mean", "", "higher"),
        *(
            metric
            for output in _OUTPUTS
            for metric in (
                Metric(f"ccc_{output}", f"CCC {output}", "", "higher"),
                Metric(f"pcc_{output}", f"PCC {output}", "", "higher"),
                Metric(f"rmse_{output}", f"RMSE {output}", "", "lower"),
                Metric(f"sagr_{output}", f"SAGR {output}", "", "higher"),
            )
        ),
    ),
)
