"""BP4D in its own layout: folders a subject and task, a file of codes a unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import configs
from configs import ConfigError
from data_prep.beton import read_labels
from data_prep.config import DataPrepConfig
from data_prep.listing import list_shard
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources import Found
from data_prep.sources.bp4d import BP4D, FOLDS, LABELS, PUBLISHED, BP4DConfig
from data_prep.sources.corpus import input_schema
from data_prep.synthetic import SyntheticConfig, portrait

ROOT = Path(__file__).parents[2]


def code(root: Path, task: str, folder: str = "AUCoding/AU_INT", **units: str) -> None:
    """Files of codes of a subject and task, "F001_T1"; units as AU06="2440,1 2441,9"."""
    for unit, lines in units.items():
        path = root / folder / unit / f"{task}_{unit}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines.split(" ")))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), "gray").save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A woman and a man; the picture 2439 is not coded."""
    for name in ("F001/T1/2439.jpg", "F001/T1/2440.jpg", "F001/T1/2441.jpg", "M018/T8/0007.jpg"):
        picture(tmp_path / name)
    code(tmp_path, "F001_T1", AU06="2440,1 2441,9", AU10="2440,2 2441,0", AU12="2440,3 2441,4")
    code(tmp_path, "F001_T1", AU14="2440,4 2441,9", AU17="2440,5 2441,0")
    code(tmp_path, "M018_T8", **{f"AU{unit}": "7,1" for unit in ("06", "10", "12", "14", "17")})
    return tmp_path


def source(root: Path, shard_size: int = 256, **options: Any) -> BP4D:
    return BP4D(BP4DConfig(kind="bp4d", path=root, **options), shard_size)


def found(corpus: BP4D) -> dict[str, Found]:
    return {found.image_id: found for shard in corpus.shards() for found in corpus.pictures(shard)}


def test_coded_frames_and_nine_as_missing(root: Path) -> None:
    corpus = source(root)
    pictures = found(corpus)
    assert list(pictures) == ["F001/T1/2440.jpg", "F001/T1/2441.jpg", "M018/T8/0007.jpg"]
    first, second, man = (picture.annotations[0] for picture in pictures.values())
    assert first == {
        "identity": 1,
        "subject": "F001",
        "task": "T1",
        "action_units": [1, 2, 3, 4, 5],
        "frame": 2440,
        "fold": 1,
        "split": "train",
    }
    assert second["action_units"] == [None, 0, 4, None, 0]
    assert (man["identity"], man["fold"], man["split"], man["frame"]) == (118, 2, "dev", 7)
    assert not any(picture.error for picture in pictures.values())
    assert corpus.inputs().schema == input_schema(LABELS)


def test_a_frame_of_the_codes_without_a_picture(root: Path) -> None:
    (root / "F001/T1/2441.jpg").unlink()
    corpus = source(root)
    (shard,) = corpus.shards()
    rows = {row["image_id"]: row["error"] for row in list_shard(corpus, root / "out", shard).to_pylist()}
    assert rows["F001/T1/2441.jpg"] == "cannot be read: No such file or directory"
    assert rows["F001/T1/2440.jpg"] == ""


def test_the_codes_go_by_other_names(root: Path) -> None:
    expected = {name: picture.annotations for name, picture in found(source(root)).items()}
    for name in ("AU Intensity Codes3.0", "AU-Intensity-Codes3.0", "mine"):
        (next(path.parent for path in root.rglob("AU06"))).rename(root / name)
        codes = {"codes": Path(name)} if name == "mine" else {}
        assert {n: p.annotations for n, p in found(source(root, **codes)).items()} == expected
    with pytest.raises(ConfigError, match=r"source\.codes: there is no .*AU_INT or .*Codes3\.0"):
        source(root).shards()


def test_damaged_lines_and_headers(root: Path) -> None:
    code(root, "F001_T1", AU10="frame,AU10 2440,7 2441,0,extra", AU17="2440,0 2441,x")
    (root / "AUCoding/AU_INT/AU14/M018_T8_AU14.csv").unlink()
    pictures = found(source(root))
    assert {name: picture.error for name, picture in pictures.items()} == {
        "F001/T1/2440.jpg": "F001_T1_AU10.csv:2: not FRAME,INTENSITY with 0 to 5: '2440,7'",
        "F001/T1/2441.jpg": "F001_T1_AU17.csv:2: not FRAME,INTENSITY with 0 to 5: '2441,x'",
        "M018/T8/0007.jpg": "",
    }
    assert pictures["M018/T8/0007.jpg"].annotations[0]["action_units"] == [1, 1, 1, None, 1]


def test_a_changed_code_is_a_changed_shard(root: Path) -> None:
    before = [shard.inputs for shard in source(root, shard_size=2).shards()]
    picture(root / "F001/T1/2442.jpg")
    (root / "AUCoding/AU_INT/AU06/.F001_T1_AU06.csv").touch()
    assert [shard.inputs for shard in source(root, shard_size=2).shards()] == before
    code(root, "M018_T8", AU06="7,2")
    after = [shard.inputs for shard in source(root, shard_size=2).shards()]
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)


def test_folds_and_counts() -> None:
    people = [name for fold in FOLDS for name in fold.split()]
    assert sorted(people) == [f"F{n:03d}" for n in range(1, 24)] + [f"M{n:03d}" for n in range(1, 19)]
    counts = {figure.what: figure.count for figure in PUBLISHED}
    assert counts["faces of train"] + counts["faces of dev"] == counts["pictures"]
    assert sum(counts[f"faces of fold {fold}"] for fold in (1, 2, 3)) == counts["pictures"]


def test_paths_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        source(tmp_path / "nowhere").shards()
    (tmp_path / "AUCoding/AU_INT").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no AU06/F001_T1_AU06\.csv in it"):
        source(tmp_path).shards()


def test_from_its_folder_to_a_set(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for index, name in enumerate(("F001/T1/2440.jpg", "F001/T1/2441.jpg")):
        Image.fromarray(portrait(0, index, SyntheticConfig(occlusion=0)).image).save(root / name, quality=95)
    out = tmp_path_factory.mktemp("out")
    given = [f"source.path={root}", f"output={out / 'set'}", "workers=1"]
    config = configs.load(ROOT / "configs/data/bp4d.yaml", given, schema=DataPrepConfig)
    pipeline = Pipeline(config)
    pipeline.run(STAGES)
    table = read_labels(out / "set/set.beton")
    assert table["action_units"].to_pylist() == [[1, 2, 3, 4, 5], [None, 0, 4, None, 0]]
    assert table["identity"].to_pylist() == [1, 1]
    figures = {row["what"]: row["usable"] for row in pipeline.published()}
    assert (figures["pictures"], figures["faces of train"], figures["faces of fold 2"]) == (3, 2, 1)
