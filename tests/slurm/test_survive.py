"""Whatever happens to a pretraining on 2 nodes x 2 processes, it ends by itself with the same weights."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from data_prep.beton import write_beton
from slurm import attempts, runs
from slurm.submit import prepare
from slurm.testbed import Testbed

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]

STEPS = 80
PRETRAIN = """
output: run
epochs: 20
batch_size: 16
precision: float32
data: {path: ../set.beton, decoder: pillow}
views:
  crops: [{count: 2, size: 32, scale: [0.3, 1.0]}, {count: 2, size: 24, scale: [0.1, 0.3]}]
backbone: {architecture: resnet18, width: 0.25}
method: {name: swav, prototypes: 20, hidden_dim: 32, projection_dim: 16, queue_length: 64, queue_start_epoch: 2}
optimizer: {name: lars, trust_coefficient: 0.02}
schedule: {lr: 0.5}
checkpoint: {every_steps: 4}
log_every_steps: 4
"""
SMALL = ["cluster.nodes=2", "cluster.gpus_per_node=2", "cluster.memory=2GB", "cluster.cpus_per_task=1"]


class Job:
    """A pretraining in the folder ``run`` below the working directory."""

    def __init__(self, testbed: Testbed, *overrides: str) -> None:
        self.testbed = testbed
        self.logs, note = prepare("pretrain", "pretrain.yaml", [*SMALL, *overrides]).send()
        self.id = note.job

    def state(self) -> str:
        """As squeue has it, and empty while there is no controller."""
        found = runs.states([self.id]) or {}
        return found[self.id].state if self.id in found else ""

    def step(self) -> int:
        """Of the newest checkpoint."""
        return attempts.progress(Path("run"))

    def processes(self, rank: int) -> list[psutil.Process]:
        """Of one rank, as it sees itself."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if str(self.logs) in " ".join(process.info["cmdline"] or ()):
                try:
                    environment = process.environ()
                except psutil.Error:
                    continue
                if environment.get("SLURM_PROCID") == str(rank) and "srun" not in process.info["cmdline"][0]:
                    found.append(process)
        return found

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
        """Until ``condition`` holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"no {what}; {self.state()} at {self.step()}\n{self.log()}"
            time.sleep(0.2)

    def log(self) -> str:
        """Errors of the main process, and of the batch script."""
        path = self.logs / f"{self.id}_0_log.err"
        return path.read_text() if path.exists() else "(no log)"

    def ended(self) -> list[attempts.Event]:
        """How the attempts ended."""
        return [event for event in attempts.read(self.logs, self.id) if event.event == "end"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the pictures."""
    folder = tmp_path_factory.mktemp("survive")
    random, jpegs = np.random.default_rng(0), []
    for _ in range(64):
        buffer = io.BytesIO()
        small = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        small.resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        jpegs.append(buffer.getvalue())
    write_beton(folder / "set.beton", jpegs, np.arange(64), -np.ones(64, np.int64))
    return folder


@pytest.fixture(scope="module")
def undisturbed(testbed: Testbed, folder: Path) -> bytes:
    """The weights that all runs must end with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(testbed.conf))
        enter(folder / "undisturbed", patch)
        job = Job(testbed)
        job.wait(lambda: job.state() == "COMPLETED", "end")
        assert job.step() == STEPS
        return Path("run/backbone.safetensors").read_bytes()


@pytest.fixture
def start(
    on_testbed: Testbed, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Job]]:
    """Submits the pretraining in a folder of the test's own."""
    jobs = []

    def submit(*overrides: str) -> Job:
        jobs.append(Job(on_testbed, *overrides))
        return jobs[-1]

    enter(folder / "".join(c if c.isalnum() else "_" for c in request.node.name), monkeypatch)
    yield submit
    for job in jobs:
        subprocess.run(["scancel", job.id], check=False)


def enter(place: Path, patch: pytest.MonkeyPatch) -> None:
    place.mkdir()
    (place / "pretrain.yaml").write_text(PRETRAIN)
    patch.chdir(place)


def finish(job: Job, undisturbed: bytes) -> None:
    job.wait(lambda: job.state() in ("COMPLETED", "FAILED", "CANCELLED"), "end", seconds=400)
    assert job.state() == "COMPLETED", job.log()
    assert job.ended()[-1].kind == "done"
    assert Path("run/backbone.safetensors").read_bytes() == undisturbed


def kill_a_rank(job: Job) -> None:
    (process,) = job.processes(rank=3)
    process.kill()


def kill_the_step(job: Job) -> None:
    job.testbed.run("scancel", "--signal=KILL", f"{job.id}.0")


