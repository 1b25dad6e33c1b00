"""kill -9 at random moments, then the same command: the final backbone is bitwise that of a quiet run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.beton import Beton, write_beton
from pretrain.log import read_metrics

ROOT = Path(__file__).parents[2]
KILLS = 3
CONFIG = """
epochs: 16
batch_size: 16
device: cpu
views:
  crops:
    - {count: 2, size: 32, scale: [0.14, 1.0]}
    - {count: 2, size: 24, scale: [0.05, 0.14]}
backbone: {architecture: resnet18, width: 0.25}
method: {prototypes: 20, hidden_dim: 32, projection_dim: 16, queue_length: 64, queue_start_epoch: 2}
optimizer: {name: lars, trust_coefficient: 0.02}
schedule: {lr: 0.5, warmup_epochs: 1}
checkpoint: {every_steps: 5}
log_every_steps: 3
"""


def command(world: int) -> list[str]:
    if world == 1:
        return [sys.executable, "-m", "pretrain"]
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(world),
        "--master_port",
        str(_free_port()),
    ]
    return [sys.executable, *launch, "-m", "pretrain"]


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(config: Path, data: Path, output: Path, world: int) -> subprocess.Popen:
    arguments = [str(config), f"data.path={data}", f"output={output}"]
    return subprocess.Popen(
        [*command(world), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # one kill reaches all ranks at once, as when a node goes
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def kill_while_it_trains(process: subprocess.Popen, output: Path, chance: random.Random) -> None:
    """Wait until new checkpoints appear, then a random moment more, then kill -9 the whole group."""
    before = set((output / "checkpoints").glob("step_*.pt"))
    deadline = time.monotonic() + 120
    while set((output / "checkpoints").glob("step_*.pt")) <= before:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.4))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.chaos
@pytest.mark.parametrize("world", [1, 2])
def test_killed_runs_end_with_the_same_weights(beton_path, tmp_path, world):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    finish(start(config, beton_path, quiet, world))
    chance = random.Random(world)
    for _ in range(KILLS):
        kill_while_it_trains(start(config, beton_path, killed, world), killed, chance)
        assert not (killed / "backbone.safetensors").exists(), "killed too late to prove anything"
    assert "going on from step" in finish(start(config, beton_path, killed, world))
    assert (quiet / "backbone.safetensors").read_bytes() == (killed / "backbone.safetensors").read_bytes()
    steps = [row["step"] for row in read_metrics(killed / "metrics.jsonl")]
    assert steps == [row["step"] for row in read_metrics(quiet / "metrics.jsonl")]
    assert [row["loss"] for row in read_metrics(killed / "metrics.jsonl")] == [
        row["loss"] for row in read_metrics(quiet / "metrics.jsonl")
    ]


def test_finished_run_ends_at_once_and_other_settings_are_refused(beton_path, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("epochs: 16", "epochs: 1"))
    output = tmp_path / "run"
    finish(start(config, beton_path, output, 1))
    before = (output / "backbone.safetensors").stat().st_mtime_ns
    assert "is finished" in finish(start(config, beton_path, output, 1))
    assert (output / "backbone.safetensors").stat().st_mtime_ns == before
    environment = json.loads((output / "environment.json").read_text())
    assert environment["packages"]["torch"]
    config.write_text(CONFIG)
    refused(start(config, beton_path, output, 1), "holds a run with other settings")


def test_data_that_changed_under_a_run_is_refused(beton_path, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("epochs: 16", "epochs: 1"))
    data = tmp_path / "set.beton"
    jpegs = [Beton(beton_path).jpeg(i) for i in range(96)]
    for rows in (range(96), range(32)):
        write_beton(data, jpegs[: len(rows)], rows, rows)
        process = start(config, data, tmp_path / "run", 1)
        if len(rows) == 96:
            finish(process)
    refused(process, "holds a run with other data")


def refused(process: subprocess.Popen, reason: str) -> None:
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert reason in text
    assert text.count("\n") == 1
