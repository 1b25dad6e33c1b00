"""DISFA in its own layout: videos, their frames, and twelve files of labels a person."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import configs
from configs import ConfigError
from data_prep.beton import Beton, read_labels
from data_prep.config import DataPrepConfig
from data_prep.frames import Settings, find_videos, unpack_all
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources import Found
from data_prep.sources.corpus import input_schema
from data_prep.sources.disfa import DISFA, FOLDS, LABELS, UNITS, DISFAConfig
from data_prep.synthetic import SyntheticConfig, portrait

ROOT = Path(__file__).parents[2]


def intensity(unit: int, frame: int) -> int:
    return (unit + frame) % 6


def label(root: Path, subject: str, frames: int) -> Path:
    folder = root / "ActionUnit_Labels" / subject
    folder.mkdir(parents=True)
    for unit in UNITS:
        lines = [f"{frame},{intensity(unit, frame)}\n" for frame in range(1, frames + 1)]
        (folder / f"{subject}_au{unit}.txt").write_text("".join(lines))
    return folder


def unpacked(root: Path, video: str, *files: str) -> None:
    (root / "frames" / video).mkdir(parents=True)
    for name in files:
        Image.new("RGB", (32, 24), "gray").save(root / "frames" / video / name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two people; of the first both cameras."""
    label(tmp_path, "SN001", 12)
    label(tmp_path, "SN031", 3)
    unpacked(tmp_path, "LeftVideoSN001_comp", *(f"{n:05d}.jpg" for n in (1, 2, 10, 11)))
    unpacked(tmp_path, "RightVideoSN001_Comp", "00001.png")
    unpacked(tmp_path, "LeftVideoSN031_comp", "00003.jpg", "00001.jpg")
    return tmp_path


def source(root: Path, shard_size: int = 256, **options: Any) -> DISFA:
    return DISFA(DISFAConfig(kind="disfa", path=root, **options), shard_size)


def found(corpus: DISFA) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def test_frames_with_their_labels(root: Path) -> None:
    corpus = source(root, shard_size=4)
    pictures = found(corpus)
    assert list(pictures) == [
        "LeftVideoSN001_comp/00001.jpg",
        "LeftVideoSN001_comp/00002.jpg",
        "LeftVideoSN001_comp/00010.jpg",
        "LeftVideoSN001_comp/00011.jpg",
        "LeftVideoSN031_comp/00001.jpg",
        "LeftVideoSN031_comp/00003.jpg",
    ]
    (face,) = pictures["LeftVideoSN001_comp/00010.jpg"].annotations
    assert face == {
        "identity": 1,
        "action_units": [intensity(unit, 10) for unit in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)],
        "frame": 10,
        "fold": 1,
        "camera": "left",
    }
    assert pictures["LeftVideoSN031_comp/00003.jpg"].annotations[0]["fold"] == 2
    assert not any(picture.error for picture in pictures.values())
    assert all(picture.path.is_file() for picture in pictures.values())
    assert corpus.inputs().schema == input_schema(LABELS)


def test_the_other_camera_is_spelt_otherwise(root: Path) -> None:
    right = found(source(root, cameras=("right",)))
    assert list(right) == ["RightVideoSN001_Comp/00001.png"]
    both = found(source(root, cameras=("left", "right")))
    assert len(both) == 7
    left = both["LeftVideoSN001_comp/00001.jpg"].annotations[0]
    assert right["RightVideoSN001_Comp/00001.png"].annotations[0] == left | {"camera": "right"}


def test_frames_in_another_folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("frames")
    (root / "frames").rename(elsewhere / "f")
    pictures = found(source(root, frames=elsewhere / "f"))
    assert pictures["LeftVideoSN001_comp/00001.jpg"].path == elsewhere / "f/LeftVideoSN001_comp/00001.jpg"


