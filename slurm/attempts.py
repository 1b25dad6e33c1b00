"""``python -m slurm.attempts begin|end LOGS``: what became of a job, attempt by attempt, and whether it starts again.

The batch script calls it before and after srun. Slurm itself queues a job again after a preemption and after a
node's failure, but not after a crash or at the time limit: for these the batch script asks here, and calls
``scontrol requeue`` where the answer is yes. Progress is judged from what is on disk, so it does not matter how an
attempt ended.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pydantic

from configs import Config, cli
from slurm.runs import JobNote, read_note

AGAIN = cli.STOPPED  # exit code of ``end``: queue the job again

# So often in a row may an attempt end at the same place before the job is given up.
LIMITS: dict[str, int] = {"crash": 2, "time limit": 3}
# Slurm may send the notice a minute before it is due, and ends a job some seconds after its limit.
NOTICE_TOLERANCE_S, LIMIT_TOLERANCE_S = 90, 30
# A rank that was told to stop, and one that was told so before it could listen.
TOLD_TO_STOP = (cli.STOPPED, 128 + signal.SIGUSR2)


class Event(Config):
    """One line of ``JOB_attempts.jsonl``."""

    event: Literal["begin", "done", "notice", "refused", "end"]
    """By the batch script: begin, end. By the main process: done; notice: told to stop, and stopped with everything
    kept; refused: the stage found its input or config wrong."""
    time: float
    """Seconds since 1970."""
    progress: int | None = None
    """At begin and end: see :func:`progress`."""
    kind: Literal["done", "preemption", "time limit", "crash", "refused", "by Slurm"] | None = None
    """At the end: how it ended."""
    again: bool | None = None
    """At the end: whether the job is queued again by its batch script."""
    why: str | None = None
    """At the end: in words."""


def main(argv: Sequence[str] | None = None) -> int:
    """Note the beginning or the end of an attempt.

    After an end: 0 where the work is done, whatever became of srun, for Slurm may kill a step whose processes have
    all finished (a node that failed in an earlier attempt gets the order to end that one when it is back); 75 where
    another attempt is called for; else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m slurm.attempts", description=__doc__)
    parser.add_argument("action", choices=("begin", "end"))
    parser.add_argument("logs", type=Path, help="the submission's folder, with its job.json")
    parser.add_argument("code", nargs="?", type=int, default=0, help="end: srun's exit code")
    parser.add_argument(
        "elapsed", nargs="?", type=float, default=0, help="end: seconds since the job started"
    )
    arguments = parser.parse_args(argv)
    if arguments.action == "begin":
        begin(arguments.logs, job_id())
        return cli.DONE
    last = end(arguments.logs, job_id(), arguments.code, arguments.elapsed)
    print(f"attempt ended: {last.why}", file=sys.stderr)
    if last.again:
        return AGAIN
    return cli.DONE if last.kind == "done" else cli.FAILED


