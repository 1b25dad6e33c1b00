"""A set that somebody publishes as a list, and others make again from their own copy."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import configs
from configs import ConfigError
from data_prep.__main__ import load_config
from data_prep.beton import Beton, read_labels
from data_prep.config import DataPrepConfig
from data_prep.files import sha256_file
from data_prep.lists import read_list
from data_prep.pipeline import STAGES, Pipeline, open_source
from data_prep.sources import Found
from data_prep.tables import read_shard

ROOT = Path(__file__).parents[2]
Command = Callable[..., "subprocess.CompletedProcess[str]"]
ZEROS = "0" * 64


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, astronaut: Image.Image) -> Path:
    """A folder of eight photographs, one of them without a face, and the set made from it."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "pictures").mkdir()
    for i in range(7):
        shift = np.random.default_rng(i).integers(0, 100, 2)
        cut = astronaut.crop((*shift.tolist(), *(shift + 320).tolist()))
        cut.save(folder / "pictures" / f"{i}, no. {i}.jpg", quality=90)
    Image.new("RGB", (320, 320), "gray").save(folder / "pictures" / "3 grey.jpg")
    run(folder / "pictures", folder / "set")
    return folder


def run(pictures: Path, output: Path, *overrides: str) -> Pipeline:
    given = [f"output={output}", "workers=1", "shard_size=3", *overrides]
    pipeline = Pipeline(load_config(str(pictures), given))
    pipeline.run(STAGES)
    return pipeline


def test_the_report_leaves_a_list(published: Path) -> None:
    with gzip.open(published / "set/report/list.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    pictures = sorted((published / "pictures").iterdir())
    assert [row["image_id"] for row in rows] == [path.name for path in pictures]
    assert [row["sha256"] for row in rows] == [sha256_file(path) for path in pictures]
    assert [row["faces"] for row in rows] == ["0" if path.name == "3 grey.jpg" else "1" for path in pictures]
    assert set(rows[0]) == {"image_id", "sha256", "faces"}, "nothing about anybody"


def test_from_the_list_it_is_the_same_set_without_what_is_missing_or_differs(
    published: Path, tmp_path: Path, command: Command
) -> None:
    copy, listed = tmp_path / "copy", published / "set/report/list.csv.gz"
    shutil.copytree(published / "pictures", copy)
    (copy / "1, no. 1.jpg").unlink()
    Image.open(published / "pictures/4, no. 4.jpg").save(copy / "4, no. 4.jpg", quality=70)
    for name in ("0 another.jpg", "zz.txt"):
        shutil.copy(copy / "2, no. 2.jpg", copy / name)
    result = command(copy, f"output={tmp_path / 'set'}", "workers=1", "shard_size=3", "--from-list", listed)
    assert result.returncode == 0, result.stderr
    assert f"{listed}: 8 listed, 1 missing, 1 differ, 2 unlisted" in result.stderr

    quarantine = json.loads((tmp_path / "set/quarantine.json").read_text())
    assert [(row["image_id"], row["reason"]) for row in quarantine] == [
        ("1, no. 1.jpg", "listed but missing"),
        ("4, no. 4.jpg", "differs from the published list"),
    ]
    images = [row for number in range(3) for row in read_shard(tmp_path / "set/images", number).to_pylist()]
    assert [row["image_id"] for row in images] == sorted(
        path.name for path in (published / "pictures").iterdir()
    )
    assert images[5]["sha256"] == sha256_file(copy / "4, no. 4.jpg")
    summary = json.loads((tmp_path / "set/report/summary.json").read_text())
    assert summary["from_list"] == {"listed": 8, "missing": 1, "differ": 1, "unlisted": 2}

    theirs, ours = Beton(published / "set/set.beton"), Beton(tmp_path / "set/set.beton")
    labels = read_labels(published / "set/set.beton")
    rows = [i for i, name in enumerate(labels["image_id"].to_pylist()) if name[:5] not in ("1, no", "4, no")]
    assert [ours.jpeg(i) for i in range(len(ours))] == [theirs.jpeg(row) for row in rows]
    assert read_labels(tmp_path / "set/set.beton").equals(labels.take(rows))


def test_the_list_belongs_to_what_is_made_from_it(published: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_bytes(gzip.decompress((published / "set/report/list.csv.gz").read_bytes()))
    given = f"from_list={listed}"
    run(published / "pictures", tmp_path / "set", given)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("set/*/*.json")}
    run(published / "pictures", tmp_path / "set", given)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join(lines[:-1]))
    with pytest.raises(ConfigError, match="made with from_list="):
        run(published / "pictures", tmp_path / "set", given)


