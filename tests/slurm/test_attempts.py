from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from slurm import attempts, runs
from slurm.attempts import Event, judge, progress
from slurm.runs import JobNote
from slurm.submit import again_lines

ROOT = Path(__file__).parents[2]
HOUR = 3600.0
NOTE: dict[str, Any] = {
    "job": "7", "executor": "slurm", "stage": "pretrain", "name": "swav", "tasks": 4, "array": None,
    "minutes": 60, "signal_delay_s": 120, "after": (), "submitted": 0.0, "host": "login",
}  # fmt: skip


def note_of(run: Path) -> JobNote:
    return JobNote(run=str(run), **NOTE)


def history(*ends: tuple[str, int]) -> list[Event]:
    """Attempts that ended so, each from where the one before it was; then the beginning of another one."""
    events, place = [], 0
    for kind, at in ends:
        events.append(Event(event="begin", time=0, progress=place))
        events.append(Event.model_validate({"event": "end", "time": 1, "progress": at, "kind": kind}))
        place = at
    return [*events, Event(event="begin", time=0, progress=place)]


DONE = Event(event="done", time=1)
NOTICE = Event(event="notice", time=1)
REFUSED = Event(event="refused", time=1, why="data.path: no such file")


@pytest.mark.parametrize(
    ("events", "ended", "kind", "again"),
    [
        pytest.param([*history(), DONE], {"code": 0}, "done", False, id="done"),
        pytest.param([*history(), DONE], {"code": 1}, "done", False, id="done, whatever came after"),
        pytest.param(history(), {"code": 0}, "by Slurm", False, id="cancelled, or a node failed"),
        pytest.param(history(), {"code": 1}, "crash", True, id="a first crash"),
        pytest.param(history(("crash", 0)), {"code": 1}, "crash", False, id="a second one at the same step"),
        pytest.param(history(("crash", 40)), {"code": 137, "progress": 80}, "crash", True, id="further on"),
        pytest.param(history(("crash", 40)), {"code": 137, "progress": 40}, "crash", False, id="not further on"),
        pytest.param(
            history(("crash", 40), ("preemption", 40)), {"code": 1, "progress": 40}, "crash", False,
            id="a preemption between is no progress",
        ),
        pytest.param([*history(), NOTICE], {"code": 75}, "preemption", True, id="preempted"),
        pytest.param([*history(), NOTICE], {"code": 137}, "preemption", True, id="srun killed the other ranks"),
        pytest.param(
            [*history(*[("preemption", 0)] * 50), NOTICE], {"code": 75}, "preemption", True, id="without limit"
        ),
        pytest.param(history(), {"code": 140}, "preemption", True, id="told to stop before it could listen"),
        pytest.param(history(), {"code": 0, "elapsed": HOUR - 60}, "by Slurm", False, id="cancelled at the last"),
        pytest.param(history(), {"code": 1, "elapsed": HOUR - 60}, "crash", True, id="a crash at the last"),
        pytest.param([*history(), REFUSED], {"code": 1}, "refused", False, id="a wrong config"),
        pytest.param([*history(), NOTICE], {"code": 75, "elapsed": HOUR}, "time limit", True, id="the time limit"),
        pytest.param(
            history(), {"code": 0, "elapsed": HOUR}, "time limit", True, id="without notice"
        ),
        pytest.param(
            history(*[("time limit", 0)] * 2), {"code": 75, "elapsed": HOUR}, "time limit", False,
            id="three time-outs without progress",
        ),
        pytest.param(
            history(("time limit", 9), ("time limit", 9)), {"code": 75, "progress": 10, "elapsed": HOUR},
            "time limit", True, id="three with a little",
        ),
        pytest.param(
            history(("time limit", 0), ("crash", 0)), {"code": 75, "elapsed": HOUR}, "time limit", True,
            id="a crash is no time-out",
        ),
    ],
)  # fmt: skip
def test_when_a_job_starts_again(
    tmp_path: Path, events: list[Event], ended: dict[str, Any], kind: str, again: bool
) -> None:
    how = {"code": 1, "progress": 0, "elapsed": 600.0, "now": 0.0} | ended
    last = judge(events, note_of(tmp_path), how.pop("code"), **how)
    assert (last.kind, last.again) == (kind, again), last.why
    assert last.why


def test_what_is_kept_counts_as_progress(tmp_path: Path) -> None:
    assert progress(tmp_path) == 0
    for name in ("images/00000.json", "faces/00000.json", "faces/00001.json", "cells/ab/random-pose-1.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert progress(tmp_path) == 4
    assert [progress(tmp_path, (i, 2)) for i in range(2)] == [3, 2], "shards of a part, and all cells"
    (tmp_path / "checkpoints").mkdir()
    for name in ("step_00000040.pt", "step_00000080.pt", "step_00000120.unreadable", ".step_00000160.pt.tmp"):
        (tmp_path / "checkpoints" / name).touch()
    assert progress(tmp_path) == 80


def test_from_the_batch_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two crashes of array task 3 at the same place, with a line between that a power cut left half-written."""
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    logs = tmp_path / "logs/001"
    runs.write_note(logs, note_of(tmp_path))
    (logs / "7_3_0_result.pkl.save_tmp").touch()
    (logs / "7_3_0_result.pkl").touch()
    assert attempts.main(["begin", str(logs)]) == 0
    assert not list(logs.glob("*result*"))
    assert attempts.main(["end", str(logs), "137", "60"]) == 75
    with open(logs / "7_3_attempts.jsonl", "a") as file:
        file.write('\n{"event": "beg')
    assert attempts.main(["begin", str(logs)]) == 0
    assert attempts.main(["end", str(logs), "137", "60"]) == 1
    events = attempts.read(logs, "7_3")
    assert [event.event for event in events] == ["begin", "end", "begin", "end"]
    assert events[-1].why == "given up: exit code 137 for the second time at 0, without progress between"


@pytest.mark.parametrize(("event", "code"), [("done", 0), ("refused", 137)])
def test_work_that_is_done_ends_well_though_slurm_has_killed_its_step(
    event: Literal["done", "refused"], code: int, tmp_path: Path
) -> None:
    """The lines of the batch script in bash, and in place of srun what it leaves then."""
    logs = tmp_path / "logs/001"
    runs.write_note(logs, note_of(tmp_path))
    line = Event(event=event, time=1).model_dump_json(exclude_none=True)
    srun = f"printf '\\n%s' {shlex.quote(line)} >> {logs}/7_attempts.jsonl; exit 137"
    script = "\n".join([*again_lines(f"env --chdir={ROOT} {sys.executable}", logs), srun])
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"SLURM_JOB_ID": "7"}, capture_output=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert [each.event for each in attempts.read(logs, "7")] == ["begin", event, "end"]


def test_a_job_may_start_before_its_note_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written_at_last(seconds: float) -> None:
        runs.write_note(tmp_path, note_of(tmp_path))

    monkeypatch.setattr(time, "sleep", written_at_last)
    attempts.begin(tmp_path, "7")
    assert attempts.read(tmp_path, "7")[0].event == "begin"


def test_a_line_for_every_event(tmp_path: Path) -> None:
    for _ in range(3):
        attempts.note(tmp_path, "7", NOTICE)
    assert len((tmp_path / "7_attempts.jsonl").read_text().splitlines()) == 3
