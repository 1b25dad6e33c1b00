"""The closed forms against brute force with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.preprocessing import StandardScaler

from downstream.ridge import ALPHAS, ridge


def _problem(count: int, features: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    people = np.sort(rng.integers(0, 8, count))
    x = (rng.normal(size=(8, features))[people] + rng.normal(size=(count, features))).astype(np.float32)
    weights = rng.normal(size=(features, 3))
    person = rng.normal(size=(8, 3))[people]  # what a leave-one-picture-out choice would learn by heart
    y = x @ weights + 5 * person + rng.normal(size=(count, 3)) + 10
    return x, {"a": y, "b": 100 * y[:, :1]}, people, rng.normal(size=(5, features)).astype(np.float32)


@pytest.mark.parametrize(("count", "features"), [(40, 6), (200, 6), (20, 50)])
def test_the_penalty_is_the_one_of_refitting_without_each_person(count: int, features: int) -> None:
    x, labels, people, test = _problem(count, features)
    fits = ridge(x, labels, people, test)
    x, test = x.astype(np.float64), test.astype(np.float64)
    scaler = StandardScaler().fit(x)
    for task, y in labels.items():
        scaled = (y - y.mean(axis=0)) / y.std(axis=0)
        errors = []
        for alpha in ALPHAS:
            squared = np.zeros_like(scaled)
            for train, out in LeaveOneGroupOut().split(x, groups=people):
                model = Ridge(alpha=alpha).fit(scaler.transform(x[train]), scaled[train])
                squared[out] = (
                    model.predict(scaler.transform(x[out])).reshape(len(out), -1) - scaled[out]
                ) ** 2
            errors.append(squared.mean())
        best = float(ALPHAS[int(np.argmin(errors))])
        assert fits[task].alpha == best
        expected = Ridge(alpha=best).fit(scaler.transform(x), y).predict(scaler.transform(test))
        np.testing.assert_allclose(fits[task].prediction, expected.reshape(5, -1), rtol=1e-6)


def test_with_one_picture_a_person_it_is_scikit_learns_ridgecv() -> None:
    x, labels, _, test = _problem(40, 6)
    x, test = x.astype(np.float64), test.astype(np.float64)
    scaler = StandardScaler().fit(x)
    fit = ridge(x, {"b": labels["b"]}, np.arange(40), test)["b"]
    theirs = RidgeCV(alphas=ALPHAS).fit(scaler.transform(x), labels["b"])
    assert fit.alpha == theirs.alpha_
    np.testing.assert_allclose(
        fit.prediction, theirs.predict(scaler.transform(test)).reshape(5, 1), rtol=1e-6
    )


def test_constant_labels_are_predicted() -> None:
    x, _, people, test = _problem(20, 6)
    fit = ridge(x, {"a": np.full((20, 2), 3.0)}, people, test)["a"]
    np.testing.assert_allclose(fit.prediction, 3.0)
