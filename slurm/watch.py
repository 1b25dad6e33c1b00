"""Follows a job: its output as it comes, and what became of it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from submitit.core.utils import pickle_load

from slurm import attempts, runs
from slurm.runs import Submission

# submitit's notes about its own work: they stay in the files.
OWN_NOTES = ("submitit INFO", "submitit ERROR")


def follow(submission: Submission, label: str, *, owned: bool = True) -> str | None:
    """Print what the first process of the job, or of each array task, writes until the job ends.

    Every line is preceded by ``[label m:ss]``. On a terminal a progress bar stays on one line; elsewhere only
    its last state is printed. Leaving early (Ctrl-C, SIGTERM) takes a local job along if it is ``owned``.

    Returns:
        None when every process ended well, else the reason, with the log's path.
    """
    logs, note = submission
    tails = []
    for i, job in enumerate(note.ids):
        name = label if note.array is None else f"{label}.{i}"
        tails += [_Tail(logs / f"{job}_0_log.{end}", name) for end in ("out", "err")]
    local = note.executor == "local"
    try:
        live, asked = True, time.monotonic()
        while live:
            time.sleep(0.2)
            if local or time.monotonic() - asked > 3:
                # Not knowing is no reason to leave: the controller may be restarting.
                live, asked = runs.live(note) is not False, time.monotonic()
            for tail in tails:
                tail.print_new()
        for tail in tails:
            tail.finish()
    except BaseException:
        if local and owned:
            runs.cancel(note)
        raise
    return failure(submission)


def failure(submission: Submission) -> str | None:
    """Why an ended job failed, or None: a process that raised comes before those that just vanished."""
    logs, note = submission
    vanished = raised = None
    for job in note.ids:
        for rank in range(note.tasks):
            result, log = logs / f"{job}_{rank}_result.pkl", logs / f"{job}_{rank}_log.err"
            if not result.exists():
                what = "ended without a result: killed, out of memory or out of time"
                vanished = vanished or (job, rank, what, log)
            elif pickle_load(result)[0] == "error":
                raised = raised or (job, rank, "failed", log)
    if not (first := raised or vanished):
        return None
    job, rank, what, log = first
    ended = [event.why for event in attempts.read(logs, job) if event.event == "end"]
    given_up = f"{ended[-1]}; " if ended else ""
    lines = "".join(f"\n    {line}" for line in _last_lines(log))
    return f"{given_up}process {rank} {what}; {log} ends with:{lines}"


def _last_lines(log: Path, count: int = 4) -> list[str]:
    if not log.exists():
        return ["(nothing was written)"]
    lines = re.split(r"[\r\n]+", log.read_text(errors="replace"))
    return [line for line in lines if line.strip() and not line.startswith(OWN_NOTES)][-count:]


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
