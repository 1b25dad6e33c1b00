"""Both releases of AffectNet in their own layouts, with what is odd about them."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

import configs
from configs import Config, ConfigError
from data_prep.detect import DetectConfig, KeepConfig
from data_prep.listing import list_shard
from data_prep.sources import Found
from data_prep.sources.affectnet import HEADER, LABELS, PUBLISHED_CLASSES, AffectNet, AffectNetConfig
from data_prep.sources.corpus import listed_schema

LISTS = "Manually_Annotated_file_lists"
PICTURES = "Manually_Annotated_Images"
POINTS = np.arange(136) / 4


def source(
    root: Path, release: Literal["old", "new"] = "old", shard_size: int = 256, **options: Any
) -> AffectNet:
    return AffectNet(AffectNetConfig(kind="affectnet", path=root, release=release, **options), shard_size)


def found(corpus: AffectNet) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def row(
    name: str, expression: object = 1, valence: object = 0.5, arousal: object = -0.25, **other: object
) -> str:
    points = other.get("points", ";".join(f"{value:.2f}" for value in POINTS))
    return f"{name},{other.get('box', '10,20,100,120')},{points},{expression},{valence},{arousal}"


def write_list(root: Path, name: str, *rows: str, header: bool = True) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER] * header + [*rows]) + "\n")
    return path


def old(root: Path, *rows: str) -> AffectNet:
    write_list(root, f"{LISTS}/training.csv", *rows)
    write_list(root, f"{LISTS}/validation.csv")
    return source(root)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (22, 22), "gray").save(path)


# --- old release ---------------------------------------------------------------------------------------------


def test_labels_of_the_lists_and_mixed_extensions(tmp_path: Path) -> None:
    names = ["2/a.jpg", "1/b.JPG", "1/c.png", "3/d.bmp", "3/e.tif"]
    for name in names:
        picture(tmp_path / PICTURES / name)
    corpus = old(tmp_path, *(row(name, i, 0.1 * i) for i, name in enumerate(names)))
    (shard,) = corpus.shards()
    rows = list_shard(corpus, tmp_path / "out", shard).to_pylist()
    assert [r["image_id"] for r in rows] == [f"{PICTURES}/{name}" for name in sorted(names)]
    assert {r["status"] for r in rows} == {"ok"}
    (face,) = rows[1]["annotations"]
    assert face == {
        "expression": 2,
        "valence": pytest.approx(0.2),
        "arousal": -0.25,
        "box": [10, 20, 110, 140],
        "landmarks68": POINTS.tolist(),
        "split": "train",
    }
    assert corpus.inputs().schema == listed_schema(LABELS)
    assert (corpus.label_name, corpus.config.synthetic) == ("expression", False)


def test_a_validation_list_without_its_header(tmp_path: Path) -> None:
    write_list(tmp_path, f"{LISTS}/training.csv", row("1/a.jpg"))
    write_list(tmp_path, f"{LISTS}/validation.csv", row("1/b.jpg"), row("1/c.jpg"), header=False)
    splits = {name: f.annotations[0]["split"] for name, f in found(source(tmp_path)).items()}
    assert splits == {
        f"{PICTURES}/1/a.jpg": "train",
        f"{PICTURES}/1/b.jpg": "val",
        f"{PICTURES}/1/c.jpg": "val",
    }


def test_other_line_ends_marks_and_quotes(tmp_path: Path) -> None:
    path = write_list(
        tmp_path, f"{LISTS}/training.csv", row("1/a.jpg"), "", row("1/b.jpg", points=";;".join(""))
    )
    path.write_bytes(
        b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n").replace(b"1/a.jpg", b'"1/a.jpg"')
    )
    faces = {name: f.annotations[0] for name, f in found(source(tmp_path)).items()}
    assert faces[f"{PICTURES}/1/a.jpg"]["arousal"] == -0.25
    assert faces[f"{PICTURES}/1/b.jpg"]["landmarks68"] is None


def test_classes_and_what_has_no_valence(tmp_path: Path) -> None:
    rows = [row("1/a.jpg", 0), row("1/b.jpg", 8, 0.3), row("1/c.jpg", 9, -2, -2), row("1/d.jpg", 10, -2, -2)]
    old(tmp_path, *rows, row("1/e.jpg", 3, -2, -2))
    assert [name[-5] for name in found(source(tmp_path))] == ["a", "e"]
    faces = [f.annotations[0] for f in found(source(tmp_path, classes=(0, 3, 8, 9, 10))).values()]
    assert [face["expression"] for face in faces] == [0, 8, 9, 10, 3]
    assert [face["valence"] for face in faces] == [0.5, pytest.approx(0.3), None, None, None]
    assert [face["arousal"] for face in faces] == [-0.25, -0.25, None, None, None]


def test_faces_without_a_box(tmp_path: Path) -> None:
    boxes = {"a": "10,20,-1,-1", "b": "NULL,NULL,NULL,NULL", "c": "1,2,3,0", "d": "1,2,3,4"}
    corpus = old(tmp_path, *(row(f"1/{name}.jpg", box=box) for name, box in boxes.items()))
    assert [f.annotations[0]["box"] for f in found(corpus).values()] == [None, None, None, [1, 2, 4, 6]]
    assert not any(f.error for f in found(corpus).values())


def test_several_faces_of_one_picture(tmp_path: Path) -> None:
    rows = [
        row("1/a.jpg", 1),
        row("1/b.jpg", 2),
        row("1/a.jpg", 3),
        row("1/a.jpg", 9, -2, -2),
        row("1/a.jpg", 0),
    ]
    pictures = found(old(tmp_path, *rows))
    assert len(pictures) == 2
    assert [face["expression"] for face in pictures[f"{PICTURES}/1/a.jpg"].annotations] == [1, 3, 0]


def test_damaged_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        row("1/good.jpg"),
        row("1/short.jpg").rpartition(",")[0],
        row("1/word.jpg", valence="happy"),
        row("1/class.jpg", 11),
        row("1/none.jpg", ""),
        row("1/half.jpg", 1.5),
        row("1/points.jpg", points="1.0;2.0"),
        row("1/mark.jpg", points=";".join(["1"] * 135 + ["x"])),
        row("1/box.jpg", box="1,2,?,4"),
        "1/cut",
        "\x00\xff garbage, without an end",
        row("1/good.jpg", 7),
        row("1/last.jpg"),
        row("no folder.jpg"),
    ]
    with caplog.at_level(logging.WARNING):
        pictures = found(old(tmp_path, *rows))
    errors = {name.rpartition("/")[2]: f.error for name, f in pictures.items() if f.error}
    assert errors == {
        "short.jpg": "training.csv:3: 8 cells instead of 9; mend the line",
        "word.jpg": "training.csv:4: valence is no number: 'happy'; mend the line",
        "class.jpg": "training.csv:5: expression is none of 0 to 10: '11'; mend the line",
        "none.jpg": "training.csv:6: expression is none of 0 to 10: ''; mend the line",
        "half.jpg": "training.csv:7: expression is none of 0 to 10: '1.5'; mend the line",
        "points.jpg": "training.csv:8: facial_landmarks are not 136 numbers; mend the line",
        "mark.jpg": "training.csv:9: facial_landmarks are not 136 numbers; mend the line",
        "box.jpg": "training.csv:10: face_width is no number: '?'; mend the line",
    }
    assert len(pictures[f"{PICTURES}/1/good.jpg"].annotations) == 2
    assert pictures[f"{PICTURES}/1/last.jpg"].annotations
    left_out = [message for message in caplog.messages if "names no picture" in message]
    assert [message.split(": ")[0] for message in left_out] == [f"training.csv:{n}" for n in (11, 12, 15)]


def test_listed_pictures_that_are_missing(tmp_path: Path) -> None:
    """Each is named with the first line that lists it."""
    picture(tmp_path / PICTURES / "2/b.jpg")
    corpus = old(tmp_path, row("2/b.jpg"), row("2/c.jpg"), row("1/a.jpg"), row("2/c.jpg"))
    write_list(tmp_path, f"{LISTS}/validation.csv", row("3/d.jpg"), header=False)
    (shard,) = corpus.shards()
    rows = list_shard(corpus, tmp_path / "out", shard).to_pylist()
    gone = "the picture: cannot be read: No such file or directory; put a good copy back or take the line out"
    assert {r["image_id"].removeprefix(f"{PICTURES}/"): r["error"] for r in rows} == {
        "1/a.jpg": f"training.csv:4: {gone}",
        "2/b.jpg": "",
        "2/c.jpg": f"training.csv:3: {gone}",
        "3/d.jpg": f"validation.csv:1: {gone}",
    }


def test_the_automatic_list_is_an_option(tmp_path: Path) -> None:
    old(tmp_path, row("1/a.jpg"))
    write_list(tmp_path, "Automatically_annotated_file_list/automatically_annotated.csv", row("1/a.jpg", 2))
    assert len(found(source(tmp_path))) == 1
    both = found(source(tmp_path, automatic=True))
    assert both["Automatically_Annotated_Images/1/a.jpg"].annotations[0]["split"] == "automatic"


def test_shards_of_the_lists(tmp_path: Path) -> None:
    rows = [row(f"{i % 3}/{i:02d}.jpg", i % 8) for i in range(20)]
    old(tmp_path, *rows)
    shards = source(tmp_path, shard_size=8).shards()
    assert [shard.size for shard in shards] == [8, 8, 4]
    assert [shard.inputs for shard in source(tmp_path, shard_size=8).shards()] == [
        shard.inputs for shard in shards
    ]
    old(tmp_path, *rows[:17], row("2/17.jpg", 7), *rows[18:])
    after = source(tmp_path, shard_size=8).shards()
    assert [a.inputs == b.inputs for a, b in zip(after, shards, strict=True)] == [True, True, False]
    names = [f.image_id for shard in after for f in source(tmp_path).pictures(shard)]
    assert names == sorted(names)


def test_more_rows_than_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(f"1/{i:02d}.jpg", i % 8) for i in range(20)]
    whole = old(tmp_path, *rows, "1/cut.jpg,1").inputs()
    monkeypatch.setattr("data_prep.sources.affectnet._BLOCK", 7)
    assert source(tmp_path).inputs().equals(whole)


def test_the_chosen_classes_have_published_counts(tmp_path: Path) -> None:
    config = AffectNetConfig(kind="affectnet", path=tmp_path, release="old", classes=(1, 8, 9))
    published = AffectNet(config, 256).published
    assert [(figure.what, figure.count) for figure in published] == [
        ("faces of train, happy", 134_416),
        ("faces of train, none", 33_088),
        ("faces of val, happy", 500),
        ("faces of val, none", 500),
        ("faces of val, uncertain", 500),
    ]
    assert (sum(PUBLISHED_CLASSES[:8]), len(PUBLISHED_CLASSES)) == (287_652, 9)


# --- new release ---------------------------------------------------------------------------------------------


def crop(root: Path, name: str, part: str = "train_set", **labels: Any) -> Path:
    """A picture with its four label files; returns their folder."""
    picture(root / part / "images" / f"{name}.jpg")
    folder = root / part / "annotations"
    folder.mkdir(exist_ok=True)
    whole = {"exp": np.array("3"), "val": np.array(["0.25"]), "aro": np.array("-0.5"), "lnd": POINTS}
    for kind, value in (whole | labels).items():
        np.save(folder / f"{name}_{kind}.npy", value)
    return folder


def test_labels_in_files_of_texts_or_numbers(tmp_path: Path) -> None:
    crop(tmp_path, "0")
    crop(
        tmp_path,
        "1",
        exp=np.array(7),
        val=np.array([1.0]),
        aro=np.array(b"0"),
        lnd=POINTS.reshape(68, 2).astype("U"),
    )
    crop(tmp_path, "2", "val_set", val=np.array("-2"), aro=np.array("-2.0"))
    pictures = found(source(tmp_path, "new"))
    assert list(pictures) == ["train_set/images/0.jpg", "train_set/images/1.jpg", "val_set/images/2.jpg"]
    faces = [f.annotations[0] for f in pictures.values()]
    assert [face["expression"] for face in faces] == [3, 7, 3]
    assert [face["valence"] for face in faces] == [0.25, 1, None]
    assert [face["arousal"] for face in faces] == [-0.5, 0, None]
    assert [face["split"] for face in faces] == ["train", "train", "val"]
    for face in faces:
        assert set(face) == set(LABELS.names)
        assert face["box"] is None
        assert face["landmarks68"] == POINTS.tolist()
    corpus = source(tmp_path, "new")
    (shard,) = corpus.shards()
    assert set(list_shard(corpus, tmp_path / "out", shard)["status"].to_pylist()) == {"ok"}


def test_damaged_label_files(tmp_path: Path) -> None:
    folder = crop(tmp_path, "good")
    for name in ("cut", "empty", "text", "gone", "pickled"):
        crop(tmp_path, name)
    (folder / "cut_lnd.npy").write_bytes((folder / "cut_lnd.npy").read_bytes()[:-100])
    (folder / "empty_exp.npy").write_bytes(b"")
    (folder / "text_val.npy").write_text("0.5")
    (folder / "gone_aro.npy").unlink()
    (folder / "pickled_exp.npy").write_bytes(pickle.dumps("1"))
    np.save(folder / "pickled_val.npy", np.array([{}], object), allow_pickle=True)
    crop(tmp_path, "object", val=np.array([{}], object))
    crop(tmp_path, "many", exp=np.array(["1", "2"]))
    crop(tmp_path, "word", exp=np.array("happy"))
    crop(tmp_path, "none", exp=np.array("8"))
    crop(tmp_path, "few", lnd=POINTS[:134])
    crop(tmp_path, "nan", lnd=np.full(136, np.nan))
    errors = {name[17:-4]: f.error for name, f in found(source(tmp_path, "new")).items() if f.error}
    for name, reason in {
        "cut": "cut_lnd.npy: damaged: ",
        "empty": "empty_exp.npy: damaged: ",
        "text": "text_val.npy: damaged: ",
        "gone": "gone_aro.npy: cannot be read: No such file or directory",
        "pickled": "pickled_exp.npy: damaged: ",
        "object": "object_val.npy: damaged: Object arrays cannot be loaded",
        "many": "many_exp.npy: 2 values instead of one",
        "word": "word_exp.npy: damaged: could not convert string to float",
        "none": "none_exp.npy: 8 is none of the expressions 0 to 7",
        "few": "few_lnd.npy: not 136 numbers",
        "nan": "nan_lnd.npy: not 136 numbers",
    }.items():
        error = errors.pop(name)
        assert error.startswith(f"train_set/annotations/{reason}"), name
        assert error.endswith("; mend the file")
    assert not errors


def test_label_files_without_their_picture(tmp_path: Path) -> None:
    crop(tmp_path, "0")
    crop(tmp_path, "1")
    (tmp_path / "train_set/images/0.jpg").unlink()
    corpus = source(tmp_path, "new")
    (shard,) = corpus.shards()
    rows = list_shard(corpus, tmp_path / "out", shard).to_pylist()
    assert [r["error"] for r in rows] == [
        "train_set/annotations/0_*.npy: there is no such picture; put it back or remove them",
        "",
    ]


def test_shards_of_the_label_files(tmp_path: Path) -> None:
    for i in range(6):
        folder = crop(tmp_path, str(i))
    before = [shard.inputs for shard in source(tmp_path, "new", 2).shards()]
    assert [shard.inputs for shard in source(tmp_path, "new", 2).shards()] == before
    np.save(folder / "4_exp.npy", np.array("5"))
    os.utime(folder / "4_exp.npy", (2**33, 2**33))
    after = [shard.inputs for shard in source(tmp_path, "new", 2).shards()]
    assert (after[1] == before[1], after[2] == before[2]) == (True, False)


# --- settings ------------------------------------------------------------------------------------------------


def test_settings_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="11 is no class"):
        source(tmp_path, classes=(0, 11))
    with pytest.raises(ValueError, match="release=new takes neither"):
        source(tmp_path, "new", automatic=True)
    with pytest.raises(ConfigError, match="no such folder"):
        source(tmp_path / "nowhere").shards()
    with pytest.raises(ConfigError, match="nothing of this corpus is there"):
        source(tmp_path).shards()
    with pytest.raises(ConfigError, match="nothing of this corpus is there"):
        source(tmp_path, "new").shards()
    (tmp_path / "train_set").mkdir()
    with pytest.raises(ConfigError, match=r"source.release=old: .* holds the other release"):
        source(tmp_path).shards()


def test_another_order_of_columns_is_refused(tmp_path: Path) -> None:
    path = write_list(tmp_path, f"{LISTS}/training.csv", row("1/a.jpg"))
    path.write_text(path.read_text().replace("valence,arousal", "arousal,valence"))
    with pytest.raises(
        ConfigError, match=r"training.csv: its columns are .*; expected subDirectory_filePath"
    ):
        source(tmp_path).shards()


class Settings(Config):
    output: Path
    source: AffectNetConfig
    detect: DetectConfig = DetectConfig()
    keep: KeepConfig


def test_the_file_of_settings_is_this_source() -> None:
    path = Path(configs.__file__).parent / "data/affectnet.yaml"
    settings = configs.load(path, ["source.path=/data/elsewhere"], schema=Settings)
    assert settings.keep.rule == "best_iou"
    assert (settings.source.release, settings.source.classes) == ("old", tuple(range(8)))
    other = configs.load(path, ["source.release=new", "keep.rule=largest_central"], schema=Settings)
    assert (other.source.release, other.source.automatic) == ("new", False)
    some = configs.load(path, ["source.classes=[0,8]"], schema=Settings)
    assert some.source.classes == (0, 8)
