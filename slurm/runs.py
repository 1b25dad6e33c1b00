"""The jobs of a run directory: what was submitted, and whether it is still queued or running.

Known from files (``logs/001/job.json``) and, where SLURM answers, from squeue.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pydantic

from configs import Config, ConfigError
from data_prep.files import write_json

LIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT",
    "STOPPED", "RESIZING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT",
}  # fmt: skip


SQUEUE_S = 20  # it tries for up to a minute when the controller is down


class JobNote(Config):
    """``job.json`` of a submission: what was asked for."""

    job: str
    """The id; of an array that of the whole. On this machine the process id of its controller."""
    executor: Literal["slurm", "local"]
    """Where it runs."""
    stage: str
    """What runs."""
    name: str
    """Its name in the queue."""
    run: str
    """The run directory, absolute."""
    tasks: int
    """Processes on all nodes."""
    array: int | None
    """Number of array tasks; None: no array."""
    minutes: int
    """Time limit."""
    signal_delay_s: int
    """Seconds between the notice and that limit."""
    after: tuple[str, ...]
    """Ids of the jobs that must end well before."""
    submitted: float
    """Seconds since 1970."""
    host: str
    """Where it was submitted; a local job runs there."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Its id, or those of its array tasks."""
        return (self.job,) if self.array is None else tuple(f"{self.job}_{i}" for i in range(self.array))


class Submission(NamedTuple):
    """One folder of a run's logs."""

    logs: Path
    note: JobNote


class State(NamedTuple):
    """What squeue says of a job."""

    state: str
    reason: str


def write_note(logs: Path, note: JobNote) -> None:
    """Leave ``job.json`` in a submission's folder."""
    write_json(logs / "job.json", note.model_dump(mode="json"))


def submissions(run: Path) -> list[Submission]:
    """Of a run directory, oldest first; folders whose job was never queued are left out."""
    folders = sorted(path for path in (run / "logs").glob("[0-9]*") if (path / "job.json").exists())
    return [Submission(path, read_note(path)) for path in folders]


def read_note(logs: Path) -> JobNote:
    """``job.json`` of a submission's folder.

    Raises:
        OSError: if the file says something else than was written.
    """
    path = logs / "job.json"
    try:
        return JobNote.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        raise OSError(f"{path}: {error.errors()[0]['msg']}") from None


def states(ids: Sequence[str]) -> dict[str, State] | None:
    """What squeue says of each job or array task that it still knows; None when SLURM does not answer.

    The id of an array stands for all its tasks.
    """
    if not ids or shutil.which("squeue") is None:
        return {} if not ids else None
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"]
    command.append(f"--jobs={','.join(ids)}")
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SQUEUE_S)
    except subprocess.TimeoutExpired:
        return None
    if asked.returncode:
        # A job that ended long ago is unknown; a controller that restarts says something else.
        return {} if "Invalid job id" in asked.stderr else None
    rows = (line.split("|", 2) for line in asked.stdout.splitlines())
    return {job: State(state, "" if reason == "None" else reason) for job, state, reason in rows}


def live(note: JobNote) -> bool | None:
    """Whether any part of a job is still queued or running; None when that cannot be told from here."""
    return live_in(note, states([note.job]) if note.executor == "slurm" else {})


def live_in(note: JobNote, queue: Mapping[str, State] | None) -> bool | None:
    """As :func:`live`, with the answer of :func:`states` at hand."""
    if note.executor == "local":
        return _is_its_process(int(note.job), note.run) if note.host == socket.gethostname() else None
    return None if queue is None else any(queue[job].state in LIVE for job in note.ids if job in queue)


def cancel(note: JobNote) -> None:
    """End a job that is queued or running, the whole array.

    Raises:
        ConfigError: when SLURM refuses; the message is scancel's.
    """
    if note.executor == "local":
        if live(note):
            os.kill(int(note.job), signal.SIGINT)  # its controller ends the processes
        return
    done = subprocess.run(["scancel", note.job], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"job {note.job} cannot be cancelled: {done.stderr.strip()}")


def _is_its_process(pid: int, run: str) -> bool:
    """Whether ``pid`` is the controller that submitit started for ``run``, and not a later process of that number."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    folder = os.fsencode(run)
    return any(word.startswith(folder) for word in words)
