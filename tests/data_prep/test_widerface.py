"""WIDER FACE, on a small tree in its layout."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from configs import ConfigError
from data_prep.listing import list_shard
from data_prep.sources import Found
from data_prep.sources.corpus import input_schema
from data_prep.sources.widerface import ATTRIBUTES, LABELS, WiderFace, WiderFaceConfig

PARADE = "0--Parade/0_Parade_marchingband_1_849.jpg"
CROWD = "0--Parade/0_Parade_Parade_0_904.jpg"
EMPTY = "2--Demonstration/2_Demonstration_Protesters_2_231.jpg"
NAMES = {
    "train": [PARADE, CROWD, EMPTY],
    "val": ["1--Handshaking/1_Handshaking_1.jpg"],
    "test": ["9--Press/9_b.jpg"],
}
TRAIN = [
    *(PARADE, "1", "449 330 122 149 0 0 0 0 0 0 "),
    *(
        CROWD,
        "4",
        "10 20 30 40 2 1 1 0 2 1",
        "-3 0 5 5 0 0 0 0 0 0",
        "7 7 0 9 1 0 0 0 0 0",
        "1 2 3 4 0 0 0 1 0 0",
    ),
    *(EMPTY, "0", "0 0 0 0 0 0 0 0 0 0 "),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "widerface"
    for split, names in NAMES.items():
        for name in names:
            path = root / f"WIDER_{split}" / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 24)).save(path)
    (root / "wider_face_split").mkdir()
    annotate(root, TRAIN)
    annotate(root, [NAMES["val"][0], "1", "1 2 3 4 0 0 0 0 0 0"], "val")
    return root


def annotate(root: Path, lines: list[str], split: str = "train") -> None:
    path = root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"
    path.write_text("".join(f"{line}\n" for line in lines))


def source(root: Path, *splits: str, shard_size: int = 256) -> WiderFace:
    config = {"kind": "widerface", "path": root} | ({"splits": splits} if splits else {})
    return WiderFace(WiderFaceConfig.model_validate(config), shard_size)


def found(root: Path, *splits: str) -> dict[str, Found]:
    opened = source(root, *splits)
    return {one.image_id: one for shard in opened.shards() for one in opened.pictures(shard)}


def train(root: Path) -> dict[str, Found]:
    return {name.removeprefix("train/"): one for name, one in found(root, "train").items()}


def digests(root: Path) -> list[str]:
    return [shard.inputs for shard in source(root, shard_size=2).shards()]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_every_picture_with_its_faces(root: Path) -> None:
    table = source(root).inputs()
    assert table.schema == input_schema(LABELS)
    assert table["image_id"].to_pylist() == [f"{split}/{name}" for split in NAMES for name in NAMES[split]]
    assert table["path"].to_pylist()[0] == f"WIDER_train/images/{PARADE}"
    assert set(table["error"].to_pylist()) == {""}
    first = {"box": [449, 330, 571, 479]} | dict.fromkeys(ATTRIBUTES, 0)
    assert table["annotations"].to_pylist()[0] == [first]


def test_faces_without_extent_and_invalid_ones_are_left_out(root: Path) -> None:
    faces = train(root)[CROWD].annotations
    assert [face["box"] for face in faces] == [[10, 20, 40, 60], [-3, 0, 2, 5]]
    assert [faces[0][name] for name in ATTRIBUTES] == [2, 1, 1, 0, 2, 1]


def test_a_picture_of_nobody_is_followed_by_a_line_of_zeros_or_not(root: Path) -> None:
    before = train(root)
    assert before[EMPTY] == Found(f"train/{EMPTY}", root / "WIDER_train" / "images" / EMPTY)
    annotate(root, TRAIN[-3:-1] + TRAIN[:-3])
    assert train(root) == before


def test_test_pictures_are_walked(root: Path) -> None:
    folder = root / "WIDER_test" / "images"
    (folder / "0--Parade").mkdir()
    for name in ("0--Parade/b.jpg", "0--Parade/a.JPG", "0--Parade/._a.jpg", "0--Parade/a.txt", "c.jpg"):
        (folder / name).touch()
    names = ["0--Parade/a.JPG", "0--Parade/b.jpg", *NAMES["test"]]
    assert list(found(root, "test")) == [f"test/{name}" for name in names]
    assert not any(one.annotations for one in found(root, "test").values())


def test_without_its_annotations_a_split_is_walked(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "wider_face_split" / "wider_face_train_bbx_gt.txt").unlink()
    assert sorted(train(root)) == sorted(NAMES["train"])
    (warning,) = warnings(caplog)
    assert "wider_face_train_bbx_gt.txt is not there" in warning


def test_pictures_come_back_from_shards(root: Path) -> None:
    opened = source(root, shard_size=4)
    shards = opened.shards()
    assert [(shard.number, shard.size) for shard in shards] == [(0, 4), (1, 1)]
    assert list(opened.pictures(shards[1])) == [
        Found(f"test/{NAMES['test'][0]}", root / "WIDER_test" / "images" / NAMES["test"][0])
    ]
    assert opened.label_name == "none"
    assert opened.config.synthetic is False


def test_the_same_files_give_the_same_shards(root: Path) -> None:
    assert digests(root) == digests(root)


def test_a_changed_label_changes_its_shard_alone(root: Path) -> None:
    before = digests(root)
    annotate(root, [line.replace("449 330", "450 330") for line in TRAIN])
    after = digests(root)
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_a_listed_picture_that_does_not_exist_stays(root: Path) -> None:
    (root / "WIDER_train" / "images" / CROWD).unlink()
    opened = source(root, "train")
    row = list_shard(opened, root / "images", opened.shards()[0]).to_pylist()[1]
    assert (row["image_id"], row["status"]) == (f"train/{CROWD}", "failed")
    assert "cannot be read" in row["error"]


@pytest.mark.parametrize(
    ("line", "instead", "error"),
    [
        (4, "four", "5: not a number of faces: 'four'"),
        (5, "10 20 30", "6: not ten whole numbers: '10 20 30'"),
        (5, "10 20 30 40 2 1 1 0 2 x", "6: not ten whole numbers: '10 20 30 40 2 1 1 0 2 x'"),
        (4, "3", "4: 3 faces announced, 4 lines follow"),
        (4, "5", "4: 5 faces announced, 4 lines follow"),
        (4, "0", "4: 0 faces announced, 4 lines follow"),
    ],
)
def test_a_damaged_line_is_its_pictures_error(root: Path, line: int, instead: str, error: str) -> None:
    before = train(root)
    annotate(root, [*TRAIN[:line], instead, *TRAIN[line + 1 :]])
    after = train(root)
    assert after[CROWD].error == f"wider_face_train_bbx_gt.txt:{error}"
    assert [after[name] for name in (PARADE, EMPTY)] == [before[name] for name in (PARADE, EMPTY)]


def test_a_file_that_ends_early(root: Path) -> None:
    annotate(root, TRAIN[:6])
    assert train(root)[CROWD].error == "wider_face_train_bbx_gt.txt:4: 4 faces announced, 1 lines follow"
    annotate(root, TRAIN[:4])
    assert train(root)[CROWD].error == "wider_face_train_bbx_gt.txt:4: no number of faces, 0 lines follow"


def test_a_damaged_name_costs_its_picture_and_one_warning(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = train(root)
    annotate(root, ["heading", *TRAIN[:3], "0--Parade/0_Par", *TRAIN[4:]])
    assert train(root) == {name: before[name] for name in (PARADE, EMPTY)}
    assert warnings(caplog) == [
        "wider_face_train_bbx_gt.txt:1: belongs to no picture: 'heading' (and 6 more lines)"
    ]


def test_a_picture_named_twice_is_one_input(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = train(root)
    annotate(root, TRAIN + TRAIN[:3])
    assert train(root) == before
    assert warnings(caplog) == [f"wider_face_train_bbx_gt.txt:13: {PARADE} is named before; left out"]


def test_bytes_that_are_no_text_stop_nothing(root: Path) -> None:
    path = root / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    path.write_bytes(path.read_bytes().replace(b"449 330", b"\xff 330"))
    assert train(root)[PARADE].error.startswith(
        "wider_face_train_bbx_gt.txt:3: not ten whole numbers: '\\xff"
    )


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no WIDER FACE is there; expected WIDER_train/images"):
        source(tmp_path / "nowhere").shards()
