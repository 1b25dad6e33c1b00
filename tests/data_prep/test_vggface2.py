"""VGGFace2, on a small tree in its layout."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from configs import ConfigError
from data_prep.listing import list_shard
from data_prep.sources import Found, vggface2
from data_prep.sources.corpus import input_schema
from data_prep.sources.vggface2 import LABELS, VGGFace2, VGGFace2Config

NAMES = {
    "train": ["n000002/0001_01.jpg", "n000002/0002_01.jpg", "n000010/0001_02.jpg"],
    "test": ["n000001/0001_01.jpg"],
}
POINTS = "1.5,2,3,4,5,6,7,8,9,-10.25"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pictures of two people in train, one in test, all annotated."""
    root = tmp_path / "vggface2"
    (root / "bb_landmark").mkdir(parents=True)
    for split, names in NAMES.items():
        for number, name in enumerate(names):
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + number, 30)).save(root / split / name)
        write(root / f"{split}_list.txt", *names)
        keys = [name.removesuffix(".jpg") for name in names]
        boxes = [f'"{key}",{number},-2,10,12' for number, key in enumerate(keys)]
        write(boxes_of(root, split), "NAME_ID,X,Y,W,H", *boxes)
        header = "NAME_ID," + ",".join(f"P{point}{axis}" for point in range(1, 6) for axis in "XY")
        write(points_of(root, split), header, *(f'"{key}",{POINTS}' for key in keys))
    return root


def write(path: Path, *lines: str, end: str = "\n") -> None:
    path.write_text("".join(line + end for line in lines), newline="")


def append(path: Path, text: bytes) -> None:
    path.write_bytes(path.read_bytes() + text)


def boxes_of(root: Path, split: str = "train") -> Path:
    return root / "bb_landmark" / f"loose_bb_{split}.csv"


def points_of(root: Path, split: str = "train") -> Path:
    return root / "bb_landmark" / f"loose_landmark_{split}.csv"


def source(root: Path, *splits: str, shard_size: int = 256) -> VGGFace2:
    config = {"kind": "vggface2", "path": root} | ({"splits": splits} if splits else {})
    return VGGFace2(VGGFace2Config.model_validate(config), shard_size)


def found(root: Path, *splits: str) -> dict[str, Found]:
    opened = source(root, *splits)
    return {one.image_id: one for shard in opened.shards() for one in opened.pictures(shard)}


def digests(root: Path) -> list[str]:
    return [shard.inputs for shard in source(root, shard_size=2).shards()]


def test_every_picture_with_its_identity_box_and_landmarks(root: Path) -> None:
    rows = source(root).inputs().to_pylist()
    assert [row["image_id"] for row in rows] == [f"{s}/{name}" for s in NAMES for name in NAMES[s]]
    assert [row["path"] for row in rows] == [row["image_id"] for row in rows]
    assert not any(row["error"] for row in rows)
    faces = [row["annotations"][0] for row in rows]
    assert all(len(row["annotations"]) == 1 for row in rows)
    assert [face["identity"] for face in faces] == [2, 2, 10, 1]
    assert [face["split"] for face in faces] == ["train"] * 3 + ["test"]
    assert faces[1]["box"] == [1, -2, 11, 10]
    assert faces[1]["landmarks5"] == [1.5, 2, 3, 4, 5, 6, 7, 8, 9, -10.25]
    assert source(root).inputs().schema == input_schema(LABELS)


def test_pictures_come_back_from_shards(root: Path) -> None:
    opened = source(root, shard_size=3)
    shards = opened.shards()
    assert [(shard.number, shard.size) for shard in shards] == [(0, 3), (1, 1)]
    last = list(opened.pictures(shards[1]))
    face = {
        "identity": 1,
        "box": [0, -2, 10, 10],
        "landmarks5": [*map(float, POINTS.split(","))],
        "split": "test",
    }
    assert last == [Found("test/n000001/0001_01.jpg", root / "test/n000001/0001_01.jpg", (face,))]
    assert opened.label_name == "identity"
    assert opened.config.synthetic is False


def test_the_same_files_give_the_same_shards(root: Path) -> None:
    assert digests(root) == digests(root)


def test_a_changed_label_changes_its_shard_alone(root: Path) -> None:
    before = digests(root)
    write(boxes_of(root, "train"), *boxes_of(root).read_text().replace(",1,-2,", ",3,-2,").splitlines())
    after = digests(root)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_only_the_splits_asked_for(root: Path) -> None:
    assert list(found(root, "test")) == ["test/n000001/0001_01.jpg"]
    assert len(found(root, "test", "test")) == 1


def test_without_a_list_the_folders_are_walked_by_name(root: Path) -> None:
    (root / "train_list.txt").unlink()
    for other in ("n000002/.hidden.jpg", "n000002/notes.txt", "n000002/._0001_01.jpg", "thumbs.jpg"):
        (root / "train" / other).touch()
    (root / "train" / "else").mkdir()
    (root / "train" / "else" / "0001_01.jpg").touch()
    (root / "train" / "n000003").touch()
    assert list(found(root, "train")) == [f"train/{name}" for name in NAMES["train"]]
    assert found(root, "train")["train/n000010/0001_02.jpg"].annotations[0]["identity"] == 10


def test_a_list_may_name_the_split_and_end_lines_in_any_way(root: Path) -> None:
    before = found(root)
    write(root / "train_list.txt", *(f"train/{name}" for name in NAMES["train"]), "", end="\r\n")
    for path in (boxes_of(root), points_of(root)):
        write(path, *path.read_text().splitlines(), end="\r\n")
        path.write_bytes(path.read_bytes().removesuffix(b"\r\n"))
    assert found(root) == before


