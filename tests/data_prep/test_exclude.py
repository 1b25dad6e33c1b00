"""What the section ``exclude`` leaves out of the set."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import ConfigError
from data_prep.__main__ import load_config
from data_prep.beton import Beton, read_labels, read_manifest
from data_prep.pipeline import STAGES, Pipeline, finished
from data_prep.tables import read_shard

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, t1: bytes, astronaut: Image.Image) -> Path:
    """t1 (six faces) twice, byte for byte; the astronaut as PNG, compressed, and mirrored."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "a_group.jpg").write_bytes(t1)
    (folder / "b_copy.jpg").write_bytes(t1)
    astronaut.save(folder / "c_astronaut.png")
    astronaut.save(folder / "d_compressed.jpg", quality=60)
    astronaut.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "e_mirrored.png")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    Pipeline(load_config(str(folder), words(output))).run(STAGES)
    return output


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, t1: bytes, astronaut: Image.Image) -> Path:
    """Another set: t1 compressed anew, and the astronaut's PNG written anew."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "pictures").mkdir()
    Image.open(io.BytesIO(t1)).convert("RGB").save(folder / "pictures" / "group.jpg", quality=85)
    astronaut.save(folder / "pictures" / "astronaut.png", compress_level=1)
    Pipeline(load_config(str(folder / "pictures"), words(folder / "run"))).run(STAGES)
    return folder / "run"


def words(output: Path, *overrides: str) -> list[str]:
    return [f"output={output}", "shard_size=2", "workers=1", *overrides]


def written(run: Path, folder: Path, *overrides: str) -> tuple[list[str], dict[str, int]]:
    """The face ids of the set that the overrides give, and what was left out; the tables are made once."""
    for name in ("set.json", "set.beton", "set.parquet"):
        (run / name).unlink(missing_ok=True)
    config = load_config(str(folder), words(run, *overrides))
    Pipeline(config).run(["write"])
    ids = read_labels(run / "set.beton")["face_id"].to_pylist()
    beton = Beton(run / "set.beton")
    crops = {r["face_id"]: r["jpeg"] for n in range(3) for r in read_shard(run / "crops", n).to_pylist()}
    assert [beton.jpeg(i) for i in range(len(beton))] == [crops[name] for name in ids]
    assert beton.column("index").tolist() == [*range(len(ids))]
    return ids, read_manifest(run / "set.beton").left_out


def faces(name: str, count: int) -> list[str]:
    return [f"{name}#{i}" for i in range(count)]


def test_by_default_all_stay_as_in_the_paper(run: Path, folder: Path) -> None:
    ids, out = written(run, folder)
    assert len(ids) == 15
    assert out == {}


def test_of_copies_of_a_file_the_first_stays(run: Path, folder: Path) -> None:
    ids, out = written(run, folder, "exclude.duplicates=exact")
    assert ids == [
        *faces("a_group.jpg", 6),
        *faces("c_astronaut.png", 1),
        *faces("d_compressed.jpg", 1),
        *faces("e_mirrored.png", 1),
    ]
    assert out == {"the picture is a copy of another": 6}


def test_near_takes_the_exact_ones_and_the_crops_that_are_alike(run: Path, folder: Path) -> None:
    ids, out = written(run, folder, "exclude.duplicates=near")
    assert ids == [*faces("a_group.jpg", 6), *faces("c_astronaut.png", 1), *faces("e_mirrored.png", 1)]
    assert out == {"the picture is a copy of another": 6, "the crop is like another": 1}


def test_what_another_set_holds_too_stays_out(run: Path, folder: Path, other: Path) -> None:
    """The files differ: the faces are known by their crops."""
    for path in (other, other / "set.beton", other / "set.parquet"):
        ids, out = written(run, folder, f"exclude.against=['{path}']", "exclude.near_bits=6")
        assert ids == ["e_mirrored.png#0"]
        out_of = {f"the picture is in {path}": 0, f"the crop is like one in {path}": 14}
        assert out == out_of


def test_a_picture_that_another_set_holds_goes_with_all_its_faces(
    run: Path, folder: Path, tmp_path: Path, t1: bytes
) -> None:
    """Also the faces that the other set did not keep."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "same.jpg").write_bytes(t1)
    largest = words(tmp_path / "run", "keep.rule=largest_central")
    Pipeline(load_config(str(tmp_path / "pictures"), largest)).run(STAGES)
    assert len(Beton(tmp_path / "run" / "set.beton")) == 1
    ids, out = written(run, folder, f"exclude.against=['{tmp_path / 'run'}']")
    assert len(ids) == 3
    assert out[f"the picture is in {tmp_path / 'run'}"] == 12


def test_other_rules_or_another_other_set_are_another_set(
    run: Path, folder: Path, other: Path, command: Command
) -> None:
    against = f"exclude.against=['{other}']"
    written(run, folder, against)
    config = load_config(str(folder), words(run, against))
    Pipeline(config).run(["write", "report"])
    assert finished(config)
    with pytest.raises(ConfigError, match="with other fields of write or exclude"):
        finished(load_config(str(folder), words(run)))
    result = command(folder, *words(run))
    assert result.returncode == 2
    assert "with other fields of write or exclude" in result.stderr
    manifest = json.loads((other / "set.json").read_text())
    (other / "set.json").write_text(json.dumps(manifest | {"sha256": "another"}))
    with pytest.raises(ConfigError, match="with other fields of write or exclude"):
        finished(config)
    (other / "set.json").write_text(json.dumps(manifest))
    assert finished(config)
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert summary["left_out"] == read_manifest(run / "set.beton").left_out
    assert sum(summary["left_out"].values()) == summary["faces"]["kept"] - summary["written"] > 0
    assert (
        f"left out of set.beton: the crop is like one in {other}"
        in (run / "report" / "index.html").read_text()
    )


def test_an_other_set_that_is_not_there_is_named(run: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"exclude\.against=.*nowhere: .* does not exist"):
        written(run, folder, f"exclude.against=['{tmp_path / 'nowhere'}']")
    with pytest.raises(ConfigError, match="leaves no row"):
        written(run, folder, f"exclude.against=['{kept(run, folder)}']")


def kept(run: Path, folder: Path) -> Path:
    """A copy of the whole set."""
    written(run, folder)
    copy = run.parent / "copy"
    copy.mkdir(exist_ok=True)
    for name in ("set.json", "set.beton", "set.parquet"):
        (copy / name).write_bytes((run / name).read_bytes())
    return copy


def test_the_report_shows_the_groups(run: Path, folder: Path) -> None:
    written(run, folder)
    config = load_config(str(folder), words(run))
    Pipeline(config).run(["report"])
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert summary["pictures"]["duplicates"] == 1
    assert summary["near_duplicates"] == {"bits": 4, "groups": 7, "rows_more": 7}
    assert (run / "report" / "index.html").read_text().count('alt="near-duplicate"') == 14
    assert np.all([*summary["throughput"]["crop"]["shares"].values()])


def test_against_two_sets_the_second_sees_what_the_first_has_left(
    run: Path, folder: Path, other: Path
) -> None:
    one, _ = written(run, folder, f"exclude.against=['{other}']")
    both, left_out = written(run, folder, f"exclude.against=['{other}', '{other}/set.beton']")
    assert both == one
    assert [count for reason, count in left_out.items() if "set.beton" in reason] == [0, 0]
