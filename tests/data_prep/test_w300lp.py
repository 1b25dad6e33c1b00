"""300W-LP in its own layout: tiny JPEGs, .mat files as MATLAB 5 writes them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import configs
from configs import Config, ConfigError
from data_prep.detect import DetectConfig, KeepConfig
from data_prep.listing import list_shard
from data_prep.sources import Found
from data_prep.sources.corpus import input_schema
from data_prep.sources.w300lp import LABELS, PUBLISHED, W300LP, W300LPConfig, project_pose
from downstream.tasks.pose import head_rotation

POINTS = np.stack([np.linspace(101, 201, 68), np.linspace(251, 151, 68)]).astype(np.float32)

SHAPE, EXPRESSION = (np.linspace(-2, 2, n, dtype=np.float32).reshape(-1, 1) * 1e5 for n in (199, 29))


def add(root: Path, name: str, pose: tuple[float, ...] = (0.1, -0.5, 0.2), **content: object) -> Path:
    """A picture and its .mat; returns the path of the latter."""
    picture = root / f"{name}.jpg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (45, 45), "gray").save(picture)
    para = np.array([[*pose, 10, 20, -50, 1e-3]], np.float32)
    fit = {"Shape_Para": SHAPE, "Exp_Para": EXPRESSION}
    whole = fit | {"pt2d": POINTS, "Pose_Para": para, "roi": np.array([[1, 2, 450, 451]], np.int16)}
    savemat(picture.with_suffix(".mat"), {k: v for k, v in (whole | content).items() if v is not None})
    return picture.with_suffix(".mat")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("AFW/AFW_134212_1_0", "HELEN/HELEN_1_1_0", "IBUG/IBUG_image_008_1_0", "LFPW/LFPW_image_1_0"):
        folder, stem = name.split("/")
        add(tmp_path, name)
        add(tmp_path, f"{folder}_Flip/{stem}")
    return tmp_path


def source(root: Path, shard_size: int = 256, **options: bool) -> W300LP:
    return W300LP(W300LPConfig(kind="300w_lp", path=root, **options), shard_size)


def found(corpus: W300LP) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def test_every_folder_and_its_mirror_in_order(root: Path) -> None:
    corpus = source(root, shard_size=3)
    assert [shard.size for shard in corpus.shards()] == [3, 3, 2]
    names = [name for shard in corpus.shards() for name in (f.image_id for f in corpus.pictures(shard))]
    assert names == [
        "AFW/AFW_134212_1_0.jpg",
        "AFW_Flip/AFW_134212_1_0.jpg",
        "HELEN/HELEN_1_1_0.jpg",
        "HELEN_Flip/HELEN_1_1_0.jpg",
        "IBUG/IBUG_image_008_1_0.jpg",
        "IBUG_Flip/IBUG_image_008_1_0.jpg",
        "LFPW/LFPW_image_1_0.jpg",
        "LFPW_Flip/LFPW_image_1_0.jpg",
    ]
    assert len(found(source(root, flips=False))) == 4
    assert not corpus.config.synthetic
    assert corpus.inputs().select(input_schema(LABELS).names).schema == input_schema(LABELS)


def test_labels_in_the_projects_conventions(root: Path) -> None:
    picture = found(source(root))["AFW_Flip/AFW_134212_1_0.jpg"]
    assert (picture.error, picture.path) == ("", root / "AFW_Flip/AFW_134212_1_0.jpg")
    (face,) = picture.annotations
    assert set(face) == set(LABELS.names)
    assert face["subset"] == "AFW_Flip"
    # MATLAB's first pixel is 1, ours has its middle at 0.5.
    np.testing.assert_allclose(np.reshape(face["landmarks68"], (68, 2)), POINTS.T - 0.5)
    assert face["box"] == [100.5, 150.5, 200.5, 250.5]


def test_the_fit_is_carried_where_it_is_asked_for(root: Path) -> None:
    corpus = source(root, parameters=True)
    (face,) = found(corpus)["AFW/AFW_134212_1_0.jpg"].annotations
    assert set(face) == set(corpus.labels.names) == {*LABELS.names, "shape_para", "exp_para", "pose_para"}
    assert np.array_equal(face["shape_para"], SHAPE[:, 0])
    assert np.array_equal(face["exp_para"], EXPRESSION[:, 0])
    np.testing.assert_allclose(face["pose_para"], [0.1, -0.5, 0.2, 10, 20, -50, 1e-3], rtol=1e-6)
    (shard,) = corpus.shards()
    table = list_shard(corpus, root / "out", shard)
    fields = table.schema.field("annotations").type.value_type
    assert [fields.field(name).type.list_size for name in ("shape_para", "exp_para", "pose_para")] == [
        199,
        29,
        7,
    ]
    assert source(root).shards()[0].inputs != shard.inputs
    add(root, "AFW/AFW_134212_1_0", Exp_Para=np.zeros((1, 29)))
    name = "AFW/AFW_134212_1_0.jpg"
    assert found(corpus)[name].error.endswith(".mat: Exp_Para has the shape (1, 29) instead of (29, 1)")
    assert not found(source(root))[name].error


def test_the_pose_is_the_same_rotation() -> None:
    """Against 3DDFA's three matrices, written out."""

    def theirs(pose: np.ndarray) -> np.ndarray:
        (cx, cy, cz), (sx, sy, sz) = np.cos(pose), np.sin(pose)
        nod = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
        turn = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
        tilt = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
        return np.asarray(nod @ turn @ tilt)

    for pose in np.random.default_rng(0).uniform(-1.3, 1.3, (50, 3)):
        ours = head_rotation(project_pose(pose)).as_matrix()
        np.testing.assert_allclose(ours, theirs(pose), atol=1e-6)
    for axis, expected in enumerate([[0, 30, 0], [-30, 0, 0], [0, 0, 30]]):
        alone = np.zeros(3)
        alone[axis] = np.radians(30)
        np.testing.assert_allclose(project_pose(alone), expected, atol=1e-6)


