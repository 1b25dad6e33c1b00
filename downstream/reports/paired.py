"""Tests of paired figures: the same matrix with one row and with another, seed by seed.

Both speak about other seeds on the same test pictures. What other people would do is the bootstrap's question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

import numpy as np
from scipy.stats import binomtest, ttest_rel

ROUNDING = 1e-6
"""Relative, and of figures about zero absolute."""


@dataclass(frozen=True)
class Paired:
    """What the seeds say about a difference.

    Attributes:
        count: Pairs.
        better: Pairs in which the first is better; equal ones are not.
        mean: Mean of first - second.
        std: Standard deviation of the differences (ddof 1); None for one pair.
        sign_p: Two-sided sign test, equal pairs left out; None if all are equal.
        t_p: Two-sided paired t-test; None for one pair, or if the difference is the same in all.
    """

    count: int
    better: int
    mean: float
    std: float | None
    sign_p: float | None
    t_p: float | None


def paired(first: Sequence[float], second: Sequence[float], direction: Literal["lower", "higher"]) -> Paired:
    """Compare (n,) figures with (n,) others that differ from them in one thing only.

    Args:
        first: Of the row in question, a figure a seed.
        second: Of the row it is compared with, in the same order.
        direction: Whether a lower or a higher figure is better.
    """
    # Figures of float32 networks: what differs by less is the same figure, rounded otherwise.
    pairs = [
        (a, a) if math.isclose(a, b, rel_tol=ROUNDING, abs_tol=ROUNDING) else (a, b)
        for a, b in zip(first, second, strict=True)
    ]
    differences = [a - b for a, b in pairs]
    wanted = 1 if direction == "higher" else -1
    better = sum(d * wanted > 0 for d in differences)
    unequal = sum(d != 0 for d in differences)
    varies = len(differences) > 1 and not np.allclose(differences, differences[0], rtol=1e-12, atol=0)
    return Paired(
        count=len(differences),
        better=better,
        mean=mean(differences),
        std=stdev(differences) if len(differences) > 1 else None,
        sign_p=sign_test(better, unequal) if unequal else None,
        t_p=float(ttest_rel(*zip(*pairs, strict=True)).pvalue) if varies else None,
    )


def sign_test(successes: int, count: int) -> float:
    """The p-value of the two-sided sign test."""
    return float(binomtest(successes, count).pvalue)


def least_sign_p(count: int) -> float:
    """The smallest p that the sign test can give with ``count`` pairs: all of one sign."""
    return sign_test(count, count)
