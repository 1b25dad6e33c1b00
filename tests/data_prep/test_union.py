"""Several runs as one set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

import configs
from configs import ConfigError
from data_prep import union
from data_prep.__main__ import load_config
from data_prep.beton import Beton, read_labels, read_manifest
from data_prep.config import DataPrepConfig
from data_prep.pipeline import Pipeline
from data_prep.stage import parse_part
from data_prep.tables import read_shard
from data_prep.union import PartConfig, UnionConfig, write_union

ROOT = Path(__file__).parents[2]
TO_CROPS = ("list", "detect", "crop")


def people(output: Path, count: int, seed: int) -> Path:
    """A run of rendered portraits with many labels, without a set of its own."""
    given = [f"output={output}", "workers=1", f"source.count={count}", f"source.seed={seed}", "shard_size=2"]
    config = configs.load(ROOT / "configs/data/synthetic_portraits.yaml", given, schema=DataPrepConfig)
    Pipeline(config).run(TO_CROPS)
    return output


def photographs(output: Path, folder: Path, astronaut: Image.Image, *overrides: str) -> Path:
    """A run of a folder with two photographs and a file that is none: no labels."""
    folder.mkdir(exist_ok=True)
    astronaut.save(folder / "0000000.jpg")
    astronaut.crop((60, 0, 400, 340)).save(folder / "1.png")
    (folder / "2.jpg").write_text("no picture")
    config = load_config(str(folder), [f"output={output}", "workers=1", "shard_size=2", *overrides])
    Pipeline(config).run(TO_CROPS)
    return output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, astronaut: Image.Image) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "first": people(folder / "a", 5, 0),
        "photographs": photographs(folder / "b", folder / "pictures", astronaut),
        "second": people(folder / "c", 3, 9),
    }


def config_of(runs: dict[str, Path], output: Path) -> UnionConfig:
    return UnionConfig(output=output, parts={name: PartConfig(path=path) for name, path in runs.items()})


def crops_of(run: Path) -> list[dict[str, object]]:
    shards = len(list((run / "crops").glob("*.parquet")))
    rows = [row for number in range(shards) for row in read_shard(run / "crops", number).to_pylist()]
    return [row for row in rows if not row["error"]]


def test_every_crop_of_every_part_once_and_unchanged(runs: dict[str, Path], tmp_path: Path) -> None:
    manifest = write_union(config_of(runs, tmp_path))
    beton, labels = Beton(tmp_path / "set.beton"), read_labels(tmp_path / "set.beton").to_pylist()
    expected = [(name, row) for name, run in runs.items() for row in crops_of(run)]
    assert len(beton) == len(labels) == len(expected) == 10
    for i, (name, row) in enumerate(expected):
        assert beton.jpeg(i) == row["jpeg"]
        assert (labels[i]["part"], labels[i]["face_id"]) == (name, f"{name}/{row['face_id']}")
        assert labels[i]["image_id"] == f"{name}/{row['image_id']}"
        for column in ("box", "score", "affine", "face_size", "landmarks5"):
            assert labels[i][column] == row[column]
    assert len({row["face_id"] for row in labels}) == 10
    assert (beton.column("label") == -1).all()
    assert beton.column("index").tolist() == list(range(10))
    assert not [*tmp_path.glob("*.tmp"), *tmp_path.glob(".*.tmp")]

    assert manifest == read_manifest(tmp_path / "set.beton")
    found = [(note.name, note.kind, note.synthetic, note.images, note.faces) for note in manifest.sources]
    assert found == [
        ("first", "synthetic", True, 5, 5),
        ("photographs", "folder", False, 3, 2),
        ("second", "synthetic", True, 3, 3),
    ]
    assert (manifest.label_name, manifest.crop["mode"]) == ("none", "box")


def test_labels_keep_their_part_and_people_their_number(runs: dict[str, Path], tmp_path: Path) -> None:
    manifest = write_union(config_of(runs, tmp_path))
    labels = read_labels(tmp_path / "set.beton").to_pylist()
    offsets = {note.name: note.identity_offset for note in manifest.sources}
    assert offsets["first"] == 0
    for name in ("first", "second"):
        mine = [row for row in labels if row["part"] == name]
        for row, crop in zip(mine, crops_of(runs[name]), strict=True):
            assert row["identity"] == offsets[name] + crop["identity"]  # type: ignore[operator]
            assert row["landmarks68"] == crop["landmarks68"], "what is in crop pixels is one column"
            assert row[f"{name}.valence"] == crop["valence"]
            assert row["first.valence" if name == "second" else "second.valence"] is None
    numbers = [{row["identity"] for row in labels if row["part"] == name} for name in ("first", "second")]
    assert not numbers[0] & numbers[1]
    nobody = [row for row in labels if row["part"] == "photographs"]
    assert all(row["identity"] == -1 and row["landmarks68"] is row["first.valence"] is None for row in nobody)


def test_again_it_does_nothing_and_a_changed_part_is_refused(
    runs: dict[str, Path], tmp_path: Path, astronaut: Image.Image
) -> None:
    runs = runs | {"photographs": photographs(tmp_path / "b", tmp_path / "pictures", astronaut)}
    config = config_of(runs, tmp_path / "union")
    assert not union.finished(config)
    write_union(config)
    assert union.finished(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "union").iterdir()}
    write_union(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "union").iterdir()} == before

    (tmp_path / "pictures/2.jpg").write_bytes((tmp_path / "pictures/0000000.jpg").read_bytes())
    again = load_config(str(tmp_path / "pictures"), [f"output={tmp_path / 'b'}", "workers=1", "shard_size=2"])
    Pipeline(again, retry_failed=True).run(["list", "detect"])
    with pytest.raises(ConfigError, match=r"parts\.photographs\.path=.*crops/00001\.json: made from other"):
        write_union(config)
    Pipeline(again, retry_failed=True).run(["crop"])
    with pytest.raises(ConfigError, match=r"union/set\.beton: made from other crops.*remove set\.\*"):
        write_union(config)
    for path in before:
        path.unlink()
    assert write_union(config).count == 11


def test_a_stopped_one_leaves_no_mark_and_is_written_anew(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(runs, tmp_path / "union")
    expected = write_union(config_of(runs, tmp_path / "whole"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_prep.beton._verify", full)
    with pytest.raises(OSError, match="No space left"):
        write_union(config)
    assert [path.name for path in (tmp_path / "union").iterdir()] == ["set.parquet"]
    assert not union.finished(config)
    monkeypatch.undo()
    assert write_union(config).sha256 == expected.sha256


def test_only_one_split_of_a_part(tmp_path: Path, astronaut: Image.Image) -> None:
    corpus = tmp_path / "vggface2"
    for name in ("train/n000007/0001_01.jpg", "test/n000008/0001_01.jpg", "train/n000009/0001_01.jpg"):
        (corpus / name).parent.mkdir(parents=True)
        astronaut.save(corpus / name)
    given = [f"source.path={corpus}", f"output={tmp_path / 'run'}", "workers=1", "keep.rule=largest_central"]
    Pipeline(configs.load(ROOT / "configs/data/vggface2.yaml", given, schema=DataPrepConfig)).run(TO_CROPS)
    part = PartConfig(path=tmp_path / "run", split="train")
    manifest = write_union(UnionConfig(output=tmp_path / "union", parts={"faces": part}))
    assert manifest.count == 2
    labels, beton = read_labels(tmp_path / "union/set.beton"), Beton(tmp_path / "union/set.beton")
    assert labels["identity"].to_pylist() == [7, 9]
    whole = {row["identity"]: row["jpeg"] for row in crops_of(tmp_path / "run")}
    assert [beton.jpeg(0), beton.jpeg(1)] == [whole[7], whole[9]]
    none = PartConfig(path=tmp_path / "run", split="val")
    with pytest.raises(ConfigError, match=r"parts\.faces: .* has no crop to take"):
        write_union(UnionConfig(output=tmp_path / "none", parts={"faces": none}))


def test_parts_that_do_not_fit_are_refused(
    runs: dict[str, Path], tmp_path: Path, astronaut: Image.Image
) -> None:
    other = photographs(tmp_path / "b", tmp_path / "pictures", astronaut, "crop.border=reflect")
    message = (
        r"parts\.photographs: its crops were made with crop\.border=reflect, those of first with .*=edge"
    )
    with pytest.raises(ConfigError, match=message):
        write_union(config_of(runs | {"photographs": other}, tmp_path / "union"))
    split = UnionConfig(
        output=tmp_path / "u", parts={"p": PartConfig(path=runs["photographs"], split="train")}
    )
    with pytest.raises(ConfigError, match=r"parts\.p\.split: .* has no column 'split'"):
        write_union(split)
    with pytest.raises(ConfigError, match="parts: 'a/b' is no name for a part"):
        configs.load(ROOT / "configs/data/large_scale_face.yaml", ["parts.a/b={path: x}"], schema=UnionConfig)
    assert not (tmp_path / "union").exists()


def test_a_run_that_is_not_whole_is_refused(tmp_path: Path, astronaut: Image.Image) -> None:
    """Some shards of a run in parts look like all shards of a smaller one."""
    folder, output = tmp_path / "pictures", tmp_path / "run"
    folder.mkdir()
    for i in range(3):
        astronaut.save(folder / f"{i}.png")
    config = load_config(str(folder), [f"output={output}", "workers=1", "shard_size=1"])
    wanted = UnionConfig(output=tmp_path / "union", parts={"p": PartConfig(path=output)})
    for stage in TO_CROPS:
        Pipeline(config, part=parse_part("0/3")).run([stage])
    with pytest.raises(ConfigError, match=r"parts\.p\.path=.*no run that is whole is there"):
        write_union(wanted)
    assert not union.finished(wanted)
    Pipeline(config).run(["list", "detect"])
    with pytest.raises(ConfigError, match=r"crops/00001\.json is missing"):
        write_union(wanted)
    Pipeline(config).run(["crop"])
    assert write_union(wanted).count == 3


def test_the_command_tells_what_came_from_where(
    runs: dict[str, Path], tmp_path: Path, command: Callable[..., CompletedProcess[str]]
) -> None:
    config = tmp_path / "union.yaml"
    config.write_text(configs.dump(config_of(runs, tmp_path / "union")))
    result = command("union", config, "write.storage=raw")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "first: 5 faces of 5 pictures",
        "photographs: 2 faces of 3 pictures",
        "second: 3 faces of 3 pictures",
        f"{tmp_path / 'union/set.beton'}: 10 faces",
    ]
    assert Beton(tmp_path / "union/set.beton").is_raw(9)


def test_large_scale_face_is_the_union_of_five_runs() -> None:
    config = configs.load(ROOT / "configs/data/large_scale_face.yaml", schema=UnionConfig)
    assert list(config.parts) == ["vggface2", "300w_lp", "imdb_face", "affectnet", "widerface"]
    assert config.parts["affectnet"].split == "train"
    assert np.all([part.path.parent.as_posix() == "runs/data" for part in config.parts.values()])
