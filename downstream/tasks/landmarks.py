"""Facial landmarks in crop pixels: normalised mean error (NME), failure rate, area under the error's distribution.

NME = 1/K * sum_k |p_k - t_k| / d, in %, over the points that are known. The normaliser d is a choice of the data set:

    eye_corners    distance of the outer eye corners: 300-W (Sagonas et al. 2013), COFW, WFLW
    pupils         distance of the pupils; of 68 points, of the middles of the six points of each eye
    points_box     sqrt(w h) of the box around the true points: AFLW2000-3D (Zhu et al. 2016); it does not collapse on
                   profiles, and is reported besides unless something else is
    face_box       sqrt(w h) of the annotated box of the face: AFLW
    face_diagonal  sqrt(w^2 + h^2) of that box: AFLW, as others print it; for square boxes smaller by sqrt(2)

The failure rate is the share of pictures whose NME is larger than ``threshold``. AUC is the area under the share of
pictures with an error of at most x, for x from 0 to the threshold, over the threshold: Simpson's rule at steps of
1e-4, as it is published, which is a mean over pictures too.

The head is ours, for the main text of Bulat et al. was not at hand: heat maps (one a point) from all four stages of
the backbone, each brought to 256 channels by a 1 x 1 convolution, enlarged and summed from the last to the first;
squared error against Gaussians (their supplement), read off at the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from configs import ConfigError
from downstream import drawing
from downstream.heads import Head
from downstream.tasks.mirror import MIRRORS
from downstream.tasks.task import SIDE, Array, Metric, Task, back_to_source, matrix, points_moved, zoom_of

EYE_CORNERS: Mapping[int, tuple[int, int]] = {29: (8, 9), 68: (36, 45), 98: (60, 72)}
"""Points -> the outer corners of the eyes."""
PUPILS: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    29: ((16,), (17,)),
    68: (tuple(range(36, 42)), tuple(range(42, 48))),
    98: ((96,), (97,)),
}
"""Points -> those whose middle is taken for each pupil."""
Normaliser = Literal["eye_corners", "pupils", "points_box", "face_box", "face_diagonal"]
NAMES: Mapping[Normaliser, str] = {
    "eye_corners": "eye corners",
    "pupils": "pupils",
    "points_box": "box",
    "face_box": "face box",
    "face_diagonal": "face diagonal",
}
STEP = 1e-4
"""Of the thresholds at which the errors' distribution is summed up."""


