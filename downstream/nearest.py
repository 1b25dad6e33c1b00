"""k nearest neighbours: what the labelled pictures with the most similar features say.

Weighted by similarity as in Wu et al. (2018, section 3.4): a neighbour whose features have the cosine s counts
exp(s / .07). Classes are thereby voted on; other targets are averaged, which is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.neighbors import NearestNeighbors

from downstream.ridge import Fit
from downstream.tasks.task import Array

Name = TypeVar("Name", bound=str)
TEMPERATURE = 0.07


def nearest(
    train: NDArray[np.float32],
    targets: Mapping[Name, Array],
    test: NDArray[np.float32],
    neighbours: int,
) -> dict[Name, Fit]:
    """Fit every task in ``targets`` on the same features.

    Args:
        train: (N, F) features of the labelled pictures.
        targets: task -> (N, D); of a class, a 1 among zeros.
        test: (M, F) features to predict from.
        neighbours: How many are asked; all N where there are fewer.
    """
    model = NearestNeighbors(n_neighbors=min(neighbours, len(train)), metric="cosine").fit(train)
    distances, found = model.kneighbors(test)
    weights = np.exp((distances.min(axis=1, keepdims=True) - distances) / TEMPERATURE)
    weights /= weights.sum(axis=1, keepdims=True)
    ends = np.arange(0, found.size + 1, found.shape[1])
    shares = csr_array((weights.ravel(), found.ravel(), ends), shape=(len(test), len(train)))
    return {task: Fit(shares @ values) for task, values in targets.items()}
