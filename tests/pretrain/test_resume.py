"""Runs that are killed or stopped, then the same command: the final backbone is bitwise that of a quiet run."""

import itertools
import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from data_prep.beton import Beton, write_beton
from pretrain import backbones, checkpoint
from pretrain.log import read_metrics
from tests.pretrain.runs import TINY, Run, torchrun

KILL, TERM, USR2 = signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2
EVERY_KIND = list(itertools.product((KILL, TERM, USR2), ("first step", "step", "checkpoint")))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(TINY)
    return path


def wait_for(moment: str, run: Run, chance: random.Random) -> None:
    """Return when ``run`` is at ``moment``."""
    settings, checkpoints = run.output / "run.json", run.output / "checkpoints"
    began = settings.stat().st_mtime_ns if settings.exists() else 0
    there, half = set(checkpoints.glob("step_*.pt")), set(checkpoints.glob(".step_*.tmp"))
    arrived = {
        "first step": lambda: settings.exists() and settings.stat().st_mtime_ns != began,
        "step": lambda: set(checkpoints.glob("step_*.pt")) - there,
        "checkpoint": lambda: set(checkpoints.glob(".step_*.tmp")) - half,
    }[moment]
    deadline = time.monotonic() + 120
    while not arrived():
        assert all(rank.poll() is None for rank in run.ranks), run.end()
        assert time.monotonic() < deadline, f"never came to '{moment}'"
        time.sleep(0.002)
    if moment != "checkpoint":
        time.sleep(chance.uniform(0, 0.25))


def disturb(
    data: Path, folder: Path, config: Path, world: int, kinds: list[tuple[int, str]], epochs: int
) -> None:
    """A quiet run and one that is stopped or killed once in each of ``kinds`` of ways end with the same bits."""
    quiet, killed, chance = folder / "quiet", folder / "killed", random.Random(world)
    torchrun(config, data, quiet, world, f"epochs={epochs}")
    for number, moment in kinds:
        run = Run(config, data, killed, world, f"epochs={epochs}")
        wait_for(moment, run, chance)
        run.signal(number)
        codes, output = run.end()
        assert not (killed / "backbone.safetensors").exists(), "too late to prove anything"
        assert codes == [-KILL if number == KILL else 75] * world, output
        if number != KILL:
            assert "stopped as asked, with a checkpoint; the same command goes on" in output
    assert "going on from step" in Run(config, data, killed, world, f"epochs={epochs}").finish()
    assert (quiet / "backbone.safetensors").read_bytes() == (killed / "backbone.safetensors").read_bytes()
    one, other = (read_metrics(run / "metrics.jsonl") for run in (quiet, killed))
    assert [(row["step"], row["loss"]) for row in one] == [(row["step"], row["loss"]) for row in other]


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_killed_runs_end_with_the_same_weights(beton_path, tmp_path, config, world):
    kinds = [(KILL, "step"), (KILL, "checkpoint"), (KILL, "step")]
    disturb(beton_path, tmp_path, config, world, kinds, epochs=40)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("world", [1, 2])
def test_twenty_disturbances_of_every_kind(beton_path, tmp_path, config, world):
    chance = random.Random(world)
    kinds = EVERY_KIND * 2 + chance.sample(EVERY_KIND, 2)
    chance.shuffle(kinds)
    disturb(beton_path, tmp_path, config, world, kinds, epochs=60)


@pytest.mark.slow
def test_sixteen_ranks_take_the_step_of_one(beton_path, tmp_path, config):
    """The exact comparison is in float64 (test_distributed.py); in float32 the gradient of this untrained network is
    known to 1 % only, on one process too.
    """
    alike = ["precision=float32", "batch_size=96", "epochs=1", "schedule.warmup_epochs=0"]
    alike += ["data.decoder=pillow", "method.queue_length=0"]
    weights = []
    for world in (1, 16):
        Run(config, beton_path, tmp_path / str(world), world, *alike).finish()
        weights.append(backbones.load(tmp_path / str(world) / "backbone.safetensors")[0].state_dict())
    start = backbones.random("resnet18", 0.25, seed=0).state_dict()
    moved, apart = (
        torch.cat([(weights[0][name] - other[name]).flatten() for name in start if "weight" in name]).norm()
        for other in (start, weights[1])
    )
    assert moved > 0
    assert apart < 0.05 * moved


@pytest.mark.chaos
def test_a_stop_is_a_checkpoint_and_another_number_of_ranks_goes_on_from_it(beton_path, tmp_path, config):
    """Slurm sends the signal to every rank; here only one gets it, and both stop at the same step."""
    output = tmp_path / "run"
    run = Run(config, beton_path, output, 2, "epochs=40")
    wait_for("step", run, random.Random(0))
    run.ranks[1].send_signal(USR2)
    codes, text = run.end()
    assert codes == [75, 75], text
    stopped = max(int(path.stem.removeprefix("step_")) for path in output.glob("checkpoints/step_*.pt"))
    assert stopped < 40 * 6
    assert f"going on from step {stopped}" in Run(config, beton_path, output, 1, "epochs=40").finish()
    steps = [row["step"] for row in read_metrics(output / "metrics.jsonl")]
    assert steps == list(range(3, 241, 3)), "each step once"


