"""AFLW-19 in its own layout: the release's file with as many faces as it needs to have a test set, a few pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import configs
from configs import ConfigError
from data_prep.beton import read_labels
from data_prep.config import DataPrepConfig
from data_prep.listing import list_shard
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources import Found
from data_prep.sources.aflw import AFLW, LABELS, TRAIN, AFLWConfig

ROOT = Path(__file__).parents[2]
COUNT = TRAIN + 5
FIRST = ("0/image00001.jpg", "2/image00002.jpg", "2/image00002.jpg", "3/image00003.jpg")
"""The pictures of the first faces; each of the others has a picture of its own."""


def release(**changes: object) -> dict[str, object]:
    """The variables of AFLWinfo_release.mat. The first, second and fourth face are for testing."""
    rng = np.random.default_rng(0)
    data = rng.uniform(20, 80, (COUNT, 38))
    data[0] = [*range(20, 39), *range(40, 59)]
    bbox = np.tile([10.0, 90.0, 15.0, 95.0], (COUNT, 1))
    mask = np.ones((COUNT, 19))
    mask[1, 4] = 0
    names = np.empty((COUNT, 1), object)
    names[:, 0] = [*FIRST, *(f"3/image{i:05d}.jpg" for i in range(100, 100 + COUNT - len(FIRST)))]
    order = np.arange(COUNT)
    held = [0, 1, 3, 20_003, 20_004]
    order = np.concatenate([np.delete(order, held)[::-1], held])
    whole = {"nameList": names, "bbox": bbox, "data": data, "mask_new": mask, "ra": order[None] + 1}
    return {name: value for name, value in (whole | changes).items() if value is not None}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aflw")
    for name in FIRST:
        path = folder / "data/flickr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 100), "gray").save(path)
    (folder / "data/flickr/3/image00003.jpg").unlink()
    Image.new("RGB", (100, 100), "gray").save(folder / "data/flickr/3/image00003.png")
    changed = release()
    changed["data"][3, [5, 19 + 5]] = np.nan  # type: ignore[index]
    changed["data"][3, 7] = np.nan  # type: ignore[index]
    changed["mask_new"][3, 5] = np.nan  # type: ignore[index]
    savemat(folder / "AFLWinfo_release.mat", changed)
    return folder


def source(root: Path, **options: object) -> AFLW:
    return AFLW(AFLWConfig.model_validate({"kind": "aflw", "path": root} | options), 16)


def first_shard(corpus: AFLW) -> dict[str, Found]:
    return {found.image_id: found for found in corpus.pictures(corpus.shards()[0])}


def test_faces_of_the_published_order(root: Path) -> None:
    table = source(root).inputs()
    assert len(table) == COUNT - 1, "two faces are in one picture"
    splits = Counter(face["split"] for faces in table["annotations"].to_pylist() for face in faces)
    assert splits == {"train": 20_000, "test": 5}
    test = source(root, splits=("test",)).inputs()
    assert test["image_id"].to_pylist()[:3] == ["0/image00001.jpg", "2/image00002.jpg", "3/image00003.jpg"]
    assert [len(faces) for faces in test["annotations"].to_pylist()] == [1] * 5


def test_a_picture_may_be_in_both_parts(root: Path) -> None:
    faces = first_shard(source(root))["2/image00002.jpg"].annotations
    assert [(face["split"], face["frontal"]) for face in faces] == [("test", False), ("train", True)]
    assert [i for i, seen in enumerate(faces[0]["visible19"]) if not seen] == [4]


def test_all_x_come_before_all_y_and_left_right_before_top_bottom(root: Path) -> None:
    (face,) = first_shard(source(root))["0/image00001.jpg"].annotations
    assert set(face) == set(LABELS.names)
    assert np.reshape(face["landmarks19"], (19, 2)).tolist() == [[20 + i, 40 + i] for i in range(19)]
    assert face["box"] == [10, 15, 90, 95]


def test_a_picture_of_another_format_is_found(root: Path) -> None:
    pictures = first_shard(source(root))
    assert pictures["3/image00003.jpg"].path == root / "data/flickr/3/image00003.png"
    assert pictures["0/image00001.jpg"].path == root / "data/flickr/0/image00001.jpg"
    assert pictures["3/image00100.jpg"].path == root / "data/flickr/3/image00100.jpg", (
        "it is not there at all"
    )


def test_what_is_unknown_stays_unknown_in_the_crop(root: Path, tmp_path: Path) -> None:
    given = [f"source.path={root}", f"output={tmp_path / 'out'}", "workers=1", "source.splits=[test]"]
    config = configs.load(ROOT / "configs/data/aflw.yaml", given, schema=DataPrepConfig)
    pipeline = Pipeline(config)
    pipeline.run(STAGES[:-1])
    rows = {row["image_id"]: row for row in read_labels(tmp_path / "out/set.beton").to_pylist()}
    assert list(rows) == ["0/image00001.jpg", "2/image00002.jpg", "3/image00003.jpg"]
    row = rows["3/image00003.jpg"]
    unknown = {i for i, value in enumerate(row["landmarks19"]) if value is None}
    assert unknown == {2 * 5, 2 * 5 + 1, 2 * 7, 2 * 7 + 1}, (
        "without its x a point has no y in the crop either"
    )
    assert [i for i, seen in enumerate(row["visible19"]) if seen is None] == [5]
    assert not row["frontal"]
    scale = 190 / 80
    expected = (np.arange(20, 39) - 50) * scale + 128
    np.testing.assert_allclose(rows["0/image00001.jpg"]["landmarks19"][::2], expected, atol=1e-3)
    figures = {row["what"]: (row["listed"], row["usable"]) for row in pipeline.published()}
    assert figures == {"faces of test, full": (5, 3), "faces of test, frontal": (3, 1)}


def test_an_empty_box_is_none(tmp_path: Path) -> None:
    bbox = np.tile([10.0, 90.0, 15.0, 95.0], (COUNT, 1))
    bbox[0] = [90, 90, 15, 95]
    savemat(tmp_path / "AFLWinfo_release.mat", release(bbox=bbox))
    corpus = source(tmp_path, splits=("test",))
    (row, *_) = list_shard(corpus, tmp_path / "out", corpus.shards()[0]).to_pylist()
    assert row["annotations"][0]["box"] is None
    assert row["error"] == "cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": None}, "bbox is missing"),
        ({"data": np.zeros((COUNT, 42))}, r"data has the shape \(20005, 42\) instead of \(20005, 38\)"),
        ({"mask_new": np.zeros((4, 19))}, r"mask_new has the shape \(4, 19\)"),
        ({"ra": np.arange(COUNT)[None]}, "ra is no order of the faces 1 to 20005"),
        ({"nameList": np.array([["0/a.jpg"]], object)}, "nameList: 1 names of 20005 faces"),
        ({"nameList": np.full((COUNT, 1), "../a.jpg", object)}, "nameList: cell 1 is no name"),
    ],
)
def test_another_release_is_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    savemat(tmp_path / "AFLWinfo_release.mat", release(**changes))
    with pytest.raises(ConfigError, match=rf"AFLWinfo_release.mat: {reason}.*; check source.path"):
        source(tmp_path).shards()


def test_a_missing_release_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"AFLWinfo_release\.mat: cannot be read: No such file"):
        source(tmp_path).shards()
    assert [figure.count for figure in source(tmp_path).published] == [20_000, 4_386, 1_314]