class Landmarks(Task):
    """19 (AFLW), 29 (COFW), 68 (iBUG) or 98 (WFLW) points."""

    name: Literal["landmarks"] = "landmarks"
    points: Literal[19, 29, 68, 98] = 68
    """How many; the column is landmarks68 for 68."""
    normaliser: Normaliser = "eye_corners"
    """What the error is divided by."""
    also: tuple[Normaliser, ...] = ("points_box",)
    """What it is divided by in figures besides."""
    threshold: float = Field(default=0.1, gt=0, le=1)
    """NME above which a picture has failed, and up to which the area is taken: 0.08 or 0.1 (300W, COFW, WFLW), 0.07
    (AFLW)."""
    head_kind: Literal["heatmap", "linear"] = "heatmap"
    """heatmap: from all stages of the backbone. linear: coordinates from the pooled features."""
    channels: int = Field(default=256, ge=1)
    """Of the heat-map head."""
    stride: Literal[1, 2, 4] = 4
    """Network pixels a pixel of the heat maps: 4 makes 64 x 64 of 256 x 256."""
    sigma: float = Field(default=1.0, gt=0)
    """Of the Gaussians, in pixels of the heat maps: 1 (300W) or 1.5 (COFW, AFLW, WFLW) in HRNet's settings."""
    decode: Literal["quarter", "mean"] = "mean"
    """Where the maximum of a heat map is. quarter: a quarter of a pixel towards the larger neighbour, as HRNet. mean:
    the mean of the pixels up to two sigmas about it, weighted by their values: finer on small maps."""

    @property
    def title(self) -> str:
        """68 landmarks."""
        return f"{self.points} landmarks"

    @property
    def columns(self) -> tuple[str, ...]:
        """The points, and the box where it is the normaliser."""
        box = any(name.startswith("face_") for name in (self.normaliser, *self.also))
        return (f"landmarks{self.points}", *(["true_box"] if box else []))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """NME by the normaliser, failures, area; NME by the others."""
        limit = f"{100 * self.threshold:g} %"
        return (
            Metric("nme", f"NME, {NAMES[self.normaliser]}", "%", "lower"),
            *(
                Metric(f"nme_{name.removeprefix('points_')}", f"NME, {NAMES[name]}", "%", "lower")
                for name in self.also
            ),
            Metric("failures", f"Failures above {limit}", "%", "lower"),
            Metric("auc", f"AUC up to {limit}", "%", "higher"),
        )

    def encode(self, table: pa.Table) -> Array:
        """(N, 2 K): x0, y0, x1, y1, ... in crop pixels; (N, 2 K + 4) with the face's annotated box."""
        widths = (2 * self.points, 4)
        labels = [matrix(table, column, n) for column, n in zip(self.columns, widths, strict=False)]
        return np.concatenate(labels, axis=1)

    def usable(self, labels: Array) -> NDArray[np.bool_]:
        """Pictures of which a point and the normalisers are known."""
        known = np.asarray(np.isfinite(self._known(labels)).all(axis=2))
        return np.asarray(known.any(axis=1) & np.isfinite(self._scales(labels)).all(axis=1))

    def check(self, labels: Array) -> None:
        """No normaliser may be 0."""
        small = self._scales(labels) <= 0
        if small.any():
            row, name = np.argwhere(small)[0]
            raise ConfigError(
                f"landmarks{self.points}: test picture {row} has its {NAMES[(self.normaliser, *self.also)[name]]} in "
                "one point or line; mend its labels"
            )

    def targets(self, labels: Array) -> Array:
        """The points."""
        return labels[:, : 2 * self.points]

    def statistics(self, prediction: Array, truth: Array) -> Array:
        """(N, 2 K), (N, D) -> (N, 3 + others), in %: a picture's NMEs, whether it failed, its part of the area."""
        error = np.linalg.norm(self._points(prediction) - self._known(truth), axis=-1)
        each = np.nanmean(error, axis=-1)[:, None] / self._scales(truth)
        nme = each[:, 0]
        return 100 * np.column_stack([each, nme > self.threshold, area(nme, self.threshold)])

    def move(self, labels: Array, affine: Array, flipped: NDArray[np.bool_]) -> Array:
        """Mirror (points change their names too), then map by the affine; the box, a length, stays."""
        points = self._known(labels)
        mirrored = points[:, MIRRORS[self.points]] * [-1, 1] + [SIDE, 0]
        points = points_moved(np.where(flipped[:, None, None], mirrored, points), affine)
        return np.concatenate([points.reshape(len(labels), -1), labels[:, 2 * self.points :]], axis=1)

    def head(self, widths: Sequence[int], labels: Array) -> Head:
        """Heat maps, or one linear layer."""
        if self.head_kind == "linear":
            return super().head(widths, labels)
        return HeatmapHead(widths, self)

    def errors(self, prediction: Array, truth: Array) -> Array:
        """NME, %."""
        return self.statistics(prediction, truth)[:, 0]

    def mark(
        self, picture: Image.Image, prediction: Array, affine: Array, truth: Array | None = None
    ) -> None:
        """Dots."""
        back = back_to_source(affine)[None]
        known = None if truth is None else points_moved(self._known(truth[None]), back)[0]
        predicted = points_moved(self._points(prediction[None]), back)[0]
        drawing.mark_points(picture, predicted, known, zoom_of(affine))

    def describe(self, prediction: Array, affine: Array) -> dict[str, Any]:
        """X and y of each point in the source picture."""
        points = points_moved(self._points(prediction[None]), back_to_source(affine)[None])[0]
        return {"landmarks": points.round(2).tolist()}

    def _points(self, flat: Array) -> Array:
        return flat.reshape(len(flat), -1, 2)

    def _known(self, labels: Array) -> Array:
        """(N, K, 2) without the box."""
        return self._points(labels[:, : 2 * self.points])

    def _scales(self, labels: Array) -> Array:
        """(N, 1 + others) the normalisers in crop pixels."""
        return np.stack([self._scale(labels, name) for name in (self.normaliser, *self.also)], axis=1)

    def _scale(self, labels: Array, normaliser: Normaliser) -> Array:
        """(N,) a normaliser in crop pixels."""
        points = self._known(labels)
        if normaliser == "points_box":
            return _box(points)
        if normaliser.startswith("face_"):
            width, height = np.maximum(labels[:, -2:] - labels[:, -4:-2], 0).T
            diagonal = normaliser == "face_diagonal"
            scale = np.hypot(width, height) if diagonal else np.sqrt(width * height)
            return np.asarray(scale, np.float64)
        table: Mapping[int, Any] = EYE_CORNERS if normaliser == "eye_corners" else PUPILS
        left, right = (points[:, np.atleast_1d(side)].mean(axis=1) for side in table[self.points])
        return np.asarray(np.linalg.norm(left - right, axis=-1), np.float64)

    @model_validator(mode="after")
    def _these_points_have_it(self) -> Landmarks:
        for name in (self.normaliser, *self.also):
            if self.points not in EYE_CORNERS and name in ("eye_corners", "pupils"):
                raise ValueError(f"{self.points} points have no {NAMES[name]}; use another normaliser")
        if len({self.normaliser, *self.also}) <= len(self.also):
            raise ValueError("normaliser, also: the same twice; name each once")
        return self


