"""WFLW in its own layout: lists of 207 fields, several faces a picture."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import configs
from configs import ConfigError
from data_prep.beton import read_labels
from data_prep.config import DataPrepConfig
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources import Found
from data_prep.sources.wflw import ATTRIBUTES, LABELS, WFLW, WFLWConfig

ROOT = Path(__file__).parents[2]
LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test"
PARADE, COUPLE = "0--Parade/0_Parade_marchingband_1_849.jpg", "14--Traffic/14_Traffic_Traffic_14_34.jpg"


def points(start: float) -> np.ndarray:
    """(98, 2), the first pixel is 0."""
    return start + np.stack([np.linspace(0, 40, 98), np.linspace(44, 4, 98)], 1)


def line(start: float, name: str, attributes: str = "0 0 0 0 0 0") -> str:
    numbers = " ".join(f"{value:.6f}" for value in points(start).reshape(-1))
    x0, y0 = int(start), int(start) + 2
    return f"{numbers} {x0} {y0} {x0 + 42} {y0 + 46} {attributes} {name}"


def write(root: Path, split: str, *lines: str) -> None:
    (root / LISTS).mkdir(parents=True, exist_ok=True)
    (root / LISTS / f"list_98pt_rect_attr_{split}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (PARADE, COUPLE):
        (tmp_path / "WFLW_images" / name).parent.mkdir(parents=True)
        Image.new("RGB", (200, 160), "gray").save(tmp_path / "WFLW_images" / name)
    write(
        tmp_path, "train", line(10, COUPLE, "1 0 0 0 0 0"), line(5, PARADE), line(90.5, COUPLE, "0 1 0 0 0 1")
    )
    write(tmp_path, "test", line(20, PARADE, "0 0 1 1 1 0"))
    return tmp_path


def source(root: Path, **options: object) -> WFLW:
    return WFLW(WFLWConfig.model_validate({"kind": "wflw", "path": root} | options), 2)


def found(corpus: WFLW) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def test_several_faces_of_one_picture_and_one_picture_in_both_lists(root: Path) -> None:
    pictures = found(source(root))
    assert {name: len(f.annotations) for name, f in pictures.items()} == {
        f"train/{COUPLE}": 2,
        f"train/{PARADE}": 1,
        f"test/{PARADE}": 1,
    }
    assert (
        pictures[f"test/{PARADE}"].path == pictures[f"train/{PARADE}"].path == root / "WFLW_images" / PARADE
    )
    assert list(found(source(root, splits=("test",)))) == [f"test/{PARADE}"]
    first, second = pictures[f"train/{COUPLE}"].annotations
    assert set(first) == set(LABELS.names)
    assert [name for name in ATTRIBUTES if first[name]] == ["large_pose"]
    assert [name for name in ATTRIBUTES if second[name]] == ["expression", "blur"]
    (tested,) = pictures[f"test/{PARADE}"].annotations
    assert [name for name in ATTRIBUTES if tested[name]] == ["illumination", "make_up", "occlusion"]
    assert (first["split"], tested["split"]) == ("train", "test")


def test_points_count_from_zero(root: Path) -> None:
    face = found(source(root))[f"train/{COUPLE}"].annotations[1]
    np.testing.assert_allclose(np.reshape(face["landmarks98"], (98, 2)), points(90.5) + 0.5, atol=1e-5)
    assert face["box"] == [90.5, 92.5, 132.5, 138.5]


def test_damaged_lines_cost_their_picture_or_are_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = line(10, PARADE)
    write(
        root,
        "train",
        line(10, COUPLE),
        good.split(maxsplit=1)[1],
        good.replace("50.000000", "fifty"),
        "",
        line(10, COUPLE, "0 0 2 0 0 0"),
        line(10, "no picture"),
        "1 2 3",
        line(10, "../secret.jpg"),
        line(10, "1--Handshaking/with space.jpg"),
        line(10, "1--Handshaking/nan.jpg").replace("10.000000", "nan"),
        line(10, "1--Handshaking/box.jpg").replace(" 10 12 52 58 ", " 52 12 10 58 "),
    )
    with caplog.at_level(logging.WARNING):
        pictures = found(source(root, splits=("train",)))
    start = "list_98pt_rect_attr_train.txt"
    errors = {name.rpartition("/")[2]: f.error.partition(": '")[0] for name, f in pictures.items()}
    assert errors == {
        "14_Traffic_Traffic_14_34.jpg": f"{start}:5: not 98 points, a box and six attributes of 0 or 1",
        "0_Parade_marchingband_1_849.jpg": f"{start}:2: 206 fields instead of 207",
        "with space.jpg": "",
        "nan.jpg": f"{start}:10: not 98 points, a box and six attributes of 0 or 1",
        "box.jpg": f"{start}:11: not 98 points, a box and six attributes of 0 or 1",
    }
    assert [record.getMessage().partition("picture: ")[2][:40] for record in caplog.records] == [
        f"{start}:6",
        f"{start}:7: 3 fields"[:40],
        f"{start}:8",
    ]


def test_no_number_is_said(root: Path) -> None:
    write(root, "train", line(10, PARADE).replace("50.000000", "fifty"))
    (picture,) = found(source(root, splits=("train",))).values()
    assert "_train.txt:1: not 206 numbers before the name: '10.0000" in picture.error


def test_every_face_becomes_a_crop_with_its_points(root: Path) -> None:
    output = Path(f"{root}-run")
    given = [f"source.path={root}", f"output={output}", "workers=1", "source.splits=[train]"]
    config = configs.load(ROOT / "configs/data/wflw.yaml", given, schema=DataPrepConfig)
    pipeline = Pipeline(config)
    pipeline.run(STAGES[:-1])
    rows = read_labels(output / "set.beton").to_pylist()
    assert [row["image_id"] for row in rows] == [f"train/{COUPLE}"] * 2 + [f"train/{PARADE}"]
    for row, start in zip(rows, (10, 90.5, 5), strict=True):
        matrix = np.reshape(row["affine"], (2, 3))
        expected = (points(start) + 0.5) @ matrix[:, :2].T + matrix[:, 2]
        np.testing.assert_allclose(np.reshape(row["landmarks98"], (98, 2)), expected, atol=1e-3)
        np.testing.assert_allclose(row["box"], row["true_box"], atol=1e-3)
        assert row["true_box"][3] - row["true_box"][1] == pytest.approx(190 * 46 / 44, abs=1e-2)
    figures = {row["what"]: row["listed"] for row in pipeline.published()}
    assert figures == {"faces of train": 3}


def test_published_counts_by_subset(root: Path) -> None:
    given = [f"source.path={root}", f"output={root}-run", "workers=1"]
    pipeline = Pipeline(configs.load(ROOT / "configs/data/wflw.yaml", given, schema=DataPrepConfig))
    pipeline.list()
    figures = {row["what"]: (row["published"], row["listed"]) for row in pipeline.published()}
    assert figures == {
        "faces of train": (7_500, 3),
        "faces of test": (2_500, 1),
        "faces of test, large_pose": (326, 0),
        "faces of test, expression": (314, 0),
        "faces of test, illumination": (698, 1),
        "faces of test, make_up": (206, 1),
        "faces of test, occlusion": (736, 1),
        "faces of test, blur": (773, 0),
    }


def test_a_missing_list_is_an_error(root: Path) -> None:
    (root / LISTS / "list_98pt_rect_attr_test.txt").unlink()
    with pytest.raises(ConfigError, match=r"no WFLW_annotations/.*_test\.txt there; check the path"):
        source(root).shards()
