"""Intensities 0..5 of facial action units: ICC(3,1), mean squared and mean absolute error.

ICC(3,1) (Shrout & Fleiss 1979) of two raters, labels and predictions: (BMS - EMS) / (BMS + EMS), which for two
raters is 2 cov / (var_p + var_t); the ddof cancels. It is computed a unit over all test pictures in which the unit
is known, those of all folds together, and then averaged over units. A constant prediction has ICC 0.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from configs import ConfigError
from downstream import drawing
from downstream.tasks.task import Array, Metric, Task, matrix, moments, ratio, refuse_constant, spread

DISFA = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
HIGHEST = 5.0


class ActionUnits(Task):
    """Intensity of action units. A picture in which some are unknown is learnt from and tested on with the others."""

    name: Literal["action_units"] = "action_units"
    units: tuple[int, ...] = Field(default=DISFA, min_length=1)
    """In the order of the column; the default is DISFA's twelve. BP4D: [6, 10, 12, 14, 17]."""

    @property
    def title(self) -> str:
        """12 action units."""
        return f"{len(self.units)} action units"

    @property
    def columns(self) -> tuple[str, ...]:
        """One list a picture."""
        return ("action_units",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Means over the units, then each unit."""
        kinds = (
            ("icc", "ICC(3,1)", "higher"),
            ("mae", "MAE", "lower"),
            ("mse", "MSE", "lower"),
        )
        means = [Metric(name, f"{title}, mean", "", better) for name, title, better in kinds]  # type: ignore[arg-type]
        each = [
            Metric(f"{name}_au{unit}", f"{title} AU{unit}", "", better)  # type: ignore[arg-type]
            for name, title, better in kinds
            for unit in self.units
        ]
        return (*means, *each)

    def encode(self, table: pa.Table) -> Array:
        """(N, U): intensities in the order of ``units``."""
        labels = matrix(table, "action_units")
        if labels.shape[1] != len(self.units):
            raise ConfigError(
                f"tasks: action_units: the set has {labels.shape[1]} units a picture, not {len(self.units)}; "
                "give their numbers in 'units'"
            )
        if np.nanmin(labels, initial=0) < 0 or np.nanmax(labels, initial=0) > HIGHEST:
            raise ConfigError("tasks: action_units: the set has intensities outside 0..5; mend its labels")
        return labels

    def usable(self, labels: Array) -> NDArray[np.bool_]:
        """Pictures of which a unit is known."""
        return np.asarray(~np.isnan(labels).all(axis=1))

    def check(self, labels: Array) -> None:
        """Each unit must vary."""
        refuse_constant(self.name, [f"AU{unit}" for unit in self.units], labels)

    @property
    def bounds(self) -> tuple[float, float]:
        """0..5."""
        return 0.0, HIGHEST

    def statistics(self, prediction: Array, truth: Array) -> Array:
        """(N, U), (N, U) -> (N, 8 U): for each unit whether it is known, five moments, absolute and squared error."""
        known = ~np.isnan(truth)
        truth = np.where(known, truth, 0)
        error = prediction - truth
        each = np.concatenate(
            [
                np.ones((*truth.shape, 1)),
                moments(prediction, truth),
                np.abs(error)[..., None],
                error[..., None] ** 2,
            ],
            axis=-1,
        )
        return (each * known[..., None]).reshape(len(truth), -1)

    def reduce(self, means: Array) -> Array:
        """(..., 8 U) -> (..., 3 + 3 U)."""
        means = means.reshape(*means.shape[:-1], len(self.units), 8)
        known = means[..., :1]
        means = ratio(means[..., 1:], known)  # over the pictures in which the unit is known
        variance_p, variance_t, covariance, _ = spread(means[..., :5])
        icc = ratio(2 * covariance, variance_p + variance_t)
        # A resample may lack a unit, or show it at one intensity.
        means = np.where(known > 0, means, np.nan)
        icc = np.where(variance_t > 0, icc, np.nan)
        kinds = (icc, means[..., 5], means[..., 6])
        return np.concatenate([np.stack([kind.mean(axis=-1) for kind in kinds], -1), *kinds], axis=-1)

    def draw(self, picture: Image.Image, prediction: Array, truth: Array | None = None) -> Image.Image:
        """Bars of the intensities beside the face."""
        names = [f"AU{unit}" for unit in self.units]
        return drawing.bars(picture, names, prediction, truth, HIGHEST)

    def describe(self, prediction: Array, _affine: Array) -> dict[str, Any]:
        """Unit -> intensity."""
        return {f"AU{unit}": round(float(x), 3) for unit, x in zip(self.units, prediction, strict=True)}
