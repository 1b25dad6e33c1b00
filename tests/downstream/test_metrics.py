"""Every metric against an independent implementation, to 1e-6, on random and on degenerate input."""

from __future__ import annotations

import audmetric
import numpy as np
import pandas as pd
import pingouin
import pyarrow as pa
import pytest
import torch
from scipy.integrate import simpson
from scipy.stats import pearsonr
from sklearn.metrics import (
    accuracy_score,
    mean_absolute_error,
    mean_squared_error,
    recall_score,
    roc_auc_score,
    root_mean_squared_error,
)
from sklearn.neighbors import KNeighborsClassifier
from torchmetrics.functional import concordance_corrcoef, pearson_corrcoef
from torchmetrics.functional.classification import multiclass_accuracy

from configs import ConfigError
from downstream.tasks import make
from downstream.tasks.action_units import DISFA
from downstream.tasks.expression import Expression
from downstream.tasks.landmarks import Landmarks
from downstream.tasks.task import Task

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


def test_ccc_and_pcc_equal_audmetric_and_divide_by_n(rng: np.random.Generator) -> None:
    for count in (2, 5, 50, 1000):
        prediction, truth = _affect(rng, count)
        ours = make("affect").evaluate(prediction, truth)
        for i, name in enumerate(("valence", "arousal")):
            p, t = prediction[:, i], truth[:, i]
            assert ours[f"ccc_{name}"] == pytest.approx(audmetric.concordance_cc(t, p), abs=TOLERANCE)
            assert ours[f"pcc_{name}"] == pytest.approx(audmetric.pearson_cc(t, p), abs=TOLERANCE)
            unbiased = 2 * np.cov(p, t)[0, 1] / (p.var(ddof=1) + t.var(ddof=1) + (p.mean() - t.mean()) ** 2)
            theirs = float(concordance_corrcoef(torch.from_numpy(p), torch.from_numpy(t)))
            assert theirs == pytest.approx(unbiased, abs=TOLERANCE), "the other convention is another number"
            assert abs(ours[f"ccc_{name}"] - unbiased) < 2 / count


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


def test_sagr_counts_signs(rng: np.random.Generator) -> None:
    prediction, truth = (rng.choice([-0.5, 0, 0.5], (300, 2)) for _ in range(2))
    ours = make("affect").evaluate(prediction, truth)
    for i, name in enumerate(("valence", "arousal")):
        pairs = list(zip(prediction[:, i], truth[:, i], strict=True))
        agree = sum((p > 0 and t > 0) or (p < 0 and t < 0) or (p == 0 and t == 0) for p, t in pairs)
        assert ours[f"sagr_{name}"] == pytest.approx(agree / 300)


@pytest.mark.parametrize("classes", [7, 8])
def test_the_accuracy_beside_valence_and_arousal(classes: int, rng: np.random.Generator) -> None:
    task = make("affect", classes=classes)
    two, truth = _affect(rng)
    scores, label = rng.integers(0, 3, (200, classes)).astype(float), rng.integers(0, classes, 200)
    ours = task.evaluate(np.column_stack([two, scores]), np.column_stack([truth, label]))
    # Of equal scores the first counts.
    assert ours["accuracy"] == pytest.approx(100 * accuracy_score(label, scores.argmax(axis=1)))
    assert ours["ccc"] == make("affect").evaluate(two, truth)["ccc"]
    assert ours["rmse_arousal"] == pytest.approx(root_mean_squared_error(truth[:, 1], two[:, 1]))


def test_a_constant_prediction_has_no_association(rng: np.random.Generator) -> None:
    _, truth = _affect(rng)
    ours = make("affect").evaluate(np.full_like(truth, 0.3), truth)
    assert ours["ccc_valence"] == 0
    assert ours["pcc_valence"] == 0
    units = rng.uniform(0, 5, (50, 12))
    assert make("action_units").evaluate(np.full_like(units, 0.7), units)["icc"] == 0


def _icc(truth: np.ndarray, prediction: np.ndarray) -> float:
    """ICC(3,1) as pingouin has it, from a long table."""
    frame = pd.DataFrame(
        {
            "picture": np.tile(np.arange(len(truth)), 2),
            "rater": np.repeat(["labels", "network"], len(truth)),
            "score": np.concatenate([truth, prediction]),
        }
    )
    table = pingouin.intraclass_corr(frame, targets="picture", raters="rater", ratings="score")
    return float(table[table["Type"].isin(["ICC3", "ICC(C,1)"])]["ICC"].iloc[0])


