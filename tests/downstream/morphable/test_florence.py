"""The protocol of scans, on scans whose offset and deformation are known."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from configs import ConfigError
from downstream.morphable.florence import (
    FlorenceConfig,
    Scoring,
    curve,
    florence,
    read_marks,
    read_mesh,
    save_mesh,
    score,
)
from downstream.morphable.model import save_model

MARKS = (30, 36, 39, 42, 45, 48, 54)
TURN = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()


def scan_of(face, millimetres):
    """A turned and shifted scan in mm, denser than the mesh: its vertices and the middles of its triangles."""
    middles = millimetres[face.triangles].mean(axis=1)
    return np.concatenate([millimetres, middles]) @ TURN.T + [30.0, -800.0, 120.0]


def marks_of(scan, face):
    return {number: scan[face.landmarks[number]] for number in MARKS}


@pytest.fixture(scope="module")
def person(face):
    """A face in millimetres."""
    coefficients = np.random.default_rng(6).normal(size=48) * np.r_[np.ones(36), np.zeros(12)]
    return 10 * face.vertices(coefficients)


def test_a_moved_copy_has_no_error(face, person):
    """Another place, attitude and size: the landmarks are rough, ICP finds the rest."""
    scan = scan_of(face, person)
    marks = {
        number: mark + np.random.default_rng(number).normal(0, 1.0, 3)
        for number, mark in marks_of(scan, face).items()
    }
    scoring = Scoring(scale=False, iterations=300, samples=1500)
    result = score(person, face.triangles, face.landmarks, scan, marks, scoring)
    started = score(person, face.triangles, face.landmarks, scan, marks, Scoring(scale=False, iterations=0))
    assert result.millimetres < 0.1 * started.millimetres
    assert result.millimetres < 0.05
    assert result.points < len(scan)  # the crop leaves out what is further than 95 mm from the nose


def test_the_size_comes_from_the_landmarks(face, person):
    scan = scan_of(face, person)
    result = score(
        person * 1e-4, face.triangles, face.landmarks, scan, marks_of(scan, face), Scoring(samples=500)
    )
    assert result.millimetres < 1e-3
    kept = score(
        person * 0.9,
        face.triangles,
        face.landmarks,
        scan,
        marks_of(scan, face),
        Scoring(scale=False, samples=500),
    )
    assert kept.millimetres > 0.5


def test_a_known_deformation_is_measured(face):
    """A flat plate before a plate with a step: the distance is known wherever the scan lies."""
    side = np.arange(-60.0, 61.0, 4.0)
    x, y = (axis.ravel() for axis in np.meshgrid(side, side))
    plate = np.stack([x, y, 0 * x], axis=-1)
    n = len(side)
    corner = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    triangles = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + n], -1),
            np.stack([corner + 1, corner + n + 1, corner + n], -1),
        ]
    ).astype(np.int32)
    landmarks = np.zeros(68, np.int32)
    places = {30: (0, 0), 36: (-44, 32), 45: (44, 32), 48: (-24, -32), 54: (24, -32)}
    for number, place in places.items():
        landmarks[number] = np.flatnonzero((plate[:, :2] == place).all(axis=1))[0]
    scan = plate + np.where(np.abs(x) < 10, 3.0, 0.0)[:, None] * [0, 0, 1]
    marks = {number: np.array([*place, 0.0]) for number, place in places.items()}
    inside = np.linalg.norm(scan, axis=1) <= 50
    result = score(plate, triangles, landmarks, scan, marks, Scoring(radius=50, iterations=0))
    expected = 3 * (np.abs(x[inside]) < 10).mean()
    assert result.points == inside.sum()
    assert result.millimetres == pytest.approx(expected)
    assert result.error == pytest.approx(expected / 88)
    # ICP settles where the mean square is least: the plate moves to the mean height.
    settled = score(plate, triangles, landmarks, scan, marks, Scoring(radius=50, iterations=50))
    mean = 3 * (np.abs(x[inside]) < 10).mean()
    share = mean / 3
    assert settled.millimetres == pytest.approx(share * (3 - mean) + (1 - share) * mean, rel=0.02)


def test_the_curve():
    errors = np.array([0.01, 0.02, 0.02, 0.5])
    np.testing.assert_array_equal(
        curve(errors, np.array([0.0, 0.01, 0.02, 0.4, 1.0])), [0, 0.25, 0.75, 0.75, 1]
    )


def write_case(folder, face, person, name, factor):
    """One line of the list: a prediction, a scan in .obj with texture coordinates, its landmarks."""
    scan = scan_of(face, person)
    save_mesh(folder / f"{name}.ply", person * factor, face.triangles)
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in scan] + ["vt 0.1 0.2", "vt 0.3 0.4", "vt 0.5 0.6"]
    lines += [f"f {a + 1}/1 {b + 1}/2 {c + 1}/3" for a, b, c in face.triangles]
    (folder / f"{name}.obj").write_text("\n".join(lines))
    marks = {str(number): mark.tolist() for number, mark in marks_of(scan, face).items()}
    (folder / f"{name}.json").write_text(json.dumps(marks))
    return {"prediction": f"{name}.ply", "scan": f"{name}.obj", "landmarks": f"{name}.json"}


@pytest.fixture
def case(face, person, tmp_path):
    smile = person + 10 * face.expression[..., 6] * 5
    rows = [write_case(tmp_path, face, person, "same", 0.3)]
    rows.append(write_case(tmp_path, face, smile, "other", 1.0))
    save_mesh(tmp_path / "other.ply", person, face.triangles)  # the neutral face for the scan of a smile
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["prediction", "scan", "landmarks"])
        writer.writeheader()
        writer.writerows(rows)
    save_model(tmp_path / "model.safetensors", face)
    config = tmp_path / "florence.yaml"
    config.write_text(
        f"pairs: {tmp_path}/pairs.csv\nmodel: {tmp_path}/model.safetensors\noutput: {tmp_path}/out\n"
        "scoring: {samples: 300, iterations: 20}\n"
    )
    return config


def test_the_command(case):
    done = subprocess.run(
        [sys.executable, "-m", "downstream", "florence", str(case)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 pairs: mean error" in done.stdout
    result = json.loads((case.parent / "out" / "florence.json").read_text())
    same, other = result["scores"]
    assert same["error"] < 1e-3 < 5e-3 < other["error"]
    assert result["mean_error"] == pytest.approx((same["error"] + other["error"]) / 2)
    assert result["shares"][0] == 0
    assert result["shares"][-1] == 1
    assert (case.parent / "out" / "curve.svg").read_text().startswith("<?xml")


def config_of(case):
    folder = case.parent
    return FlorenceConfig(
        pairs=folder / "pairs.csv", model=folder / "model.safetensors", output=folder / "out",
        scoring=Scoring(samples=50, iterations=1),
    )  # fmt: skip


def test_wrong_files_are_named(case, face, person):
    folder = case.parent
    save_mesh(folder / "other.ply", person[:3], None)
    with pytest.raises(ConfigError, match=r"other.ply: 3 vertices"):
        florence(config_of(case))
    (folder / "same.obj").write_text("v 1 2\nv nan")
    with pytest.raises(ConfigError, match=r"same.obj: "):
        florence(config_of(case))
    (folder / "pairs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"pairs.csv: needs the header"):
        florence(config_of(case))


def test_a_nose_that_is_not_on_the_scan_is_noticed(case, face, person):
    marks = json.loads((case.parent / "same.json").read_text())
    (case.parent / "same.json").write_text(json.dumps(marks | {"30": [1e4, 0, 0]}))
    with pytest.raises(ConfigError, match=r"same.obj: no scan within 95 mm"):
        florence(config_of(case))
    line = {str(number): [number, 0, 0] for number in (30, 36, 45)}
    moved = {"prediction": "same.ply", "scan": "line.ply", "landmarks": "line.json"}
    save_mesh(case.parent / "line.ply", person, None)
    (case.parent / "line.json").write_text(json.dumps(line))
    (case.parent / "pairs.csv").write_text(",".join(moved) + "\n" + ",".join(moved.values()))
    with pytest.raises(ConfigError, match=r"line.ply: the landmarks of the scan lie on one line"):
        florence(config_of(case))


def test_a_prediction_without_triangles_takes_the_models(case, face, person):
    surface = florence(config_of(case))["scores"]
    for name in ("same", "other"):
        save_mesh(case.parent / f"{name}.ply", read_mesh(case.parent / f"{name}.ply")[0], None)
    assert florence(config_of(case))["scores"] == surface
    save_model(case.parent / "bare.safetensors", dataclasses.replace(face, triangles=None))
    with pytest.raises(ConfigError, match=r"same.ply: neither it nor .*bare.safetensors has triangles"):
        florence(config_of(case).model_copy(update={"model": case.parent / "bare.safetensors"}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "no landmarks"),
        ("{", "no landmarks"),
        ('{"30": [1, 2, 3]}', "landmark 36 is missing"),
        ('{"30": [1, 2], "36": [1, 2, 3], "45": [1, 2, 3]}', "landmark 30 is no point"),
        ('{"30": [1, 2, 3], "36": [0, 0, 0], "45": [0, 0, 0]}', "in one point"),
    ],
)
def test_landmark_files_are_checked(tmp_path, text, message):
    (tmp_path / "marks.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_marks(tmp_path / "marks.json", 1.0)


def test_meshes_keep_their_order(face, person, tmp_path):
    save_mesh(tmp_path / "mesh.ply", person, face.triangles)
    vertices, triangles = read_mesh(tmp_path / "mesh.ply")
    np.testing.assert_allclose(vertices, person, atol=1e-3)
    np.testing.assert_array_equal(triangles, face.triangles)


def test_scans_of_several_materials_are_read_whole(tmp_path):
    (tmp_path / "scan.obj").write_text(
        "mtllib scan.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nvt .1 .2\n"
        "usemtl a\nf 1/1 2/2 3/1\nusemtl b\nf 1/2 2/1 4/1\n"
    )
    vertices, triangles = read_mesh(tmp_path / "scan.obj")
    corners = {tuple(sorted(map(tuple, vertices[corner].tolist()))) for corner in triangles}
    assert corners == {((0, 0, 0), (0, 1, 0), (1, 0, 0)), ((0, 0, 0), (0, 0, 1), (1, 0, 0))}
