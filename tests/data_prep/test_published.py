"""Published counts against what is there."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import configs
from data_prep import published
from data_prep.config import DataPrepConfig
from data_prep.pipeline import Pipeline
from data_prep.sources.affectnet import CLASSES, AffectNet
from data_prep.sources.ferplus import FERPlus
from data_prep.sources.rafdb import RAFDB
from data_prep.sources.sfew import SFEW
from data_prep.sources.vggface2 import PUBLISHED

ROOT = Path(__file__).parents[2]


def listed(config: str, corpus: Path, *overrides: str) -> Pipeline:
    given = [f"source.path={corpus}", f"output={corpus}-run", "workers=1", "shard_size=2", *overrides]
    pipeline = Pipeline(configs.load(ROOT / "configs/data" / config, given, schema=DataPrepConfig))
    pipeline.list()
    return pipeline


def figures(pipeline: Pipeline) -> dict[str, Sequence[int]]:
    rows = pipeline.published()
    return {row["what"]: (row["published"], row["listed"], row["usable"], row["missing"]) for row in rows}


@pytest.fixture
def vggface2(tmp_path: Path) -> Path:
    """Three people of train, the third without her picture; one picture of test."""
    root = tmp_path / "vggface2"
    train = ("n000002/0001_01.jpg", "n000002/0002_01.jpg", "n000003/0001_01.jpg", "n000004/0001_01.jpg")
    for name in (*(f"train/{name}" for name in train[:3]), "test/n000001/0001_01.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), "gray").save(root / name)
    (root / "train_list.txt").write_text("\n".join(train))
    return root


def test_listed_usable_and_missing(vggface2: Path) -> None:
    assert figures(listed("vggface2.yaml", vggface2)) == {
        "pictures of train": (3_141_890, 4, 3, 3_141_887),
        "people of train": (8_631, 3, 2, 8_629),
        "pictures of test": (169_396, 1, 1, 169_395),
        "people of test": (500, 1, 1, 499),
    }
    assert list(
        figures(listed("vggface2.yaml", vggface2, "source.splits=[test]", f"output={vggface2}-t"))
    ) == [
        "pictures of test",
        "people of test",
    ]


def test_the_stage_says_so_once(vggface2: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        listed("vggface2.yaml", vggface2, "source.splits=[test]")
        (message,) = (
            record.getMessage() for record in caplog.records if "as published" in record.getMessage()
        )
        assert caplog.records[-1].levelno == logging.WARNING
        assert message == (
            "vggface2: 0 of 2 counts as published; "
            "pictures of test: 169,396 published, 1 listed, 1 usable, 169,395 missing; "
            "people of test: 500 published, 1 listed, 1 usable, 499 missing"
        )
        caplog.clear()
        listed("vggface2.yaml", vggface2, "source.splits=[test]")
        assert not [message for message in caplog.messages if "as published" in message], "nothing was done"


def test_counts_as_published_are_no_warning(
    vggface2: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"test": tuple(replace(figure, count=1) for figure in PUBLISHED["test"])}
    monkeypatch.setattr("data_prep.sources.vggface2.PUBLISHED", few)
    with caplog.at_level(logging.INFO):
        listed("vggface2.yaml", vggface2, "source.splits=[test]")
    (record,) = (record for record in caplog.records if "as published" in record.getMessage())
    assert (record.levelno, record.getMessage()) == (logging.INFO, "vggface2: 2 of 2 counts as published")


SIMFLE = {
    "affectnet": {
        "train": (74_874, 134_415, 25_459, 14_090, 6_378, 3_803, 24_882, 3_750),
        "val": (500, 500, 500, 500, 500, 500, 500, 500),
    },
    "rafdb": {
        "train": (2_524, 4_772, 1_982, 1_290, 281, 717, 705),
        "test": (680, 1_185, 478, 329, 74, 160, 162),
    },
    "ferplus": {
        "train": (8_733, 7_284, 3_022, 3_136, 536, 116, 2_098, 120),
        "test": (1_083, 892, 382, 394, 86, 16, 269, 15),
    },
    "sfew": {"train": (144, 184, 161, 94, 78, 52, 178), "val": (84, 72, 73, 56, 46, 23, 77)},
}
"""Table 5 of SimFLE: neutral, happiness, sadness, surprise, fear, disgust, anger, contempt."""


@pytest.mark.parametrize("name", SIMFLE)
def test_expressions_are_counted_as_papers_do(name: str, tmp_path: Path) -> None:
    """AffectNet's list has one happy face more, of a picture that cannot be used."""
    given = [f"source.path={tmp_path / 'corpus'}", f"output={tmp_path / 'run'}"]
    config = configs.load(ROOT / f"configs/data/{name}.yaml", given, schema=DataPrepConfig)
    makers = {
        "affectnet": AffectNet,
        "rafdb": RAFDB,
        "ferplus": functools.partial(FERPlus, folder=tmp_path),
        "sfew": SFEW,
    }
    published_counts = makers[name](config.source, 256).published
    found = {figure.what: figure.count for figure in published_counts if figure.of == "faces"}
    for split, counts in SIMFLE[name].items():
        for kind, count in zip(CLASSES, counts, strict=False):
            more = int((name, split, kind) == ("affectnet", "train", "happy"))
            assert found.pop(f"faces of {split}, {kind}") == count + more
    assert not found