def _box(points: Array) -> Array:
    """(N, K, 2) -> (N,) sqrt(w h) of what is known."""
    known = np.isfinite(points)
    sides = np.where(known, points, -np.inf).max(axis=1) - np.where(known, points, np.inf).min(axis=1)
    return np.asarray(np.sqrt(np.prod(np.where(known.any(axis=1), sides, np.nan), axis=-1)), np.float64)


def area(nme: Array, threshold: float) -> Array:
    """(N,) errors -> (N,) what each adds to the area under the share of errors <= x up to threshold, over threshold.

    The mean over pictures is Simpson's rule on that share at x = 0, 1e-4, 2e-4, ... Published code steps by
    numpy.arange(0, threshold + 1e-4, 1e-4), which for 0.07 goes a step beyond: there its areas are larger by .0014.
    """
    steps, rest = _simpson(threshold)
    return np.asarray(rest[np.searchsorted(steps, nme)], np.float64)


@cache
def _simpson(threshold: float) -> tuple[Array, Array]:
    """The steps x_j, and for j the sum of Simpson's weights from x_j on, over the threshold; 0 behind the last."""
    half = max(1, round(threshold / STEP / 2))
    steps = np.linspace(0, threshold, 2 * half + 1)
    weights = np.array([1, *[4, 2] * (half - 1), 4, 1]) / (6 * half)
    return steps, np.append(np.cumsum(weights[::-1])[::-1], 0)