def test_a_listed_picture_that_does_not_exist_stays(root: Path) -> None:
    append(root / "train_list.txt", b"n000011/0001_01.jpg\n")
    opened = source(root, "train")
    table = list_shard(opened, root / "images", opened.shards()[0])
    row = table.to_pylist()[-1]
    assert row["image_id"] == "train/n000011/0001_01.jpg"
    assert (row["status"], "cannot be read" in row["error"]) == ("failed", True)
    assert table["status"].to_pylist()[:-1] == ["ok"] * 3


def test_without_annotations_the_picture_stays(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    boxes_of(root).unlink()
    write(points_of(root), *points_of(root).read_text().splitlines()[:2])
    one, two, _ = found(root, "train").values()
    assert (one.error, one.annotations[0]["box"], len(one.annotations[0]["landmarks5"])) == ("", None, 10)
    assert two.annotations[0] == {"identity": 2, "box": None, "landmarks5": None, "split": "train"}
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "loose_bb_train.csv is not there" in warning.getMessage()


@pytest.mark.parametrize(
    "line",
    [
        '"n000002/0002_01",1,2,3',
        '"n000002/0002_01",1,2,3,4,5',
        '"n000002/0002_01",1,x,3,4',
        '"n000002/0002_01",1,,3,4',
        '"n000002/0002_01",1,2,0,4',
        '"n000002/0002_01",1,2,3,-4',
        '"n000002/0002_01",nan,2,3,4',
        '"n000002/0002_01',
    ],
)
def test_a_damaged_line_is_its_pictures_error(root: Path, line: str) -> None:
    lines = boxes_of(root).read_text().splitlines()
    write(boxes_of(root), *lines[:2], line, *lines[3:])
    one, two, three = found(root, "train").values()
    assert two.error == f"loose_bb_train.csv:3: not NAME_ID,X,Y,W,H: '{line}'"
    assert two.annotations[0]["box"] is None
    assert not one.error
    assert three.annotations[0]["box"] == [2, -2, 12, 10]


def test_a_damaged_landmark_line_too(root: Path) -> None:
    append(points_of(root), b'"n000010/0001_02",1,2\n')
    three = found(root, "train")["train/n000010/0001_02.jpg"]
    assert three.error.startswith("loose_landmark_train.csv:5: not NAME_ID,P1X,P1Y,")


def test_lines_that_name_no_picture_cost_one_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = found(root)
    append(boxes_of(root), b'\xff\xfe\x00,1\n\n"n000099/0001_01",1\n"n000098/0001_01",1,2,3,4\n')
    assert found(root) == before
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("loose_bb_train.csv:5: not NAME_ID,X,Y,W,H: '\\xff\\xfe")
    assert warning.endswith("(and 1 more lines)")


def test_damage_in_a_list(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(
        root / "train_list.txt",
        b"rubbish\nn000002/0001_01.jpg\nn000011/0001_01.jpg 7\n../n000002/0001_01.jpg\n",
    )
    pictures = found(root, "train")
    assert len(pictures) == 4
    error = "train_list.txt:6: not n000001/0001_01.jpg: 'n000011/0001_01.jpg 7'"
    assert pictures["train/n000011/0001_01.jpg"].error == error
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "train_list.txt:4: not n000001/0001_01.jpg: 'rubbish' (and 1 more lines)",
        "train_list.txt:5: n000002/0001_01.jpg is named before (lines left out like this one: 1)",
    ]


def test_of_two_lines_for_a_picture_the_first_counts(root: Path) -> None:
    append(boxes_of(root), b'"n000002/0001_01",5,5,5,5\n')
    assert found(root)["train/n000002/0001_01.jpg"].annotations[0]["box"] == [0, -2, 10, 10]


def test_lines_are_found_across_blocks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(boxes_of(root), b'"n000010/0001_02",1\n')
    before = found(root)
    monkeypatch.setattr(vggface2, "_BLOCK", 7)
    assert found(root) == before


def test_order_in_the_csv_does_not_matter(root: Path) -> None:
    before = found(root)
    header, *lines = boxes_of(root).read_text().splitlines()
    write(boxes_of(root), header, *reversed(lines))
    assert found(root) == before


def test_nothing_there_is_refused(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no VGGFace2 is there; expected train_list\.txt"):
        source(tmp_path / "nowhere").shards()
    (root / "test_list.txt").write_text("")
    with pytest.raises(ConfigError, match="no VGGFace2"):
        source(root, "test").shards()


def test_one_split_missing_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "test_list.txt").unlink()
    (root / "test").rename(root / "away")
    assert len(found(root)) == 3
    assert "neither the folder nor the list" in caplog.text


def test_many_pictures_stay_a_small_table(tmp_path: Path) -> None:
    names = [f"n{i // 300:06d}/{i % 300:04d}_01" for i in range(20_000)]
    write(tmp_path / "train_list.txt", *(f"{name}.jpg" for name in names))
    (tmp_path / "bb_landmark").mkdir()
    write(boxes_of(tmp_path), "NAME_ID,X,Y,W,H", *(f'"{name}",1,2,3,4' for name in reversed(names)))
    table = source(tmp_path, "train").inputs()
    assert isinstance(table, pa.Table)
    assert table.nbytes / len(table) < 200
    assert sum(shard.size for shard in source(tmp_path, "train").shards()) == 20_000
