"""Recognition: how well the cosine between features tells held-out people apart.

Every test picture is a query against all others. ``rank1``: the share whose nearest neighbour is the same
person. ``auc``: the probability that a picture of the same person is nearer than one of another, i.e. the area
under the verification ROC, a query at a time and then averaged; .5 is chance. Queries whose person has no other
test picture are left out.

The linear readout has nothing to fit: the features themselves are compared. Fine-tuned, the backbone learns the
training people with CosFace, in the engine of the pretraining (:mod:`downstream.recognition.train`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from configs import ConfigError
from downstream.recognition.recipe import CosFaceRecipe
from downstream.tasks.task import Array, Metric, Task, matrix, ratio

TABLE = 30_000_000
"""Cosines that are looked at together."""


class Recognition(Task):
    """Tell people apart that were not trained on."""

    name: Literal["recognition"] = "recognition"
    cosface: CosFaceRecipe = CosFaceRecipe()
    """How a backbone is fine-tuned; 'recipe' is for the heads of other tasks."""

    @property
    def title(self) -> str:
        """Recognition."""
        return "Recognition"

    @property
    def columns(self) -> tuple[str, ...]:
        """The number of the person."""
        return ("identity",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Of queries."""
        return (
            Metric("rank1", "Rank-1", "%", "higher"),
            Metric("auc", "Verification AUC", "%", "higher"),
        )

    def encode(self, table: pa.Table) -> Array:
        """(N, 1): the number of the person; unknown people are -1."""
        labels = matrix(table, "identity")
        return np.where(labels >= 0, labels, np.nan)

    def check(self, labels: Array) -> None:
        """Somebody has two pictures, and there are others."""
        _, counts = np.unique(labels, return_counts=True)
        if len(counts) < 2 or counts.max() < 2:
            raise ConfigError(
                "recognition: no person has two test pictures; leave the task out or raise test_share"
            )

    def statistics(self, prediction: Array, truth: Array) -> Array:
        """(N, D) features, (N, 1) persons -> (N, 3): hit of rank 1, AUC of the query, 1 (all 0 if it has no mate)."""
        unit = prediction / np.linalg.norm(prediction, axis=1, keepdims=True).clip(1e-12)
        found = [
            _queries(unit, truth, part)
            for part in np.array_split(np.arange(len(unit)), -(-(len(unit) ** 2) // TABLE))
        ]
        return np.concatenate(found)

    def reduce(self, means: Array) -> Array:
        """Shares of the queries that have a mate, in %."""
        return 100 * ratio(means[..., :2], means[..., 2:])


def _queries(unit: Array, truth: Array, rows: NDArray[np.intp]) -> Array:
    """The statistics of some of the queries: the table of all cosines would not fit for a large set."""
    cosine = unit[rows] @ unit.T
    same = truth[rows] == truth.T
    own = (np.arange(len(rows)), rows)
    cosine[own] = -np.inf
    same[own] = False
    mates = same.sum(axis=1)
    others = len(truth) - 1 - mates
    asked = (mates > 0) & (others > 0)
    hit = same[np.arange(len(rows)), cosine.argmax(axis=1)]
    # Mann-Whitney: the rank sum of the mates; the query itself always has rank 1 and is no mate.
    ranks = rankdata(cosine, axis=1) - 1
    area = ratio((ranks * same).sum(axis=1) - mates * (mates + 1) / 2, (mates * others).astype(np.float64))
    return np.stack([hit & asked, area * asked, asked], axis=-1).astype(np.float64)