@pytest.mark.slow
def test_a_method_with_a_follower_goes_on_with_another_number_of_ranks(beton_path, tmp_path):
    """An epoch on one rank, one on two, and one on one."""
    config, output = tmp_path / "byol.yaml", tmp_path / "run"
    text = TINY.replace("warmup_epochs: 1", "decay: constant")
    text = text.replace("    - {count: 2, size: 24, scale: [0.05, 0.14]}\n", "")
    method = "method: {name: byol, hidden_dim: 16, projection_dim: 8, momentum: 0.9}"
    config.write_text("\n".join(method if "method" in line else line for line in text.splitlines()))
    for epochs, world in ((1, 1), (2, 2), (3, 1)):
        said = Run(config, beton_path, output, world, f"epochs={epochs}").finish()
        assert said.count(f"going on from step {6 * (epochs - 1)}") == (world if epochs > 1 else 0)
    assert checkpoint.newest(output / "checkpoints")[0] == 18


@pytest.mark.chaos
@pytest.mark.parametrize("number", [KILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_stops_the_others(beton_path, tmp_path, config, number):
    run = Run(config, beton_path, tmp_path / "run", 2, "timeout_s=5", "epochs=2000")
    wait_for("step", run, random.Random(0))
    run.ranks[1].send_signal(number)
    output, _ = run.ranks[0].communicate(timeout=60)
    run.ranks[1].kill()
    run.ranks[1].communicate()
    assert run.ranks[0].returncode == 1
    assert "rank 0 of 2: another rank has died or hangs" in output


@pytest.mark.chaos
@pytest.mark.parametrize(("every_steps", "log_every_steps"), [(1, 3), (1000, 3), (1000, 1)])
def test_what_is_not_finite_never_reaches_the_weights(
    beton_path, tmp_path, config, every_steps, log_every_steps
):
    """A learning rate that throws the weights so far away that the next step overflows."""
    output = tmp_path / "run"
    wild = TINY.replace("{name: lars, trust_coefficient: 0.02}", "{name: sgd}")
    config.write_text(wild.replace("lr: 0.5, warmup_epochs: 1", "lr: 1e30"))
    often = (f"checkpoint.every_steps={every_steps}", f"log_every_steps={log_every_steps}")
    codes, text = Run(config, beton_path, output, 1, *often).end()
    assert codes == [1]
    assert "the loss or the gradient is not finite; its samples are in" in text
    dump = json.loads((output / "non_finite.json").read_text())
    assert len(dump["rows_of_ranks"][0]) == 16
    found = checkpoint.newest(output / "checkpoints")
    if every_steps == 1:
        assert found is not None
        step, state = found
        assert step == dump["step"], "the last good checkpoint is of the steps before"
        assert all(torch.isfinite(x).all() for x in state["method"].values())
    else:
        assert found is None


def test_finished_run_ends_at_once_and_other_settings_are_refused(beton_path, tmp_path, config):
    config.write_text(TINY.replace("epochs: 16", "epochs: 1"))
    output = tmp_path / "run"
    Run(config, beton_path, output).finish()
    before = (output / "backbone.safetensors").stat().st_mtime_ns
    assert "is finished" in Run(config, beton_path, output).finish()
    assert (output / "backbone.safetensors").stat().st_mtime_ns == before
    environment = json.loads((output / "environment.json").read_text())
    assert environment["packages"]["torch"]
    note = output / "run.json"
    note.write_text(note.read_text().replace('"version": "1"', '"version": "0"'))
    Run(config, beton_path, output).refuse("holds a run with another version of the program")
    config.write_text(TINY)
    Run(config, beton_path, output).refuse("holds a run with other settings")


def test_a_run_without_decay_may_be_given_more_epochs(beton_path, tmp_path, config):
    """Two epochs and then four are, bit for bit, four."""
    config.write_text(TINY.replace("warmup_epochs: 1", "decay: constant"))
    short, longer = tmp_path / "short", tmp_path / "long"
    Run(config, beton_path, short, 1, "epochs=2").finish()
    two = (short / "backbone.safetensors").read_bytes()
    assert "going on from step 12" in Run(config, beton_path, short, 1, "epochs=4").finish()
    Run(config, beton_path, longer, 1, "epochs=4").finish()
    assert (
        (short / "backbone.safetensors").read_bytes() == (longer / "backbone.safetensors").read_bytes() != two
    )


def test_data_that_changed_under_a_run_is_refused(beton_path, tmp_path, config):
    config.write_text(TINY.replace("epochs: 16", "epochs: 1"))
    data = tmp_path / "set.beton"
    jpegs = [Beton(beton_path).jpeg(i) for i in range(96)]
    for rows in (range(96), range(32)):
        write_beton(data, jpegs[: len(rows)], rows, rows)
        run = Run(config, data, tmp_path / "run")
        if len(rows) == 96:
            run.finish()
    run.refuse("holds a run with other data")
