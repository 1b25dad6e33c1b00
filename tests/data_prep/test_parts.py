"""Stages done in parts, by processes that share a folder, as the tasks of a job array do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import ConfigError
from data_prep.__main__ import load_config, parse
from data_prep.config import DataPrepConfig
from data_prep.pipeline import IN_PARTS, STAGES, Pipeline, finished, stage_finished
from data_prep.stage import parse_part

PICTURES, SHARDS = 11, 6
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path, astronaut: Image.Image) -> Path:
    """The astronaut's face at different places, and one file that is no picture: six shards of two."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(PICTURES):
        shift = np.random.default_rng(i).integers(0, 100, 2)
        astronaut.crop((*shift.tolist(), *(shift + 320).tolist())).save(folder / f"{i:02d}.jpg", quality=90)
    (folder / "03.jpg").write_text("no picture")
    return folder


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> DataPrepConfig:
    return settings(folder, tmp_path / "parts")


def settings(folder: Path, output: Path, *overrides: str) -> DataPrepConfig:
    return load_config(str(folder), [f"output={output}", "shard_size=2", "workers=1", *overrides])


def do(config: DataPrepConfig, stage: str, part: str) -> None:
    Pipeline(config, part=parse_part(part)).run([stage])


def marks(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("*.json"))}


def test_parts_end_with_the_set_of_a_whole_run(folder: Path, config: DataPrepConfig, tmp_path: Path) -> None:
    whole = settings(folder, tmp_path / "whole")
    words = [sys.executable, "-m", "data_prep", "list", str(folder), "--part"]
    overrides = [f"output={config.output}", "shard_size=2", "workers=1"]
    tasks = [
        subprocess.Popen([*words, part, *overrides], stderr=subprocess.PIPE, text=True)
        for part in ("0/2", "1/2")
    ]
    for task, own in zip(tasks, (6, 5), strict=True):
        _, errors = task.communicate(timeout=60)
        assert task.returncode == 0, errors
        assert f"{own}/{own}" in errors, "the bar must count the pictures of its part only"
    Pipeline(whole).list()
    (folder / "07.jpg").write_bytes((folder / "08.jpg").read_bytes())  # so that detection has a failure too
    for stage in ("detect", "crop"):
        for part in range(4):
            do(config, stage, f"{part}/4")
    assert {path.name for path in config.output.iterdir()} == {"images", "faces", "crops"}
    Pipeline(config).run(["write", "report"])
    Pipeline(whole).run(["detect", "crop", "write", "report"])
    quarantine = json.loads((config.output / "quarantine.json").read_text())
    assert [(row["image_id"], row["stage"]) for row in quarantine] == [
        ("03.jpg", "list"),
        ("07.jpg", "detect"),
    ]
    for name in ("quarantine.json", "set.beton", "set.parquet"):
        assert (config.output / name).read_bytes() == (whole.output / name).read_bytes(), name
    assert (config.output / "config.yaml").exists()


def test_a_part_is_every_nth_shard_and_may_be_empty(config: DataPrepConfig) -> None:
    do(config, "list", "1/4")
    assert list(marks(config.output / "images")) == ["00001.json", "00005.json"]
    before = marks(config.output / "images")
    do(config, "list", "1/4")
    do(config, "list", "7/8")
    assert marks(config.output / "images") == before


def test_a_part_needs_the_marks_of_its_own_shards_only(config: DataPrepConfig) -> None:
    do(config, "list", "0/2")
    do(config, "detect", "0/2")
    assert list(marks(config.output / "faces")) == ["00000.json", "00002.json", "00004.json"]
    with pytest.raises(ConfigError, match=r"images/00001\.json: stage 'list' is not done"):
        do(config, "detect", "1/2")


@pytest.mark.chaos
@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_table_fails_its_own_part_and_is_mended_alone(workers: int, config: DataPrepConfig) -> None:
    images, crops = config.output / "images", config.output / "crops"
    Pipeline(config).run(["list", "detect"])
    (images / "00003.parquet").write_bytes(b"no table any more")
    do(config, "crop", "0/2")
    with pytest.raises(RuntimeError, match=r"crops/00003\.parquet: stage 'crop' .*images/00003\.parquet"):
        do(config.model_copy(update={"workers": workers}), "crop", "1/2")
    before = marks(crops)
    assert {"00000.json", "00002.json", "00004.json"} <= before.keys()
    assert "00003.json" not in before

    (images / "00003.json").unlink()
    do(config, "list", "1/2")
    do(config, "crop", "1/2")
    assert len(marks(crops)) == SHARDS
    assert marks(crops).items() >= before.items(), "what was done was done again"
    Pipeline(config).write()


def test_a_stage_is_finished_when_it_is_for_all_shards(folder: Path, config: DataPrepConfig) -> None:
    def done() -> list[str]:
        return [stage for stage in STAGES if stage_finished(config, stage)]

    assert done() == []
    for number, stage in enumerate(IN_PARTS):
        do(config, stage, "0/2")
        assert done() == [*IN_PARTS[:number]]
        do(config, stage, "1/2")
        assert done() == [*IN_PARTS[: number + 1]]
    Pipeline(config).write()
    assert done() == [*IN_PARTS, "write"]
    assert not finished(config)
    Pipeline(config).report()
    assert done() == [*STAGES]
    assert finished(config)

    (config.output / "faces" / "00004.json").unlink()
    assert done() == ["list"]
    larger = settings(folder, config.output, "keep.min_size=60")
    assert stage_finished(larger, "list")
    with pytest.raises(ConfigError, match=r"made with keep\.min_size=30\.0, now keep\.min_size=60"):
        stage_finished(larger, "detect")


def test_a_repaired_picture_without_a_face_leaves_the_quarantine(
    folder: Path, config: DataPrepConfig
) -> None:
    """The set stays the same, but not the list of what could not be used."""
    Pipeline(config).run(["list", "detect", "crop", "write"])
    Image.new("RGB", (320, 320), "grey").save(folder / "03.jpg")
    for stage in IN_PARTS:
        Pipeline(config, retry_failed=True, part=parse_part("1/2")).run([stage])
    assert stage_finished(config, "crop")
    assert not stage_finished(config, "write")
    Pipeline(config).write()
    assert stage_finished(config, "write")
    assert json.loads((config.output / "quarantine.json").read_text()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["detect", "folder", "--part", "3/2"], "'3/2' is not I/N"),
        (["detect", "folder", "--part", "2/2"], "'2/2' is not I/N"),
        (["detect", "folder", "--part", "0/0"], "'0/0' is not I/N"),
        (["detect", "folder", "--part=-1/2"], "'-1/2' is not I/N"),
        (["detect", "folder", "--part", "x"], "'x' is not I/N"),
        (["write", "folder", "--part", "0/2"], "run 'write' without it"),
        (["report", "folder", "--part", "0/2"], "run 'report' without it"),
        (["all", "folder", "--part", "0/2"], "run 'all' without it"),
        (["folder", "--part", "0/2"], "run 'all' without it"),
    ],
)
def test_parts_that_make_no_sense_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_help_shows_how(command: Command) -> None:
    help_text = command("--help").stdout
    assert "--part I/N" in help_text
    assert "number % N is I" in help_text
