"""docs/extending.md is followed to the letter: its files are written, its commands run, in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.beton import read_labels
from tests.downstream.conftest import write_backbone, write_faces

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text()
FILE = re.compile(r"`([\w./]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```sh\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which the page was followed, from what the demo leaves: sets and a backbone, all of them small."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("configs", "data_prep", "pretrain", "downstream"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    for name in ("labelled", "photographs", "pretrain"):
        (folder / "runs/demo" / name).mkdir(parents=True)
    write_faces(folder / "runs/demo/labelled/set.beton", people=12, pictures=120)
    write_faces(folder / "runs/demo/photographs/set.beton", people=2, pictures=4, identity_start=1000)
    write_backbone(folder / "runs/demo/pretrain/backbone.safetensors")
    for name, text in FILE.findall(PAGE):
        path = folder / name
        assert not path.exists(), "the page adds files, it changes none"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for block in COMMANDS.findall(PAGE):
        for command in block.splitlines():
            python, *words = command.split()
            assert python == "python"
            done = subprocess.run(
                [sys.executable, *words],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return folder


def _values(run: Path) -> dict[tuple[str, str, float, str], float]:
    measured = json.loads((run / "metrics.json").read_text())["measurements"]
    return {(m["row"], m["mode"], m["fraction"], m["metric"]): m["value"] for m in measured}


def _box(face: dict[str, list[float]]) -> np.ndarray:
    """The annotated box in the source picture, two corners."""
    affine = np.reshape(face["affine"], (2, 3))
    return (np.reshape(face["true_box"], (2, 2)) - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T


def test_the_page_has_what_it_promises() -> None:
    files = [name for name, _ in FILE.findall(PAGE)]
    assert files == [
        "downstream/tasks/eye_distance.py",
        "tests/downstream/test_eye_distance.py",
        "configs/downstream/eye_distance.yaml",
        "my/make.py",
        "configs/data/mine.yaml",
        "configs/downstream/mine.yaml",
        "data_prep/sources/smiles.py",
        "configs/data/smiles.yaml",
        "configs/downstream/smiles.yaml",
    ]
    commands = [line for block in COMMANDS.findall(PAGE) for line in block.splitlines()]
    assert len(commands) == 8
    assert PAGE.count("```") == 2 * (len(files) + len(COMMANDS.findall(PAGE))), "a block that nobody runs"


def test_the_task(project: Path) -> None:
    values = _values(project / "runs/demo/eye_distance")
    labels = read_labels(project / "runs/demo/labelled/set.beton")
    with np.load(project / "runs/demo/eye_distance/predictions.npz") as archive:
        points = np.array(labels["landmarks68"].to_pylist())[archive["rows"]].reshape(-1, 68, 2)
        truth = np.hypot(*(points[:, 36] - points[:, 45]).T)
        for row in ("pretrained", "random", "pixels"):
            for fraction in (1.0, 0.1):
                error = np.abs(archive[f"{row}/eye_distance/linear/{fraction:g}"][:, 0] - truth)
                assert values[row, "linear", fraction, "mae"] == pytest.approx(error.mean(), rel=1e-4)
                relative = 100 * (error / truth).mean()
                assert values[row, "linear", fraction, "relative"] == pytest.approx(relative, rel=1e-4)
    assert values["pixels", "linear", 1.0, "mae"] < np.abs(truth - truth.mean()).mean(), "something is learnt"
    tuned = _values(project / "runs/demo/eye_distance_tuned")
    assert {key[:3] for key in tuned} == {("pretrained", "finetune", 1.0), ("random", "finetune", 1.0)}


def test_both_ways_to_the_data(project: Path) -> None:
    ours, theirs = (read_labels(project / f"runs/data/{name}/set.beton") for name in ("mine", "smiles"))
    assert len(theirs) == 40
    assert len(ours) >= 36, "the detector may miss one"
    by_picture = {row["image_id"]: row for row in theirs.to_pylist()}
    for row in ours.to_pylist():
        other = by_picture[row["image_id"]]
        for name in ("identity", "valence", "arousal", "split"):
            assert row[name] == other[name]
        np.testing.assert_allclose(_box(row), _box(other), atol=1e-3)
        assert row["split"] == ("train" if row["identity"] % 2 else "test")
    for name in ("mine", "smiles"):
        metrics = json.loads((project / f"runs/{name}/downstream/metrics.json").read_text())
        assert metrics["data"]["protocol"]["kind"] == "column"
        assert metrics["data"]["synthetic"] is False, "a source of pictures calls them photographs"
        assert metrics["data"]["test_identities"] == len(
            {i for i in theirs["identity"].to_pylist() if i % 2 == 0}
        )


def test_the_ready_config_for_ones_own_csv(project: Path) -> None:
    rows = "[{kind: checkpoint, name: it, path: runs/demo/pretrain/backbone.safetensors}, {kind: pixels, name: px}]"
    words = [
        "data=runs/data/mine/set.beton",
        "output=runs/csv",
        f"initialisations={rows}",
        "fractions=[1.0, 0.5]",
    ]
    command = [sys.executable, "-m", "downstream", "configs/downstream/csv.yaml", *words]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((project / "runs/csv/metrics.json").read_text())
    assert metrics["rows"][0]["image_size"] == 48, "as the backbone's header says"
    assert metrics["data"]["kinds"] == ["csv"]
    assert {m["task"] for m in metrics["measurements"]} == {"affect"}


def test_what_is_damaged_is_said(project: Path) -> None:
    lines = (project / "my/faces.txt").read_text().splitlines()
    (project / "my/faces.txt").write_text("\n".join([lines[0].rpartition(" ")[0], *lines[1:]]) + "\n")
    words = [sys.executable, "-m", "data_prep", "configs/data/smiles.yaml", "output=runs/data/damaged"]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((project / "runs/data/damaged/quarantine.json").read_text())
    assert entry["reason"].startswith("faces.txt:1: not P1/1.jpg and six numbers: 'P")
    assert len(read_labels(project / "runs/data/damaged/set.beton")) == 39
    wrong = subprocess.run(
        [*words, "source.kind=smile"], cwd=project, capture_output=True, text=True, timeout=300
    )
    assert wrong.returncode == 2
    assert "source.kind: unknown 'smile'; did you mean 'smiles'? write one of affectnet, " in wrong.stderr
    assert ", sfew, smiles, synthetic, " in wrong.stderr
