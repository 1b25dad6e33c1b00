"""95 % intervals: held-out identities, not pictures, are drawn with replacement.

Pictures of one person resemble each other, so they are no independent evidence; a cluster bootstrap over people
says how the figure would move with other people. A difference of two rows is taken on the same draw each time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from downstream.tasks.task import Array

LEVEL = 0.95


class ClusterBootstrap:
    """Draws of the held-out people, made once so that every comparison uses the same ones.

    Args:
        clusters: (N,) the person in each test picture.
        samples: Number of resamples B.
        seed: Seed of the draws.
    """

    def __init__(self, clusters: NDArray[np.int64], samples: int, seed: int) -> None:
        people, self._member = np.unique(clusters, return_inverse=True)
        self._pictures = np.bincount(self._member).astype(np.float64)
        generator = np.random.default_rng(np.random.SeedSequence([seed]))
        even = np.full(len(people), 1 / len(people))
        # (B, people): how often each person was drawn.
        self.counts = generator.multinomial(len(people), even, size=samples).astype(np.float64)

    def metrics(self, statistics: Array, reduce: Callable[[Array], Array]) -> Array:
        """(N, S) statistics a picture -> (B, M): the metrics of every resample."""
        sums = np.zeros((len(self._pictures), statistics.shape[1]))
        np.add.at(sums, self._member, statistics)
        means = (self.counts @ sums) / (self.counts @ self._pictures)[:, None]
        return reduce(means)


def interval(values: Array) -> tuple[Array, Array]:
    """(B, M) resampled values -> the 2.5 % and 97.5 % points, (M,) each (percentile method).

    Resamples in which a figure is undefined (NaN) are left out.
    """
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