class HeatmapHead(Head):
    """One map a point, from all stages.

    Args:
        widths: Channels of the stages.
        task: Its settings.
    """

    def __init__(self, widths: Sequence[int], task: Landmarks) -> None:
        super().__init__()
        self.task = task
        self.sides = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, task.channels, 1, bias=False), nn.BatchNorm2d(task.channels), nn.ReLU()
            )
            for width in widths
        )
        self.smooth = nn.Sequential(
            nn.Conv2d(task.channels, task.channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(task.channels),
            nn.ReLU(),
        )
        self.maps = nn.Conv2d(task.channels, task.points, 1)
        nn.init.normal_(self.maps.weight, std=0.001)
        assert self.maps.bias is not None
        nn.init.zeros_(self.maps.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, K, h, w) heat maps."""
        x = self.sides[-1](maps[-1])
        for side, stage in zip(reversed(self.sides[:-1]), reversed(maps[:-1]), strict=True):
            x = side(stage) + _enlarged(x, stage.shape[-2:])
        if self.task.stride < 4:
            x = _enlarged(x, [4 // self.task.stride * n for n in x.shape[-2:]])
        heat: Tensor = self.maps(self.smooth(x))
        return heat

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Squared error against a Gaussian of height 1 at each point; sum over a map, mean over the known points."""
        points = truth[:, : 2 * self.task.points].reshape(len(truth), -1, 2)
        height, width = outputs.shape[-2:]
        x, y = (points * points.new_tensor([width / SIDE, height / SIDE])).unbind(-1)
        across, down = (torch.arange(n, device=points.device) + 0.5 for n in (width, height))
        bell = -0.5 / self.task.sigma**2
        wanted = torch.exp(bell * (across - x[..., None]) ** 2)[..., None, :]
        wanted = wanted * torch.exp(bell * (down - y[..., None]) ** 2)[..., None]
        known = ~wanted.isnan()
        error = ((outputs - torch.where(known, wanted, outputs.detach())) ** 2).sum(dim=(2, 3))
        return error.sum() / known[..., 0, 0].sum().clamp(min=1)

    def predict(self, outputs: Tensor) -> Tensor:
        """(B, 2 K) in crop pixels."""
        height, width = outputs.shape[-2:]
        quarter = self.task.decode == "quarter"
        points = _quarter(outputs) if quarter else _mean(outputs, math.ceil(2 * self.task.sigma))
        points = points * outputs.new_tensor([SIDE / width, SIDE / height])
        return points.flatten(1)


def _enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def _peak(heat: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K, h, w) -> (B, K) column and row of the largest value."""
    at = heat.flatten(2).argmax(dim=2)
    return at % heat.shape[-1], at // heat.shape[-1]


def _quarter(heat: Tensor) -> Tensor:
    """(B, K, 2) x and y in map pixels; a pixel's middle is at .5."""
    column, row = _peak(heat)
    padded = functional.pad(
        heat, (1, 1, 1, 1), mode="reflect"
    )  # across the border both neighbours are the same
    wide = padded.shape[-1]
    flat = padded.flatten(2)

    def value(dx: int, dy: int) -> Tensor:
        at = (row + 1 + dy) * wide + column + 1 + dx
        return flat.gather(2, at[..., None])[..., 0]

    dx = torch.sign(value(1, 0) - value(-1, 0)) / 4
    dy = torch.sign(value(0, 1) - value(0, -1)) / 4
    return torch.stack([column + 0.5 + dx, row + 0.5 + dy], dim=-1)


def _mean(heat: Tensor, reach: int) -> Tensor:
    """(B, K, 2) x and y in map pixels, of those up to ``reach`` about the peak; a pixel's middle is at .5.

    Near the border as many on each side as there are on the nearer one: half a peak would pull the mean inwards.
    """
    column, row = _peak(heat)
    height, width = heat.shape[-2:]
    padded = functional.pad(heat.clamp(min=0), (reach,) * 4)  # nothing lies outside
    wide = padded.shape[-1]
    offsets = torch.arange(-reach, reach + 1, device=heat.device)
    dy, dx = (grid.flatten() for grid in torch.meshgrid(offsets, offsets, indexing="ij"))
    at = (row[..., None] + reach + dy) * wide + column[..., None] + reach + dx
    weight = padded.flatten(2).gather(2, at)
    beside = torch.minimum(column, width - 1 - column)[..., None] >= dx.abs()
    below = torch.minimum(row, height - 1 - row)[..., None] >= dy.abs()
    weight = weight * (beside & below)
    total = weight.sum(dim=2, keepdim=True)
    weight = torch.where(total > 0, weight, 1) / torch.where(total > 0, total, weight.shape[2])
    x, y = (weight * dx).sum(dim=2), (weight * dy).sum(dim=2)
    return torch.stack([column + 0.5 + x, row + 0.5 + y], dim=-1)
