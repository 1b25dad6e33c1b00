"""RAF-DB in its own layout: a list, aligned faces, photographs with a file of a box each."""

from __future__ import annotations

import json
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
from data_prep.sources.corpus import listed_schema
from data_prep.sources.rafdb import COUNTS, LABELS, RAFDB, RAFDBConfig

ROOT = Path(__file__).parents[2]


def write_list(root: Path, *lines: str) -> None:
    (root / "EmoLabel").mkdir(exist_ok=True)
    (root / "EmoLabel/list_patition_label.txt").write_text("".join(f"{line}\n" for line in lines))


def box(root: Path, stem: str, text: str) -> None:
    folder = root / "Annotation/boundingbox"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}_boundingbox.txt").write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A picture of each class in train, one in test."""
    folder = tmp_path / "basic"
    (folder / "Image/aligned").mkdir(parents=True)
    (folder / "Image/original").mkdir()
    lines = [f"train_{number:05d}.jpg {number}" for number in range(1, 8)] + ["test_0001.jpg 5"]
    for line in lines:
        stem = line.split(".")[0]
        Image.new("RGB", (100, 100), "gray").save(folder / f"Image/aligned/{stem}_aligned.jpg")
        Image.new("RGB", (300, 200), "gray").save(folder / f"Image/original/{stem}.jpg")
    write_list(folder, *lines)
    return folder


def source(root: Path, shard_size: int = 256, **options: Any) -> RAFDB:
    return RAFDB(RAFDBConfig(kind="rafdb", path=root, **options), shard_size)


def found(corpus: RAFDB) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def test_classes_are_renumbered(root: Path) -> None:
    corpus = source(root)
    pictures = found(corpus)
    faces = [picture.annotations[0] for picture in pictures.values()]
    assert [(face["own_expression"], CLASSES[face["expression"]]) for face in faces[:7]] == [
        (1, "surprise"),
        (2, "fear"),
        (3, "disgust"),
        (4, "happy"),
        (5, "sad"),
        (6, "anger"),
        (7, "neutral"),
    ]
    assert [face["split"] for face in faces] == ["train"] * 7 + ["test"]
    assert next(iter(pictures)) == "Image/aligned/train_00001_aligned.jpg"
    assert all(picture.path.is_file() and not picture.error for picture in pictures.values())
    assert corpus.inputs().schema == listed_schema(LABELS)


def test_photographs_and_their_boxes(root: Path) -> None:
    box(root, "train_00001", "10.5 20.25 110 140\n")
    box(root, "train_00002", "10 20\n110")
    box(root, "train_00003", "10 20 5 140")
    box(root, "train_00004", "a b c d")
    box(root, "train_00005", "1 2 nan 4")
    pictures = [*found(source(root, pictures="original")).values()]
    assert pictures[0].path == root / "Image/original/train_00001.jpg"
    assert pictures[0].annotations[0]["box"] == [10.5, 20.25, 110, 140]
    assert [picture.error for picture in pictures[1:5]] == [
        "train_00002_boundingbox.txt: not x0 y0 x1 y1; mend it: '10 20 110'",
        "train_00003_boundingbox.txt: not x0 y0 x1 y1; mend it: '10 20 5 140'",
        "train_00004_boundingbox.txt: not x0 y0 x1 y1; mend it: 'a b c d'",
        "train_00005_boundingbox.txt: not x0 y0 x1 y1; mend it: '1 2 nan 4'",
    ]
    assert (pictures[5].error, pictures[5].annotations[0]["box"]) == ("", None)
    assert all(f.annotations[0]["box"] is None for f in found(source(root)).values()), (
        "aligned faces have none"
    )


def test_damaged_lines(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        "train_00001.jpg 8",
        "train_00002.jpg",
        "train_00003.jpg 3 3",
        "",
        "00004.jpg 4",
        "train_00005.jpg  5\r",
    ]
    write_list(root, *lines, "test_0001.jpg 1", "test_0001.jpg 2")
    with caplog.at_level(logging.WARNING):
        errors = {name[14:-12]: picture.error for name, picture in found(source(root)).items()}
    form = "not train_00001.jpg and 1 to 7; mend the line"
    assert errors == {
        "train_00001": f"list_patition_label.txt:1: {form}: 'train_00001.jpg 8'",
        "train_00002": f"list_patition_label.txt:2: {form}: 'train_00002.jpg'",
        "train_00003": f"list_patition_label.txt:3: {form}: 'train_00003.jpg 3 3'",
        "train_00005": "",
        "test_0001": "",
    }
    assert [message.split(": ")[0] for message in caplog.messages] == [
        "list_patition_label.txt:5",
        "list_patition_label.txt:8",
    ]


