"""What a person does first: point it at a folder, of all sorts of files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from configs import cli
from data_prep.__main__ import load_config, main, parse
from data_prep.beton import Beton, read_labels, read_manifest
from data_prep.pipeline import STAGES, Pipeline, finished
from data_prep.tables import array_of, read_shard

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, t1: bytes, astronaut: Image.Image) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "t1.jpg").write_bytes(t1)
    astronaut.save(folder / "astronaut.png")
    (folder / "text.jpg").write_text("a text, not a picture")
    astronaut.save(folder / "truncated.jpg")
    with open(folder / "truncated.jpg", "r+b") as file:
        file.truncate((folder / "truncated.jpg").stat().st_size // 2)
    astronaut.convert("L").save(folder / "grey.png")
    astronaut.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    (folder / "deeper").mkdir()
    astronaut.rotate(90).save(folder / "deeper" / "rotated.jpg", quality=95, exif=exif)
    (folder / "empty.jpg").touch()
    return folder


@pytest.fixture(scope="module")
def output(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "mine"
    Pipeline(load_config(str(folder), [f"output={output}", "shard_size=5", "workers=1"])).run(STAGES)
    return output


@pytest.fixture(scope="module")
def images(output: Path) -> pa.Table:
    return pa.concat_tables(read_shard(output / "images", number) for number in range(2))


@pytest.fixture(scope="module")
def faces(output: Path) -> pa.Table:
    return pa.concat_tables(read_shard(output / "faces", number) for number in range(2))


def test_one_row_for_every_file(images: pa.Table, folder: Path) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert images["image_id"].to_pylist() == files


def test_broken_files_are_listed_with_the_reason(images: pa.Table, output: Path) -> None:
    errors = {row["image_id"]: row["error"] for row in images.to_pylist() if row["status"] == "failed"}
    assert errors == {
        "empty.jpg": "empty file",
        "text.jpg": "not a picture in any known format",
        "truncated.jpg": "damaged: image file is truncated",
    }
    quarantine = json.loads((output / "quarantine.json").read_text())
    assert {row["image_id"]: row["reason"] for row in quarantine} == errors


def test_six_faces_in_t1_and_one_in_the_others(faces: pa.Table) -> None:
    found = faces["image_id"].to_pylist()
    assert {name: found.count(name) for name in found} == {
        "t1.jpg": 6,
        "astronaut.png": 1,
        "grey.png": 1,
        "cmyk.jpg": 1,
        "deeper/rotated.jpg": 1,
    }
    assert all(faces["kept"].to_pylist())


def test_grey_cmyk_and_rotated_have_the_face_at_the_same_place(faces: pa.Table, output: Path) -> None:
    boxes = dict(zip(faces["image_id"].to_pylist(), array_of(faces["box"]), strict=True))
    for name in ("grey.png", "cmyk.jpg", "deeper/rotated.jpg"):
        assert np.abs(boxes[name] - boxes["astronaut.png"]).max() < 3, name


def test_the_crops_look_alike(output: Path) -> None:
    beton = Beton(output / "set.beton")
    rows = {name: i for i, name in enumerate(read_labels(output / "set.beton")["image_id"].to_pylist())}
    reference = beton.image(rows["astronaut.png"]).astype(float)
    for name in ("cmyk.jpg", "deeper/rotated.jpg"):
        assert np.abs(beton.image(rows[name]) - reference).mean() < 6, name
    grey = beton.image(rows["grey.png"])
    assert np.ptp(grey.astype(int), axis=2).max() <= 2


def test_the_set_is_whole(output: Path) -> None:
    beton, labels = Beton(output / "set.beton"), read_labels(output / "set.beton")
    assert len(beton) == len(labels) == 10
    assert (beton.column("label") == -1).all()
    manifest = read_manifest(output / "set.beton")
    assert (manifest.count, manifest.label_name, manifest.sources[0].synthetic) == (10, "none", False)
    assert manifest.face_size
    assert 100 < manifest.face_size.mean < 130
    box = array_of(labels["box"])
    assert (box[:, 2] - box[:, 0] + box[:, 3] - box[:, 1]) / 2 == pytest.approx(190, abs=0.01)


def test_the_report_shows_the_same_figures(output: Path) -> None:
    summary = json.loads((output / "report" / "summary.json").read_text())
    counts = {"listed": 8, "usable": 5, "failed": 3, "removed": 0, "duplicates": 0, "without_face": 0}
    assert summary["pictures"] == counts
    assert summary["faces"] == {"detected": 10, "kept": 10, "rejected": 0}
    assert summary["written"] == 10
    assert sum(summary["face_size"]["kept"]) == sum(summary["score"]["kept"]) == 10
    page = (output / "report" / "index.html").read_text()
    assert page.count('alt="kept face"') == 10
    assert "truncated.jpg" in page
    assert "damaged: image file is truncated" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page), "the page must stand alone"


def test_the_command_ends_well_and_names_the_report(command: Command, folder: Path, output: Path) -> None:
    """The run of the fixtures is done, so this is the no-op: the same command again."""
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.*") if path.name != "config.yaml"}
    result = command(folder, f"output={output}", "shard_size=5")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"report: {output / 'report' / 'index.html'}"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    config = load_config(str(folder), [f"output={output}", "shard_size=5"])
    assert finished(config)
    (output / "report" / "summary.json").rename(output / "report" / "away")
    assert not finished(config), "one stage is missing"
    (output / "report" / "away").rename(output / "report" / "summary.json")
    assert not finished(config.model_copy(update={"output": output / "elsewhere"})), "nothing is done"


def test_other_settings_are_refused_with_the_field_and_the_mend(
    command: Command, folder: Path, output: Path
) -> None:
    result = command(folder, f"output={output}", "shard_size=5", "keep.min_score=0.95")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "keep.min_score=0.9, now keep.min_score=0.95" in line
    assert "output=" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}", "output={folder}/out"], "lies inside source.path"),
        (["{folder}", "source.pattern='*.gif'"], "no file matches"),
        (["{folder}", "keep.min_scor=0.5"], "did you mean 'min_score'?"),
        (["detect", "{folder}", "output={folder}-new"], "stage 'list' is not done"),
        (["nowhere"], "nowhere: no such file"),
        (["{folder}", "detect.device=gpu"], "detect.device: string should match"),
    ],
)
def test_bad_usage_costs_one_line(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["data_prep", *(argument.format(folder=folder) for argument in arguments)]
    )
    with pytest.raises(SystemExit, match="2"):
        cli.run(main)
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_help_shows_stages_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    text = capsys.readouterr().out
    for word in (
        "list",
        "detect",
        "crop",
        "write",
        "report",
        "keep.min_score",
        "--retry-failed",
        "crop.border",
    ):
        assert word in text
