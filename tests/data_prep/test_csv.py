"""A CSV file of anybody's: what is right in it, and each thing that can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import configs
from configs import ConfigError
from data_prep.beton import Beton, read_labels
from data_prep.config import DataPrepConfig
from data_prep.listing import list_shard
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources import Found
from data_prep.sources.corpus import listed_schema
from data_prep.sources.csv import CSV, CSVConfig

ROOT = Path(__file__).parents[2]
LABELS: dict[str, dict[str, Any]] = {
    "identity": {"type": "name", "column": "person"},
    "expression": {"type": "integer"},
    "valence": {"type": "number"},
    "split": {"type": "text"},
}
HEADER = "path,person,expression,valence,split"


def source(
    path: Path, *lines: str, labels: dict[str, Any] = LABELS, shard_size: int = 256, **options: Any
) -> CSV:
    if lines:
        path.write_text("".join(f"{line}\n" for line in lines))
    tree = {"kind": "csv", "path": path, "labels": labels} | options
    return CSV(CSVConfig.model_validate(tree, strict=False), shard_size)


def found(corpus: CSV) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def faces(corpus: CSV) -> list[dict[str, Any]]:
    pictures = found(corpus).values()
    assert not [picture.error for picture in pictures if picture.error]
    return [face for picture in pictures for face in picture.annotations]


def test_labels_as_they_are_typed(tmp_path: Path) -> None:
    corpus = source(
        tmp_path / "l.csv",
        HEADER,
        "day 1/b.jpg,Bea,3,-0.5,train",
        "./a.jpg,Ann,2.0,1e-1,test",
        "/elsewhere/c.jpg,Bea,,,",
        '"with, comma.jpg", "Zoë, jr.",NaN,NA, val',
        "",
        "n.jpg,,null,None,train",
    )
    pictures = found(corpus)
    assert {name: picture.path for name, picture in pictures.items()} == {
        "day 1/b.jpg": tmp_path / "day 1/b.jpg",
        "a.jpg": tmp_path / "a.jpg",
        "/elsewhere/c.jpg": Path("/elsewhere/c.jpg"),
        "with, comma.jpg": tmp_path / "with, comma.jpg",
        "n.jpg": tmp_path / "n.jpg",
    }
    names = ("identity", "identity_name", "expression", "valence", "split")
    assert [tuple(face[name] for name in names) for face in faces(corpus)] == [
        (1, "Bea", 3, -0.5, "train"),
        (0, "Ann", 2, pytest.approx(0.1), "test"),
        (1, "Bea", None, None, None),
        (2, "Zoë, jr.", None, None, "val"),
        (-1, None, None, None, "train"),
    ]
    assert corpus.inputs().schema == listed_schema(corpus.labels)
    assert (corpus.label_name, corpus.published) == ("none", ())


def test_other_delimiters_marks_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_bytes(b"\xef\xbb\xbffile;n\r\na.jpg;7\r\nb\xff.jpg;8\r\n")
    corpus = source(
        path, labels={"n": {"type": "integer"}}, delimiter=";", picture="file", root=tmp_path / "in"
    )
    pictures = found(corpus)
    assert [picture.annotations[0]["n"] for picture in pictures.values()] == [7, 8]
    assert pictures["a.jpg"].path == tmp_path / "in/a.jpg"


def test_numbers_in_columns_or_in_one_cell(tmp_path: Path) -> None:
    labels = {
        "box": {"type": "numbers", "columns": ["x0", "y0", "x1", "y1"]},
        "landmarks5": {"type": "numbers", "column": "points", "length": 10},
        "units": {"type": "numbers", "length": 2},
    }
    ten = "[1.5, 2, 3, 4, 5, 6, 7, 8, 9, 10]"
    corpus = source(
        tmp_path / "l.csv",
        "path,x0,y0,x1,y1,points,units",
        f'a.jpg,1,2,30,40,"{ten}",0.5 1',
        "b.jpg,,,,,,",
        "c.jpg,1,2,30,40,1;2;3;4;5;6;7;8;9;10,nan nan",
        labels=labels,
    )
    first, second, third = faces(corpus)
    assert first == {"box": [1, 2, 30, 40], "landmarks5": [1.5, *range(2, 11)], "units": [0.5, 1]}
    assert second == {"box": None, "landmarks5": None, "units": None}
    assert third["units"] is None


def test_several_faces_of_a_picture_need_their_boxes(tmp_path: Path) -> None:
    labels = {"n": {"type": "integer"}, "box": {"type": "numbers", "length": 4}}
    lines = ["path,n,box", "a.jpg,1,0 0 5 5", "b.jpg,2,", "a.jpg,3,9 9 20 20", "c.jpg,4,", "c.jpg,5,1 1 2 2"]
    pictures = found(source(tmp_path / "l.csv", *lines, labels=labels))
    assert [face["n"] for face in pictures["a.jpg"].annotations] == [1, 3]
    assert [picture.error for picture in pictures.values()] == [
        "",
        "",
        "l.csv:6: c.jpg is on l.csv:5 too; without a box nobody knows which face it is",
    ]


def test_a_picture_that_is_missing_is_named_with_its_line(tmp_path: Path) -> None:
    corpus = source(tmp_path / "l.csv", "path,n", "gone.jpg,7", labels={"n": {"type": "integer"}})
    (shard,) = corpus.shards()
    (row,) = list_shard(corpus, tmp_path / "out", shard).to_pylist()
    assert row["error"] == (
        "l.csv:2: the picture: cannot be read: No such file or directory; put a good copy back or take the line out"
    )


def test_damaged_lines_are_errors_with_file_and_line(tmp_path: Path) -> None:
    labels = LABELS | {"box": {"type": "numbers", "length": 4}}
    corpus = source(
        tmp_path / "l.csv",
        f"{HEADER},box",
        "good.jpg,Ann,1,0,train,1 1 5 5",
        "short.jpg,Ann,1,0",
        "long.jpg,Ann,1,0,train,1 1 5 5,more",
        "word.jpg,Ann,happy,0,train,1 1 5 5",
        "half.jpg,Ann,1.5,0,train,1 1 5 5",
        "far.jpg,Ann,1,-2,train,1 1 5 5",
        "inf.jpg,Ann,1,inf,train,1 1 5 5",
        "score.jpg,Ann,1_000,0,train,1 1 5 5",
        "three.jpg,Ann,1,0,train,1 1 5",
        "turned.jpg,Ann,1,0,train,5 5 1 1",
        ",Ann,1,0,train,1 1 5 5",
        "nul\0.jpg,Ann,1,0,train,1 1 5 5",
        '"quoted',
        '.jpg",Ann,1,0,train,1 1 5 5',
        "big.jpg,Ann,1,1e400,train,1 1 5 5",
        "last.jpg,Bea,1,0,train,1 1 5 5",
        labels=labels,
    )
    errors = {name: picture.error for name, picture in found(corpus).items()}
    assert errors == {
        "good.jpg": "",
        "short.jpg": "l.csv:3: 4 cells instead of 6",
        "long.jpg": "l.csv:4: 7 cells instead of 6",
        "word.jpg": "l.csv:5: expression is no number: 'happy'",
        "half.jpg": "l.csv:6: expression is no whole number: '1.5'",
        "far.jpg": "l.csv:7: valence is not from -1 to 1: '-2'",
        "inf.jpg": "l.csv:8: valence is no number: 'inf'",
        "score.jpg": "l.csv:9: expression is no number: '1_000'",
        "three.jpg": "l.csv:10: box has 3 numbers instead of 4",
        "turned.jpg": "l.csv:11: box is not x0 < x1 and y0 < y1: 5 5 1 1",
        "l.csv:12": "l.csv:12: names no picture",
        "l.csv:13": "l.csv:13: names no picture",
        "l.csv:14": "l.csv:14: a quote is open up to line 15",
        "big.jpg": "l.csv:16: valence is no number: '1e400'",
        "last.jpg": "",
    }
    identities = [face["identity"] for picture in found(corpus).values() for face in picture.annotations]
    assert identities == [0, 1], "names on damaged lines do not count"


def test_files_that_cannot_be_read_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    with pytest.raises(ConfigError, match=r"l\.csv: cannot be read: No such file"):
        source(path).shards()
    with pytest.raises(ConfigError, match="has no line but its header"):
        source(path, HEADER).shards()
    with pytest.raises(ConfigError, match=r"l\.csv:3: .*; mend the quotes from this line on"):
        source(path, HEADER, "a.jpg,Ann,1,0,", 'b.jpg,"Ann,1,0,', "c.jpg,Ann,1,0,").shards()
    with pytest.raises(ConfigError, match=r"labels\.identity: .* has no column 'person'; it has path, who"):
        source(path, "path,who", "a.jpg,Ann").shards()
    with pytest.raises(ConfigError, match=r"source\.picture: .* has several columns 'path'"):
        source(path, f"{HEADER},path", "a.jpg,Ann,1,0,,b.jpg").shards()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"identity": {"type": "number"}}, "number does not number people"),
        ({"box": {"type": "numbers", "length": 5}}, "box: is 4 numbers"),
        ({"landmarks5": {"type": "text"}}, "landmarks5: is 10 numbers"),
        ({"landmarks7": {"type": "numbers", "length": 14}}, "landmarks7: these points cannot be moved"),
        ({"valence": {"type": "text"}}, "valence: is one number"),
        ({"a": {"type": "numbers"}}, "give 'columns', or 'length'"),
        ({"a": {"type": "text", "length": 3}}, "are for type numbers"),
        ({"a": {"type": "name"}, "a_name": {"type": "text"}}, "a_name: is where the names of a go"),
    ],
)
def test_types_that_cannot_be_meant(tmp_path: Path, labels: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(tmp_path / "l.csv", labels=labels)


def test_the_betons_label_is_one_of_them(tmp_path: Path) -> None:
    assert source(tmp_path / "l.csv", label="expression").label_name == "expression"
    with pytest.raises(ValueError, match="label: age is not among the labels"):
        source(tmp_path / "l.csv", label="age")
    with pytest.raises(ValueError, match="label: valence is no integer and no name"):
        source(tmp_path / "l.csv", label="valence")


def test_a_changed_label_is_a_changed_shard(tmp_path: Path) -> None:
    lines = [HEADER, *(f"{i}.jpg,Ann,{i},0,train" for i in range(6))]
    before = [shard.inputs for shard in source(tmp_path / "l.csv", *lines, shard_size=2).shards()]
    lines[4] = "3.jpg,Ann,3,0.5,train"
    after = [shard.inputs for shard in source(tmp_path / "l.csv", *lines, shard_size=2).shards()]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]


def test_from_a_file_to_a_set(tmp_path: Path, astronaut: Image.Image, t1: bytes) -> None:
    """The documented file, with the real detector; one line is damaged, one picture is not there."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        astronaut.save(tmp_path / "in" / name)
    (tmp_path / "in/labels.csv").write_text(
        "path,person,expression,valence,arousal,split\n"
        "a.png,Eileen,1,0.6,0.2,train\nb.png,Bea,,,,test\nc.png,Ann,?,0,0,train\nd.png,Ann,1,0,0,train\n"
    )
    given = [f"source.path={tmp_path / 'in/labels.csv'}", f"output={tmp_path / 'set'}", "workers=1"]
    Pipeline(configs.load(ROOT / "configs/data/csv.yaml", given, schema=DataPrepConfig)).run(STAGES)
    table = read_labels(tmp_path / "set/set.beton")
    columns = ["identity", "identity_name", "expression", "valence", "arousal", "split"]
    assert [tuple(row[name] for name in columns) for row in table.to_pylist()] == [
        (2, "Eileen", 1, pytest.approx(0.6), pytest.approx(0.2), "train"),
        (1, "Bea", None, None, None, "test"),
    ]
    assert Beton(tmp_path / "set/set.beton").column("label").tolist() == [2, 1]
    quarantine = (tmp_path / "set/quarantine.json").read_text()
    assert "labels.csv:4: expression is no number: '?'" in quarantine
    assert "cannot be read: No such file or directory" in quarantine


