"""SFEW 2.0 in its own layout: a folder a class, in folders that go by several names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import configs
from configs import ConfigError
from data_prep.beton import Beton, read_labels
from data_prep.config import DataPrepConfig
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources import Found
from data_prep.sources.affectnet import CLASSES
from data_prep.sources.corpus import input_schema
from data_prep.sources.sfew import COUNTS, FOLDERS, LABELS, SFEW, SFEWConfig

ROOT = Path(__file__).parents[2]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (143, 181), "gray").save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in FOLDERS:
        picture(
            tmp_path / f"sfew/Train/Train_Aligned_Faces/{folder}/Airheads_000519240_0000000{len(folder)}.png"
        )
    picture(tmp_path / "sfew/Val/Val_Aligned_Faces_new/Sad/The Hangover_1.png")
    picture(tmp_path / "sfew/Val/Val_Aligned_Faces_new/Happy/b.png")
    picture(tmp_path / "sfew/Test/Test_Aligned_Faces/c.png")
    return tmp_path / "sfew"


def source(root: Path, shard_size: int = 256, **options: Any) -> SFEW:
    return SFEW(SFEWConfig(kind="sfew", path=root, **options), shard_size)


def found(corpus: SFEW) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def test_folders_are_classes(root: Path) -> None:
    corpus = source(root)
    faces = {name: picture.annotations[0] for name, picture in found(corpus).items()}
    assert {name.split("/")[1]: CLASSES[face["expression"]] for name, face in faces.items()} == {
        "Angry": "anger",
        "Disgust": "disgust",
        "Fear": "fear",
        "Happy": "happy",
        "Neutral": "neutral",
        "Sad": "sad",
        "Surprise": "surprise",
    }
    assert faces["val/Sad/The Hangover_1.png"] == {"expression": 2, "split": "val"}
    assert list(faces)[-2:] == ["val/Happy/b.png", "val/Sad/The Hangover_1.png"]
    assert [face["split"] for face in faces.values()] == ["train"] * 7 + ["val"] * 2
    assert all(picture.path.is_file() for picture in found(corpus).values())
    assert corpus.inputs().schema == input_schema(LABELS)


def test_the_test_part_has_no_labels(root: Path) -> None:
    (only,) = found(source(root, splits=("test",))).values()
    assert (only.image_id, only.annotations) == ("test/c.png", ({"expression": None, "split": "test"},))


def test_names_of_the_folders(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(root / "Val/Val_Aligned_Faces/Sad/older.png")
    with caplog.at_level(logging.WARNING):
        assert "val/Sad/older.png" not in found(source(root, splits=("val",)))
    assert any("Val_Aligned_Faces: left out" in message for message in caplog.messages)
    for part, name in (("Train", "Train_Aligned_Faces"), ("Val", "Val_Aligned_Faces_new")):
        (root / part / name).rename(root / name)
        expected = f"{part}_Aligned_Faces"
        assert expected in str(next(iter(found(source(root, splits=(part.lower(),))).values())).path)
        if part == "Val":
            (root / name).rename(root / part / name)
    (root / "Val/Val_Aligned_Faces_new").rename(root / "gone")
    assert list(found(source(root, splits=("val",)))) == ["val/Sad/older.png"]


def test_other_files_are_no_pictures(root: Path) -> None:
    (root / "Train/Train_Aligned_Faces/Sad/Thumbs.db").touch()
    (root / "Train/Train_Aligned_Faces/Sad/.x.png").touch()
    assert len(found(source(root))) == 9


def test_a_folder_that_is_no_class_is_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(root / "Train/Train_Aligned_Faces/Contempt/a.png")
    with caplog.at_level(logging.WARNING):
        assert len(found(source(root))) == 9
    (message,) = (message for message in caplog.messages if "no class" in message)
    assert (
        "Train_Aligned_Faces/Contempt: left out, it is no class; rename it to one of Angry, Disgust"
        in message
    )


def test_a_folder_with_another_name_is_named_twice(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = root / "Train/Train_Aligned_Faces"
    (part / "Angry").rename(part / "Anger")
    with caplog.at_level(logging.WARNING):
        assert len(found(source(root, splits=("train",)))) == 6
    assert [message.partition(";")[0] for message in caplog.messages] == [
        f"{part}/Anger: left out, it is no class",
        f"{part}/Angry: no such folder",
    ]


def test_counts_and_missing_parts(root: Path, tmp_path: Path) -> None:
    assert [sum(counts.values()) for counts in COUNTS.values()] == [891, 431]
    figures = {figure.what: figure.count for figure in source(root, splits=("val", "test")).published}
    assert (len(figures), figures["faces of val, anger"], figures["pictures of test"]) == (8, 77, 372)
    with pytest.raises(ConfigError, match="no Train/Train_Aligned_Faces in it"):
        source(tmp_path).shards()


def test_every_face_is_in_the_set(root: Path, tmp_path: Path) -> None:
    (root / "Val/Val_Aligned_Faces_new/Sad/The Hangover_1.png").write_bytes(b"")
    given = [f"source.path={root}", f"output={tmp_path / 'set'}", "workers=1"]
    pipeline = Pipeline(configs.load(ROOT / "configs/data/sfew.yaml", given, schema=DataPrepConfig))
    pipeline.run(STAGES)
    table = read_labels(tmp_path / "set/set.beton")
    assert table["expression"].to_pylist() == [6, 5, 4, 1, 0, 2, 3, 1]
    assert Beton(tmp_path / "set/set.beton").column("label").tolist() == table["expression"].to_pylist()
    x0, y0, x1, y1 = table["box"].to_pylist()[0]
    assert (y0, y1) == (pytest.approx(0, abs=0.1), pytest.approx(256, abs=0.1))
    assert x0 == pytest.approx(256 - x1) == pytest.approx(27, abs=0.5)
    counts = {row["what"]: (row["listed"], row["usable"]) for row in pipeline.published()}
    assert counts["faces of val, sad"] == (1, 0)
