"""Frozen features and a ridge regression whose penalty is chosen by leaving one person out.

The penalty has to serve people who are not among the labels, so each candidate is judged by its error on a
person it was fitted without. For ridge this needs no refit: with the hat matrix H, the errors on group g of a
fit without g are (I - H_gg)^-1 (y - H y)_g. One singular value decomposition serves every penalty, every
person and every target; the same rule and grid serve every row of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from downstream.tasks.task import Array

Name = TypeVar("Name", bound=str)
ALPHAS: Array = np.logspace(-2, 6, 17)


@dataclass(frozen=True)
class Fit:
    """Predictions (N_test, D) of one task, and the penalty that was chosen."""

    prediction: Array
    alpha: float


def ridge(
    train: NDArray[np.float32],
    labels: Mapping[Name, Array],
    groups: NDArray[np.int64],
    test: NDArray[np.float32],
) -> dict[Name, Fit]:
    """Fit every task in ``labels`` on the same features.

    Args:
        train: (N, F) features of the labelled pictures; standardised here by their own mean and deviation.
        labels: task -> (N, D) labels.
        groups: (N,) the person in each picture.
        test: (N_test, F) features to predict from.
    """
    scaler = StandardScaler().fit(train.astype(np.float64))
    x, x_test = scaler.transform(train.astype(np.float64)), scaler.transform(test.astype(np.float64))
    left, singular, right = np.linalg.svd(x, full_matrices=False)
    fits = {}
    for task, y in labels.items():
        mean, scale = y.mean(axis=0), y.std(axis=0)
        # Only to weigh the targets of a task alike when the penalty is chosen.
        scale = np.where(scale > 0, scale, 1.0)
        centred = (y - mean) / scale
        errors = [left_out_error(left, _shrink(singular, alpha), centred, groups) for alpha in ALPHAS]
        alpha = float(ALPHAS[int(np.argmin(errors))])
        coefficients = right.T @ (
            (_shrink(singular, alpha) / singular.clip(1e-12))[:, None] * (left.T @ centred)
        )
        fits[task] = Fit((x_test @ coefficients) * scale + mean, alpha)
    return fits


def _shrink(singular: Array, alpha: float) -> Array:
    """(R,) singular values -> the factor by which ridge keeps each direction."""
    return singular**2 / (singular**2 + alpha)


def left_out_error(left: Array, shrink: Array, y: Array, groups: NDArray[np.int64]) -> float:
    """Mean squared error over pictures and targets, each picture predicted without its own person.

    Args:
        left: (N, R) left singular vectors of the centred features.
        shrink: (R,) what the penalty keeps of each.
        y: (N, D) centred targets.
        groups: (N,) the person in each picture.
    """
    # Centring the features costs every fit a constant: the 1/N in the hat matrix.
    residual = y - left @ (shrink[:, None] * (left.T @ y))
    total = 0.0
    for person in np.unique(groups):
        member = np.flatnonzero(groups == person)
        u = left[member]
        hat = (u * shrink) @ u.T + 1 / len(y)
        # lstsq, because with one person there is nothing left to fit from and I - H is singular.
        total += float(
            (np.linalg.lstsq(np.eye(len(member)) - hat, residual[member], rcond=None)[0] ** 2).sum()
        )
    return total / y.size
