"""AFLW2000-3D's error against a direct implementation, one picture at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from configs import ConfigError
from downstream.morphable.nme import bin_names, box_size, check, reduce, statistics

EDGES = (30.0, 60.0)


def direct(predictions, truths, yaws):
    """The benchmark's text, with loops: three lists of pictures, their means, the mean of these, the plain mean."""
    bins, everything = {"low": [], "middle": [], "high": []}, []
    for p, t, yaw in zip(predictions, truths, yaws, strict=True):
        xs, ys = [point[0] for point in t], [point[1] for point in t]
        side = math.sqrt((max(xs) - min(xs)) * (max(ys) - min(ys)))
        error = 100 * sum(math.dist(a, b) for a, b in zip(p, t, strict=True)) / 68 / side
        everything.append(error)
        bins["low" if abs(yaw) <= 30 else "middle" if abs(yaw) <= 60 else "high"].append(error)
    means = [sum(values) / len(values) for values in bins.values()]
    return [sum(means) / 3, *means, sum(everything) / len(everything)]


@pytest.fixture
def pictures():
    rng = np.random.default_rng(8)
    truth = rng.uniform(30, 220, (60, 68, 2))
    yaw = rng.uniform(-100, 100, 60)
    yaw[:6] = [30, -30, 30.001, 60, -60, 60.001]  # an edge belongs to the lower bin
    return truth + rng.normal(0, 3, truth.shape), truth, yaw


def test_the_benchmark(pictures):
    prediction, truth, yaw = pictures
    values = reduce(statistics(prediction, truth, box_size(truth), yaw, EDGES).mean(axis=0), EDGES)
    np.testing.assert_allclose(values, direct(prediction, truth, yaw), rtol=1e-12)
    assert bin_names(EDGES) == ["0_30", "30_60", "60_90"]


def test_resamples(pictures):
    """The same function of weighted means is the metric of pictures that are drawn for real."""
    prediction, truth, yaw = pictures
    each = statistics(prediction, truth, box_size(truth), yaw, EDGES)
    drawn = np.random.default_rng(1).integers(0, 60, (5, 60))
    values = reduce(np.stack([each[rows].mean(axis=0) for rows in drawn]), EDGES)
    for rows, value in zip(drawn, values, strict=True):
        np.testing.assert_allclose(value, direct(prediction[rows], truth[rows], yaw[rows]), rtol=1e-10)


def test_an_empty_bin_is_named(pictures):
    prediction, truth, _ = pictures
    size = box_size(truth)
    with pytest.raises(ConfigError, match="none of the test pictures has a yaw of 60-90"):
        check(size, np.linspace(-59, 59, 60), EDGES)
    check(size, np.linspace(-59, 61, 60), EDGES)
    yaw = np.zeros(60)
    yaw[0], yaw[1] = 45, 80
    each = statistics(prediction, truth, size, yaw, EDGES)
    with pytest.raises(ConfigError, match=r"none of some resample .* 30-60 .*yaw_bins"):
        reduce(np.stack([each.mean(axis=0), each[1:].mean(axis=0)]), EDGES)


def test_one_bin_is_the_plain_mean(pictures):
    prediction, truth, yaw = pictures
    values = reduce(statistics(prediction, truth, box_size(truth), yaw, ()).mean(axis=0), ())
    np.testing.assert_allclose(values, direct(prediction, truth, yaw)[-1])


def test_a_face_without_extent_is_refused(pictures):
    _, truth, yaw = pictures
    truth[4] = 100.0
    with pytest.raises(ConfigError, match="test picture 4"):
        check(box_size(truth), yaw, EDGES)
