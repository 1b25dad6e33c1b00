"""COFW in its own layout: MATLAB 7.3 files as hdf5storage writes them, and the annotations of cofw68-benchmark."""

from __future__ import annotations

from pathlib import Path

import h5py
import hdf5storage
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import configs
from configs import ConfigError
from data_prep.beton import Beton, read_labels
from data_prep.config import DataPrepConfig
from data_prep.listing import list_shard
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources import Found
from data_prep.sources.cofw import COFW, FROM_LFPW, LABELS, NAMES, COFWConfig

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 255, shape, np.uint8) for shape in ((60, 50, 3), (40, 70), (30, 30, 3))]
"""The second is grey."""
PHIS = np.concatenate([RNG.uniform(1, 50, (3, 58)), RNG.integers(0, 2, (3, 29))], 1)
"""x, y and occlusion; the first pixel is 1."""
BOXES = np.array([[6.0, 11, 40, 44], [1, 2, 30, 30], [2, 3, 20, 20]])
POINTS68 = RNG.uniform(1, 50, (68, 2))


def write(root: Path, split: str, **changes: object) -> Path:
    cells, phis, boxes = NAMES[split]
    pictures = np.empty((3, 1), object)
    pictures[:, 0] = PICTURES
    content = {cells: pictures, phis: PHIS, boxes: BOXES}
    content |= {
        dict(zip(("pictures", "phis", "boxes"), NAMES[split], strict=True))[k]: v for k, v in changes.items()
    }
    path = root / f"COFW_{split}_color.mat"
    path.unlink(missing_ok=True)
    # It writes byte arrays of one column as texts elsewhere; there are none here.
    hdf5storage.savemat(str(path), content, format="7.3", store_python_metadata=False)
    return path


def write_second(root: Path) -> Path:
    folder = root / "COFW68_Data/test_annotations"
    folder.mkdir(parents=True)
    for number in (1, 2, 3):
        occluded = (np.arange(68) == number).astype(np.uint8)
        savemat(folder / f"{number}_points.mat", {"Points": POINTS68 + number, "Occ": occluded[None]})
    savemat(root / "COFW68_Data/cofw68_test_bboxes.mat", {"bboxes": BOXES + np.array([100, 100, 0, 0])})
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "cofw"
    folder.mkdir()
    write(folder, "train")
    write(folder, "test")
    return folder


def source(root: Path, **options: object) -> COFW:
    config = COFWConfig.model_validate({"kind": "cofw", "path": root} | options)
    return COFW(config, 2, root.parent / "pictures")


def found(corpus: COFW) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def test_the_pictures_are_written_as_they_are(root: Path, tmp_path: Path) -> None:
    pictures = found(source(root))
    assert [*pictures] == [f"{split}/000{i}" for split in ("train", "test") for i in (1, 2, 3)]
    for name, original in zip(pictures, PICTURES * 2, strict=True):
        path = pictures[name].path
        assert path == tmp_path / "pictures" / f"{name}.bmp"
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), original)
    assert not any(f.error for f in pictures.values())


def test_points_occlusion_and_boxes(root: Path) -> None:
    for i, name in enumerate(("train/0001", "train/0002", "test/0003")):
        (face,) = found(source(root))[name].annotations
        place = (0, 1, 2)[i]
        points = np.reshape(face["landmarks29"], (29, 2))
        np.testing.assert_allclose(points[:, 0], PHIS[place, :29] - 0.5, rtol=1e-6)
        np.testing.assert_allclose(points[:, 1], PHIS[place, 29:58] - 0.5, rtol=1e-6)
        assert face["occluded29"] == (PHIS[place, 58:] == 1).tolist()
    (face,) = found(source(root))["test/0001"].annotations
    assert set(face) | {"detector_box", "landmarks68", "occluded68"} == set(LABELS.names)
    assert face["box"] == [5.5, 10.5, 45.5, 54.5]
    assert (face["split"], face.get("landmarks68"), face.get("detector_box")) == ("test", None, None)


def test_the_second_set_of_points_is_the_test_sets(root: Path) -> None:
    write_second(root)
    pictures = found(source(root))
    (face,) = pictures["test/0002"].annotations
    np.testing.assert_allclose(np.reshape(face["landmarks68"], (68, 2)), POINTS68 + 2 - 0.5, rtol=1e-6)
    assert [i for i, hidden in enumerate(face["occluded68"]) if hidden] == [2]
    assert face["detector_box"] == [100.5, 101.5, 130.5, 131.5]
    trained = pictures["train/0002"].annotations[0]
    assert (trained["landmarks68"], trained["occluded68"], trained["detector_box"]) == (None, None, None)


