"""Paired tests against SciPy and against counting."""

from __future__ import annotations

import numpy as np
import pingouin
import pytest
from scipy import stats

from downstream.reports.paired import least_sign_p, paired

FIRST, SECOND = [0.61, 0.64, 0.66, 0.59, 0.7], [0.55, 0.65, 0.6, 0.5, 0.63]


def test_the_t_test_is_scipys_and_pingouins() -> None:
    result = paired(FIRST, SECOND, "higher")
    assert result.t_p == stats.ttest_rel(FIRST, SECOND).pvalue
    other = pingouin.ttest(FIRST, SECOND, paired=True)
    (column,) = (name for name in other.columns if name.lower().replace("-", "_") in ("p_val", "p_value"))
    assert result.t_p == pytest.approx(float(other[column].iloc[0]))
    assert result.mean == pytest.approx(np.mean(FIRST) - np.mean(SECOND))
    assert result.std == pytest.approx(np.std(np.subtract(FIRST, SECOND), ddof=1))
    assert result.count == 5


def test_the_sign_test_counts_by_the_direction() -> None:
    assert paired(FIRST, SECOND, "higher").better == 4
    assert paired(FIRST, SECOND, "lower").better == 1
    for direction in ("higher", "lower"):
        assert paired(FIRST, SECOND, direction).sign_p == stats.binomtest(4, 5).pvalue == pytest.approx(0.375)


def test_equal_pairs_are_left_out_of_the_sign_test() -> None:
    result = paired([1, 2, 3, 4], [1, 1, 2, 3], "higher")
    assert result.better == 3
    assert result.sign_p == pytest.approx(2 / 8)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_what_so_many_seeds_can_show_at_best(count: int) -> None:
    rng = np.random.default_rng(count)
    assert least_sign_p(count) == pytest.approx(2.0 ** (1 - count))
    assert paired(1 + rng.random(count), rng.random(count) - 1, "higher").sign_p == least_sign_p(count)


def test_what_cannot_be_tested_has_no_p() -> None:
    one = paired([2.0], [1.0], "lower")
    assert (one.std, one.t_p, one.sign_p) == (None, None, 1.0)
    same = paired([0.3, 0.4, 0.5], [0.2, 0.3, 0.4], "higher")  # the same difference, up to rounding
    assert same.t_p is None
    assert same.sign_p == 0.25
    equal = paired([1.0, 2.0], [1.0, 2.0], "higher")
    assert (equal.sign_p, equal.t_p, equal.better) == (None, None, 0)
    noise = paired([0.5 + 1e-9, 0.6 + 3e-9, 0.7 + 2e-9], [0.5, 0.6, 0.7], "higher")
    assert (noise.sign_p, noise.t_p, noise.better) == (None, None, 0), "float32 does not tell these apart"
