"""Runs in every state: from files alone, here for real, and through a real squeue."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs import ConfigError
from slurm import attempts, runs, status
from slurm.attempts import Event
from slurm.submit import prepare
from slurm.testbed import Testbed
from slurm.verdict import Part

ROOT = Path(__file__).resolve().parents[2]
LOCAL = str(ROOT / "configs/cluster/local.yaml")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No SLURM answers, unless the testbed is asked for; paths start at the test's folder."""
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.chdir(tmp_path)


def _submitted(run: str = "run", stage: str = "pretrain", job: str = "12", **fields: Any) -> Path:
    """The logs of a submission that SLURM took an hour ago."""
    folder = Path(run).absolute()
    logs: Path = folder / "logs" / f"{len(list(folder.glob('logs/*'))) + 1:03d}"
    logs.mkdir(parents=True)
    note = {
        "job": job,
        "executor": "slurm",
        "stage": stage,
        "name": f"my_{stage}",
        "run": str(folder),
        "tasks": 1,
        "array": None,
        "minutes": 600,
        "signal_delay_s": 120,
        "after": (),
        "submitted": time.time() - 3600,
        "host": socket.gethostname(),
    }
    runs.write_note(logs, runs.JobNote.model_validate(note | fields))
    return logs


def _attempt(logs: Path, job: str = "12", ago: float = 3000, **end: Any) -> None:
    """One that began ``ago`` seconds before now and, if it ended, did so 1000 s later."""
    attempts.note(logs, job, Event(event="begin", time=time.time() - ago))
    if end:
        attempts.note(
            logs, job, Event.model_validate({"event": "end", "time": time.time() - ago + 1000} | end)
        )


def _result(logs: Path, name: str, *result: str) -> None:
    (logs / name).write_bytes(pickle.dumps(result))


def _beat(run: str, step: int, ago: float) -> None:
    beat = {"step": step, "total": 2000, "time": time.time() - ago, "host": "n0", "pid": 7}
    Path(run, "heartbeat.json").write_text(json.dumps(beat))