@pytest.mark.parametrize(("units", "unknown"), [(DISFA, 0.0), ((6, 10, 12, 14, 17), 0.3)])
def test_action_units_equal_pingouin_and_scikit_learn(
    units: tuple[int, ...], unknown: float, rng: np.random.Generator
) -> None:
    truth = rng.uniform(0, 5, (60, len(units))).round()
    truth[rng.random(truth.shape) < unknown] = np.nan  # BP4D's 9
    truth[0] = 3
    prediction = np.clip(0.7 * np.nan_to_num(truth) + rng.normal(size=truth.shape), 0, 5)
    ours = make("action_units", units=units).evaluate(prediction, truth)
    theirs: dict[str, list[float]] = {"icc": [], "mae": [], "mse": []}
    for i, unit in enumerate(units):
        known = ~np.isnan(truth[:, i])
        assert known.all() == (unknown == 0)
        t, p = truth[known, i], prediction[known, i]
        theirs["icc"].append(_icc(t, p))
        theirs["mae"].append(mean_absolute_error(t, p))
        theirs["mse"].append(mean_squared_error(t, p))
        for name, values in theirs.items():
            assert ours[f"{name}_au{unit}"] == pytest.approx(values[-1], abs=TOLERANCE)
    for name, values in theirs.items():
        assert ours[name] == pytest.approx(np.mean(values), abs=TOLERANCE)


def test_icc_is_of_all_folds_together() -> None:
    """Not the mean of the folds: a fold in which a unit never shows has none."""
    truth = np.array([[0.0], [0], [0], [4], [5], [3]])
    prediction = np.array([[0.5], [0], [1], [4], [3], [3]])
    task = make("action_units", units=(12,))
    assert task.evaluate(prediction, truth)["icc"] == pytest.approx(_icc(truth[:, 0], prediction[:, 0]))
    with pytest.raises(ConfigError, match="the same label 'AU12'"):
        task.evaluate(prediction[:3], truth[:3])


@pytest.mark.parametrize("count", [2, 7, 8])
def test_expressions_equal_scikit_learn_and_torchmetrics(count: int, rng: np.random.Generator) -> None:
    task = Expression(classes=tuple(f"class{i}" for i in range(count)))
    truth = np.concatenate([np.arange(count), rng.integers(0, count, 90)])
    scores = rng.integers(0, 4, (len(truth), count)).astype(float)  # many ties: the first of them counts
    told = scores.argmax(axis=1)
    ours = task.evaluate(scores, truth[:, None].astype(float))
    each = recall_score(truth, told, average=None)
    assert ours["accuracy"] == pytest.approx(100 * accuracy_score(truth, told), abs=TOLERANCE)
    assert ours["class_accuracy"] == pytest.approx(100 * each.mean(), abs=TOLERANCE)
    for i in range(count):
        assert ours[f"accuracy_class{i}"] == pytest.approx(100 * each[i], abs=TOLERANCE)
    p, t = torch.from_numpy(told), torch.from_numpy(truth)
    for average, name in (("micro", "accuracy"), ("macro", "class_accuracy")):
        theirs = float(multiclass_accuracy(p, t, count, average=average))
        assert ours[name] == pytest.approx(100 * theirs, abs=1e-4)  # float32


def test_expressions_of_other_classes_are_unknown() -> None:
    labels = Expression(classes=("a", "b")).encode(pa.table({"expression": [0, 1, 2, None, -1]}))
    np.testing.assert_array_equal(labels[:, 0], [0, 1, np.nan, np.nan, np.nan])


def test_landmark_error_by_hand() -> None:
    truth = np.zeros((1, 68, 2))
    truth[0, 36], truth[0, 45] = (50, 100), (130, 160)  # 100 px apart
    truth[0, 8] = (90, 180)  # box 130 x 180
    prediction = truth + np.array([3, 4])  # every point 5 px off
    ours = make("landmarks").evaluate(prediction.reshape(1, -1), truth.reshape(1, -1))
    assert ours["nme"] == pytest.approx(5.0)
    assert ours["nme_box"] == pytest.approx(100 * 5 / np.sqrt(130 * 180))


