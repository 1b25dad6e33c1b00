from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import configs
from data_prep.beton import Beton, read_labels, read_manifest
from data_prep.config import DataPrepConfig
from data_prep.crop import move
from data_prep.pipeline import STAGES, Pipeline
from data_prep.synthetic import photograph, portrait
from data_prep.tables import array_of, read_shard

CONFIGS = Path(configs.__file__).parent / "data"


def prepared(name: str, output: Path, *overrides: str) -> Pipeline:
    given = [f"output={output}", "workers=1", "source.seed=3", *overrides]
    pipeline = Pipeline(configs.load(CONFIGS / name, given, schema=DataPrepConfig))
    pipeline.run(STAGES)
    return pipeline


@pytest.fixture(scope="module")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("synthetic") / "portraits"
    prepared("synthetic_portraits.yaml", output, "source.count=6", "shard_size=4")
    return output


def test_labels_are_the_truth_in_crop_pixels(portraits: Path) -> None:
    config = configs.load(portraits / "config.yaml", schema=DataPrepConfig)
    table = read_labels(portraits / "set.beton")
    assert len(table) >= 5
    for row in table.to_pylist():
        (face,) = portrait(3, int(row["image_id"].split("-")[-1]), config.source.picture).faces  # type: ignore[union-attr]
        affine = np.array(row["affine"], np.float32)
        for column, points in (
            ("true_box", face.box),
            ("true_landmarks5", face.landmarks5),
            ("landmarks68", face.landmarks68),
        ):
            np.testing.assert_allclose(row[column], move(affine, points), atol=1e-3)
        assert row["identity"] == face.identity
        np.testing.assert_array_equal(row["visible68"], face.visible68)
        for column in ("action_units", "shape", "pose"):
            np.testing.assert_array_equal(np.array(row[column], np.float32), getattr(face, column))
        for column in ("valence", "arousal", "shown"):
            assert row[column] == pytest.approx(getattr(face, column), abs=1e-6)


def test_the_detector_agrees_with_the_truth(portraits: Path) -> None:
    table = read_labels(portraits / "set.beton")
    difference = array_of(table["landmarks5"]) - array_of(table["true_landmarks5"])
    assert np.abs(difference).mean() < 12, "of 190 px of face"


def test_the_label_of_the_beton_is_the_identity(portraits: Path) -> None:
    beton, manifest = Beton(portraits / "set.beton"), read_manifest(portraits / "set.beton")
    assert manifest.label_name == "identity"
    assert beton.column("label").tolist() == read_labels(portraits / "set.beton")["identity"].to_pylist()


def test_it_is_called_synthetic(portraits: Path) -> None:
    assert read_manifest(portraits / "set.beton").sources[0].synthetic
    assert "synthetic faces" in (portraits / "report" / "index.html").read_text()


def test_pictures_depend_on_their_number_alone(portraits: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(
        configs.load(
            CONFIGS / "synthetic_portraits.yaml",
            [f"output={tmp_path}", "workers=2", "source.seed=3", "source.count=4", "shard_size=2"],
            schema=DataPrepConfig,
        )
    )
    pipeline.list()
    again = [h for number in range(2) for h in read_shard(tmp_path / "images", number)["sha256"].to_pylist()]
    assert again == read_shard(portraits / "images", 0)["sha256"].to_pylist()


def test_every_person_of_a_photograph_is_annotated(tmp_path: Path) -> None:
    pipeline = prepared("synthetic_photographs.yaml", tmp_path, "source.count=3", "keep.min_size=0")
    rows = read_shard(pipeline.images.folder, 0).to_pylist()
    for index, row in enumerate(rows):
        truth = photograph(3, index, pipeline.config.source.picture).faces  # type: ignore[union-attr]
        assert [a["identity"] for a in row["annotations"]] == [face.identity for face in truth]
    faces = read_shard(pipeline.faces.folder, 0)
    for row in faces.filter(faces["kept"]).to_pylist():
        assert row["annotation"] >= 0
        assert row["iou"] >= pipeline.config.keep.min_iou
