"""Annotated photographs through the real stages: dlib's examples, as Debian packages them."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from configs import ConfigError
from data_prep.__main__ import load_config
from data_prep.beton import Beton, read_labels, read_manifest
from data_prep.detect import pairwise_iou
from data_prep.pipeline import STAGES, Pipeline, open_source
from data_prep.tables import array_of, read_shard


def annotated(faces: Path) -> dict[str, list[np.ndarray]]:
    """File -> the 68 points of each of its faces, from the two lists that divide the nine pictures."""
    points: dict[str, list[np.ndarray]] = {}
    for part in ("training", "testing"):
        root = ElementTree.parse(faces / f"{part}_with_face_landmarks.xml")
        for image in root.iter("image"):
            for box in image.iter("box"):
                parts = [(float(p.get("x", "")), float(p.get("y", ""))) for p in box.iter("part")]
                points.setdefault(image.get("file", ""), []).append(np.array(parts, np.float32))
    return points


def five_of(points68: np.ndarray) -> np.ndarray:
    """Both eyes' middles, tip of the nose and corners of the mouth, in the detector's order."""
    eyes = points68[36:42].mean(0), points68[42:48].mean(0)
    return np.stack([*eyes, points68[30], points68[48], points68[54]])


def test_all_43_annotated_faces_are_found_and_kept_at_the_defaults(dlib: Path, tmp_path: Path) -> None:
    """One detection for each: its box covers the points' box, its five landmarks are those of the 68."""
    Pipeline(load_config(str(dlib / "faces"), [f"output={tmp_path / 'run'}", "workers=1"])).run(STAGES)
    rows = [row for row in read_shard(tmp_path / "run" / "faces", 0).to_pylist() if row["kept"]]
    truth = annotated(dlib / "faces")
    assert sum(map(len, truth.values())) == 43
    for name, faces in truth.items():
        found = [row for row in rows if row["image_id"] == name]
        boxes = np.array([row["box"] for row in found], np.float32)
        tight = np.array([[*points.min(0), *points.max(0)] for points in faces], np.float32)
        iou = pairwise_iou(tight, boxes)
        match = iou.argmax(1)
        assert len(set(match.tolist())) == len(faces), f"{name}: two faces share a detection"
        assert iou.max(1).min() > 0.5, name
        five = np.array([found[i]["landmarks5"] for i in match], np.float32).reshape(-1, 5, 2)
        error = np.linalg.norm(five - np.stack([five_of(points) for points in faces]), axis=-1).mean(1)
        size = (tight[:, 2:] - tight[:, :2]).mean(1)
        assert (error / size).max() < 0.15, name
    summary = json.loads((tmp_path / "run" / "report" / "summary.json").read_text())
    assert summary["pictures"]["listed"] - summary["pictures"]["failed"] == 12


def test_a_folder_of_people_gives_a_crop_and_an_identity_for_each_picture(dlib: Path, tmp_path: Path) -> None:
    options = ["source.identity_from=folder", "keep.rule=largest_central", "shard_size=20", "workers=1"]
    config = load_config(str(dlib / "johns"), [f"output={tmp_path / 'run'}", *options])
    Pipeline(config).run(STAGES)
    path = tmp_path / "run" / "set.beton"
    labels = read_labels(path)
    assert len(labels) == 55
    people = sorted(folder.name for folder in (dlib / "johns").iterdir())
    assert Counter(labels["person"].to_pylist()) == dict.fromkeys(people, 11)
    assert [people[i] for i in labels["identity"].to_pylist()] == labels["person"].to_pylist()
    assert [name.split("/")[0] for name in labels["image_id"].to_pylist()] == labels["person"].to_pylist()
    assert Beton(path).column("label").tolist() == labels["identity"].to_pylist()
    assert read_manifest(path).label_name == "identity"
    assert array_of(labels["box"]).reshape(-1, 2, 2).mean(1) == pytest.approx(128, abs=0.1)


def test_people_are_numbered_by_name_and_a_picture_outside_has_none(tmp_path: Path, t1: bytes) -> None:
    for name in ("b/x.jpg", "a/deep/y.jpg", "loose.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(t1)
    (tmp_path / "in" / ".hidden").mkdir()
    options = [f"output={tmp_path / 'run'}", "source.identity_from=folder"]
    with pytest.raises(ConfigError, match=r"add keep\.rule=largest_central"):
        load_config(str(tmp_path / "in"), options)
    config = load_config(str(tmp_path / "in"), [*options, "keep.rule=largest_central"])
    source = open_source(config)
    (shard,) = source.shards()
    (tmp_path / "in" / "aa").mkdir()
    source = pickle.loads(pickle.dumps(source))  # as it goes to a worker
    found = {picture.image_id: picture.annotations for picture in source.pictures(shard)}
    assert found == {
        "a/deep/y.jpg": ({"identity": 0, "person": "a"},),
        "b/x.jpg": ({"identity": 1, "person": "b"},),
        "loose.jpg": (),
    }
    again = open_source(config).shards()
    assert again[0].inputs != shard.inputs, "b has another number now"
