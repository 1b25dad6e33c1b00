"""What the testbed promises: preemption, node failures, restarts of the controller, accounting."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slurm.testbed import ACCOUNTING_PACKAGES, Testbed, TestbedError, missing_programs

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PROCESS = """
import signal, sys, time

def note(number, frame):
    print(signal.Signals(number).name, flush=True)

for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, note)
print("start", flush=True)
time.sleep(300)
"""


@contextmanager
def _started(**options: int) -> Iterator[Testbed]:
    # Not pytest's folder: a Unix socket's name ends at 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    testbed = Testbed(folder, **options)
    testbed.start()
    try:
        yield testbed
    finally:
        testbed.stop()
        assert not _processes_of(testbed), "nothing is left"
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster(slurm_programs: None) -> Iterator[Testbed]:
    with _started(nodes=3, grace_s=6, requeue_s=600) as testbed:
        yield testbed


def _processes_of(testbed: Testbed) -> list[str]:
    """Command lines of whatever was started for the cluster, without the tests themselves."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_CONF={testbed.conf}".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def _submit(testbed: Testbed, *options: str) -> str:
    """Queue a job of one process on each node; the process writes each signal down and goes on."""
    program = testbed.folder / "process.py"
    program.write_text(PROCESS)
    log = f"{testbed.folder}/%j.out"
    wrap = f"srun {sys.executable} {program}"
    return testbed.run(
        "sbatch",
        "--parsable",
        "--exclusive",
        f"--output={log}",
        "--open-mode=append",
        *options,
        f"--wrap={wrap}",
    ).strip()


def _urgent(testbed: Testbed, nodes: str) -> str:
    log = testbed.folder / "urgent.out"
    options = ("--partition=urgent", "--exclusive", f"--nodelist={nodes}", f"--output={log}")
    return testbed.run("sbatch", "--parsable", *options, "--wrap=sleep 1").strip()


def _log(testbed: Testbed, job: str) -> str:
    file = testbed.folder / f"{job}.out"
    return file.read_text() if file.exists() else ""


def _field(testbed: Testbed, job: str, letter: str) -> str:
    return testbed.run("squeue", "--noheader", "--states=all", f"--format=%{letter}", f"--jobs={job}").strip()


def _state(testbed: Testbed, job: str) -> str:
    return _field(testbed, job, "T")


def _until(what: str, reached: Callable[[], bool], seconds: float = 40) -> float:
    """Wait; the seconds it took."""
    start = time.monotonic()
    while not reached():
        assert time.monotonic() - start < seconds, f"not after {seconds} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - start


def _until_state(testbed: Testbed, job: str, state: str) -> float:
    return _until(f"job {job} is {state}", lambda: _state(testbed, job) == state)


def _until_started(testbed: Testbed, job: str, processes: int = 1) -> None:
    _until("the job has started", lambda: _log(testbed, job).count("start") == processes)


def _restarts(testbed: Testbed, job: str) -> str:
    words = testbed.run("scontrol", "--oneliner", "show", "job", job).split()
    return next(word.removeprefix("Restarts=") for word in words if word.startswith("Restarts="))


def test_preemption_with_notice(cluster: Testbed) -> None:
    """USR2 at once, the end after the partition's grace time; then Slurm queues the job again and holds it."""
    job = _submit(cluster, "--nodelist=n0,n1", "--signal=USR2@60")
    _until_started(cluster, job, 2)
    urgent = _urgent(cluster, "n0,n1")
    _until("each process has had the notice", lambda: _log(cluster, job).count("SIGUSR2") == 2)
    assert "PREEMPTION" not in _log(cluster, job)
    assert 3 < _until("the end", lambda: "DUE TO PREEMPTION" in _log(cluster, job)) < 12
    _until_state(cluster, urgent, "COMPLETED")
    assert (_state(cluster, job), _field(cluster, job, "r")) == ("PENDING", "BeginTime")
    assert _restarts(cluster, job) == "1"
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    _until_started(cluster, job, 4)
    cluster.run("scancel", job)


def test_preemption_without_notice(cluster: Testbed) -> None:
    """In scavenge the end comes with the signal, too late to be of use."""
    job = _submit(cluster, "--partition=scavenge", "--nodelist=n2", "--signal=USR2@60")
    _until_started(cluster, job)
    urgent = _urgent(cluster, "n2")
    assert _until("the end", lambda: "DUE TO PREEMPTION" in _log(cluster, job)) < 5
    _until_state(cluster, urgent, "COMPLETED")
    assert (_state(cluster, job), _restarts(cluster, job)) == ("PENDING", "1")
    cluster.run("scancel", job)


def test_node_failure_and_return(cluster: Testbed) -> None:
    """Slurm finds out by itself, ends the job on the other node too, and queues it again."""
    job = _submit(cluster, "--nodelist=n0,n2")
    _until_started(cluster, job, 2)
    cluster.kill_node(2)
    assert not [line for line in _processes_of(cluster) if "-N n2" in line]
    assert _until_state(cluster, job, "PENDING") < 40
    assert "Node failure on n2" in _log(cluster, job)
    assert "down" in cluster.run("sinfo", "-h", "-N", "-n", "n2", "-p", "main", "-o", "%T")
    cluster.run("scancel", job)
    cluster.start_node(2)
    again = _submit(cluster, "--nodelist=n2")
    _until_started(cluster, again)
    cluster.run("scancel", again)


@pytest.mark.parametrize("crash", [False, True], ids=["ended", "killed"])
def test_controller_restart_keeps_the_queue(cluster: Testbed, crash: bool) -> None:
    running = _submit(cluster, "--nodelist=n1")
    waiting = _submit(cluster, "--nodelist=n1", "--begin=now+1hour")
    _until_started(cluster, running)
    if crash:
        time.sleep(6)  # the state is saved every five seconds
    cluster.restart_controller(crash)
    assert [_state(cluster, job) for job in (running, waiting)] == ["RUNNING", "PENDING"]
    assert int(_submit(cluster, "--hold")) > int(waiting)
    assert _log(cluster, running).split() == ["start"], "the job has noticed nothing"
    cluster.run("scancel", "--user=root")
    _until("the queue is empty", lambda: not cluster.run("squeue", "-h").strip())


def test_a_job_process_does_not_outlive_the_testbed() -> None:
    """Not even when there is no controller that could cancel it."""
    with _started(nodes=1) as testbed:
        job = _submit(testbed)
        _until_started(testbed, job)
        testbed.stop_controller(crash=True)


def test_sacct_remembers_with_accounting() -> None:
    if missing := missing_programs(accounting=True):
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install {ACCOUNTING_PACKAGES}")
    with _started(nodes=1, accounting=True) as testbed:
        good, bad = (
            testbed.run("sbatch", "--parsable", "--output=/dev/null", f"--wrap=exit {code}").strip()
            for code in (0, 3)
        )
        for job, state in ((good, "COMPLETED|0:0"), (bad, "FAILED|3:0")):
            command = ("sacct", "-X", "-n", "-P", f"--jobs={job}", "--format=State,ExitCode")
            _until(f"{state} in sacct", lambda: testbed.run(*command).strip() == state)  # noqa: B023


def test_missing_programs_are_named_with_their_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("slurm.testbed.ACCOUNTING_PROGRAMS", ("no-such-daemon",))
    with pytest.raises(TestbedError, match=f"no-such-daemon not found.*{ACCOUNTING_PACKAGES}"):
        Testbed(tmp_path, accounting=True).start()
