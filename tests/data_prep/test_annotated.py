"""The source's own boxes, or whole pictures, as the faces: nothing is detected."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import ConfigError, load
from data_prep.beton import read_labels
from data_prep.config import DataPrepConfig
from data_prep.pipeline import STAGES, Pipeline
from data_prep.tables import array_of, read_shard

CONFIG = """
output: {root}/out
source: {{kind: widerface, path: {root}/wider, splits: [train]}}
detect: {{network: annotated}}
keep: {{rule: all, min_score: 0.9, min_size: 30}}
crop: {{image_size: 64, face_size: 48}}
workers: 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two pictures of grey noise, in which no detector would find anything, with three boxes."""
    images = tmp_path / "wider" / "WIDER_train" / "images" / "0--Parade"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(rng.integers(0, 255, (200, 300, 3), dtype=np.uint8)).save(images / name)
    lists = tmp_path / "wider" / "wider_face_split"
    lists.mkdir()
    (lists / "wider_face_train_bbx_gt.txt").write_text(
        "0--Parade/a.jpg\n2\n10 20 60 80 0 0 0 0 0 0\n150 100 20 24 0 0 0 0 0 0\n"
        "0--Parade/b.jpg\n1\n100 50 50 50 1 0 0 0 0 0\n"
    )
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(root=tmp_path))
    return path


def test_the_annotated_boxes_are_the_faces(config: Path, tmp_path: Path) -> None:
    Pipeline(load(config, schema=DataPrepConfig)).run(STAGES)
    faces = read_shard(tmp_path / "out" / "faces", 0).to_pylist()
    assert [face["box"] for face in faces] == [[10, 20, 70, 100], [150, 100, 170, 124], [100, 50, 150, 100]]
    assert [face["annotation"] for face in faces] == [0, -1, 0]
    assert [face["why"] for face in faces] == ["", "smaller than 30 px", ""]
    assert {face["score"] for face in faces} == {1.0}
    assert all(face["landmarks5"] is None for face in faces)
    labels = read_labels(tmp_path / "out" / "set.beton")
    assert labels["blur"].to_pylist() == [0, 1]
    np.testing.assert_allclose(array_of(labels["box"]), array_of(labels["true_box"]), atol=1e-4)
    assert labels["landmarks5"].null_count == 2


def test_without_landmarks_nothing_can_be_aligned(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.jpg#0 has no five landmarks"):
        Pipeline(load(config, ["crop.mode=align5"], schema=DataPrepConfig)).run(STAGES)


def test_a_source_without_boxes_needs_a_network(tmp_path: Path, t1: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "t1.jpg").write_bytes(t1)
    (tmp_path / "run.yaml").write_text(
        f"output: {tmp_path}/out\nsource: {{kind: folder, path: {tmp_path}/in}}\ndetect: {{network: annotated}}\n"
    )
    with pytest.raises(ConfigError, match="folder has no boxes; name a network"):
        Pipeline(load(tmp_path / "run.yaml", schema=DataPrepConfig)).run(STAGES)


def test_whole_pictures_are_the_faces(tmp_path: Path) -> None:
    """Two people's pictures of 100 x 100 px and of another shape: each crop shows its picture from edge to edge."""
    rng = np.random.default_rng(0)
    for name, height in (("ann/a.png", 100), ("bea/b.png", 140)):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        pixels = rng.integers(0, 255, (height // 20, 5, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    (tmp_path / "run.yaml").write_text(
        f"output: {tmp_path}/out\nsource: {{kind: folder, path: {tmp_path}/in, identity_from: folder}}\n"
        "detect: {network: whole}\nkeep: {rule: largest_central}\ncrop: {image_size: 100, face_size: 100}\n"
    )
    Pipeline(load(tmp_path / "run.yaml", schema=DataPrepConfig)).run(STAGES)
    labels = read_labels(tmp_path / "out" / "set.beton")
    assert labels["identity"].to_pylist() == [0, 1]
    assert labels["box"].to_pylist()[0] == [0, 0, 100, 100]
    first = Image.open(BytesIO(read_shard(tmp_path / "out" / "crops", 0)["jpeg"][0].as_py()))
    difference = np.asarray(first).astype(int) - np.asarray(Image.open(tmp_path / "in/ann/a.png"))
    assert np.abs(difference).mean() < 6
    shifted = np.roll(np.asarray(first).astype(int), 20, axis=1) - np.asarray(
        Image.open(tmp_path / "in/ann/a.png")
    )
    assert np.abs(shifted).mean() > 40