def test_labels_without_a_box_need_a_subject(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"without a box .*; add keep\.rule=largest_central"):
        configs.load(ROOT / "configs/data/csv.yaml", ["keep.rule=all"], schema=DataPrepConfig)


def test_boxes_and_points_follow_the_crop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    points = np.array([[120, 140], [160, 140], [140, 160], [125, 180], [155, 180]])
    (tmp_path / "l.csv").write_text(
        f"path,who,box,points\na.png,7,100 100 180 220,{' '.join(map(str, points.reshape(-1)))}\n"
        "a.png,9,200 50 260 110,\n"
    )
    (tmp_path / "run.yaml").write_text(
        f"output: {tmp_path}/out\n"
        f"source:\n  kind: csv\n  path: {tmp_path}/l.csv\n  label: identity\n  labels:\n"
        "    identity: {type: integer, column: who}\n    box: {type: numbers, length: 4}\n"
        "    landmarks5: {type: numbers, column: points, length: 10}\n"
        "detect: {network: annotated}\nkeep: {rule: best_iou}\n"
    )
    Pipeline(configs.load(tmp_path / "run.yaml", schema=DataPrepConfig)).run(STAGES[:-1])
    first, second = read_labels(tmp_path / "out/set.beton").to_pylist()
    assert (first["identity"], second["identity"]) == (7, 9)
    # 190 / mean side 100, centre 140, 160 -> 128, 128
    np.testing.assert_allclose(first["true_box"], [52, 14, 204, 242], atol=1e-3)
    moved = (points - [140, 160]) * 1.9 + 128
    np.testing.assert_allclose(np.reshape(first["true_landmarks5"], (5, 2)), moved, atol=1e-3)
    assert second["true_landmarks5"] is None
