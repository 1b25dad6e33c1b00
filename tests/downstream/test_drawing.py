"""What is drawn is where it belongs, in the measure of the face; what stands beside a face leaves it alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from downstream import drawing
from downstream.tasks import make

FACE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))


@pytest.mark.parametrize("zoom", [0.5, 1.0, 4.0])
def test_points_are_where_they_belong_and_grow_with_the_face(zoom: float) -> None:
    affine = np.array([[1 / zoom, 0, -100 / zoom], [0, 1 / zoom, -50 / zoom]])
    picture = Image.new("RGB", (1400, 1400))
    prediction = np.full(136, 128.0)
    make("landmarks").mark(picture, prediction, affine)
    lit = np.asarray(picture).sum(axis=2) > 0
    y, x = np.nonzero(lit)
    centre = np.array([x.mean(), y.mean()]) + 0.5
    np.testing.assert_allclose(centre, [100 + 128 * zoom, 50 + 128 * zoom], atol=0.3)
    assert np.ptp(x) + 1 == pytest.approx(2 * 2.7 * zoom, abs=1.5)
    red, _, blue = np.asarray(picture, int)[int(centre[1]), int(centre[0])]
    assert blue - red > 100


def test_a_turned_crop_turns_the_axes() -> None:
    quarter = np.array(
        [[0.0, 1.0, 0.0], [-1.0, 0.0, 256.0]]
    )  # the crop shows the picture turned by 90 degrees
    drawn = [Image.new("RGB", (256, 256)) for _ in range(2)]
    pose = np.array([30.0, 10.0, 0.0])
    make("pose").mark(drawn[0], pose, np.eye(2, 3))
    make("pose").mark(drawn[1], pose, quarter)
    # As turning the drawing itself: crop (x, y) = picture (y, 256 - x).
    turned = np.asarray(drawn[0].transpose(Image.Transpose.ROTATE_270), int)
    assert np.abs(turned - np.asarray(drawn[1], int)).mean() < 1
    assert turned.any()


def test_labels_do_not_cover_faces() -> None:
    # Close together, and at the picture's edge: above the first row and left of the first column is no room.
    boxes = [
        (4.0 + 130 * i, 4.0 + 150 * j, 104.0 + 130 * i, 124.0 + 150 * j) for j in range(2) for i in range(3)
    ]
    picture = Image.new("RGB", (400, 320), (200, 100, 100))
    drawing.mark_faces(picture, boxes)
    pixels = np.asarray(picture)
    for x0, y0, x1, y1 in boxes:
        inside = pixels[int(y0) + 3 : int(y1) - 3, int(x0) + 3 : int(x1) - 3]
        assert (inside == (200, 100, 100)).all()
    dark = (pixels == drawing.SHADE).all(axis=2).sum()
    bare = Image.new("RGB", (400, 320), (200, 100, 100))
    for box in boxes:
        drawing.mark_faces(bare, [box])
    assert dark > (np.asarray(bare) == drawing.SHADE).all(axis=2).sum() + 6 * 100  # six numbers


def test_points_beside_the_picture_and_unknown_ones_are_left_out() -> None:
    picture = Image.new("RGB", (64, 64))
    drawing.mark_points(picture, np.array([[-500.0, -500.0], [np.nan, 3.0]]))
    assert not np.asarray(picture).any()


@pytest.mark.parametrize(
    ("name", "prediction", "truth"),
    [
        ("action_units", np.linspace(0, 5, 12), np.r_[np.nan, np.arange(11) / 3]),
        ("affect", np.array([0.5, -0.25]), np.array([-1.0, 1.0])),
        ("expression", np.arange(8.0) / 7, np.array([3.0])),
    ],
)
def test_what_stands_beside_a_face_leaves_it_alone(
    name: str, prediction: np.ndarray, truth: np.ndarray
) -> None:
    task = make(name)
    bare, known = task.draw(FACE, prediction), task.draw(FACE, prediction, truth)
    twice = task.draw(bare, prediction)
    assert bare.size == known.size
    assert twice.width - bare.width == bare.width - 256 > 150
    for drawn in (bare, known, twice):
        np.testing.assert_array_equal(np.asarray(drawn)[:256, :256], np.asarray(FACE))
    beside = [np.asarray(drawn, int)[:, 256:] for drawn in (bare, known)]
    assert (np.abs(beside[0] - drawing.PREDICTED).max(axis=2) == 0).sum() > 50
    assert (beside[0] != beside[1]).any(), "what is true is not shown"


@pytest.mark.parametrize(("name", "size"), [("landmarks", 136), ("pose", 3)])
def test_what_lies_on_a_face_stays_on_it(name: str, size: int) -> None:
    rng = np.random.default_rng(1)
    prediction, truth = rng.uniform(40, 80, (2, size))
    before = np.asarray(FACE).copy()
    drawn = make(name).draw(FACE, prediction, truth)
    assert drawn.size == FACE.size
    changed = (np.asarray(drawn) != before).any(axis=2)
    assert 0 < changed.sum() < changed.size / 3
    np.testing.assert_array_equal(np.asarray(FACE), before)
    assert (np.asarray(drawn)[changed] == drawing.TRUE).all(axis=1).any()
    wide = Image.new("RGB", (500, 256))
    wide.paste(FACE)
    np.testing.assert_array_equal(
        np.asarray(make(name).draw(wide, prediction, truth))[:, :256], np.asarray(drawn)
    )


def test_a_sheet_holds_every_tile() -> None:
    tiles = [(str(i), Image.new("RGB", (100, 60), (i, 0, 255 - i))) for i in range(1, 8)]
    pixels = np.asarray(drawing.sheet(tiles, widest=400))
    assert pixels.shape[1] <= 400
    for i in range(1, 8):
        assert (pixels == (i, 0, 255 - i)).all(axis=2).sum() == 100 * 60


def test_errors_of_single_pictures() -> None:
    one = np.ones((1, 1))
    points = np.full((1, 68, 2), 50.0)
    points[0, [36, 45], 0] = (40, 60)
    points[0, 8, 1] = 90
    shifted = (points + np.array([3, 4])).reshape(1, -1)
    assert make("landmarks").errors(shifted, points.reshape(1, -1)) == pytest.approx([25.0])
    assert make("pose").errors(np.array([[170.0, 3, 0]]), np.array([[-170.0, 0, 1]])) == pytest.approx([8.0])
    assert make("affect", classes=7).errors(np.r_[0.5, 0, np.zeros(7)][None], np.array([[0.0, 0.1, 2]])) == (
        pytest.approx([0.3])
    )
    units = np.r_[np.nan, np.zeros(11)][None]
    assert make("action_units").errors(np.full((1, 12), 2.0), units) == pytest.approx([2.0])
    expression = make("expression")
    assert expression.errors(expression.shown(np.zeros((1, 8)), regressed=False), one) == pytest.approx(
        [87.5]
    )
    # The linear readout's scores are no logits: .9 at the true class is nearly right.
    scores = np.array(
        [[-0.2, 0.9, 0.1, 0, 0, 0, 0, 0], [0.5, 1.2, 0, 0, 0, 0, 0, 0], [1, -0.1, 0, 0, 0, 0, 0, 0]]
    )
    shown = expression.shown(scores, regressed=True)
    assert expression.errors(shown, one.repeat(3, axis=0)) == pytest.approx([10, 0, 100])
    assert (shown.min(), shown.max()) == (0, 1)
