"""300W in its own layout: tiny pictures, .pts files, files of boxes as MATLAB 5 writes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import configs
from configs import ConfigError
from data_prep.beton import Beton, read_labels
from data_prep.config import DataPrepConfig
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources import Found
from data_prep.sources.w300 import LABELS, PARTS, W300, W300Config, read_pts

ROOT = Path(__file__).parents[2]
POINTS = np.stack([np.linspace(11, 31, 68), np.linspace(36, 16, 68)], 1).round(3)
"""As the files count: the first pixel is 1."""


def add(root: Path, name: str, points: np.ndarray = POINTS) -> Path:
    """A picture and its .pts; returns the path of the latter."""
    picture = root / name
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (45, 45), "gray").save(picture)
    lines = "\n".join(f"{x:.3f} {y:.3f}" for x, y in points)
    pts = picture.with_suffix(".pts")
    pts.write_text(f"version: 1\nn_points:  {len(points)}\n{{\n{lines}\n}}\n")
    return pts


def add_boxes(root: Path, part: str, boxes: dict[str, Sequence[float]]) -> Path:
    """A cell array (1, N) of structures, as the organisers' files hold it."""
    cells = np.empty((1, len(boxes)), object)
    for i, (name, box) in enumerate(boxes.items()):
        cells[0, i] = {
            "imgName": name,
            "bb_detector": np.array([box]),
            "bb_ground_truth": np.array([box]) + 7,
        }
    path = root / "Bounding_Boxes" / f"bounding_boxes_{part}.mat"
    path.parent.mkdir(exist_ok=True)
    savemat(path, {"bounding_boxes": cells})
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (
        "afw/134212_1.jpg",
        "helen/trainset/100032540_1.jpg",
        "helen/testset/296814969_1.JPG",
        "lfpw/trainset/image_0001.png",
        "lfpw/testset/image_0001.png",
        "ibug/image_003_1.jpg",
        "ibug/image_092 _01.jpg",
        "300W/01_Indoor/indoor_001.png",
        "300W/02_Outdoor/outdoor_001.png",
    ):
        add(tmp_path, name)
    return tmp_path


def source(root: Path, shard_size: int = 256, **options: object) -> W300:
    config = W300Config.model_validate({"kind": "300w", "path": root} | options)
    return W300(config, shard_size)


def found(corpus: W300) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def test_the_parts_in_order_with_split_and_subset(root: Path) -> None:
    corpus = source(root, shard_size=4)
    assert [shard.size for shard in corpus.shards()] == [4, 4, 1]
    faces = {
        name: (f.annotations[0]["split"], f.annotations[0]["subset"]) for name, f in found(corpus).items()
    }
    assert list(faces.items()) == [
        ("afw/134212_1.jpg", ("train", "train")),
        ("helen/trainset/100032540_1.jpg", ("train", "train")),
        ("lfpw/trainset/image_0001.png", ("train", "train")),
        ("helen/testset/296814969_1.JPG", ("test", "common")),
        ("lfpw/testset/image_0001.png", ("test", "common")),
        ("ibug/image_003_1.jpg", ("test", "challenge")),
        ("ibug/image_092 _01.jpg", ("test", "challenge")),
        ("300W/01_Indoor/indoor_001.png", ("test", "indoor")),
        ("300W/02_Outdoor/outdoor_001.png", ("test", "outdoor")),
    ]
    full = source(root, subsets=("common", "challenge"))
    assert [name.split("/")[0] for name in found(full)] == ["helen", "lfpw", "ibug", "ibug"]
    assert not any(f.error for f in found(corpus).values())


def test_points_count_from_one(root: Path) -> None:
    (face,) = found(source(root))["ibug/image_092 _01.jpg"].annotations
    assert set(face) == set(LABELS.names)
    np.testing.assert_allclose(np.reshape(face["landmarks68"], (68, 2)), POINTS - 0.5, atol=1e-6)
    assert face["box"] == [10.5, 15.5, 30.5, 35.5]
    assert face["detector_box"] is None


def test_a_marked_pixel_stays_under_its_point(tmp_path: Path) -> None:
    """A white pixel in column 21 and row 31, counted from 1, lies under its point in the crop."""
    points = np.concatenate([[[1, 11], [41, 51]], np.full((66, 2), (21.0, 31.0))])
    add(tmp_path, "afw/a.png", points)
    pixels = np.zeros((60, 45), np.uint8)
    pixels[30, 20] = 255
    Image.fromarray(pixels).save(tmp_path / "afw/a.png")
    given = [f"source.path={tmp_path}", f"output={tmp_path}-run", "workers=1", "source.subsets=[train]"]
    config = configs.load(
        ROOT / "configs/data/300w.yaml", [*given, "crop.border=black"], schema=DataPrepConfig
    )
    pipeline = Pipeline(config)
    pipeline.run(STAGES[:-1])
    labels = read_labels(Path(f"{tmp_path}-run/set.beton")).to_pylist()
    assert [(row["face_size"], row["split"]) for row in labels] == [(40, "train")]
    crop = Beton(Path(f"{tmp_path}-run/set.beton")).image(0)[..., 0].astype(float)
    rows, columns = np.mgrid[:256, :256] + 0.5
    weight = np.where(crop > 64, crop, 0)
    seen = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
    np.testing.assert_allclose(seen, labels[0]["landmarks68"][-2:], atol=0.1)