def test_published_counts(root: Path) -> None:
    assert [sum(counts) for counts in COUNTS.values()] == [12_271, 3_068]
    figures = source(root).published
    assert (len(figures), figures[3].what, figures[3].count) == (14, "faces of train, happy", 4_772)


def test_the_folder_above_is_refused(root: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no EmoLabel/list_patition_label\.txt in it; name the folder 'basic'"
    ):
        source(root.parent).shards()


def test_a_changed_box_is_a_changed_shard(root: Path) -> None:
    before = [shard.inputs for shard in source(root, 4, pictures="original").shards()]
    box(root, "train_00006", "1 2 30 40")
    after = [shard.inputs for shard in source(root, 4, pictures="original").shards()]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False]


def test_a_line_more_is_no_other_shard(root: Path) -> None:
    """Where a picture is listed decides nothing about it."""
    before = [shard.inputs for shard in source(root, 4).shards()]
    path = root / "EmoLabel/list_patition_label.txt"
    path.write_text("\n" + path.read_text())
    assert [shard.inputs for shard in source(root, 4).shards()] == before
    assert found(source(root))["Image/aligned/train_00001_aligned.jpg"].place == "list_patition_label.txt:2"


def test_every_aligned_face_is_in_the_set(root: Path, tmp_path: Path) -> None:
    """Also those in which no detector would find a face; but not a damaged file."""
    (root / "Image/aligned/train_00002_aligned.jpg").write_bytes(b"no picture")
    (root / "Image/aligned/train_00006_aligned.jpg").unlink()
    given = [f"source.path={root}", f"output={tmp_path / 'set'}", "workers=1", "shard_size=5"]
    pipeline = Pipeline(configs.load(ROOT / "configs/data/rafdb.yaml", given, schema=DataPrepConfig))
    pipeline.run(STAGES)
    table = read_labels(tmp_path / "set/set.beton")
    assert table["own_expression"].to_pylist() == [1, 3, 4, 5, 7, 5]
    assert Beton(tmp_path / "set/set.beton").column("label").tolist() == [3, 5, 1, 2, 0, 2]
    assert table["box"].to_pylist()[0] == [0, 0, 256, 256], "edge to edge"
    failed = json.loads((tmp_path / "set/quarantine.json").read_text())
    assert [(entry["image_id"], entry["reason"]) for entry in failed] == [
        (
            f"Image/aligned/train_0000{line}_aligned.jpg",
            f"list_patition_label.txt:{line}: the picture: {reason}; put a good copy back or take the line out",
        )
        for line, reason in (
            (2, "not a picture in any known format"),
            (6, "cannot be read: No such file or directory"),
        )
    ]
    summary = json.loads((tmp_path / "set/report/summary.json").read_text())
    assert [(row["count"], row["reason"].split(":")[0]) for row in summary["failures"]] == [
        (1, "the picture")
    ] * 2
    counts = {row["what"]: (row["listed"], row["usable"]) for row in pipeline.published()}
    assert (counts["faces of train, fear"], counts["faces of test, sad"]) == ((1, 0), (1, 1))


def test_photographs_by_their_boxes(root: Path, tmp_path: Path, astronaut: Image.Image) -> None:
    """The real detector on a photograph whose box is known, as the file of settings says."""
    astronaut.convert("RGB").save(root / "Image/original/train_00004.jpg", quality=95)
    box(root, "train_00004", "175 70 275 200")
    write_list(root, "train_00004.jpg 4")
    given = [f"source.path={root}", f"output={tmp_path / 'set'}", "workers=1", "source.pictures=original"]
    given += ["detect.network=mobilenet0.25", "keep.rule=best_iou", "crop.face_size=190"]
    Pipeline(configs.load(ROOT / "configs/data/rafdb.yaml", given, schema=DataPrepConfig)).run(STAGES[:-1])
    (row,) = read_labels(tmp_path / "set/set.beton").to_pylist()
    assert (row["expression"], row["split"]) == (1, "train")
    assert row["true_box"] is not None
