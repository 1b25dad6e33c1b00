"""Losses and decoding against direct computations in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from downstream.heads import LinearHead
from downstream.tasks import make
from downstream.tasks.affect import AffectHead, concordance
from downstream.tasks.expression import ClassHead
from downstream.tasks.landmarks import HeatmapHead, Landmarks, _mean, _quarter


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


# --- vectors -------------------------------------------------------------------------------------------------


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return (
        logits
        - logits.max(axis=1, keepdims=True)
        - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    )


@pytest.mark.parametrize("classes", [0, 7, 8])
def test_the_loss_of_affect(classes: int, rng: np.random.Generator) -> None:
    truth = rng.uniform(-1, 1, (32, 2))
    outputs = np.concatenate([0.5 * truth + rng.normal(size=(32, 2)), rng.normal(size=(32, classes))], axis=1)
    label = rng.integers(0, max(1, classes), 32)
    expected = 0.0
    for p, t in zip(outputs.T[:2], truth.T, strict=True):
        ccc = 2 * np.cov(p, t, ddof=0)[0, 1] / (p.var() + t.var() + (p.mean() - t.mean()) ** 2)
        expected += math.sqrt(np.mean((p - t) ** 2)) + 1 - ccc
    if classes:
        expected -= _log_softmax(outputs[:, 2:])[np.arange(32), label].mean()
        truth = np.column_stack([truth, label])
    head = AffectHead(8, truth, classes)
    ours = head.loss(torch.from_numpy(outputs), torch.from_numpy(truth))
    assert float(ours) == pytest.approx(expected, abs=1e-6)


def test_the_slope_of_the_loss_of_affect(rng: np.random.Generator) -> None:
    """Also where it has a corner: at no error, and where nothing varies."""
    truth = torch.from_numpy(rng.uniform(-1, 1, (8, 2)))
    head = AffectHead(8, truth.numpy(), 0)
    outputs = torch.from_numpy(rng.normal(size=(8, 2))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: head.loss(x, truth), outputs)
    for same in (truth.clone(), torch.zeros_like(truth), torch.ones_like(truth)):
        same.requires_grad_()
        for target in (truth, torch.zeros_like(truth)):
            loss = head.loss(same, target)
            (slope,) = torch.autograd.grad(loss, same)
            assert torch.isfinite(loss)
            assert torch.isfinite(slope).all()
    assert concordance(torch.ones(4, 1), torch.ones(4, 1)).item() == 0


def test_the_loss_of_expressions(rng: np.random.Generator) -> None:
    logits, label = rng.normal(size=(20, 7)), rng.integers(0, 7, 20)
    head = ClassHead(8, label[:, None].astype(float), 7)
    ours = head.loss(torch.from_numpy(logits), torch.from_numpy(label[:, None].astype(float)))
    assert float(ours) == pytest.approx(-_log_softmax(logits)[np.arange(20), label].mean())


def test_the_loss_of_a_linear_head_passes_over_the_unknown(rng: np.random.Generator) -> None:
    targets = rng.uniform(0, 5, (40, 5)) * [1, 1, 1, 1, 0]  # the last unit never shows
    truth = rng.uniform(0, 5, (12, 5))
    truth[rng.random(truth.shape) < 0.3] = np.nan
    outputs = rng.normal(size=(12, 5))
    scale = np.where(targets.std(axis=0) > 0, targets.std(axis=0), 1)
    expected = np.nanmean(((outputs - truth) / scale) ** 2)
    head = LinearHead(8, targets, 0, 5)
    given = torch.tensor(outputs, dtype=torch.float32, requires_grad=True)
    loss = head.loss(given, torch.tensor(truth, dtype=torch.float32))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    (slope,) = torch.autograd.grad(loss, given)
    assert torch.equal(slope == 0, torch.from_numpy(np.isnan(truth)))
    nothing = head.loss(given, torch.full((12, 5), torch.nan))
    assert float(nothing) == 0


# --- heat maps -----------------------------------------------------------------------------------------------


def _gaussians(points: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """(..., 2) in map px, a pixel's middle at .5 -> (..., h, w)."""
    height, width = size
    maps = np.zeros((*points.shape[:-1], height, width))
    for at in np.ndindex(points.shape[:-1]):
        x, y = points[at]
        for row in range(height):
            for column in range(width):
                distance = (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2
                maps[(*at, row, column)] = math.exp(-distance / (2 * sigma**2))
    return maps


@pytest.mark.parametrize(("points", "normaliser"), [(19, "face_box"), (29, "eye_corners"), (68, "pupils")])
def test_the_loss_of_heat_maps(points: int, normaliser: str, rng: np.random.Generator) -> None:
    task = Landmarks(points=points, normaliser=normaliser, also=(), sigma=1.5, channels=4)  # type: ignore[arg-type]
    truth = rng.uniform(-10, 266, (3, points, 2))  # some lie outside after an augmentation
    truth[0, 3], truth[1, 5, 1] = np.nan, np.nan
    outputs = rng.normal(size=(3, points, 12, 16))
    labels = truth.reshape(3, -1)
    if normaliser == "face_box":
        labels = np.concatenate([labels, rng.uniform(0, 256, (3, 4))], axis=1)
    wanted = _gaussians(truth * [16 / 256, 12 / 256], (12, 16), 1.5)
    known = ~np.isnan(truth).any(axis=2)
    expected = np.mean([((outputs[i, k] - wanted[i, k]) ** 2).sum() for i, k in np.argwhere(known)])
    head = HeatmapHead([4, 4, 4, 4], task)
    given = torch.from_numpy(outputs).requires_grad_()
    loss = head.loss(given, torch.from_numpy(labels))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    (slope,) = torch.autograd.grad(loss, given)
    assert torch.isfinite(slope).all()
    assert not slope[0, 3].any()
    assert not slope[1, 5].any()


def _peak(heat: np.ndarray) -> tuple[int, int]:
    return divmod(int(heat.argmax()), heat.shape[1])


def _quarter_by_hand(heat: np.ndarray) -> list[float]:
    row, column = _peak(heat)
    x, y = column + 0.5, row + 0.5
    if 0 < column < heat.shape[1] - 1:
        x += 0.25 * np.sign(heat[row, column + 1] - heat[row, column - 1])
    if 0 < row < heat.shape[0] - 1:
        y += 0.25 * np.sign(heat[row + 1, column] - heat[row - 1, column])
    return [x, y]


def _mean_by_hand(heat: np.ndarray, reach: int) -> list[float]:
    row, column = _peak(heat)
    total = x = y = 0.0
    high, wide = min(reach, row, heat.shape[0] - 1 - row), min(reach, column, heat.shape[1] - 1 - column)
    for r in range(row - high, row + high + 1):
        for c in range(column - wide, column + wide + 1):
            weight = max(0.0, heat[r, c])
            total, x, y = total + weight, x + weight * (c + 0.5), y + weight * (r + 0.5)
    return [x / total, y / total] if total else [column + 0.5, row + 0.5]


def test_both_readings_of_random_maps(rng: np.random.Generator) -> None:
    heat = rng.normal(size=(40, 5, 7, 9))  # small, so that many maxima are at a border
    heat[0, 0] = -1 - np.arange(63).reshape(7, 9)  # nothing is positive
    heat[0, 1] = 0  # nothing at all: the first pixel
    given = torch.from_numpy(heat)
    borders = {(_peak(h)[0] in (0, 6)) + 2 * (_peak(h)[1] in (0, 8)) for h in heat.reshape(-1, 7, 9)}
    assert borders == {0, 1, 2, 3}
    for ours, by_hand in (
        (_quarter(given), _quarter_by_hand),
        (_mean(given, 2), lambda h: _mean_by_hand(h, 2)),
        (_mean(given, 3), lambda h: _mean_by_hand(h, 3)),
    ):
        expected = np.array([[by_hand(h) for h in picture] for picture in heat])
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_a_rendered_gaussian_is_read_where_it_is(sigma: float, rng: np.random.Generator) -> None:
    """To a tenth of a pixel of the map by 'mean', to a quarter by 'quarter'."""
    task = Landmarks(sigma=sigma, channels=4)
    head = HeatmapHead([4, 4, 4, 4], task)
    points = rng.uniform(6, 26, (2, 68, 2))  # away from the border, which cuts a Gaussian off
    maps = torch.from_numpy(_gaussians(points, (32, 32), sigma))
    found = head.predict(maps).reshape(2, 68, 2).numpy() * 32 / 256
    assert np.abs(found - points).max() < 0.1
    head.task = task.model_copy(update={"decode": "quarter"})
    found = head.predict(maps).reshape(2, 68, 2).numpy() * 32 / 256
    assert np.abs(found - points).max() <= 0.25 + 1e-9


@pytest.mark.parametrize("sigma", [1.0, 1.5])
def test_near_the_border_nothing_pulls_inwards(sigma: float) -> None:
    points = np.zeros((1, 68, 2)) + 16
    points[0, :5, 0] = [0.5, 1.2, 1.5, 2.0, 31.5]
    head = HeatmapHead([4, 4, 4, 4], Landmarks(sigma=sigma, channels=4))
    maps = torch.from_numpy(_gaussians(points, (32, 32), sigma))
    found = head.predict(maps).reshape(1, 68, 2).numpy() * 32 / 256
    assert np.abs(found - points).max() < 0.25 * sigma, "of a map pixel; unaided it would be .5 and .9"


def test_a_unit_that_no_training_picture_knows_spoils_no_other(rng: np.random.Generator) -> None:
    targets = rng.uniform(0, 5, (8, 3))
    targets[:, 1] = np.nan
    head = LinearHead(4, targets)
    outputs = head([torch.from_numpy(rng.normal(size=(8, 4, 2, 2))).float()])
    loss = head.loss(outputs, torch.from_numpy(targets).float())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(head.linear.weight.grad).all()
    assert torch.isfinite(outputs).all()


def test_a_linear_head_beside_an_annotated_box(rng: np.random.Generator) -> None:
    """A label of AFLW is longer than its prediction: the box is only a measure."""
    task = make("landmarks", points=19, normaliser="face_box", head_kind="linear")
    labels = rng.uniform(40, 200, (8, 42))
    head = task.head([4, 4, 4, 4], labels)
    outputs = head([torch.from_numpy(rng.normal(size=(8, 4, 2, 2))).float()] * 4)
    assert outputs.shape == (8, 38)
    scaled = (outputs.detach().numpy() - labels[:, :38]) / labels[:, :38].std(axis=0)
    loss = head.loss(outputs, torch.from_numpy(labels).float())
    assert float(loss) == pytest.approx((scaled**2).mean(), rel=1e-5)


def test_what_is_drawn_is_read_back(rng: np.random.Generator) -> None:
    """Loss and reading mean the same place: the loss at a map of the truth is nothing, on maps of any side."""
    for task in (make("landmarks", channels=4), make("landmarks", channels=4, sigma=1.5)):
        labels = torch.from_numpy(rng.uniform(40, 216, (2, 136)))
        head = task.head([4, 4, 4, 4], labels.numpy())
        assert isinstance(head, HeatmapHead)
        maps = torch.zeros(2, 68, 64, 48, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(head.loss(maps, labels), maps)
        wanted = -slope / 2 * 136
        assert float(head.loss(wanted, labels)) == pytest.approx(0, abs=1e-20)
        assert (head.predict(wanted) - labels).abs().max() < 0.1 * 256 / 48
