"""Every metric against an independent implementation, to 1e-6."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pingouin
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, roc_auc_score, root_mean_squared_error
from sklearn.neighbors import KNeighborsClassifier
from torchmetrics.functional import concordance_corrcoef, pearson_corrcoef

from configs import ConfigError
from downstream.tasks import make
from downstream.tasks.action_units import DISFA

TOLERANCE = 1e-6


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _affect(rng: np.random.Generator, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    truth = rng.uniform(-1, 1, (count, 2))
    return np.clip(0.6 * truth + 0.1 + 0.3 * rng.normal(size=truth.shape), -1, 1), truth


def test_ccc_and_pcc_equal_torchmetrics(rng: np.random.Generator) -> None:
    prediction, truth = _affect(rng)
    ours = make("affect").evaluate(prediction, truth)
    # torchmetrics divides by n - 1; over many copies of the same pictures that is a division by n.
    p, t = (torch.from_numpy(np.tile(values, (20_000, 1))) for values in (prediction, truth))
    for i, name in enumerate(("valence", "arousal")):
        assert ours[f"ccc_{name}"] == pytest.approx(
            float(concordance_corrcoef(p[:, i], t[:, i])), abs=TOLERANCE
        )
        assert ours[f"pcc_{name}"] == pytest.approx(float(pearson_corrcoef(p[:, i], t[:, i])), abs=TOLERANCE)
        assert ours[f"pcc_{name}"] == pytest.approx(pearsonr(prediction[:, i], truth[:, i])[0], abs=TOLERANCE)
    assert ours["ccc"] == pytest.approx((ours["ccc_valence"] + ours["ccc_arousal"]) / 2)


def test_ccc_of_a_worked_example() -> None:
    truth = np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])
    ours = make("affect").evaluate(truth + 0.05, truth)
    variance = 0.02 / 3
    assert ours["ccc_valence"] == pytest.approx(2 * variance / (2 * variance + 0.05**2))
    assert ours["pcc_valence"] == pytest.approx(1)


def test_rmse_and_sagr(rng: np.random.Generator) -> None:
    prediction, truth = _affect(rng)
    ours = make("affect").evaluate(prediction, truth)
    assert ours["rmse_valence"] == pytest.approx(
        root_mean_squared_error(truth[:, 0], prediction[:, 0]), abs=TOLERANCE
    )
    signs = np.array([[0.0, 0.5], [0.2, -0.5], [-0.1, 0.0], [0.0, 0.0]])
    ours = make("affect").evaluate(signs[:, :1].repeat(2, axis=1), signs[:, 1:].repeat(2, axis=1))
    assert ours["sagr_valence"] == 0.25  # zero agrees with zero only


def test_a_constant_prediction_has_no_association(rng: np.random.Generator) -> None:
    _, truth = _affect(rng)
    ours = make("affect").evaluate(np.full_like(truth, 0.3), truth)
    assert ours["ccc_valence"] == 0
    assert ours["pcc_valence"] == 0
    units = rng.uniform(0, 5, (50, 12))
    assert make("action_units").evaluate(np.full_like(units, 0.7), units)["icc"] == 0


def test_icc_equals_pingouin(rng: np.random.Generator) -> None:
    truth = rng.uniform(0, 5, (60, 12)).round()
    prediction = np.clip(0.7 * truth + rng.normal(size=truth.shape), 0, 5)
    ours = make("action_units").evaluate(prediction, truth)
    theirs = []
    for i, unit in enumerate(DISFA):
        frame = pd.DataFrame(
            {
                "picture": np.tile(np.arange(60), 2),
                "rater": np.repeat(["labels", "network"], 60),
                "score": np.concatenate([truth[:, i], prediction[:, i]]),
            }
        )
        table = pingouin.intraclass_corr(frame, targets="picture", raters="rater", ratings="score")
        consistency = table[table["Type"].isin(["ICC3", "ICC(C,1)"])]
        theirs.append(float(consistency["ICC"].iloc[0]))
        assert ours[f"icc_au{unit}"] == pytest.approx(theirs[-1], abs=TOLERANCE)
        assert ours[f"mae_au{unit}"] == pytest.approx(mean_absolute_error(truth[:, i], prediction[:, i]))
    assert ours["icc"] == pytest.approx(np.mean(theirs), abs=TOLERANCE)


def test_landmark_error_by_hand() -> None:
    truth = np.zeros((1, 68, 2))
    truth[0, 36], truth[0, 45] = (50, 100), (130, 160)  # 100 px apart
    truth[0, 8] = (90, 180)  # box 130 x 180
    prediction = truth + np.array([3, 4])  # every point 5 px off
    ours = make("landmarks").evaluate(prediction.reshape(1, -1), truth.reshape(1, -1))
    assert ours["nme"] == pytest.approx(5.0)
    assert ours["nme_box"] == pytest.approx(100 * 5 / np.sqrt(130 * 180))


def test_landmarks_in_one_point_are_refused() -> None:
    with pytest.raises(ConfigError, match="eye corners"):
        make("landmarks").evaluate(np.ones((1, 136)), np.ones((1, 136)))


def test_pose_error_takes_the_short_way_round() -> None:
    ours = make("pose").evaluate(np.array([[10.0, -5.0, 179.0]]), np.array([[-10.0, 0.0, -179.0]]))
    assert ours == {"mae": 9.0, "mae_yaw": 20.0, "mae_pitch": 5.0, "mae_roll": 2.0}


def test_pose_error_equals_scikit_learn(rng: np.random.Generator) -> None:
    prediction, truth = rng.uniform(-60, 60, (2, 40, 3))
    assert make("pose").evaluate(prediction, truth)["mae"] == pytest.approx(
        mean_absolute_error(truth, prediction), abs=TOLERANCE
    )


def test_identity_equals_scikit_learn(rng: np.random.Generator) -> None:
    people = np.repeat(np.arange(10), 4)
    features = rng.normal(size=(10, 8))[people] + rng.normal(size=(40, 8))
    ours = make("recognition").evaluate(features, people[:, None].astype(float))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    hits, areas = [], []
    for i in range(40):
        others = np.arange(40) != i
        neighbour = KNeighborsClassifier(1, metric="cosine").fit(features[others], people[others])
        hits.append(neighbour.predict(features[[i]])[0] == people[i])
        areas.append(roc_auc_score(people[others] == people[i], unit[others] @ unit[i]))
    assert ours["rank1"] == pytest.approx(100 * np.mean(hits))
    assert ours["auc"] == pytest.approx(100 * np.mean(areas), abs=TOLERANCE)


def test_identity_leaves_out_people_with_one_picture(rng: np.random.Generator) -> None:
    people = np.array([0, 0, 1, 1, 2])[:, None].astype(float)
    features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 1]])
    assert make("recognition").evaluate(features, people) == {"rank1": 100.0, "auc": 100.0}
    with pytest.raises(ConfigError, match="two test pictures"):
        make("recognition").evaluate(features[::2], people[::2])
