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
    """Predictions (N_test, D) of one task, and the penalty that was chosen; None where there is none to choose."""

    prediction: Array
    alpha: float | None = None


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
    left, singular, right = _decomposed(x)
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


def _decomposed(x: Array) -> tuple[Array, Array, Array]:
    """Singular values of (N, F) features and the vectors to them: (N, R), (R,), (R, F).

    Of more pictures than features by the (F, F) product, which needs neither the time nor the memory of the other
    way; directions in which there is nothing but rounding are left out.
    """
    if len(x) <= x.shape[1]:
        return np.linalg.svd(x, full_matrices=False)
    squares, vectors = np.linalg.eigh(x.T @ x)
    kept = squares > 1e-10 * squares.max(initial=0)
    singular, right = np.sqrt(squares[kept][::-1]), vectors[:, kept][:, ::-1].T
    return x @ (right.T / singular), singular, right


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
        # H_gg = A A^T; the inverse of I - A A^T is I + A (I - A^T A)^-1 A^T, the smaller of the two is solved.
        a = np.concatenate(
            [left[member] * np.sqrt(shrink), np.full((len(member), 1), len(y) ** -0.5)], axis=1
        )
        if len(member) > a.shape[1]:
            inner = np.eye(a.shape[1]) - a.T @ a
            error = residual[member] + a @ _solved(inner, a.T @ residual[member])
        else:
            error = _solved(np.eye(len(member)) - a @ a.T, residual[member])
        total += float((error**2).sum())
    return total / y.size


def _solved(matrix: Array, right: Array) -> Array:
    """By least squares, because with one person there is nothing left to fit from and I - H is singular."""
    return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0], np.float64)
