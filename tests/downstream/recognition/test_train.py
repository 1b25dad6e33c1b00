"""Fine-tuning for recognition, on people whose faces are rendered and with a network of a sixteenth of the size."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from configs import ConfigError, load
from data_prep.beton import read_manifest
from downstream.recognition.config import VerifyConfig
from downstream.recognition.recipe import CosFaceRecipe
from downstream.recognition.train import _config, train_recognition
from downstream.recognition.verify import verify
from downstream.regimes import Split, fixed_split
from pretrain import backbones
from pretrain.train import PretrainConfig
from tests.downstream.conftest import hold_out, write_faces

ROOT = Path(__file__).parents[3]
HEADER = {
    "architecture": "resnet18",
    "width": "0.25",
    "image_size": "32",
    "mean": json.dumps([0.5, 0.4, 0.4]),
    "std": json.dumps([0.3, 0.3, 0.3]),
}
# At the defaults, made for millions of pictures, 200 of them are less than one batch.
RECIPE = CosFaceRecipe(epochs=12, batch_size=20, lr=0.05, scale=16.0, precision="float32", workers=1)


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Threads that wait for one another at every layer crawl where other processes want the cores, too."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Split, np.ndarray]:
    """400 portraits of 40 people, the file of a split that holds 20 of them out, the split, who is in each row."""
    folder = tmp_path_factory.mktemp("people")
    path = write_faces(folder / "set.beton", people=40, pictures=400)
    identities = pq.read_table(path.with_suffix(".parquet"))["identity"].to_numpy()
    fresh = hold_out(identities, read_manifest(path).sha256, 0.5)
    return path, folder / "split.json", fixed_split(folder / "split.json", fresh), identities


def test_people_that_were_not_seen_are_told_apart_better(
    people: tuple[Path, Path, Split, np.ndarray], tmp_path: Path
) -> None:
    data, split_file, split, identities = people
    rows = split.parts[0].labels(1.0, identities)
    backbone = backbones.random("resnet18", 0.25, seed=0)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    tuned = train_recognition(str(data), rows, backbone, HEADER, RECIPE, tmp_path / "run")
    assert tuned == tmp_path / "run" / "backbone.safetensors"
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    start = RECIPE.scale * RECIPE.margin + math.log(20)  # where all cosines are equal
    assert losses[-1] < start - 1
    header = backbones.read_header(tuned)
    assert {name: header[name] for name in ("architecture", "width", "image_size")} == {
        name: HEADER[name] for name in ("architecture", "width", "image_size")
    }
    assert [json.loads(header[name]) for name in ("mean", "std")] == [[0.5, 0.4, 0.4], [0.3, 0.3, 0.3]]

    (tmp_path / "verify.yaml").write_text(
        json.dumps(
            {
                "output": str(tmp_path / "verify"),
                "initialisations": [
                    {"kind": "checkpoint", "name": "tuned", "path": str(tuned)},
                    {
                        "kind": "checkpoint",
                        "name": "first",
                        "path": str(tmp_path / "run" / "init.safetensors"),
                    },
                ],
                "sets": [
                    {
                        "kind": "identities",
                        "name": "held out",
                        "data": str(data),
                        "split": str(split_file),
                        "pairs": 200,
                    }
                ],
                "device": "cpu",
            }
        )
    )
    after, first = verify(load(tmp_path / "verify.yaml", schema=VerifyConfig)).results
    assert after.auc > first.auc + 5
    # A finished run is not done again.
    stamp = tuned.stat().st_mtime_ns
    assert train_recognition(str(data), rows[::-1], backbone, HEADER, RECIPE, tmp_path / "run") == tuned
    assert tuned.stat().st_mtime_ns == stamp


KILLED = """
import sys
from pathlib import Path
import numpy as np
from downstream.recognition.recipe import CosFaceRecipe
from downstream.recognition.train import train_recognition
from pretrain import backbones
data, rows, init, folder, recipe = sys.argv[1:]
train_recognition(
    data, np.load(rows), *backbones.load(init), CosFaceRecipe.model_validate_json(recipe), Path(folder)
)
"""


def test_a_killed_run_goes_on_to_the_same_backbone(
    people: tuple[Path, Path, Split, np.ndarray], tmp_path: Path
) -> None:
    data, _, split, _ = people
    recipe = RECIPE.model_copy(update={"epochs": 2, "checkpoint_steps": 4})
    rows, init, part = split.train_rows, tmp_path / "first.safetensors", tmp_path / "part"
    backbone = backbones.random("resnet18", 0.25, seed=1)
    backbones.save_backbone(init, backbone, HEADER)
    np.save(tmp_path / "all.npy", rows)
    arguments = [data, tmp_path / "all.npy", init, part, recipe.model_dump_json()]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, arguments)], cwd=ROOT)
    while not list((part / "checkpoints").glob("step_*.pt")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (part / "backbone.safetensors").exists(), "it was faster than the kill"
    whole = train_recognition(str(data), rows, backbone, HEADER, recipe, tmp_path / "whole")
    again = train_recognition(str(data), rows, backbone, HEADER, recipe, part)
    assert whole is not None
    assert again is not None
    expected = backbones.load(whole)[0].state_dict()
    for name, value in backbones.load(again)[0].state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_the_defaults_are_those_of_the_corpus_run() -> None:
    """configs/pretrain/vggface2_cosface.yaml says the same of a whole corpus."""
    written = load(ROOT / "configs/pretrain/vggface2_cosface.yaml", schema=PretrainConfig)
    header = {"architecture": "resnet50", "width": "1.0", "image_size": "224"}
    header |= {name: json.dumps(getattr(written.views, name)) for name in ("mean", "std")}
    ours = _config("set.beton", 3_000_000, header, CosFaceRecipe(), Path("folder"))
    for field in PretrainConfig.model_fields:
        if field not in ("output", "compile", "data", "backbone"):
            assert getattr(ours, field) == getattr(written, field), field


def test_what_cannot_be_learnt_from_is_refused(
    people: tuple[Path, Path, Split, np.ndarray], tmp_path: Path
) -> None:
    data, _, _, identities = people
    backbone = backbones.random("resnet18", 0.25, seed=0)

    def start(rows: np.ndarray, folder: str, which: torch.nn.Module = backbone) -> None:
        train_recognition(str(data), rows, which, HEADER, RECIPE, tmp_path / folder)

    with pytest.raises(ConfigError, match=r"1 pictures .* give a larger label share"):
        start(np.array([3]), "one")
    with pytest.raises(ConfigError, match="have the same 'identity'"):
        start(np.flatnonzero(identities == identities[0]), "person")
    rows = np.flatnonzero(identities != identities[0])
    with pytest.raises(ConfigError, match=r"person/rows\.npy is of a run with other rows or first weights"):
        start(rows, "person")
    with pytest.raises(ConfigError, match=r"person/init\.safetensors is of a run with other"):
        start(
            np.flatnonzero(identities == identities[0]), "person", backbones.random("resnet18", 0.25, seed=5)
        )