def requeue_by_hand_with_a_leftover(job: Job) -> None:
    """Of a process of submitit that was killed while it wrote its result."""
    (job.logs / f"{job.id}_0_result.pkl.save_tmp").write_bytes(b"half")
    job.testbed.run("scontrol", "requeue", job.id)


def restart_the_controller(job: Job) -> None:
    job.testbed.restart_controller()


def fail_a_node(job: Job) -> None:
    job.testbed.kill_node(1)
    job.wait(lambda: job.state() == "PENDING", "requeue after the node's failure")
    job.testbed.start_node(1)


DISTURBANCES = [
    kill_a_rank,
    kill_the_step,
    requeue_by_hand_with_a_leftover,
    restart_the_controller,
    fail_a_node,
]


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda function: function.__name__)
def test_the_same_weights_after(
    start: Callable[..., Job], undisturbed: bytes, disturb: Callable[[Job], None]
) -> None:
    job = start()
    job.wait(lambda: job.step() >= 12, "checkpoint")
    disturb(job)
    finish(job, undisturbed)
    again = disturb is not restart_the_controller
    assert ("going on from step" in job.log()) == again


@pytest.mark.parametrize(("partition", "notice"), [("main", True), ("scavenge", False)])
def test_the_same_weights_after_a_preemption(
    start: Callable[..., Job], undisturbed: bytes, partition: str, notice: bool
) -> None:
    job = start(f"cluster.partition={partition}")
    job.wait(lambda: job.step() >= 12, "checkpoint")
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    other = job.testbed.run(*urgent, "--wrap=sleep 5").strip()
    job.wait(lambda: job.state() == "PENDING", "preemption")
    assert runs.states([other])
    finish(job, undisturbed)
    assert [event.kind for event in job.ended()] == ["preemption" if notice else "by Slurm", "done"]


def test_the_same_weights_after_the_time_limit(start: Callable[..., Job], undisturbed: bytes) -> None:
    """Its processes rest, so that no machine is too fast: Slurm's notice comes with a SIGCONT that wakes them."""
    job = start("cluster.minutes=2", "cluster.allow_short=true", "cluster.signal_delay_s=60")
    job.wait(lambda: job.step() >= 12, "checkpoint")
    for process in [process for rank in range(4) for process in job.processes(rank)]:
        process.suspend()
    job.wait(lambda: bool(job.ended()), "notice")
    # A slow machine must not reach it a second time.
    job.testbed.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=20")
    finish(job, undisturbed)
    assert [event.kind for event in job.ended()] == ["time limit", "done"]


def test_a_cancelled_run_stays_cancelled(start: Callable[..., Job]) -> None:
    job = start()
    job.wait(lambda: job.step() >= 4, "checkpoint")
    job.testbed.run("scancel", job.id)
    job.wait(lambda: bool(job.ended()), "end")
    time.sleep(10)
    assert job.state() == "CANCELLED"
    assert job.ended()[-1].kind == "by Slurm"


def test_a_run_that_fails_twice_at_the_same_step_is_given_up(start: Callable[..., Job]) -> None:
    job = start("schedule.lr=1e30")
    job.wait(lambda: job.state() == "FAILED", "end")
    first, second = job.ended()
    assert first.again
    assert second.why
    assert re.match(r"given up: exit code \d+ for the second time at 0, without progress", second.why)
    assert "non_finite.json" in job.log()


def test_a_finished_run_that_is_requeued_ends_at_once(start: Callable[..., Job]) -> None:
    job = start("epochs=2")
    job.wait(lambda: job.state() == "COMPLETED", "end")
    job.testbed.run("scontrol", "requeue", job.id)
    job.wait(lambda: len(job.ended()) == 2, "second end")
    assert "is finished" in job.log()


def test_two_runs_on_the_same_nodes_do_not_collide(start: Callable[..., Job]) -> None:
    first, second = start("epochs=4", "output=one"), start("epochs=4", "output=two")
    with pytest.raises(Exception, match="one is in use: job"):
        start("epochs=4", "output=one")
    for job in (first, second):
        job.wait(lambda job=job: job.state() == "COMPLETED", "end")
    weights = [Path(run, "backbone.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]


def test_a_second_process_in_the_folder_of_a_run_is_refused(start: Callable[..., Job]) -> None:
    """By hand, past the launcher."""
    job = start()
    job.wait(lambda: job.step() >= 4, "checkpoint")
    (main,) = job.processes(rank=0)
    main.send_signal(signal.SIGSTOP)
    try:
        command = ["-m", "pretrain", "pretrain.yaml"]
        here = {**os.environ, "PYTHONPATH": str(Path(runs.__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, *command], env=here, capture_output=True, text=True, check=False
        )
    finally:
        main.send_signal(signal.SIGCONT)
    assert done.returncode == 1
    assert "run is in use by another process" in done.stderr
