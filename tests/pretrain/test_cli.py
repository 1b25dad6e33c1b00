"""Mistakes in a configuration cost one line on stderr and exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import configs
from pretrain.train import PretrainConfig

ROOT = Path(__file__).parents[2]
CONFIG = """
epochs: 1
batch_size: 16
views: {crops: [{count: 2, size: 32, scale: [0.14, 1.0]}]}
backbone: {architecture: resnet18, width: 0.25}
schedule: {lr: 0.5}
"""


def pretrain(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("epoch=3", "epoch: unknown key; did you mean 'epochs'?"),
        ("epochs=many", 'epochs: input should be a valid integer, found the text "many"'),
        ("data.path=nowhere/set.beton", "data.path: nowhere/set.beton does not exist; run data_prep first"),
        ("batch_size=97", "batch_size: 97 is more than the 96 pictures"),
        ("device=cuda", "device: 'cuda', but torch sees no GPU here; write device=cpu"),
    ],
)
def test_one_line_that_says_what_to_do(beton_path, tmp_path, override, says):
    if override == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here, so asking for one is no mistake")
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG)
    fields = (f"output={tmp_path / 'run'}", f"data.path={beton_path}", override)
    code, errors = pretrain(str(config), *fields)
    assert code == 2
    assert says in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists(), "a refused config must not claim the folder"


def test_missing_probe_data_is_one_line(beton_path, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG + "probe: {data: nowhere.beton, column: pose}\n")
    code, errors = pretrain(str(config), f"output={tmp_path / 'run'}", f"data.path={beton_path}")
    assert code == 2
    assert "probe.data: nowhere.beton does not exist; run data_prep or write probe=null" in errors


def test_missing_config_file():
    code, errors = pretrain("configs/pretrain/dmeo.yaml")
    assert code == 2
    assert "no such file; did you mean configs/pretrain/demo.yaml?" in errors
    assert errors.count("\n") == 1


def test_help_lists_every_field_with_its_meaning():
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    for field in ("method.epsilon", "views.crops.scale", "checkpoint.every_steps", "optimizer.variant"):
        assert field in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "pretrain").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_valid_and_shared_evenly(path):
    config = configs.load(path, schema=PretrainConfig)
    ranks = {"64gpu": 64, "8gpu": 8}.get(path.stem.rpartition("_")[2], 1)
    assert config.batch_size % ranks == 0
    if config.method.name == "swav":
        assert config.method.queue_length % config.batch_size == 0
    if ranks == 64:
        assert (config.batch_size, config.schedule.lr, config.epochs) == (4096, 4.8, 200)
        crops = [(crop.count, crop.size) for crop in config.views.crops if not crop.plain]
        assert crops == [(2, 224), (6, 96)]