def test_what_is_wrong_with_a_mat_is_said_and_the_rest_goes_on(root: Path) -> None:
    whole = add(root, "AFW/truncated").read_bytes()
    (root / "AFW/truncated.mat").write_bytes(whole[: len(whole) // 2])
    add(root, "AFW/text").write_text("no mat")
    add(root, "AFW/empty").write_bytes(b"")
    add(root, "AFW/missing").unlink()
    add(root, "AFW/keyless", pt2d=None)
    add(root, "AFW/aflw2000", pt2d=np.zeros((2, 21), np.float32))
    add(root, "AFW/poseless", Pose_Para=np.zeros((1, 3)))
    add(root, "AFW/nan", pt2d=np.full((2, 68), np.nan))
    add(root, "AFW/cells", pt2d=np.full((2, 68), "x", object))
    errors = {name: f.error for name, f in found(source(root)).items() if f.error}
    for name, reason in {
        "truncated": "damaged, or no MATLAB 5 file: ",
        "text": "damaged, or no MATLAB 5 file: ",
        "empty": "damaged, or no MATLAB 5 file: ",
        "missing": "cannot be read: No such file or directory",
        "keyless": "pt2d is missing",
        "aflw2000": "pt2d has the shape (2, 21) instead of (2, 68)",
        "poseless": "Pose_Para has the shape (1, 3) instead of (1, 7)",
        "nan": "pt2d holds something else than numbers",
        "cells": "pt2d holds something else than numbers",
    }.items():
        assert errors.pop(f"AFW/{name}.jpg").startswith(f"AFW/{name}.mat: {reason}"), name
    assert not errors
    assert sum(bool(f.annotations) for f in found(source(root)).values()) == 8


def test_a_mat_without_its_picture_is_an_input(root: Path) -> None:
    (root / "LFPW/LFPW_image_1_0.jpg").unlink()
    corpus = source(root)
    (shard,) = corpus.shards()
    rows = {row["image_id"]: row for row in list_shard(corpus, root / "out", shard).to_pylist()}
    assert len(rows) == 8
    lost = rows["LFPW/LFPW_image_1_0.jpg"]
    assert (lost["status"], lost["error"]) == ("failed", "cannot be read: No such file or directory")
    assert rows["AFW/AFW_134212_1_0.jpg"]["annotations"][0]["subset"] == "AFW"


def test_shards_depend_on_their_annotations_and_on_nothing_else(root: Path) -> None:
    before = [shard.inputs for shard in source(root, shard_size=4).shards()]
    assert [shard.inputs for shard in source(root, shard_size=4).shards()] == before
    (root / "AFW/.hidden.jpg").touch()
    (root / "AFW/notes.txt").touch()
    assert [shard.inputs for shard in source(root, shard_size=4).shards()] == before
    mat = add(root, "LFPW/LFPW_image_1_0", pose=(0.0, 0.0, 0.0))
    os.utime(mat, (1, 1))
    after = [shard.inputs for shard in source(root, shard_size=4).shards()]
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)


def test_wrong_paths_and_missing_parts(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        source(root / "nowhere").shards()
    with pytest.raises(ConfigError, match="nothing of this corpus is there"):
        source(tmp_path_factory.mktemp("other")).shards()
    assert sum(PUBLISHED.values()) == 61_225
    assert sum(figure.count for figure in source(root).published) == 122_450


class Settings(Config):
    output: Path
    source: W300LPConfig
    detect: DetectConfig = DetectConfig()
    keep: KeepConfig


def test_the_file_of_settings_is_this_source() -> None:
    path = Path(configs.__file__).parent / "data/300w_lp.yaml"
    settings = configs.load(path, ["source.path=/data/elsewhere"], schema=Settings)
    assert settings.keep.rule == "best_iou"
    assert settings.source.flips
