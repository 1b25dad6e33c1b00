"""The ground truth of synthetic faces agrees with what is drawn."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from configs import ConfigError, load
from data_prep.synthetic import (
    Face,
    Picture,
    SyntheticConfig,
    photograph,
    portrait,
    triangles,
    valence_arousal,
    vertices,
)
from data_prep.synthetic.affect import COMBINATIONS
from data_prep.synthetic.fields import ACTION_UNITS
from data_prep.synthetic.landmarks import landmark_vertices
from data_prep.synthetic.model import deform, head
from data_prep.synthetic.render import PIVOT, rotation

PLAIN = SyntheticConfig(occlusion=0.0)
WIDE = SyntheticConfig(yaw=80.0, occlusion=0.0)
SCENE = SyntheticConfig(mode="photograph", width=320, height=240)


@pytest.fixture(scope="module")
def portraits() -> list[Picture]:
    return [portrait(5, index, PLAIN) for index in range(48)]


@pytest.fixture(scope="module")
def turned() -> list[Face]:
    return [portrait(6, index, WIDE).faces[0] for index in range(60)]


def fingerprint(pictures: list[Picture]) -> str:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(picture.image.tobytes())
        for face in picture.faces:
            digest.update(face.landmarks68.tobytes() + face.visible68.tobytes() + face.shape.tobytes())
    return digest.hexdigest()


def test_pictures_follow_from_seed_and_index_alone() -> None:
    """Another process, which draws them in another order, gets the same bytes."""
    here = fingerprint([portrait(1, 7, PLAIN), photograph(1, 3, SCENE)])
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_synthetic as t\n"
        "second, first = t.photograph(1, 3, t.SCENE), t.portrait(1, 7, t.PLAIN)\n"
        "print(t.fingerprint([first, second]))"
    )
    command = [sys.executable, "-c", script, __file__.rpartition("/")[0]]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert there == here
    assert fingerprint([portrait(1, 8, PLAIN)]) != fingerprint([portrait(1, 7, PLAIN)])


def test_landmarks_are_projections_of_the_mesh(portraits: list[Picture]) -> None:
    """Some pinhole camera on the picture's axis maps the posed vertices(face) to the landmarks exactly."""
    for picture in portraits[:12]:
        face = picture.faces[0]
        points = vertices(face)[landmark_vertices()].astype(np.float64)
        x, y, z = ((points - PIVOT) @ rotation(face.pose).T.astype(np.float64) + PIVOT).T
        u, v = (face.landmarks68.astype(np.float64) - picture.image.shape[0] / 2).T
        one, zero = np.ones(68), np.zeros(68)
        # u (D - z) = f x + f X and -v (D - z) = f y + f Y are linear in D, f, f X, f Y.
        rows = np.concatenate([np.stack([u, -x, -one, zero], 1), np.stack([-v, -y, zero, -one], 1)])
        camera = np.linalg.lstsq(rows, np.concatenate([u * z, -v * z]), rcond=None)[0]
        distance, focal, right, up = camera
        depth = distance - z
        error = np.hypot((focal * x + right) / depth - u, (focal * y + up) / depth + v)
        assert error.max() < 0.02, error.max()
        assert distance > 30


def test_the_box_holds_the_landmarks(portraits: list[Picture]) -> None:
    for picture in portraits:
        face = picture.faces[0]
        width, height = face.box[2:] - face.box[:2]
        margin = 0.06 * np.array([width, height])
        inside = face.landmarks68[face.visible68]
        assert (inside > face.box[:2] - margin).all()
        assert (inside < face.box[2:] + margin).all()
        assert 0.35 < height / picture.image.shape[0] < 0.85
        assert 0.5 < width / height < 1.1


def test_order_of_the_landmarks(portraits: list[Picture]) -> None:
    for face in (p.faces[0] for p in portraits if abs(p.faces[0].pose[0]) < 20):
        left_eye, right_eye, nose, left_corner, right_corner = face.landmarks5
        assert left_eye[0] < nose[0] < right_eye[0]
        assert left_corner[0] < right_corner[0]
        assert left_eye[1] < nose[1] < left_corner[1]
        points = face.landmarks68
        assert points[0, 0] < points[8, 0] < points[16, 0]
        assert points[36:42, 0].mean() == pytest.approx(left_eye[0], abs=4)
        np.testing.assert_array_equal(points[[30, 48, 54]], face.landmarks5[2:])


def displaced(unit: int) -> np.ndarray:
    """(68, 3) cm: how the landmarks of the mean head move with one action unit at full intensity."""
    units = np.zeros(12, np.float32)
    neutral = deform(np.zeros(len(head().identity), np.float32), units)
    units[ACTION_UNITS.index(unit)] = 5
    moved = deform(np.zeros(len(head().identity), np.float32), units)
    return (moved - neutral)[landmark_vertices()]


def test_action_units_move_what_they_are_named_after() -> None:
    assert (displaced(1)[[21, 22], 1] > 0.5).all()  # inner brows up
    assert (displaced(2)[[18, 25], 1] > 0.5).all()  # outer brows up
    assert (displaced(4)[[21, 22], 1] < -0.5).all()  # brows down and together
    assert displaced(4)[21, 0] > 0 > displaced(4)[22, 0]
    assert (displaced(5)[[37, 38, 43, 44], 1] > 0.2).all()  # upper lids up
    assert (displaced(6)[[40, 41, 46, 47], 1] > 0.15).all()  # lower lids up
    assert (displaced(9)[[31, 35], 1] > 0.25).all()  # wings of the nose up
    assert (displaced(12)[[48, 54], 1] > 0.7).all()  # corners of the mouth up and apart
    assert displaced(12)[48, 0] < -0.5
    assert displaced(12)[54, 0] > 0.5
    assert (displaced(15)[[48, 54], 1] < -0.6).all()  # corners down
    assert displaced(17)[57, 1] > 0.2  # lower lip up
    assert displaced(20)[54, 0] > 0.7  # corners apart
    assert displaced(25)[62, 1] - displaced(25)[66, 1] > 0.6  # lips part
    assert displaced(26)[8, 1] < -1.5  # chin down


