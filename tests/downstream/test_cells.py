"""Fine-tuned cells computed in parts, by processes that share a folder, as the tasks of a job array do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import ConfigError
from data_prep.stage import parse_part
from downstream.config import DownstreamConfig
from downstream.evaluate import cells_finished, evaluate, keep_cells
from downstream.matrix import Training, trainings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the processes started here: the bits of a convolution depend on how many threads share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def faces(other_people: Path) -> Path:
    """30 portraits of 6 people: enough to be fine-tuned on, not to learn."""
    return other_people


def _config(faces: Path, backbone: Path, output: Path, **changes: object) -> DownstreamConfig:
    tree = {
        "data": str(faces),
        "output": str(output),
        "initialisations": [
            {"kind": "checkpoint", "name": "pretrained", "path": str(backbone)},
            {"kind": "random", "name": "random", "like": str(backbone), "seed": 0, "calibrate": True},
            {"kind": "pixels", "name": "pixels", "size": 4},
        ],
        "tasks": ["pose", "affect"],
        "fractions": [1.0, 0.5],
        "modes": ["linear", "finetune"],
        "trained": [{"task": "pose", "fraction": 1.0}, {"task": "pose", "fraction": 0.5}],
        "recipe": {"steps": 2, "batch_size": 8},
        "bootstrap": {"samples": 100},
        "device": "cpu",
    } | changes
    return DownstreamConfig.model_validate_json(json.dumps(tree))


def _start(cfg: DownstreamConfig, *words: str) -> subprocess.Popen[str]:
    path = Path(cfg.output).with_suffix(".json")
    path.write_text(cfg.model_dump_json())
    command = [sys.executable, "-m", "downstream", "cells", str(path), *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _kept(cfg: DownstreamConfig) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(cfg.output).glob("cells/*/*")}


def test_parts_give_the_figures_of_a_run_without_them(faces: Path, backbone: Path, tmp_path: Path) -> None:
    whole = _config(faces, backbone, tmp_path / "whole")
    expected = evaluate(whole)
    cfg = _config(faces, backbone, tmp_path / "parts")
    assert not cells_finished(cfg)
    parts = [_start(cfg, "--part", f"{part}/3") for part in (0, 2)]  # of four cells: 0 3 and 2
    for process, count in zip(parts, (2, 1), strict=True):
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert output == f"{count} cells trained for {cfg.output}\n"
    assert len(_kept(cfg)) == 3
    assert {path.name for path in Path(cfg.output).iterdir()} == {"cells"}
    assert not cells_finished(cfg)
    kept = _kept(cfg)
    assert keep_cells(cfg, parse_part("1/3")) == 1
    assert keep_cells(cfg) == 0
    assert _kept(cfg).items() > kept.items(), "a part touched what another one had kept"
    assert cells_finished(cfg)

    metrics = evaluate(cfg)
    assert metrics.inputs == expected.inputs
    assert metrics.measurements == expected.measurements
    assert metrics.comparisons == expected.comparisons
    with (
        np.load(Path(cfg.output) / "predictions.npz") as ours,
        np.load(Path(whole.output) / "predictions.npz") as theirs,
    ):
        assert ours.files == theirs.files
        for name in ours.files:
            assert ours[name].tobytes() == theirs[name].tobytes(), name
    assert not (Path(cfg.output) / "cells").exists()
    assert cells_finished(cfg), "an evaluation that is finished needs no cells"
    assert keep_cells(cfg) == 0


def test_cells_of_other_settings_stay(faces: Path, backbone: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {"tasks": ["pose"], "fractions": [0.5], "trained": []}
    cfg = _config(faces, backbone, tmp_path / "run", **changes)
    other = _config(faces, backbone, tmp_path / "run", **changes, bootstrap={"samples": 101})
    assert keep_cells(other, parse_part("0/2")) == 1
    kept = _kept(other)
    evaluate(cfg)
    assert _kept(cfg) == kept


def test_the_order_of_the_cells_is_that_of_the_config(faces: Path, backbone: Path) -> None:
    cfg = _config(faces, backbone, Path("unused"))
    cells = trainings(cfg, 1)
    assert cells == [
        Training("pretrained", "pose", "finetune", 1.0, 0),
        Training("pretrained", "pose", "finetune", 0.5, 0),
        Training("random", "pose", "finetune", 1.0, 0),
        Training("random", "pose", "finetune", 0.5, 0),
    ], "pixels are not trained, nor what 'trained' leaves out"
    assert sorted(map(str, (c for part in range(3) for c in cells[parse_part(f"{part}/3")]))) == sorted(
        map(str, cells)
    )
    every = _config(
        faces, backbone, Path("unused"), trained=[], tasks=["pose", "recognition"], modes=["frozen"]
    )
    assert [(c.row, c.task, c.part) for c in trainings(every, 2) if c.fraction == 1] == [
        ("pretrained", "pose", 0),
        ("pretrained", "pose", 1),
        ("random", "pose", 0),
        ("random", "pose", 1),
    ], "recognition has no head to train on a frozen backbone"


def test_a_part_opens_only_what_its_cells_need(faces: Path, backbone: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    for suffix in (".beton", ".json", ".parquet"):
        (tmp_path / f"set{suffix}").write_bytes(faces.with_suffix(suffix).read_bytes())
    cfg = _config(
        tmp_path / "set.beton",
        backbone,
        tmp_path / "run",
        initialisations=[
            {"kind": "checkpoint", "name": "good", "path": str(backbone)},
            {"kind": "checkpoint", "name": "broken", "path": str(broken)},
        ],
        tasks=["pose"],
        fractions=[0.5],
        trained=[],
    )
    assert keep_cells(cfg, parse_part("0/2")) == 1
    with pytest.raises(Exception, match=r"(?i)header"):
        keep_cells(cfg, parse_part("1/2"))
    (tmp_path / "set.beton").write_bytes(b"no pictures")
    assert keep_cells(cfg, parse_part("0/2")) == 0  # kept already
    assert keep_cells(cfg, parse_part("2/3")) == 0  # there are but two
    assert not cells_finished(cfg)


def test_without_training_there_is_nothing_to_do(tmp_path: Path) -> None:
    cfg = _config(
        tmp_path / "nowhere.beton", tmp_path / "nowhere", tmp_path / "run", modes=["linear"], trained=[]
    )
    assert cells_finished(cfg)
    assert keep_cells(cfg) == 0
    assert not Path(cfg.output).exists()


def test_inputs_that_are_not_there_yet(faces: Path, backbone: Path, tmp_path: Path) -> None:
    for data, weights, message in (
        (tmp_path / "nowhere.beton", backbone, "data: .*nowhere.beton does not exist"),
        (faces, tmp_path / "nowhere", "initialisations 'pretrained': .*nowhere does not exist"),
    ):
        cfg = _config(data, weights, tmp_path / "run")
        assert not cells_finished(cfg)
        with pytest.raises(ConfigError, match=message):
            keep_cells(cfg, parse_part("0/2"))


def test_shared_people_are_refused_before_anything_is_tuned(
    faces: Path, backbone: Path, tmp_path: Path
) -> None:
    cfg = _config(faces, backbone, tmp_path, pretrain_data=str(faces))
    with pytest.raises(ConfigError, match="are also in"):
        keep_cells(cfg, parse_part("0/2"))
    assert not _kept(cfg)


@pytest.mark.parametrize("part", ["3/2", "x"])
def test_a_part_that_makes_no_sense_is_refused(part: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "downstream", "cells", "config.yaml", "--part", part]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert f"'{part}' is not I/N" in done.stderr


def test_help_shows_how() -> None:
    words = [sys.executable, "-m", "downstream", "cells", "--help"]
    text = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "--part 0/2" in text
    assert "number % N is I" in text
