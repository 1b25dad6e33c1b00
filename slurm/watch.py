"""Follows a job: its output as it comes, and what became of it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import submitit
from submitit.core.utils import pickle_load

LIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "PREEMPTED", "SIGNALING", "STAGE_OUT",
    "STOPPED", "RESIZING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT",
}  # fmt: skip
# submitit's notes about its own work: they stay in the files.
OWN_NOTES = ("submitit INFO", "submitit ERROR")


def follow(job: submitit.Job[None], label: str) -> str | None:
    """Print what the job's first process writes until the job ends.

    Every line is preceded by ``[label m:ss]``. On a terminal a progress bar stays on one line; elsewhere only
    its last state is printed. Leaving early (Ctrl-C, SIGTERM) takes a local job along.

    Returns:
        None when every process ended well, else the reason, with the log's path.
    """
    first = job.task(0).paths
    out, err = _Tail(first.stdout, label), _Tail(first.stderr, label)
    slurm = isinstance(job, submitit.SlurmJob)
    try:
        live, asked = True, time.monotonic()
        while live:
            time.sleep(0.2)
            if not slurm or time.monotonic() - asked > 3:
                live, asked = _live(job), time.monotonic()
            out.print_new()
            err.print_new()
        out.finish()
        err.finish()
    except BaseException:
        if not slurm:
            job.cancel()
        raise
    return failure(job)


def failure(job: submitit.Job[None]) -> str | None:
    """Why an ended job failed, or None: a process that raised comes before those that just vanished."""
    vanished = raised = None
    for rank in range(job.num_tasks):
        paths = job.task(rank).paths
        if not paths.result_pickle.exists():
            what = "ended without a result: killed, out of memory or out of time"
            vanished = vanished or (rank, what, paths.stderr)
        elif pickle_load(paths.result_pickle)[0] == "error":
            raised = raised or (rank, "failed", paths.stderr)
    if not (first := raised or vanished):
        return None
    rank, what, log = first
    lines = "".join(f"\n    {line}" for line in _last_lines(log))
    return f"process {rank} {what}; {log} ends with:{lines}"


def _last_lines(log: Path, count: int = 4) -> list[str]:
    if not log.exists():
        return ["(nothing was written)"]
    lines = re.split(r"[\r\n]+", log.read_text(errors="replace"))
    return [line for line in lines if line.strip() and not line.startswith(OWN_NOTES)][-count:]


def _live(job: submitit.Job[None]) -> bool:
    """Whether the job is still queued or running; works without SLURM's accounting."""
    if not isinstance(job, submitit.SlurmJob):
        return not job.done()
    asked = subprocess.run(
        ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job.job_id}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        # A job that ended long ago is unknown; a controller that restarts says something else.
        return "Invalid job id" not in asked.stderr
    return bool(LIVE & set(asked.stdout.split()))


class _Tail:
    """The lines of a growing file that may not exist yet."""

    def __init__(self, path: Path, label: str) -> None:
        self._path = path
        self._label = label
        self._start = self._printed = time.monotonic()
        self._position = 0
        self._rest = ""
        self._bar = ""

    def print_new(self) -> None:
        """Print the whole lines that came since the last call; a progress bar is redrawn, or told now and then."""
        for line, ended in self._new():
            if line and ended == "\n":
                self._print(line)
            # An empty line with a carriage return wipes a finished bar.
            self._bar = line if ended == "\r" else ""
        if not (bar := self._rest.strip() or self._bar):
            return
        if sys.stdout.isatty():
            print(f"\r{self._prefix()}{bar}\033[K", end="", flush=True)
        elif time.monotonic() - self._printed > 30:
            self._print(bar)

    def finish(self) -> None:
        """Print the rest: what came last without a newline, and the progress bar's end."""
        self.print_new()
        if last := (self._rest.strip() or self._bar):
            self._print(last)

    def _new(self) -> Iterator[tuple[str, str]]:
        """Finished lines, each with the newline or carriage return that ended it."""
        if not self._path.exists():
            return
        with open(self._path, encoding="utf-8", errors="replace", newline="") as file:
            file.seek(self._position)
            text = self._rest + file.read()
            self._position = file.tell()
        *lines, self._rest = re.split(r"(?<=[\r\n])", text.replace("\r\n", "\n"))
        for line in lines:
            if not line.startswith(OWN_NOTES):
                yield line.rstrip(), line[-1]

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        start, end = ("\r", "\033[K\n") if sys.stdout.isatty() else ("", "\n")
        print(f"{start}{self._prefix()}{line}", end=end, flush=True)

    def _prefix(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return f"[{self._label} {minutes}:{seconds:02d}] "