def job_id() -> str:
    """The id of this job or array task, as submitit writes it in file names."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


def begin(logs: Path, job: str) -> None:
    """Before srun."""
    # Of the attempt before; and submitit refuses to write its result beside one that a killed process left.
    for pattern in (f"{job}_*_result.pkl", f"{job}_*.save_tmp"):
        for left in logs.glob(pattern):
            left.unlink()
    note(logs, job, Event(event="begin", time=time.time(), progress=_progress(_wait_for_note(logs), job)))


def end(logs: Path, job: str, code: int, elapsed: float) -> Event:
    """After srun; the event, which says whether the job starts again."""
    submission = _wait_for_note(logs)
    events, here = read(logs, job), _progress(submission, job)
    last = judge(events, submission, code, progress=here, elapsed=elapsed, now=time.time())
    note(logs, job, last)
    return last


def judge(
    events: Sequence[Event], submission: JobNote, code: int, *, progress: int, elapsed: float, now: float
) -> Event:
    """How an attempt ended, and whether the job shall start again.

    Args:
        events: Of the job so far; the last ``begin`` is that of the attempt.
        submission: The time limit.
        code: srun's exit code. It is 0 also when Slurm ends the job: at the time limit, but also after scancel, an
            operator's requeue, a preemption or a node's failure, which are not ours to answer.
        progress: What is on disk now.
        elapsed: Seconds since the job started.
        now: Seconds since 1970.
    """
    first = max(i for i, event in enumerate(events) if event.event == "begin")
    attempt = {event.event: event for event in events[first:]}
    limit = submission.minutes * 60

    def verdict(kind: str, again: bool, why: str) -> Event:
        return Event.model_validate(
            {"event": "end", "time": now, "progress": progress, "kind": kind, "again": again, "why": why}
        )

    if "done" in attempt:
        return verdict("done", False, "done")
    if "refused" in attempt:
        return verdict("refused", False, attempt["refused"].why or "the stage refused its input")
    if code == 0 and elapsed < limit - LIMIT_TOLERANCE_S:
        return verdict("by Slurm", False, "cancelled, preempted or requeued by Slurm, or a node has failed")
    told = "notice" in attempt or code in TOLD_TO_STOP
    if told and elapsed < limit - submission.signal_delay_s - NOTICE_TOLERANCE_S:
        return verdict("preemption", True, f"preempted at {progress}; it goes on from there")
    kind = "time limit" if told or code == 0 else "crash"
    # The attempts that ended in this way and at this place, this one among them.
    times = 1 + sum(event.kind == kind and event.progress == progress for event in events)
    what = f"exit code {code}" if kind == "crash" else "the time limit"
    if times >= LIMITS[kind]:
        why = f"given up: {what} for the {_ordinal(times)} time at {progress}, without progress between"
        return verdict(kind, False, why)
    return verdict(kind, True, f"{what} at {progress}; it starts again from there")


def progress(run: Path, part: tuple[int, int] = (0, 1)) -> int:
    """How far a run has come, by what is kept: steps of the newest checkpoint, else shards and cells.

    Args:
        run: The run directory.
        part: (i, n): of the shards, only each n-th from the i-th on, which are those of an array task.
    """
    steps = [int(found[1]) for path in run.glob("checkpoints/*.pt") if (found := _STEP.fullmatch(path.name))]
    if steps:
        return max(steps)
    shards = [int(path.stem) for stage in _SHARDED for path in run.glob(f"{stage}/[0-9]*.json")]
    return sum(shard % part[1] == part[0] for shard in shards) + len(list(run.glob("cells/*/*.npy")))


_STEP = re.compile(r"step_(\d+)\.pt")
_SHARDED = ("images", "faces", "crops")


def _progress(submission: JobNote, job: str) -> int:
    part = (0, 1) if submission.array is None else (int(job.rpartition("_")[2]), submission.array)
    return progress(Path(submission.run), part)


def read(logs: Path, job: str) -> list[Event]:
    """The events of a job or array task."""
    path = _path(logs, job)
    if not path.exists():
        return []
    events = []
    for line in path.read_text().splitlines():
        with suppress(pydantic.ValidationError):  # what a power cut left half-written
            events.append(Event.model_validate_json(line))
    return events


def note(logs: Path, job: str, event: Event) -> None:
    """Add an event to those of a job or array task."""
    with open(_path(logs, job), "a") as file:
        # The newline before it keeps it apart from a line that was never finished.
        file.write("\n" * (file.tell() > 0) + event.model_dump_json(exclude_none=True))
        file.flush()
        os.fsync(file.fileno())


def over(logs: Path, submission: JobNote) -> bool:
    """Whether the files say that the job has ended for good, with all its parts."""
    last = [events[-1] if (events := read(logs, job)) else None for job in submission.ids]
    return all(event and event.event == "end" and event.again is False for event in last)


def _path(logs: Path, job: str) -> Path:
    return logs / f"{job}_attempts.jsonl"


def _wait_for_note(logs: Path, seconds: float = 60) -> JobNote:
    """``job.json``, which is written when sbatch has said the id: a job may start before that."""
    deadline = time.monotonic() + seconds
    while not (logs / "job.json").exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    if not (logs / "job.json").exists():
        raise OSError(f"{logs}/job.json: not there: the submission was interrupted; submit again")
    return read_note(logs)


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


if __name__ == "__main__":
    sys.exit(main())