def test_boxes_of_the_detector_are_found_without_spaces_and_endings(root: Path) -> None:
    more = {"image_003_1.jpg": [1, 2, 41, 42], "image_092_01.png": [5, 6, 7, 8], "134212_1.jpg": [0, 0, 1, 1]}
    add_boxes(root, "ibug", more)
    (root / "Bounding_Boxes").rename(root / "Bounding Boxes")
    faces = {name: f.annotations[0]["detector_box"] for name, f in found(source(root)).items()}
    assert faces.pop("ibug/image_003_1.jpg") == [0.5, 1.5, 40.5, 41.5]
    assert faces.pop("ibug/image_092 _01.jpg") == [4.5, 5.5, 6.5, 7.5]
    assert not any(faces.values()), "of another folder"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "bounding_boxes is missing or empty"),
        ({"bounding_boxes": np.zeros((1, 3))}, r"bounding_boxes\{1\} is no imgName"),
        (None, "damaged, or no MATLAB 5 file"),
    ],
)
def test_damaged_boxes(root: Path, content: dict[str, np.ndarray] | None, reason: str) -> None:
    path = add_boxes(root, "afw", {"134212_1.jpg": [1, 2, 3, 4]})
    if content is None:
        path.write_bytes(path.read_bytes()[:150])
    else:
        savemat(path, content)
    with pytest.raises(ConfigError, match=rf"bounding_boxes_afw.mat: {reason}.*; replace it, or remove it"):
        source(root).shards()


def test_mirrored_and_doubled_files_are_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = list(found(source(root)))
    for name in ("helen/testset/296814969_1_mirror.jpg", "lfpw/trainset/image_0001_mirror.png"):
        add(root, name)
    Image.new("RGB", (45, 45)).save(root / "lfpw/trainset/image_0001.tiff")
    Image.new("RGB", (45, 45)).save(root / "ibug/image_003_1.png")
    with caplog.at_level(logging.WARNING):
        assert list(found(source(root))) == before
    assert "ibug/image_003_1.png: there in another format, too; left out" in caplog.text
    assert "helen/testset/296814969_1_mirror.jpg: a mirrored picture; left out" in caplog.text


def test_what_is_wrong_with_a_pts_is_said_and_the_rest_goes_on(root: Path) -> None:
    good = add(root, "ibug/good.jpg").read_text()
    for name, text in {
        "cut": good[:400],
        "few": good.replace("11.000 36.000\n", ""),
        "word": good.replace("11.000 36.000", "11.000 x"),
        "nan": good.replace("11.000 36.000", "11.000 nan"),
        "three": good.replace("11.000 36.000", "11.000 36.000 1"),
        "bytes": "\udcff{",
    }.items():
        add(root, f"ibug/{name}.jpg").write_bytes(text.encode("utf-8", "surrogateescape"))
    add(root, "ibug/missing.jpg").unlink()
    (root / "ibug/image_003_1.jpg").unlink()
    pictures = found(source(root))
    assert {name.removeprefix("ibug/"): f.error for name, f in pictures.items() if f.error} == {
        "bytes.jpg": "ibug/bytes.pts: no points between { and }",
        "cut.jpg": "ibug/cut.pts: no points between { and }",
        "few.jpg": "ibug/few.pts: 67 points instead of 68",
        "missing.jpg": "ibug/missing.pts: cannot be read: No such file or directory",
        "nan.jpg": "ibug/nan.pts:4: not two numbers: '11.000 nan'",
        "three.jpg": "ibug/three.pts:4: not two numbers: '11.000 36.000 1'",
        "word.jpg": "ibug/word.pts:4: not two numbers: '11.000 x'",
    }
    assert not pictures["ibug/image_003_1.jpg"].path.exists(), "its points alone are an input too"
    assert all(f.annotations for f in pictures.values() if not f.error)


def test_blank_lines_and_other_line_ends(root: Path) -> None:
    pts = add(root, "afw/a.jpg")
    pts.write_bytes(pts.read_bytes().replace(b"\n", b" \r\n\r\n"))
    np.testing.assert_allclose(read_pts(pts), POINTS - 0.5)


def test_shards_depend_on_their_points_and_boxes(root: Path) -> None:
    def hashes() -> list[str]:
        return [shard.inputs for shard in source(root, shard_size=3).shards()]

    before = hashes()
    (root / "ibug/notes.txt").touch()
    assert hashes() == before
    add(root, "ibug/image_003_1.jpg", POINTS + 1.123).write_text("other")
    assert [a == b for a, b in zip(hashes(), before, strict=True)] == [True, False, True]
    add_boxes(root, "afw", {"134212_1.jpg": [1, 2, 3, 4]})
    assert hashes()[0] != before[0]


def test_wrong_paths_and_published_counts(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        source(root / "nowhere").shards()
    with pytest.raises(ConfigError, match="nothing of this corpus is there"):
        source(tmp_path_factory.mktemp("other")).shards()
    of_subset = {
        subset: sum(p.pictures for p in PARTS if p.subset == subset)
        for subset in dict.fromkeys(p.subset for p in PARTS)
    }
    assert of_subset == {"train": 3_148, "common": 554, "challenge": 135, "indoor": 300, "outdoor": 300}
    assert sum(figure.count for figure in source(root, subsets=("common", "challenge")).published) == 689
