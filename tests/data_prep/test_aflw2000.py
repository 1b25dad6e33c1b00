"""AFLW2000-3D in its own layout: tiny JPEGs, .mat files as MATLAB 5 writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import configs
from configs import ConfigError
from data_prep.beton import read_labels
from data_prep.config import DataPrepConfig
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources import Found
from data_prep.sources.aflw2000 import AFLW2000, LABELS, AFLW2000Config
from downstream.tasks.pose import head_rotation

ROOT = Path(__file__).parents[2]
SIDE = 450
RNG = np.random.default_rng(0)
POSE = np.array([[0.2, -0.6, 0.1, 212.0, 245.0, -60.0, 1.1e-3]], np.float32)
HEAD = RNG.normal(0, 5e4, (3, 68))
"""68 points of a head in the units of the model, x right, y up, z to the viewer."""


def matrix_3ddfa(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """3DDFA's angle2matrix: R = Rx Ry Rz."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([pitch, yaw, roll]), np.sin([pitch, yaw, roll])
    nod = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    turn = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    tilt = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    return np.asarray(nod @ turn @ tilt)


def projected() -> np.ndarray:
    """(3, 68) as pt3d_68 holds it: V = f R S + t, y turned over at h + 1, the first pixel is 1."""
    pitch, yaw, roll, *t, f = POSE[0].astype(float)
    points = f * matrix_3ddfa(pitch, yaw, roll) @ HEAD + np.array(t)[:, None]
    points[1] = SIDE + 1 - points[1]
    return points.astype(np.float32)


def add(root: Path, name: str, **content: object) -> Path:
    Image.new("RGB", (SIDE, SIDE), "gray").save(root / f"{name}.jpg")
    seen = np.full((2, 21), -1, np.float32)
    whole = {
        "pt2d": seen,
        "pt3d_68": projected(),
        "Pose_Para": POSE,
        "Shape_Para": np.arange(199, dtype=np.float32)[:, None],
        "Exp_Para": np.arange(29, dtype=np.float32)[:, None] / 7,
        "Illum_Para": np.zeros((1, 10), np.float32),
        "roi": np.array([[1, 2, 450, 451]], np.int16),
    }
    savemat(root / f"{name}.mat", {k: v for k, v in (whole | content).items() if v is not None})
    return root / f"{name}.mat"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "AFLW2000"
    (folder / "Code").mkdir(parents=True)
    for number in (2, 4, 6):
        add(folder, f"image{number:05d}")
    (folder / "Code/image00001.jpg").write_bytes(b"no picture of the corpus")
    return folder


def source(root: Path) -> AFLW2000:
    return AFLW2000(AFLW2000Config(kind="aflw2000", path=root), 2)


def found(corpus: AFLW2000) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def test_the_labels_are_those_of_the_fit(root: Path) -> None:
    pictures = found(source(root))
    assert list(pictures) == ["image00002.jpg", "image00004.jpg", "image00006.jpg"]
    (face,) = pictures["image00002.jpg"].annotations
    assert set(face) == set(LABELS.names)
    points = np.reshape(face["landmarks68"], (68, 2))
    np.testing.assert_allclose(points, projected()[:2].T - 0.5, rtol=1e-6)
    np.testing.assert_allclose(face["box"], [*points.min(0), *points.max(0)])
    assert face["shape_para"] == list(range(199))
    np.testing.assert_allclose(face["exp_para"], np.arange(29) / 7, rtol=1e-6)
    assert face["pose_para"] == POSE[0].tolist()
    np.testing.assert_allclose(
        head_rotation(np.array(face["pose"])).as_matrix(), matrix_3ddfa(*POSE[0, :3]), atol=1e-6
    )


def test_the_documented_geometry_leads_from_the_labels_to_the_pixels(root: Path, tmp_path: Path) -> None:
    """With the fit as it was carried, by what the docstrings say, and through the crop."""
    given = [f"source.path={root}", f"output={tmp_path / 'out'}", "workers=1"]
    config = configs.load(ROOT / "configs/data/aflw2000.yaml", given, schema=DataPrepConfig)
    Pipeline(config).run(STAGES[:-1])
    row = read_labels(tmp_path / "out/set.beton").to_pylist()[0]
    pitch, yaw, roll, *t, f = row["pose_para"]
    model = f * matrix_3ddfa(pitch, yaw, roll) @ HEAD + np.array(t)[:, None]
    picture = np.stack([model[0] - 0.5, SIDE + 0.5 - model[1]], 1)
    matrix = np.reshape(row["affine"], (2, 3))
    expected = picture @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(np.reshape(row["landmarks68"], (68, 2)), expected, atol=1e-3)
    np.testing.assert_allclose(np.mean(np.reshape(row["true_box"], (2, 2)), 0), [128, 128], atol=1e-3)
    assert len(row["shape_para"]) == 199


def test_what_is_wrong_with_a_mat_is_said_and_the_rest_goes_on(root: Path) -> None:
    add(root, "from300wlp", pt3d_68=None, pt2d=np.ones((2, 68)))
    add(root, "flat", pt3d_68=np.ones((2, 68)))
    add(root, "nan", pt3d_68=np.full((3, 68), np.nan))
    add(root, "shapeless", Shape_Para=np.ones((40, 1)))
    add(root, "text").write_text("no mat")
    add(root, "alone").with_suffix(".jpg").unlink()
    add(root, "missing").unlink()
    pictures = found(source(root))
    errors = {name: f.error for name, f in pictures.items() if f.error}
    assert errors.pop("text.jpg").startswith("text.mat: damaged, or no MATLAB 5 file")
    assert errors == {
        "from300wlp.jpg": "from300wlp.mat: pt3d_68 is missing",
        "flat.jpg": "flat.mat: pt3d_68 has the shape (2, 68) instead of (3, 68)",
        "nan.jpg": "nan.mat: pt3d_68 holds something else than numbers",
        "shapeless.jpg": "shapeless.mat: Shape_Para has the shape (40, 1) instead of (199, 1)",
        "missing.jpg": "missing.mat: cannot be read: No such file or directory",
    }
    assert not pictures["alone.jpg"].path.exists(), "a .mat without its picture is an input"


def test_what_pt2d_holds_does_not_matter(root: Path) -> None:
    before = found(source(root))["image00002.jpg"].annotations
    add(root, "image00002", pt2d=np.full((2, 68), np.nan))
    assert found(source(root))["image00002.jpg"].annotations == before


def test_wrong_paths(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        source(root / "nowhere").shards()
    with pytest.raises(ConfigError, match="nothing of this corpus is there"):
        source(tmp_path).shards()
    before = [shard.inputs for shard in source(root).shards()]
    add(root, "image00006", Exp_Para=None)
    after = [shard.inputs for shard in source(root).shards()]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]
    (figure,) = source(root).published
    assert figure.count == 2_000
