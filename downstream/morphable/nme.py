"""AFLW2000-3D's error of 68 points, by how far the head is turned (Zhu et al. 2016; 3DDFA's benchmark).

NME of a picture = mean over the 68 points of the distance in x and y / sqrt(w h), w and h those of the box around the
true points. It is averaged over the pictures whose |yaw| lies in [0, 30], (30, 60] and above 60 degrees, and the
reported ``nme`` is the mean of these three: all bins count the same, however many pictures they have. ``nme_all`` is
the plain mean over pictures. Pictures beyond 90 degrees are in the last bin, as in the benchmark's code.

As everywhere here, the figures are functions of means over pictures of a few statistics, so that a resample of the
pictures has its figure by the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from configs import ConfigError

Array = NDArray[np.float64]


def bin_names(edges: Sequence[float]) -> list[str]:
    """Edges (30, 60) -> ["0_30", "30_60", "60_90"]."""
    all_edges = [0, *edges, 90]
    return [f"{low:g}_{high:g}" for low, high in pairwise(all_edges)]


def box_size(points: Array) -> Array:
    """(..., n, 2) -> (...) the root of the area of the upright box around the points."""
    return np.asarray(np.sqrt(np.prod(points.max(axis=-2) - points.min(axis=-2), axis=-1)))


def statistics(prediction: Array, truth: Array, size: Array, yaw: Array, edges: Sequence[float]) -> Array:
    """What a picture adds to each mean.

    Args:
        prediction: (N, 68, 2) pixels.
        truth: (N, 68, 2) pixels.
        size: (N,) what the errors are divided by, pixels.
        yaw: (N,) degrees; the sign does not matter.
        edges: The B - 1 upper ends of all bins but the last, rising; each belongs to the lower bin.

    Returns:
        (N, 1 + 2B): NME in %, NME or 0 for each bin, 1 or 0 for each bin.
    """
    nme = 100 * np.linalg.norm(prediction - truth, axis=-1).mean(axis=-1) / size
    inside = _inside(yaw, edges)
    return np.concatenate([nme[:, None], nme[:, None] * inside, inside], axis=1)


def reduce(means: Array, edges: Sequence[float]) -> Array:
    """(..., 1 + 2B) means -> (..., 2 + B): mean of the bins' NME, NME of each bin, NME of all pictures.

    Raises:
        ConfigError: a resample has a bin without pictures.
    """
    bins = len(edges) + 1
    everything, sums, shares = means[..., :1], means[..., 1 : 1 + bins], means[..., 1 + bins :]
    filled = np.asarray(shares.reshape(-1, bins).min(axis=0) > 0)
    _refuse_empty(filled, edges, "of some resample of the test pictures")
    each = sums / shares
    return np.concatenate([each.mean(axis=-1, keepdims=True), each, everything], axis=-1)


def check(size: Array, yaw: Array, edges: Sequence[float]) -> None:
    """Refuse test pictures on which a figure is undefined; arguments as for :func:`statistics`.

    Raises:
        ConfigError: a face without extent, or a bin without pictures.
    """
    if len(flat := np.flatnonzero(~(size > 0))):
        raise ConfigError(f"mesh: the true points of test picture {flat[0]} span no box; mend its labels")
    _refuse_empty(np.asarray(_inside(yaw, edges).any(axis=0)), edges, "of the test pictures")


def _inside(yaw: Array, edges: Sequence[float]) -> NDArray[np.bool_]:
    """(N, B) in which bin each picture is; an edge belongs to the lower bin."""
    which = np.searchsorted(np.asarray(edges), np.abs(yaw))
    return np.asarray(np.arange(len(edges) + 1) == which[:, None])


def _refuse_empty(filled: NDArray[np.bool_], edges: Sequence[float], whose: str) -> None:
    if not filled.all():
        name = bin_names(edges)[int(np.argmin(filled))].replace("_", "-")
        raise ConfigError(
            f"mesh: none {whose} has a yaw of {name} degrees, so that bin has no error; give other yaw_bins "
            f"(now {list(edges)}; [] measures all pictures together)"
        )
