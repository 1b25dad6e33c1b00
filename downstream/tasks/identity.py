"""Identity: how well the cosine between features tells held-out people apart. Nothing is trained.

Every test picture is a query against all others. ``rank1``: the share whose nearest neighbour is the same
person. ``auc``: the probability that a picture of the same person is nearer than one of another, i.e. the area
under the verification ROC, a query at a time and then averaged; .5 is chance. Queries whose person has no other
test picture are left out.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy.stats import rankdata

from configs import ConfigError
from downstream.tasks.task import Array, Metric, Task, matrix, ratio


def encode(table: pa.Table) -> Array:
    """(N, 1): the number of the person."""
    return matrix(table, "identity")


def statistics(prediction: Array, truth: Array) -> Array:
    """(N, D) features, (N, 1) persons -> (N, 3): hit of rank 1, AUC of the query, 1 (all 0 if it has no mate)."""
    unit = prediction / np.linalg.norm(prediction, axis=1, keepdims=True).clip(1e-12)
    cosine = unit @ unit.T
    same = truth == truth.T
    np.fill_diagonal(cosine, -np.inf)
    np.fill_diagonal(same, False)
    mates = same.sum(axis=1)
    others = len(truth) - 1 - mates
    asked = (mates > 0) & (others > 0)
    if not asked.any():
        raise ConfigError("identity: no person has two test pictures; leave the task out or raise test_share")
    hit = same[np.arange(len(truth)), cosine.argmax(axis=1)]
    # Mann-Whitney: the rank sum of the mates; the query itself always has rank 1 and is no mate.
    ranks = rankdata(cosine, axis=1) - 1
    area = ratio((ranks * same).sum(axis=1) - mates * (mates + 1) / 2, (mates * others).astype(np.float64))
    return np.stack([hit & asked, area * asked, asked], axis=-1).astype(np.float64)


def reduce(means: Array) -> Array:
    """Shares of the queries that have a mate, in %."""
    return 100 * ratio(means[..., :2], means[..., 2:])


IDENTITY = Task(
    name="identity",
    title="Identity",
    columns=("identity",),
    encode=encode,
    statistics=statistics,
    reduce=reduce,
    head="none",
    metrics=(
        Metric("rank1", "Rank-1", "%", "higher"),
        Metric("auc", "Verification AUC", "%", "higher"),
    ),
)