def test_damage_of_one_picture_costs_that_picture(root: Path) -> None:
    folder = write_second(root)
    (folder / "1_points.mat").write_bytes(b"")
    savemat(folder / "2_points.mat", {"Points": POINTS68[:29], "Occ": np.zeros((1, 68))})
    savemat(folder / "3_points.mat", {"Points": POINTS68, "Occ": np.zeros((29, 1))})
    cells = np.empty((3, 1), object)
    cells[:, 0] = [PICTURES[0], PICTURES[1].astype(float), PICTURES[2][..., :2]]
    write(root, "train", pictures=cells)
    errors = {name: f.error for name, f in found(source(root)).items()}
    assert errors.pop("test/0001").startswith("test_annotations/1_points.mat: damaged, or no MATLAB 5 file")
    assert errors == {
        "train/0001": "",
        "train/0002": "COFW_train_color.mat: IsTr{2}: float64 of the shape (40, 70) is no picture",
        "train/0003": "COFW_train_color.mat: IsTr{3}: uint8 of the shape (30, 30, 2) is no picture",
        "test/0002": "test_annotations/2_points.mat: Points has the shape (29, 2) instead of (68, 2)",
        "test/0003": "test_annotations/3_points.mat: Occ has the shape (1, 29) instead of (1, 68)",
    }


def test_a_lost_picture_is_said(root: Path) -> None:
    with h5py.File(root / "COFW_test_color.mat", "a") as file:
        file["IsT"][0, 1] = h5py.Reference()
    corpus = source(root, splits=("test",))
    table = [row for shard in corpus.shards() for row in list_shard(corpus, root / "out", shard).to_pylist()]
    assert [row["status"] for row in table] == ["ok", "failed", "ok"]
    assert table[1]["error"].startswith("COFW_test_color.mat: IsT{2}: missing or damaged: ")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"phis": PHIS[:, :58]}, r"phisT has the shape \(58, 3\) instead of \(87, N\)"),
        ({"boxes": BOXES[:2]}, "phisT and bboxesT are not of equally many pictures"),
    ],
)
def test_another_file_is_refused(root: Path, changes: dict[str, object], reason: str) -> None:
    write(root, "test", **changes)
    with pytest.raises(ConfigError, match=rf"COFW_test_color.mat: {reason}"):
        source(root).shards()


def test_missing_and_damaged_files(root: Path) -> None:
    path = root / "COFW_test_color.mat"
    with h5py.File(path, "a") as file:
        del file["phisT"]
    with pytest.raises(ConfigError, match=r"COFW_test_color\.mat: phisT is missing or damaged"):
        source(root).shards()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match=r"COFW_test_color\.mat: damaged, or no MATLAB 7\.3 file"):
        source(root).shards()
    savemat(path, {"IsT": np.zeros(3)})
    with pytest.raises(ConfigError, match=r"COFW_test_color\.mat: damaged, or no MATLAB 7\.3 file"):
        source(root).shards()
    path.unlink()
    with pytest.raises(ConfigError, match=r"no COFW_test_color\.mat there; check the path"):
        source(root).shards()
    folder = write_second(root)
    write(root, "test")
    savemat(folder.parent / "cofw68_test_bboxes.mat", {"bboxes": BOXES[:2]})
    with pytest.raises(ConfigError, match=r"cofw68_test_bboxes\.mat: bboxes has the shape \(2, 4\)"):
        source(root).shards()


def test_the_first_of_the_training_set_are_of_another_corpus(root: Path) -> None:
    count = FROM_LFPW + 2
    write(root, "train", phis=np.ones((count, 87)), boxes=np.ones((count, 4)))
    subsets = [faces[0]["subset"] for faces in source(root).inputs()["annotations"].to_pylist()]
    assert subsets == ["lfpw"] * 845 + ["cofw"] * (2 + 3)


def test_from_the_files_to_a_set_and_again(root: Path) -> None:
    """The pictures are removed meanwhile: what is done does not need them."""
    phis = PHIS.copy()
    phis[2, [3, 60]] = np.nan
    write(root, "test", phis=phis)
    output = root.parent / "out"
    given = [f"source.path={root}", f"output={output}", "workers=1", "source.splits=[test]", "shard_size=2"]
    config = configs.load(ROOT / "configs/data/cofw.yaml", given, schema=DataPrepConfig)
    Pipeline(config).run(STAGES[:-1])
    rows = read_labels(output / "set.beton").to_pylist()
    assert [row["image_id"] for row in rows] == ["test/0001", "test/0002", "test/0003"]
    matrix = np.reshape(rows[1]["affine"], (2, 3))
    points = PHIS[1, :58].reshape(2, 29).T - 0.5
    expected = points @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(np.reshape(rows[1]["landmarks29"], (29, 2)), expected, atol=1e-3)
    assert [i for i, value in enumerate(rows[2]["landmarks29"]) if value is None] == [6, 7]
    assert [i for i, value in enumerate(rows[2]["occluded29"]) if value is None] == [2]
    grey = Beton(output / "set.beton").image(1).astype(int)
    assert np.ptp(grey, -1).max() <= 2
    for picture in (output / "pictures/test").iterdir():
        picture.unlink()
    Pipeline(config).run(STAGES[:-1])
    assert not (output / "pictures/test/0001.bmp").exists()


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no COFW_train_color\.mat there; check the path"):
        source(tmp_path / "nowhere").shards()
    assert [figure.count for figure in source(tmp_path).published] == [1_345, 507]
    assert [figure.count for figure in source(tmp_path, splits=("test",)).published] == [507]