CORNERS = {29: (8, 9), 68: (36, 45), 98: (60, 72)}
"""The outer corners of the eyes, counted from 0, as HRNet's evaluation has them."""


def _normaliser(name: str, points: np.ndarray, box: np.ndarray) -> float:
    """Of one picture, (K, 2), in words of the papers."""
    if name == "eye_corners":
        left, right = (points[i] for i in CORNERS[len(points)])
    elif name == "pupils" and len(points) == 68:
        left, right = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    elif name == "pupils":
        left, right = (points[i] for i in {29: (16, 17), 98: (96, 97)}[len(points)])
    else:
        if name == "points_box":
            known = points[~np.isnan(points).any(axis=1)]
            box = np.array([*known.min(axis=0), *known.max(axis=0)])
        width, height = box[2] - box[0], box[3] - box[1]
        return float((width**2 + height**2) ** 0.5 if name == "face_diagonal" else (width * height) ** 0.5)
    return float(np.sqrt(((left - right) ** 2).sum()))


@pytest.mark.parametrize(
    ("points", "normaliser", "threshold"),
    [
        (68, "eye_corners", 0.08),
        (68, "pupils", 0.1),
        (68, "points_box", 0.05),
        (98, "eye_corners", 0.1),
        (98, "pupils", 0.1),
        (29, "eye_corners", 0.1),
        (29, "pupils", 0.08),
        (19, "face_box", 0.07),
        (19, "face_diagonal", 0.07),
    ],
)
def test_landmarks(points: int, normaliser: str, threshold: float, rng: np.random.Generator) -> None:
    """NME by hand, failures by counting, AUC by Simpson's rule over the share of pictures with at most that error."""
    faces = "face" in normaliser
    also = ("points_box", "face_box" if normaliser == "face_diagonal" else "face_diagonal")
    also = also if faces else tuple({"points_box", "pupils"} - {normaliser})
    task = Landmarks(points=points, normaliser=normaliser, also=also, threshold=threshold)  # type: ignore[arg-type]
    truth = rng.uniform(40, 200, (50, points, 2))
    prediction = truth + rng.normal(size=truth.shape) * rng.uniform(0.5, 15, (50, 1, 1))
    corner = rng.uniform(20, 60, (50, 2))
    box = np.concatenate([corner, corner + rng.uniform(60, 160, (50, 2))], axis=1)
    if faces:
        truth[rng.random((50, points)) < 0.2] = np.nan  # AFLW's hidden points
    labels = np.concatenate([truth.reshape(50, -1), *([box] if faces else [])], axis=1)
    ours = task.evaluate(prediction.reshape(50, -1), labels)

    error = np.nanmean(np.sqrt(((prediction - truth) ** 2).sum(axis=2)), axis=1)
    for name in (normaliser, *also):
        nme = error / [_normaliser(name, *each) for each in zip(truth, box, strict=True)]
        key = "nme" if name == normaliser else f"nme_{name}".replace("points_", "")
        assert ours[key] == pytest.approx(100 * nme.mean(), abs=TOLERANCE)
    nme = error / [_normaliser(normaliser, *each) for each in zip(truth, box, strict=True)]
    assert 0 < ours["failures"] < 100
    assert ours["failures"] == pytest.approx(100 * sum(e > threshold for e in nme) / 50)
    at = np.arange(round(threshold * 1e4) + 1) / 1e4
    share = [(nme <= x).mean() for x in at]
    assert ours["auc"] == pytest.approx(100 * simpson(share, x=at) / threshold, abs=TOLERANCE)


def test_an_error_at_the_threshold_is_no_failure() -> None:
    truth = np.zeros((2, 68, 2))
    truth[:, 45, 0], truth[:, 8, 1] = 100, 100
    prediction = truth + np.array([[[10.0, 0]], [[10.000001, 0]]])
    ours = make("landmarks").evaluate(prediction.reshape(2, -1), truth.reshape(2, -1))
    assert ours["failures"] == 50
    exact = make("landmarks", threshold=0.07).evaluate(truth.reshape(2, -1), truth.reshape(2, -1))
    assert exact == {"nme": 0, "nme_box": 0, "failures": 0, "auc": pytest.approx(100)}


