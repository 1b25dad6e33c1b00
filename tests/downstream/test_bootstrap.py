"""The weighted form against drawing pictures for real."""

from __future__ import annotations

import numpy as np
import pytest

from downstream.bootstrap import ClusterBootstrap, interval
from downstream.tasks import make


@pytest.mark.parametrize("task", ["affect", "action_units", "pose"])
def test_every_resample_has_the_metric_of_the_drawn_pictures(task: str) -> None:
    rng = np.random.default_rng(0)
    people = rng.integers(0, 9, 60)
    outputs = {"affect": 2, "action_units": 12, "pose": 3}[task]
    truth = rng.uniform(-1, 1, (60, outputs))
    prediction = truth + rng.normal(size=truth.shape)
    bootstrap = ClusterBootstrap(people, samples=100, seed=1)
    resampled = bootstrap.metrics(make(task).statistics(prediction, truth), make(task).reduce)
    for b in range(0, 100, 7):
        drawn = np.repeat(np.unique(people), bootstrap.counts[b].astype(int))
        pictures = np.concatenate([np.flatnonzero(people == person) for person in drawn])
        expected = make(task).evaluate(prediction[pictures], truth[pictures])
        np.testing.assert_allclose(resampled[b], list(expected.values()), atol=1e-9)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    # Pictures of one person share an offset: an interval over pictures would be far too narrow.
    rng = np.random.default_rng(5)
    covered, rounds = 0, 200
    for i in range(rounds):
        people = np.repeat(np.arange(40), 5)
        values = rng.normal(size=40)[people] + 0.3 * rng.normal(size=200)
        resampled = ClusterBootstrap(people, samples=400, seed=i).metrics(values[:, None], lambda m: m)
        low, high = interval(resampled)
        covered += low[0] <= 0 <= high[0]
    assert 0.90 <= covered / rounds <= 0.98


def test_the_draws_are_paired_and_fixed_by_the_seed() -> None:
    people = np.arange(30)
    one, two = (ClusterBootstrap(people, samples=100, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.counts, two.counts)
    assert (one.counts != ClusterBootstrap(people, samples=100, seed=5).counts).any()
    assert (one.counts.sum(axis=1) == 30).all()
