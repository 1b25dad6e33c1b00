"""Stages that are killed, repeated, repaired and run twice at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from data_prep.__main__ import load_config
from data_prep.beton import Beton, read_labels
from data_prep.files import claim, read_commit
from data_prep.pipeline import STAGES, Pipeline
from data_prep.tables import read_shard

Command = Callable[..., "subprocess.CompletedProcess[str]"]
PICTURES = 24


@pytest.fixture
def folder(tmp_path: Path, astronaut: Image.Image) -> Path:
    """The astronaut's face at different places: 24 pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(PICTURES):
        shift = np.random.default_rng(i).integers(0, 100, 2)
        astronaut.crop((*shift.tolist(), *(shift + 320).tolist())).save(folder / f"{i:02d}.jpg", quality=90)
    return folder


def prepare(folder: Path, output: Path, *overrides: str, retry_failed: bool = False) -> None:
    config = load_config(str(folder), [f"output={output}", "shard_size=2", "workers=1", *overrides])
    Pipeline(config, retry_failed).run(STAGES)


def commits(stage: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(stage.glob("*.json"))}


@pytest.mark.chaos
def test_killed_in_every_stage_it_ends_with_the_same_set(folder: Path, tmp_path: Path) -> None:
    output, whole = tmp_path / "killed", tmp_path / "whole"
    pipeline = Pipeline(load_config(str(folder), [f"output={output}", "shard_size=2", "workers=1"]))
    kept: dict[str, dict[str, int]] = {}
    for stage, tables in (("list", "images"), ("detect", "faces"), ("crop", "crops")):
        kill_in(output / tables, [stage, str(folder), f"output={output}", "shard_size=2", "workers=2"])
        kept[tables] = commits(output / tables)
        assert 2 <= len(kept[tables]) <= PICTURES // 2
        getattr(pipeline, stage)()
    prepare(folder, output)
    for tables, done in kept.items():
        assert commits(output / tables).items() >= done.items(), f"{tables}: what was done was done again"
    assert not list(output.rglob("*.tmp"))

    prepare(folder, whole)
    labels = read_labels(output / "set.beton")
    assert len(labels) == PICTURES
    assert labels.equals(read_labels(whole / "set.beton"))
    assert (output / "set.beton").read_bytes() == (whole / "set.beton").read_bytes()


def kill_in(stage: Path, arguments: list[str]) -> None:
    """Start the command, kill -9 it once ``stage`` has two shards, and see its workers go with it."""
    words = [sys.executable, "-m", "data_prep", *arguments]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(commits(stage)) < 2 and process.poll() is None:
        time.sleep(0.002)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive, "workers must not outlive their parent"


def test_a_table_without_its_mark_is_made_again(folder: Path, tmp_path: Path) -> None:
    """As if the machine had stopped between the table and the mark."""
    output = tmp_path / "run"
    prepare(folder, output)
    (output / "faces" / "00003.parquet").write_bytes(b"half a table")
    (output / "faces" / "00003.json").unlink()
    Pipeline(load_config(str(folder), [f"output={output}", "shard_size=2", "workers=1"])).run(STAGES)
    assert len(read_shard(output / "faces", 3)) == 2


def test_repaired_pictures_are_retried_alone(folder: Path, tmp_path: Path, command: Command) -> None:
    output = tmp_path / "run"
    good = (folder / "05.jpg").read_bytes()
    (folder / "05.jpg").write_bytes(good[:1000])
    prepare(folder, output)
    assert len(Beton(output / "set.beton")) == PICTURES - 1
    assert json.loads((output / "quarantine.json").read_text())[0]["image_id"] == "05.jpg"
    before = {stage: commits(output / stage) for stage in ("images", "faces", "crops")}

    (folder / "05.jpg").write_bytes(good)
    plain = command(folder, f"output={output}", "shard_size=2", "workers=1")
    assert plain.returncode == 2
    assert "--retry-failed" in plain.stderr
    prepare(folder, output, retry_failed=True)

    assert len(Beton(output / "set.beton")) == PICTURES
    assert json.loads((output / "quarantine.json").read_text()) == []
    for stage, marks in before.items():
        changed = {name for name, when in commits(output / stage).items() if marks[name] != when}
        assert changed == {"00002.json"}, stage


def test_a_picture_that_vanishes_between_the_stages_is_not_lost(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = load_config(str(folder), [f"output={output}", "shard_size=30", "workers=1"])
    pipeline = Pipeline(config)
    pipeline.list()
    (folder / "07.jpg").write_bytes((folder / "08.jpg").read_bytes())
    (folder / "09.jpg").unlink()
    for stage in STAGES[1:]:
        getattr(pipeline, stage)()
    rows = {row["image_id"]: row for row in read_shard(output / "faces", 0).to_pylist()}
    assert rows["07.jpg"]["error"] == "the file has changed since it was listed"
    assert rows["09.jpg"]["error"].startswith("cannot be read")
    assert len(rows) == PICTURES
    assert len(Beton(output / "set.beton")) == PICTURES - 2
    quarantine = json.loads((output / "quarantine.json").read_text())
    assert [(row["image_id"], row["stage"]) for row in quarantine] == [
        ("07.jpg", "detect"),
        ("09.jpg", "detect"),
    ]


def test_more_or_fewer_pictures_are_refused(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    prepare(folder, output)
    for name in ("22.jpg", "23.jpg"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="the source had more pictures"):
        prepare(folder, output)


def test_a_claim_keeps_others_out_and_ends_with_its_process(tmp_path: Path) -> None:
    held = (
        "import sys, time; from pathlib import Path; from data_prep.files import claim\n"
        "with claim(Path(sys.argv[1]), 0, wait=False) as mine: print(mine, flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", held, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with claim(tmp_path, 0, wait=False) as mine:
            assert not mine
        with claim(tmp_path, 1, wait=False) as mine:
            assert mine
        os.kill(process.pid, signal.SIGKILL)
    with claim(tmp_path, 0, wait=False) as mine:
        assert mine


def test_two_runs_at_once_share_the_work(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = [
        sys.executable,
        "-m",
        "data_prep",
        "list",
        str(folder),
        f"output={output}",
        "shard_size=1",
        "workers=1",
    ]
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert all(read_commit(output / "images", number) for number in range(PICTURES))
