"""FERPlus in its own layout: pixels in Kaggle's CSV file, votes in two others."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import configs
from configs import ConfigError
from data_prep.beton import Beton, read_labels
from data_prep.config import DataPrepConfig
from data_prep.files import sha256_file
from data_prep.listing import list_shard
from data_prep.pipeline import STAGES, Pipeline
from data_prep.remove import Request, remove
from data_prep.sources import Found
from data_prep.sources.affectnet import CLASSES
from data_prep.sources.corpus import input_schema
from data_prep.sources.ferplus import LABELS, FERPlus, FERPlusConfig, majority

ROOT = Path(__file__).parents[2]
HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
SADNESS, NOBODY = "0,0,0,10,0,0,0,0,0,0", "0,0,0,0,0,0,0,0,0,10"
# Its lines of fer2013new.csv; the second shows no face, so that the third has another number than line.
NEW = (
    ("Training", "fer0000000.png", "6,0,1,1,0,0,0,0,2,0"),
    ("Training", "", NOBODY),
    ("Training", "fer0000001.png", "4,0,0,4,1,0,0,0,1,0"),
    ("Training", "fer0000002.png", "0,0,0,0,7,1,0,0,2,0"),
    ("PublicTest", "fer0000003.png", SADNESS),
    ("PrivateTest", "fer0000004.png", "0,0,0,0,0,0,0,0,8,2"),
    ("PrivateTest", "fer0000005.png", "0,0,2,0,0,0,8,0,0,0"),
)


def pixels(line: int) -> np.ndarray:
    return np.random.default_rng(line).integers(0, 256, (48, 48), dtype=np.uint8)


def write(root: Path, *new: tuple[str, str, str], labels: dict[str, str] | None = None) -> None:
    """The three files, or two; ``labels`` are lines of label.csv by folder."""
    root.mkdir(exist_ok=True)
    lines = [f"{i % 7},{' '.join(map(str, pixels(i).reshape(-1)))},{row[0]}" for i, row in enumerate(new)]
    (root / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *lines]) + "\n")
    rows = [",".join(row) for row in new]
    (root / "fer2013new.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    for folder in ("FER2013Train", "FER2013Valid", "FER2013Test"):
        (root / "data" / folder).mkdir(parents=True, exist_ok=True)
        (root / "data" / folder / "label.csv").write_text((labels or {}).get(folder, ""))


def label(name: str, votes: str) -> str:
    return f'{name},"(0, 0, 48, 48)",{votes}\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """label.csv sees fer0000000 as happy, where the other file sees it neutral, and has not got fer0000002."""
    train = label("fer0000000.png", "0,9,1,0,0,0,0,0,0,0") + label("fer0000001.png", "4,0,0,4,1,0,0,0,1,0")
    test = label("fer0000004.png", "0,0,0,0,0,0,0,0,8,2") + label("fer0000005.png", "0,0,2,0,0,0,8,0,0,0")
    labels = {"FER2013Train": train, "FER2013Valid": label("fer0000003.png", SADNESS), "FER2013Test": test}
    write(tmp_path / "ferplus", *NEW, labels=labels)
    return tmp_path / "ferplus"


def source(root: Path, shard_size: int = 256, **options: Any) -> FERPlus:
    return FERPlus(FERPlusConfig(kind="ferplus", path=root, **options), shard_size, root.parent / "pictures")


def found(corpus: FERPlus) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def classes(corpus: FERPlus) -> dict[str, str]:
    return {name: CLASSES[item.annotations[0]["expression"]] for name, item in found(corpus).items()}


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        ("4,0,0,1,3,2,0,0,0,0", None),  # 4 of the 9 that are left
        ("5,0,0,3,1,0,0,0,1,0", 0),  # 5 of 8: the two single votes are gone
        ("5,0,0,5,0,0,0,0,0,0", None),  # half is not more than half
        ("1,1,1,1,1,1,1,1,1,1", None),
        ("0,0,0,0,0,0,0,0,0,0", None),
        ("1,2,1,1,1,1,1,1,1,0", 1),
        ("0,0,0,0,0,0,0,9,1,0", 7),
        ("2,0,0,0,0,0,0,0,8,0", None),  # unknown
        (NOBODY, None),
    ],
)
def test_the_rule_majority(votes: str, winner: int | None) -> None:
    assert majority([int(vote) for vote in votes.split(",")]) == winner


def test_pictures_belong_to_lines_and_not_to_numbers(root: Path) -> None:
    corpus = source(root, votes="fer2013new.csv")
    pictures = found(corpus)
    assert list(pictures) == [
        "train/fer0000000.png",
        "train/fer0000002.png",
        "val/fer0000003.png",
        "test/fer0000005.png",
    ]
    for (name, item), line in zip(pictures.items(), (0, 3, 4, 6), strict=True):
        assert item.path == root.parent / "pictures" / name
        with Image.open(item.path) as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), pixels(line))
    assert pictures["train/fer0000002.png"].annotations[0] == {
        "expression": 6,
        "own_expression": 4,
        "votes": [0, 0, 0, 0, 7, 1, 0, 0, 2, 0],
        "split": "train",
    }
    assert corpus.inputs().select(input_schema(LABELS).names).schema == input_schema(LABELS)


def test_whose_votes_count(root: Path) -> None:
    assert classes(source(root)) == {
        "train/fer0000000.png": "happy",
        "val/fer0000003.png": "sad",
        "test/fer0000005.png": "fear",
    }
    assert classes(source(root, votes="fer2013new.csv"))["train/fer0000000.png"] == "neutral"
    published = source(root).published
    assert [figure.count for figure in published if figure.of == "pictures"] == [25_045, 3_191, 3_137]
    by_class = {
        split: [figure.count for figure in published if figure.labels.get("split") == split]
        for split in ("train", "test")
    }
    assert {split: (len(counts), sum(counts)) for split, counts in by_class.items()} == {
        "train": (8, 25_045),
        "test": (8, 3_137),
    }
    (fear,) = (figure for figure in published if figure.what == "faces of test, fear")
    assert (fear.count, CLASSES[fear.labels["expression"]]) == (86, "fear")
    new = source(root, votes="fer2013new.csv").published
    assert [(figure.prefix, figure.count) for figure in new] == [
        ("train/", 25_060),
        ("val/", 3_199),
        ("test/", 3_153),
    ]


def test_without_label_csv_the_other_votes_do(root: Path) -> None:
    (root / "data/FER2013Valid/label.csv").unlink()
    assert len(classes(source(root, votes="fer2013new.csv"))) == 4
    with pytest.raises(ConfigError, match=r"FER2013Valid/label\.csv: cannot be read: No such file"):
        source(root).shards()


def test_damaged_votes_and_pixels(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = root / "data/FER2013Train/label.csv"
    path.write_text(label("fer0000000.png", "0,9,1") + label("fer0000002.png", "0,0,0,0,8,1,0,x,1,0"))
    path.write_text(path.read_text() + label("fer9.png", SADNESS))
    lines = (root / "fer2013.csv").read_text().splitlines()
    lines[5] = lines[5].replace(" ", " 999", 1)
    lines[7] = lines[7].replace(" ", ",", 1)
    (root / "fer2013.csv").write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        errors = {name: item.error for name, item in found(source(root)).items()}
    assert errors == {
        "train/fer0000000.png": "FER2013Train/label.csv:1: not ten votes; mend the line: '0,9,1'",
        "train/fer0000002.png": "FER2013Train/label.csv:2: not ten votes; mend the line: '0,0,0,0,8,1,0,x,1,0'",
        "val/fer0000003.png": "fer2013.csv:6: pixels are not 2304 numbers, 0 to 255; get a whole copy",
        "test/fer0000005.png": "fer2013.csv:8: pixels are not 2304 numbers, 0 to 255; get a whole copy",
    }
    assert not (root.parent / "pictures").exists()
    assert any(
        message
        == "FER2013Train/label.csv:3: left out, fer2013new.csv has no picture train/fer9.png, nor those of 0 "
        "other lines; mend the names"
        for message in caplog.messages
    )


def test_two_lines_of_votes_for_one_picture(root: Path) -> None:
    path = root / "data/FER2013Train/label.csv"
    path.write_text(path.read_text() + label("fer0000000.png", SADNESS))
    assert found(source(root))["train/fer0000000.png"].error == (
        "FER2013Train/label.csv:3: train/fer0000000.png has a line before; take one of them out"
    )


def test_lines_that_do_not_belong_together(root: Path) -> None:
    new = (root / "fer2013new.csv").read_text()
    for bad, message in (
        (new.replace(f"Training,,{NOBODY}\n", ""), r"has 7 pictures and fer2013new\.csv 6; their lines"),
        (new.replace("PublicTest", "Training"), r"csv:6 is of train, fer2013\.csv:6 says 'PublicTest'"),
        (new.replace("PublicTest,", "?,"), r"fer2013new\.csv:6: not Usage,Image name and ten votes"),
        (new.replace("fer0000003", "../../fer"), r"fer2013new\.csv:6: not Usage,Image name"),
        (new.replace("fer0000003", "fer0000002"), r"fer2013new\.csv:6: fer0000002\.png has a line before"),
    ):
        assert bad != new
        (root / "fer2013new.csv").write_text(bad)
        with pytest.raises(ConfigError, match=message):
            source(root).shards()
    (root / "fer2013.csv").unlink()
    (root / "fer2013new.csv").write_text(new)
    with pytest.raises(ConfigError, match=r"fer2013\.csv: cannot be read"):
        source(root).shards()


def test_changed_pixels_or_votes_are_a_changed_shard(root: Path) -> None:
    def inputs() -> list[str]:
        return [shard.inputs for shard in source(root, shard_size=2, votes="fer2013new.csv").shards()]

    before = inputs()
    (root / "fer2013.csv").touch()
    assert inputs() == before
    text = (root / "fer2013.csv").read_text().splitlines()
    text[7] = text[7].replace(" 1", " 2", 1)
    (root / "fer2013.csv").write_text("\n".join(text))
    assert [a == b for a, b in zip(inputs(), before, strict=True)] == [True, False]
    (root / "fer2013new.csv").write_text((root / "fer2013new.csv").read_text().replace("7,1", "6,2"))
    assert [a == b for a, b in zip(inputs(), before, strict=True)] == [False, False]


def test_unpacking_again_gives_the_same_files(root: Path) -> None:
    corpus = source(root, shard_size=2)
    first = [list_shard(corpus, root.parent / "images", shard) for shard in corpus.shards()]
    files = {path: sha256_file(path) for path in (root.parent / "pictures").rglob("*.png")}
    again = [list_shard(corpus, root.parent / "images", shard) for shard in corpus.shards()]
    assert len(files) == 3
    assert {path: sha256_file(path) for path in files} == files
    assert all(a.equals(b) for a, b in zip(first, again, strict=True))


def test_from_its_files_to_a_set(root: Path, tmp_path: Path) -> None:
    given = [f"source.path={root}", f"output={tmp_path / 'set'}", "workers=1", "shard_size=2"]
    pipeline = Pipeline(configs.load(ROOT / "configs/data/ferplus.yaml", given, schema=DataPrepConfig))
    pipeline.run(STAGES)
    table = read_labels(tmp_path / "set/set.beton")
    assert table["split"].to_pylist() == ["train", "val", "test"]
    assert table["votes"].to_pylist()[2] == [0, 0, 2, 0, 0, 0, 8, 0, 0, 0]
    assert Beton(tmp_path / "set/set.beton").column("label").tolist() == [1, 2, 4]
    assert (tmp_path / "set/pictures/val/fer0000003.png").is_file()
    assert pipeline.finished("report")


def test_a_removed_face_does_not_come_back(root: Path, tmp_path: Path) -> None:
    """Though its pixels are still in fer2013.csv."""
    given = [f"source.path={root}", f"output={tmp_path / 'set'}", "workers=1"]
    config = configs.load(ROOT / "configs/data/ferplus.yaml", given, schema=DataPrepConfig)
    Pipeline(config).run(STAGES[:-1])
    remove(config, [Request("image-id", "val/fer0000003.png")])
    shutil.rmtree(tmp_path / "set/images")
    for name in ("faces", "crops"):
        shutil.rmtree(tmp_path / "set" / name)
    for path in (tmp_path / "set").glob("set.*"):
        path.unlink()
    Pipeline(config).run(STAGES[:-1])
    assert read_labels(tmp_path / "set/set.beton")["split"].to_pylist() == ["train", "test"]
    assert not (tmp_path / "set/pictures/val/fer0000003.png").exists()