def test_an_identity_is_one_person() -> None:
    one = SyntheticConfig(identity_start=17, identity_count=1)
    first, second = (portrait(2, index, one).faces[0] for index in (0, 1))
    other = portrait(3, 0, one).faces[0]
    assert first.identity == second.identity == 17
    np.testing.assert_array_equal(first.shape, second.shape)
    assert not np.array_equal(first.pose, second.pose)
    assert not np.array_equal(first.shape, other.shape)  # in another world


def test_ranges_of_identities_do_not_meet() -> None:
    def identities(start: int) -> set[int]:
        cfg = SCENE.model_copy(update={"identity_start": start, "identity_count": 20})
        return {face.identity for index in range(12) for face in photograph(0, index, cfg).faces}

    first, second = identities(0), identities(20)
    assert first <= set(range(20))
    assert second <= set(range(20, 40))
    assert len(first) > 5


def test_the_far_side_of_a_turned_head_is_hidden(turned: list[Face]) -> None:
    """yaw > 0: the nose points to the picture's right, where the jaw then lies behind the cheek."""
    left_jaw, right_jaw = slice(0, 7), slice(10, 17)
    for face in turned:
        between = face.landmarks68[[36, 45], 0].mean()
        if abs(face.pose[0]) > 25:
            assert np.sign(face.landmarks68[30, 0] - between) == np.sign(face.pose[0])
        if face.pose[0] > 60:
            assert face.visible68[right_jaw].sum() <= 2
        if face.pose[0] < -60:
            assert face.visible68[left_jaw].sum() <= 2
    frontal = [face for face in turned if abs(face.pose[0]) < 25]
    assert np.mean([face.visible68[27:].mean() for face in frontal]) > 0.9


def test_occluders_hide_landmarks() -> None:
    held = SyntheticConfig(occlusion=1.0)
    clear = [portrait(8, index, PLAIN).faces[0] for index in range(16)]
    hidden = [portrait(8, index, held).faces[0] for index in range(16)]
    assert np.mean([f.shown for f in hidden]) < np.mean([f.shown for f in clear]) - 0.08
    assert np.mean([f.visible68.mean() for f in hidden]) < np.mean([f.visible68.mean() for f in clear]) - 0.05


def test_labels_are_in_range(portraits: list[Picture]) -> None:
    scenes = [photograph(9, index, SCENE) for index in range(12)]
    for picture in portraits + scenes:
        assert picture.image.dtype == np.uint8
        for face in picture.faces:
            assert face.shape.shape == (len(head().identity),)
            assert face.action_units.shape == (12,)
            assert 0 <= face.action_units.min() <= face.action_units.max() <= 5
            assert abs(face.pose[0]) <= 45
            assert -1 <= face.valence <= 1
            assert -1 <= face.arousal <= 1
            assert 0 <= face.shown <= 1
            assert (face.valence, face.arousal) == valence_arousal(face.action_units)
            assert np.isfinite(face.landmarks68).all()
    assert {len(scene.faces) for scene in scenes} >= {1, 4}
    assert triangles().max() < len(vertices(portraits[0].faces[0]))


def test_emotions_have_their_valence_and_arousal() -> None:
    def affect(name: str) -> tuple[float, float]:
        return valence_arousal(np.array([5 * COMBINATIONS[name].get(unit, 0) for unit in ACTION_UNITS]))

    assert affect("joy")[0] > 0.6
    assert affect("sadness")[0] < -0.5
    assert affect("anger")[0] < -0.5
    assert affect("surprise")[1] > 0.6 > 0 > affect("calm")[1]
    assert valence_arousal(np.zeros(12))[0] == 0


def test_nobody_is_lost_in_the_dark(portraits: list[Picture]) -> None:
    for picture in portraits:
        x0, y0, x1, y1 = picture.faces[0].box.astype(int).clip(0, 255)
        assert picture.image[y0:y1, x0:x1].mean() > 55


def test_config_names_the_mend(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "set.yaml"
    path.write_text("people: [3, 1]\n")
    with pytest.raises(ConfigError, match="people"):
        load(path, schema=SyntheticConfig)


def test_a_real_detector_finds_near_frontal_faces() -> None:
    """RetinaFace MobileNet-0.25 at score > .9, and its boxes agree with ours."""
    from data_prep.detector import (
        build,
    )  # here: loads torch, which the process of the first test can do without

    cfg = SyntheticConfig(yaw=30.0)
    pictures = [portrait(10, index, cfg) for index in range(60)]
    found = build("mobilenet0.25", "cpu", 0.9)(np.stack([p.image for p in pictures]))
    assert np.mean([len(f.scores) > 0 for f in found]) >= 0.9
    overlaps = [
        iou(p.faces[0].box, f.boxes[0]) for p, f in zip(pictures, found, strict=True) if len(f.scores)
    ]
    assert np.mean(overlaps) > 0.8


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = sides.prod()
    return float(both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both))