def test_landmarks_that_give_no_scale_are_refused() -> None:
    with pytest.raises(ConfigError, match="test picture 0 has its eye corners in one point"):
        make("landmarks").evaluate(np.ones((1, 136)), np.ones((1, 136)))
    line = np.stack([np.arange(68.0), np.ones(68)], axis=1).reshape(1, -1)
    with pytest.raises(ConfigError, match="test picture 0 has its box in one point or line"):
        make("landmarks").evaluate(line, line)
    assert make("landmarks", also=()).evaluate(line, line)["nme"] == 0
    for wrong, message in (
        ({"points": 19}, "19 points have no eye corners"),
        ({"points": 19, "normaliser": "face_box", "also": ("pupils",)}, "19 points have no pupils"),
        ({"normaliser": "points_box"}, "the same twice"),
    ):
        with pytest.raises(ValueError, match=message):
            make("landmarks", **wrong)


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


# --- input that has no answer, or only just ------------------------------------------------------------------

TASKS: dict[str, tuple[Task, int]] = {
    "landmarks": (make("landmarks"), 136),
    "landmarks19": (Landmarks(points=19, normaliser="face_box", also=()), 42),
    "pose": (make("pose"), 3),
    "affect": (make("affect"), 2),
    "affect8": (make("affect", classes=8), 3),
    "expression": (Expression(classes=("a", "b", "c")), 1),
    "action_units": (make("action_units", units=(6, 12)), 2),
    "recognition": (make("recognition"), 1),
}


def _labels(name: str, count: int, rng: np.random.Generator) -> np.ndarray:
    task, width = TASKS[name]
    labels = rng.uniform(-0.9, 0.9, (count, width))
    if name.startswith("landmarks"):
        labels = 100 + 90 * np.sort(labels, axis=1)
        labels[:, -4:] = [20, 20, 200, 200]
    if name in ("affect8", "expression"):
        labels[:, -1] = np.arange(count) % len(task.targets(labels)[0][2 if name == "affect8" else 0 :])
    if name == "action_units":
        labels = 2.5 + 2.5 * labels
    return np.arange(count)[:, None] // 2.0 if name == "recognition" else labels


@pytest.mark.parametrize("name", TASKS)
def test_every_value_is_a_number_or_refused(name: str, rng: np.random.Generator) -> None:
    """No metric is NaN without a word, whatever it is given."""
    task, _ = TASKS[name]
    labels = _labels(name, 24, rng)
    width = 5 if name == "recognition" else task.targets(labels).shape[1]
    predictions = {
        "random": rng.normal(size=(24, width)),
        "constant": np.ones((24, width)),
        "zero": np.zeros((24, width)),
        "tied": rng.integers(0, 2, (24, width)).astype(float),
        "large": 1e6 * rng.normal(size=(24, width)),
    }
    for kind, prediction in predictions.items():
        values = task.evaluate(prediction, labels)
        assert set(values) == {metric.name for metric in task.metrics}
        assert all(np.isfinite(value) for value in values.values()), kind
    for bad in (np.nan, np.inf, -np.inf):
        prediction = predictions["random"].copy()
        prediction[3, -1] = bad
        with pytest.raises(ConfigError, match=f"{task.name}: 1 predictions are not numbers"):
            task.evaluate(prediction, labels)
    unknown = labels.copy()
    unknown[5] = np.nan
    with pytest.raises(ConfigError, match=f"{task.name}: 1 test pictures lack a label"):
        task.evaluate(predictions["random"], unknown)
    with pytest.raises(ConfigError, match="no picture to test on"):
        task.evaluate(predictions["random"][:0], labels[:0])