def test_more_than_published_is_nothing_missing() -> None:
    rows: list[dict[str, Any]] = [
        {"what": "pictures", "published": 5, "listed": 7, "usable": 7, "missing": 0},
        {"what": "faces", "published": 5, "listed": 5, "usable": 5, "missing": 0},
    ]
    assert published.describe(rows) == (
        "1 of 2 counts as published; pictures: 5 published, 7 listed, 7 usable, 0 missing"
    )


def test_faces_by_label(tmp_path: Path) -> None:
    """Two faces of one photograph, one of a picture that is missing."""
    root, header = (
        tmp_path / "affectnet",
        (
            "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
        ),
    )
    lists = root / "Manually_Annotated_file_lists"
    lists.mkdir(parents=True)
    rows = ("1/a.jpg,1,1,9,9,,1,.5,.5", "1/a.jpg,20,1,9,9,,2,.5,.5", "1/b.jpg,1,1,9,9,,1,.5,.5")
    (lists / "training.csv").write_text("\n".join((header, *rows)))
    (lists / "validation.csv").write_text(header)
    (root / "Manually_Annotated_Images/1").mkdir(parents=True)
    Image.new("RGB", (40, 40), "gray").save(root / "Manually_Annotated_Images/1/a.jpg")
    found = figures(listed("affectnet.yaml", root))
    assert found["faces of train, happy"] == (134_416, 2, 1, 134_415)
    assert found["faces of train, sad"] == (25_459, 1, 1, 25_458)
    assert found["faces of val, happy"] == (500, 0, 0, 500)
    assert len(found) == 16


def test_pictures_and_faces_of_a_crowd(tmp_path: Path) -> None:
    root = tmp_path / "widerface"
    (root / "WIDER_train/images/0--Parade").mkdir(parents=True)
    Image.new("RGB", (90, 90), "gray").save(root / "WIDER_train/images/0--Parade/0_Parade_a_1_1.jpg")
    (root / "wider_face_split").mkdir()
    faces = "1 1 9 9 0 0 0 0 0 0\n20 1 9 9 0 0 0 0 0 0\n"
    (root / "wider_face_split/wider_face_train_bbx_gt.txt").write_text(
        f"0--Parade/0_Parade_a_1_1.jpg\n2\n{faces}"
    )
    found = figures(listed("widerface.yaml", root))
    assert found["pictures of train"] == (12_880, 1, 1, 12_879)
    assert found["faces"] == (393_703, 2, 2, 393_701)


def test_a_folder_has_no_published_counts(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "pictures/a.png")
    assert figures(listed("folder.yaml", tmp_path / "pictures")) == {}


def test_what_is_from_memory_says_so() -> None:
    pictures, people = PUBLISHED["train"]
    assert "memory" in pictures.origin
    assert "memory" not in people.origin
    assert sum(split[0].count for split in PUBLISHED.values()) == 3_311_286
    assert sum(split[1].count for split in PUBLISHED.values()) == 9_131