def test_damaged_and_missing_lines(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = root / "ActionUnit_Labels/SN001"
    lines = (labels / "SN001_au4.txt").read_text().splitlines()
    lines[0], lines[1], lines[9] = "1,6", "\x00damaged", "10;3"
    (labels / "SN001_au4.txt").write_text("\r\n".join([*lines, "11,2"]) + "\r\n")
    (root / "ActionUnit_Labels/SN031/SN031_au26.txt").unlink()
    with caplog.at_level(logging.WARNING):
        errors = {name: picture.error for name, picture in found(source(root)).items()}
    assert errors == {
        "LeftVideoSN001_comp/00001.jpg": "SN001_au4.txt:1: not FRAME,INTENSITY with 0 to 5: '1,6'",
        "LeftVideoSN001_comp/00002.jpg": "SN001_au4.txt: has no line for frame 2",
        "LeftVideoSN001_comp/00010.jpg": "SN001_au4.txt:10: not FRAME,INTENSITY with 0 to 5: '10;3'",
        "LeftVideoSN001_comp/00011.jpg": "SN001_au4.txt:13: frame 11 has a line before",
        "LeftVideoSN031_comp/00001.jpg": "SN031_au26.txt: has no line for frame 1",
        "LeftVideoSN031_comp/00003.jpg": "SN031_au26.txt: has no line for frame 3",
    }
    assert any("SN001_au4.txt:2: names no frame" in message for message in caplog.messages)
    assert any("SN031_au26.txt: no such file" in message for message in caplog.messages)


def test_a_frame_after_the_last_label_is_listed_with_its_reason(root: Path) -> None:
    Image.new("RGB", (32, 24)).save(root / "frames/LeftVideoSN031_comp/00004.jpg")
    errors = [picture.error for picture in found(source(root)).values()]
    assert errors[-1] == "SN031_au1.txt: has no line for frame 4"


def test_a_changed_label_is_a_changed_shard(root: Path) -> None:
    before = [shard.inputs for shard in source(root, shard_size=4).shards()]
    (root / "frames/LeftVideoSN001_comp/frames.json").write_text("{}")
    (root / "frames/.lock").touch()
    assert [shard.inputs for shard in source(root, shard_size=4).shards()] == before
    path = root / "ActionUnit_Labels/SN031/SN031_au1.txt"
    path.write_text(path.read_text().replace("3,", "3,0"))
    path.write_text("1,5\n2,5\n3,5\n")
    after = [shard.inputs for shard in source(root, shard_size=4).shards()]
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)


def test_folds_and_published_counts(root: Path) -> None:
    everybody = sorted(person for fold in FOLDS for person in fold)
    assert everybody == [*range(1, 14), 16, 17, 18, 21, *range(23, 33)]
    assert [len(fold) for fold in FOLDS] == [9, 9, 9]
    assert [(f.what, f.count) for f in source(root, cameras=("left", "right")).published] == [
        ("frames of the left camera", 27 * 4845 - 1),
        ("frames of the right camera", 27 * 4845 - 1),
        ("people", 27),
    ]


def test_paths_that_cannot_be_meant(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ConfigError, match=r"no ActionUnit_Labels in it; check the path"):
        source(root / "frames").shards()
    (root / "frames").rename(root / "other")
    with pytest.raises(ConfigError, match=r"frames: no such folder; make it: python -m data_prep frames"):
        source(root).shards()
    (root / "frames").mkdir()
    with pytest.raises(ConfigError, match="nothing of this corpus is there"):
        source(root).shards()


def test_from_videos_to_a_set(tmp_path: Path) -> None:
    """Three frames of a face on film; the labels of the second are damaged."""
    folder = tmp_path / "disfa/Videos_LeftCamera"
    folder.mkdir(parents=True)
    faces = [portrait(0, index, SyntheticConfig(occlusion=0)).image for index in range(3)]
    height, width = faces[0].shape[:2]
    video = cv2.VideoWriter(
        str(folder / "LeftVideoSN008_comp.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 20, (width, height)
    )
    for face in faces:
        video.write(np.ascontiguousarray(face[..., ::-1]))
    video.release()
    labels = label(tmp_path / "disfa", "SN008", 3)
    (labels / "SN008_au9.txt").write_text("1,1\n2,?\n3,2\n")
    settings = Settings(every=1, format="jpg", quality=95, short=False)
    unpack_all(find_videos(folder), tmp_path / "disfa/frames", settings, workers=1)
    given = [f"source.path={tmp_path / 'disfa'}", f"output={tmp_path / 'set'}", "workers=1"]
    config = configs.load(ROOT / "configs/data/disfa.yaml", given, schema=DataPrepConfig)
    Pipeline(config).run(STAGES)
    table = read_labels(tmp_path / "set/set.beton")
    assert table["frame"].to_pylist() == [1, 3]
    assert table["fold"].to_pylist() == [3, 3]
    expected = [[intensity(unit, frame) for unit in UNITS] for frame in (1, 3)]
    expected[0][5], expected[1][5] = 1, 2
    assert table["action_units"].to_pylist() == expected
    assert Beton(tmp_path / "set/set.beton").column("label").tolist() == [8, 8]
    assert "SN008_au9.txt:2: not FRAME,INTENSITY" in (tmp_path / "set/quarantine.json").read_text()