@pytest.mark.parametrize("name", TASKS)
def test_one_picture_and_constant_labels(name: str, rng: np.random.Generator) -> None:
    task, _ = TASKS[name]
    labels = _labels(name, 24, rng)
    prediction = rng.normal(size=(24, 5 if name == "recognition" else task.targets(labels).shape[1]))
    for count in (1, 24):
        same = np.repeat(labels[:1], count, axis=0)
        if name.startswith("landmarks") or name == "pose":
            values = task.evaluate(prediction[:count], same)
            assert all(np.isfinite(value) for value in values.values())
            one = [task.evaluate(prediction[[i]], same[:1])[task.metrics[0].name] for i in range(count)]
            assert values[task.metrics[0].name] == pytest.approx(np.mean(one))
        else:
            with pytest.raises(ConfigError, match=r"same label|no test picture shows|two test pictures"):
                task.evaluate(prediction[:count], same)


def test_labels_are_read_or_refused() -> None:
    kind = pa.list_(pa.float32(), 136)
    nobody = pa.table({"landmarks68": pa.array([None, None], kind)})
    assert make("landmarks").encode(nobody).shape == (2, 136)
    some = pa.table({"landmarks68": pa.array([[float(i) for i in range(135)] + [None], None], kind)})
    labels = make("landmarks").encode(some)
    assert (np.isnan(labels).sum(axis=1) == [1, 136]).all()
    assert make("landmarks").usable(labels).tolist() == [True, False]
    for name, column, values, message in (
        ("landmarks", "landmarks68", [[1.0] * 10], "'landmarks68' have 10 numbers a picture instead of 136"),
        ("pose", "pose", [[1.0, 2]], "'pose' have 2 numbers a picture instead of 3"),
        ("expression", "expression", [[0.0, 1]], "'expression' have 2 numbers a picture instead of 1"),
        ("action_units", "action_units", [[1.0, 2], [1.0]], "'action_units' are neither numbers nor lists"),
        ("expression", "expression", ["happy"], "'expression' are neither numbers nor lists"),
        ("pose", "pose", [["left", "up", "down"]], "'pose' are neither numbers nor lists"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(name).encode(pa.table({column: values}))


def test_two_pictures_are_enough_for_a_correlation() -> None:
    truth, prediction = np.array([[0.1, -0.5], [0.3, 0.5]]), np.array([[0.2, 0.4], [0.4, -0.4]])
    ours = make("affect").evaluate(prediction, truth)
    assert ours["pcc_valence"] == pytest.approx(1)
    assert ours["pcc_arousal"] == pytest.approx(-1)
    assert ours["ccc_valence"] == pytest.approx(2 * 0.01 / (0.02 + 0.01))


def test_rounding_is_no_variance(rng: np.random.Generator) -> None:
    """A constant prediction that float32 cannot hold, a small variance about a large mean."""
    truth = rng.uniform(-1, 1, (1000, 2))
    assert make("affect").evaluate(np.full((1000, 2), np.float64(np.float32(0.1))), truth)["pcc_valence"] == 0
    units = 4.9 + 1e-3 * rng.normal(size=(400, 2))
    prediction = units + 1e-3 * rng.normal(size=units.shape)
    ours = make("action_units", units=(6, 12)).evaluate(prediction, units)
    assert ours["icc_au6"] == pytest.approx(_icc(units[:, 0], prediction[:, 0]), abs=TOLERANCE)


def test_recognition_with_ties_and_strangers(rng: np.random.Generator) -> None:
    """Equal cosines share their ranks; people with one picture are nobody's mate."""
    features = np.eye(3)[rng.integers(0, 3, 30)]  # cosines of exactly 0 and 1
    people = np.concatenate([np.repeat(np.arange(5), 4), 100 + np.arange(10)])
    areas = []
    for i in range(20):
        others = np.arange(30) != i
        areas.append(roc_auc_score(people[others] == people[i], features[others] @ features[i]))
    ours = make("recognition").evaluate(features, people[:, None].astype(float))
    assert ours["auc"] == pytest.approx(100 * np.mean(areas), abs=TOLERANCE)


def test_pose_equals_the_angle_on_the_circle(rng: np.random.Generator) -> None:
    prediction, truth = rng.uniform(-360, 360, (2, 200, 3))
    turned = np.exp(1j * np.radians(prediction - truth))
    expected = np.abs(np.degrees(np.angle(turned))).mean(axis=0)
    ours = make("pose").evaluate(prediction, truth)
    assert [ours[f"mae_{name}"] for name in ("yaw", "pitch", "roll")] == pytest.approx(expected.tolist())
    assert ours["mae"] == pytest.approx(expected.mean())
