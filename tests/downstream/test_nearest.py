"""Neighbours against their definition, written out picture by picture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from downstream.nearest import nearest


def _by_hand(train: np.ndarray, targets: np.ndarray, query: np.ndarray, neighbours: int) -> np.ndarray:
    """Wu et al. (2018): of the most similar pictures each counts exp(s / .07)."""
    cosines = [float(x @ query / math.sqrt((x @ x) * (query @ query))) for x in train]
    chosen = sorted(range(len(train)), key=cosines.__getitem__)[-neighbours:]
    weights = [math.exp(cosines[i] / 0.07) for i in chosen]
    votes = sum(w * targets[i] for w, i in zip(weights, chosen, strict=True))
    return np.asarray(votes / sum(weights))


@pytest.mark.parametrize("neighbours", [1, 7, 30, 1000])
def test_neighbours_count_by_their_similarity(neighbours: int) -> None:
    rng = np.random.default_rng(4)
    train, test = rng.normal(size=(30, 8)).astype(np.float32), rng.normal(size=(5, 8)).astype(np.float32)
    classes = np.eye(3)[rng.integers(0, 3, 30)]
    targets = {"classes": classes, "angles": rng.normal(size=(30, 2)) * 40}
    found = nearest(train, targets, test, neighbours)
    for task, values in targets.items():
        expected = [_by_hand(train.astype(float), values, query.astype(float), neighbours) for query in test]
        np.testing.assert_allclose(found[task].prediction, expected, rtol=1e-4)
        assert found[task].alpha is None


def test_neither_the_length_of_features_nor_a_picture_without_any_matters() -> None:
    """Features may be all zero: those of raw pixels of a black picture are."""
    train = np.array([[1, 0], [0, 5], [0, 0]], np.float32)
    found = nearest(
        train, {"a": np.array([[1.0], [2.0], [3.0]])}, np.array([[9, 0], [0, 1], [0, 0]], np.float32), 1
    )
    assert found["a"].prediction[:2].tolist() == [[1.0], [2.0]]
    assert np.isfinite(found["a"].prediction).all()