def test_the_order_is_the_lists(published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = read_list(published / "set/report/list.csv.gz").to_pylist()
    wanted = [rows[6], rows[0], rows[5]]
    listed = tmp_path / "few.csv"
    with open(listed, "w", newline="") as file:
        writer = csv.DictWriter(file, ["note", "sha256", "image_id"])
        writer.writeheader()
        writer.writerows({**row, "note": "x", "sha256": row["sha256"].upper()} for row in wanted)
    with caplog.at_level(logging.INFO):
        run(published / "pictures", tmp_path / "set", f"from_list={listed}")
    assert "3 listed, 0 missing, 0 differ, 5 unlisted" in caplog.text
    made = read_labels(tmp_path / "set/set.beton")["image_id"].to_pylist()
    assert made == [row["image_id"] for row in wanted]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("image_id,hash\na,b\n", "Column 'sha256' in include_columns does not exist"),
        (f"image_id,sha256\na.jpg,{ZEROS}\nb.jpg,12\n", "row 2, 'b.jpg', has no sha256 of 64 digits"),
        (f"image_id,sha256\na,{ZEROS}\nb,{ZEROS}\na,{ZEROS}\n", "it names 'a' 2 times"),
        (f"image_id,sha256\na.jpg,{ZEROS},3\n", "Expected 2 columns, got 3"),
        ("image_id,sha256\n", "it names no picture"),
        ("", "Empty CSV file"),
    ],
)
def test_a_damaged_list_is_refused(published: Path, tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(ConfigError) as refused:
        run(published / "pictures", tmp_path / "set", f"from_list={tmp_path / 'list.csv'}")
    assert str(refused.value).startswith(f"from_list: {tmp_path / 'list.csv'}: ")
    assert reason in str(refused.value)


def test_a_list_that_is_cut_off_or_not_there_is_refused(published: Path, tmp_path: Path) -> None:
    cut = (published / "set/report/list.csv.gz").read_bytes()[:-20]
    (tmp_path / "list.csv.gz").write_bytes(cut)
    for name in ("list.csv.gz", "none.csv"):
        with pytest.raises(ConfigError, match=f"from_list: .*{name}"):
            run(published / "pictures", tmp_path / "set", f"from_list={tmp_path / name}")


# --- every source --------------------------------------------------------------------------------------------


def corpus(kind: str, root: Path) -> list[str]:
    """The smallest tree of each corpus, three pictures and more; the overrides of its config."""

    def picture(name: str) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (len(name), 9, sum(name.encode()) % 256)).save(root / name)

    if kind == "vggface2":
        for i in range(5):
            picture(f"train/n{i:06d}/0001_01.jpg")
    elif kind == "300w_lp":
        for i in range(5):
            picture(f"AFW/AFW_{i}.jpg")
    elif kind == "widerface":
        for i in range(5):
            picture(f"WIDER_val/images/1--Crowd/{i}.jpg")
    elif kind == "affectnet":
        for i in range(5):
            picture(f"train_set/images/{i}.jpg")
        return [f"source.path={root}", "source.release=new"]
    elif kind == "folder":
        for i in range(5):
            picture(f"{i}.jpg")
    else:
        return ["source.count=5", "source.picture.size=64"]
    return [f"source.path={root}"]


@pytest.mark.parametrize(
    "kind", ["folder", "vggface2", "300w_lp", "widerface", "affectnet", "synthetic_portraits"]
)
def test_a_list_picks_the_same_inputs_from_every_source(kind: str, tmp_path: Path) -> None:
    given = [*corpus(kind, tmp_path / "corpus"), f"output={tmp_path / 'set'}", "shard_size=2"]
    path = ROOT / f"configs/data/{kind}.yaml"
    whole = inputs(configs.load(path, given, schema=DataPrepConfig))
    assert len(whole) == 5
    (tmp_path / "list.csv").write_text(
        "image_id,sha256\n"
        + "".join(f"{name},{ZEROS}\n" for name in [*[found.image_id for found in whole[::-2]], "other"])
    )
    picked = inputs(configs.load(path, [*given, f"from_list={tmp_path / 'list.csv'}"], schema=DataPrepConfig))
    assert [found.image_id for found in picked] == [*[found.image_id for found in whole[::-2]], "other"]
    for found, expected in zip(picked, whole[::-2], strict=False):
        assert (found.path, found.annotations, found.error) == (
            expected.path,
            expected.annotations,
            expected.error,
        )
        assert found.sha256 == ZEROS
    assert picked[-1].error == "listed but missing"


def inputs(config: DataPrepConfig) -> list[Found]:
    source = open_source(config)
    shards = source.shards()
    found = [found for shard in shards for found in source.pictures(shard)]
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert sum(shard.size for shard in shards) == len(found)
    assert all(shard.size <= config.shard_size for shard in shards)
    return found