def _metrics(run: str, last: int, seconds: float = 1) -> None:
    """A row every 10 steps, the last one now."""
    rows = [
        {
            "step": s,
            "loss": 5 - s / 1000,
            "images_per_second": 1234.5,
            "time": time.time() - (last - s) * seconds,
        }
        | ({"knn": s / 1000} if s % 100 == 0 else {})
        for s in range(10, last + 1, 10)
    ]
    Path(run, "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _one(run: str = "run") -> status.RunStatus:
    (row,) = status.status([Path(run)])
    return row


# --- from files ----------------------------------------------------------------------------------------------


def test_runs_are_found_below_a_folder_but_not_among_their_pieces() -> None:
    _submitted("all/b/deep")
    _submitted("all/a")
    _submitted("all/a/inner")
    _submitted("all/a/pictures/0001")
    _submitted("all/a/logs/001/odd")
    (Path("all/empty/logs/001")).mkdir(parents=True)
    found = status.find_runs([Path("all"), Path("all/a")])
    assert found == [Path("all/a"), Path("all/a/inner"), Path("all/b/deep")]
    for folder in ("all/empty", "absent"):
        with pytest.raises(ConfigError, match=f"{folder}: no submitted run there"):
            status.find_runs([Path("all"), Path(folder)])


@pytest.mark.parametrize(
    ("end", "state", "why"),
    [
        ({"kind": "done", "again": False, "why": "done"}, "done", ""),
        (
            {"kind": "crash", "again": False, "why": "given up: exit code 1"},
            "failed",
            "given up: exit code 1",
        ),
        ({"kind": "refused", "again": False, "why": "no data"}, "failed", "no data"),
        (
            {"kind": "time limit", "again": True, "why": "the time limit at 7"},
            "requeued",
            "the time limit at 7; SLURM does not answer",
        ),
        (
            {"kind": "by Slurm", "again": False, "why": "cancelled or preempted"},
            "unknown",
            "cancelled or preempted; SLURM does not answer",
        ),
    ],
)
def test_the_end_of_an_attempt_tells(end: dict[str, Any], state: str, why: str) -> None:
    _attempt(_submitted(), **end)
    assert (_one().state, _one().why) == (state, why)


@pytest.mark.parametrize(
    ("kind", "state", "expected"),
    [
        ("done", "FAILED", "done"),
        ("done", "NODE_FAIL", "done"),
        ("done", "COMPLETED", "done"),
        ("crash", "FAILED", "failed"),
    ],
)
def test_work_that_is_done_has_not_failed(kind: str, state: str, expected: str) -> None:
    """Slurm may kill what is left of a step."""
    logs = _submitted()
    _attempt(logs, kind=kind, again=False, why=kind)
    submission = runs.Submission(logs, runs.read_note(logs))
    assert Part(submission, "12", {"12": runs.State(state, "")}, time.time()).verdict.state == expected


def test_a_failure_names_the_error_the_process_and_its_log() -> None:
    logs = _submitted(tasks=3)
    _attempt(logs, kind="crash", again=False, why="given up")
    _result(logs, "12_1_result.pkl", "error", "Traceback ...")
    error = "ValueError: the picture is upside down\nRuntimeError: pretrain ended with exit code 1\n"
    (logs / "12_1_log.err").write_text(f"Traceback:\n  File x\n{error}srun: error: n0: task 1: Exited\n")
    assert (_one().state, _one().why) == ("failed", "given up: ValueError: the picture is upside down")
    assert _one().log == "run/logs/001/12_1_log.err"
    assert status.show([Path("run")]) == 1


def test_results_of_an_earlier_attempt_do_not_count() -> None:
    logs = _submitted()
    _result(logs, "12_0_result.pkl", "error", "Traceback ...")
    os.utime(logs / "12_0_result.pkl", (time.time() - 2500, time.time() - 2500))
    _attempt(logs, kind="crash", again=True, why="exit code 1 at 0; it starts again from there")
    _attempt(logs, ago=100)
    assert (_one().state, _one().restarts) == ("running", 1)
    _result(logs, "12_0_result.pkl", "success", "")
    assert _one().state == "done"


def test_without_attempts_and_without_slurm_nothing_is_claimed() -> None:
    _submitted()
    assert (_one().state, _one().why) == ("unknown", "SLURM does not answer")


def test_a_silent_job_is_unknown_while_slurm_does_not_answer() -> None:
    _attempt(_submitted())
    _beat("run", 100, ago=10)
    assert _one().state == "running"
    _beat("run", 100, ago=301)
    assert _one().state == "unknown"
    assert "SLURM does not answer; no sign for 5 min" in _one().why


def test_a_note_that_cannot_be_read_hides_no_other_run(capfd: pytest.CaptureFixture[str]) -> None:
    _attempt(_submitted("run/good"), kind="done", again=False)
    (_submitted("run/bad") / "job.json").write_text("{}")
    assert status.show([Path("run")]) == 0
    output = capfd.readouterr()
    assert "run/good" in output.out
    assert "run/bad is left out: run/bad/logs/001/job.json: Field required" in output.err


def test_a_run_may_be_moved() -> None:
    _attempt(_submitted(), ago=1000)
    _beat("run", 905, ago=0)
    Path("run").rename("moved")
    assert (_one("moved").state, _one("moved").run, _one("moved").step) == ("running", "moved", 905)


def test_progress_and_time_left() -> None:
    _attempt(_submitted(), ago=1000)
    _beat("run", 905, ago=0)
    _metrics("run", last=900)
    row = _one()
    assert (row.state, row.step, row.total) == ("running", 905, 2000)
    assert (row.images_per_second, row.loss, row.knn) == (1234.5, 4.1, 0.9)
    assert row.left_s == pytest.approx(1095, rel=0.1)
    assert row.heartbeat_s == pytest.approx(0, abs=5)


def test_the_newest_submission_of_each_stage_counts() -> None:
    _attempt(_submitted(stage="list", job="1"), job="1", kind="crash", again=False, why="exit code 1")
    _attempt(_submitted(stage="detect", job="2"), job="2", kind="done", again=False)
    _attempt(_submitted(stage="list", job="3"), job="3", kind="done", again=False)
    rows = {row.stage: (row.job, row.state) for row in status.status([Path("run")])}
    assert rows == {"list": ("3", "done"), "detect": ("2", "done")}


def test_an_array_counts_its_parts_and_explains_the_first_that_failed() -> None:
    logs = _submitted(stage="detect", array=4)
    for part in (0, 1):
        _attempt(logs, f"12_{part}", kind="done", again=False)
    _attempt(logs, "12_2", kind="crash", again=False, why="given up")
    (logs / "12_2_0_log.err").write_text("error: picture 7: truncated\n")
    _attempt(logs, "12_3")
    (logs / "12_3_0_log.out").write_text("shard 3\n")
    row = _one()
    assert row.parts == {"failed": 1, "running": 1, "done": 2}
    assert (row.state, row.why) == ("failed", "given up: error: picture 7: truncated")
    assert row.log == "run/logs/001/12_2_0_log.err"


def test_a_long_quiet_is_noted(tiny: list[str]) -> None:
    _submitted(stage="detect", executor="local", job=str(os.getpid()), host="elsewhere")
    log = Path("run/logs/001") / f"{os.getpid()}_0_log.out"
    log.write_text("1%")
    assert _one().state == "running", "judged by its log: nobody can ask that machine"
    os.utime(log, (time.time() - 1860, time.time() - 1860))
    assert _one().state == "unknown"
    assert "only elsewhere can tell; no sign for 31 min" in _one().why


def test_table_fits_and_says_more_only_where_something_is_wrong() -> None:
    deep = "runs/a_study_with_a_long_name/of_many_parts/seed-0"
    _attempt(_submitted(deep, job="12345678"), job="12345678", ago=1000)
    _beat(deep, 905, ago=0)
    _metrics(deep, last=900)
    logs = _submitted("runs/bad", stage="data_report", job="12345679")
    _attempt(logs, job="12345679", kind="crash", again=False, why="given up")
    (logs / "12345679_0_log.err").write_text(f"ValueError: {'very ' * 50}bad\n")
    rows = status.status(status.find_runs([Path("runs")]))
    text = status.table(rows)
    assert max(len(line) for line in text.splitlines()) <= 140
    assert text.count("log: ") == 1
    assert "905/2000" in text
    assert "\033" not in text
    assert status.table(rows, verbose=True).count("log: ") == 2
    assert "\033[31mfailed\033[0m" in status.table(rows, colours=True)


def test_json_has_all_fields(capfd: pytest.CaptureFixture[str]) -> None:
    _attempt(_submitted(), kind="done", again=False)
    assert status.show([Path("run")], as_json=True) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert row["state"] == "done"
    assert row.keys() == status.RunStatus.__dataclass_fields__.keys()


# --- on this machine -----------------------------------------------------------------------------------------


def _wait_until(ready: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_local_job_that_runs_hangs_and_ends(tiny: list[str]) -> None:
    sent = prepare("pretrain", tiny[0], [tiny[1], "lines=2", "seconds=1"], cluster=LOCAL).send()
    assert (_one().state, _one().job) == ("running", sent.note.job)
    Path("run/config.yaml").write_text("timeout_s: 0.1\nanother: 1\n")
    Path("run/heartbeat.json").write_text(json.dumps({"step": 3, "total": 9, "time": time.time()}))
    Path("run/nccl_trace_rank_0").touch()
    time.sleep(0.2)
    assert _one().state == "hung"
    assert "run/nccl_trace_rank_*; end it with python -m slurm cancel run, and submit it again" in _one().why
    assert status.show([Path("run")]) == 1
    _wait_until(lambda: not runs.live(sent.note))
    assert _one().state == "done"


def test_a_local_job_that_refuses_its_input(tiny: list[str]) -> None:
    sent = prepare("data_prep", tiny[0], [tiny[1], "refuse=true"], cluster=LOCAL).send()
    _wait_until(lambda: not runs.live(sent.note))
    assert (_one().state, _one().why) == ("failed", "process 0: error: data: nothing in it")
    assert _one().log == f"run/logs/001/{sent.note.job}_0_log.err"


def test_a_local_job_that_was_killed(tiny: list[str]) -> None:
    sent = prepare("data_prep", tiny[0], [tiny[1], "kill_rank=0"], cluster=LOCAL).send()
    _wait_until(lambda: not runs.live(sent.note))
    assert (_one().state, _one().why) == ("failed", "it ended without a result: killed, or out of memory")


def test_a_local_job_is_cancelled(tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sent = prepare("data_prep", tiny[0], [tiny[1], "lines=300", "seconds=1"], cluster=LOCAL).send()
    finally:
        signal.signal(signal.SIGINT, before)
    log = sent.logs / f"{sent.note.job}_0_log.out"
    _wait_until(lambda: log.exists() and "line 1" in log.read_text())
    assert status.cancel([Path("run")]) == 0
    assert f"run: job {sent.note.job} (data_prep) cancelled" in capfd.readouterr().out
    assert _one().state == "cancelled"
    assert status.cancel([Path("run")]) == 0
    assert "run: nothing is queued or running" in capfd.readouterr().out
    with pytest.raises(ConfigError, match="no submitted run there"):
        status.cancel([Path("absent")])


def test_what_cannot_be_reached_is_not_called_cancelled(capfd: pytest.CaptureFixture[str]) -> None:
    _submitted()
    _submitted(stage="data_prep", executor="local", job="7", host="elsewhere")
    assert status.cancel([Path("run")]) == 1
    error = capfd.readouterr().err
    assert "job 12 (pretrain) may still run: SLURM does not answer" in error
    assert "job 7 (data_prep) may still run: only elsewhere can tell" in error


# --- through a real squeue -----------------------------------------------------------------------------------

SMALL = ["cluster.memory=1GB", "cluster.cpus_per_task=1", "cluster.gpus_per_node=0"]


def _send(tiny: list[str], run: str, *overrides: str, **options: Any) -> runs.Submission:
    options.setdefault("name", run)
    cluster = str(ROOT / "configs/cluster/university.yaml")
    words = [tiny[1], *SMALL, f"output={run}", *overrides]
    return prepare("data_prep", tiny[0], words, cluster=cluster, **options).send()


def _rows(*names: str) -> dict[str, status.RunStatus]:
    return {row.name: row for row in status.status([Path(name) for name in names])}


@pytest.mark.slurm
@pytest.mark.slow
def test_through_a_real_squeue(
    nowhere: None, on_testbed: Testbed, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("good", "bad", "behind", "long", "held", "far")
    _send(tiny, "good", "lines=1")
    bad = _send(tiny, "bad", "fail=true", "lines=0")
    behind = _send(tiny, "behind", after=[bad.note.job])
    far = _send(tiny, "far", after=[behind.note.job])
    long = _send(tiny, "long", "lines=300", "seconds=1")
    held = _send(tiny, "held")
    on_testbed.run("scontrol", "hold", held.note.job)
    assert f"until job {bad.note.job} (bad) ended well" in _rows(*names)["behind"].why
    assert _rows("behind")["behind"].why == f"Dependency: until job {bad.note.job} ended well"

    seen = set()

    def settled() -> bool:
        rows = _rows(*names)
        seen.add(rows["bad"].state)
        return [rows[name].state for name in names] == [
            "done", "failed", "cancelled", "running", "queued", "cancelled",
        ]  # fmt: skip

    _wait_until(settled, 200)
    assert "requeued" in seen
    rows = _rows(*names)
    assert "ValueError: the picture is upside down" in rows["bad"].why
    assert rows["behind"].why == f"job {bad.note.job} (bad) before it failed"
    assert rows["far"].why == f"job {behind.note.job} (behind) before it was cancelled"
    assert "JobHeld" in rows["held"].why
    assert f"scontrol release {held.note.job}" in rows["held"].why
    with monkeypatch.context() as without:
        without.delenv("SLURM_CONF")
        told = {name: row.state for name, row in _rows(*names).items()}
    assert told == {
        "good": "done", "bad": "failed", "behind": "unknown", "long": "running", "held": "unknown",
        "far": "unknown",
    }  # fmt: skip
    assert status.cancel([Path("long"), Path("held")]) == 0
    _wait_until(lambda: {row.state for row in _rows("long", "held").values()} == {"cancelled"})
    _wait_until(lambda: not any(runs.live(sent.note) for sent in (long, held, far)))


@pytest.mark.slurm
@pytest.mark.slow
def test_an_array_through_a_real_squeue(nowhere: None, on_testbed: Testbed, tiny: list[str]) -> None:
    sent = _send(tiny, "shared", "lines=300", "seconds=1", "cluster.array_at_once=1", array=3)
    _wait_until(lambda: _rows("shared")["shared"].parts == {"running": 1, "queued": 2})
    on_testbed.run("scancel", sent.note.ids[0])
    _wait_until(lambda: _rows("shared")["shared"].parts == {"running": 1, "queued": 1, "cancelled": 1})
    assert status.cancel([Path("shared")]) == 0
    _wait_until(lambda: _rows("shared")["shared"].parts == {"cancelled": 3})
