"""What became of a job, or of one task of an array: judged from its files, and from squeue where that knows it."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pydantic
from submitit.core.utils import pickle_load

import configs
from configs import ConfigError
from slurm import attempts, runs

StateName = Literal["hung", "failed", "running", "requeued", "queued", "unknown", "cancelled", "done"]
# An array is in the first of these that one of its parts is in.
STATES: tuple[StateName, ...] = get_args(StateName)
WITH_HEARTBEAT = "pretrain"
QUIET_S = 30 * 60  # so long may a pretraining take to its first step, and another stage write nothing
# Folders of a run that hold pieces, by the thousand, and no other run.
PIECES = {
    "logs", "code", "checkpoints", "tensorboard", "images", "faces", "crops", "pictures", "cells", "report",
}  # fmt: skip
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
# squeue's reasons, in words.
_REASONS = {
    "Priority": "other jobs go first",
    "Resources": "until nodes are free",
    "Dependency": "until {after} ended well",
    "DependencyNeverSatisfied": "for ever: {after} did not end well",
    "BeginTime": "SLURM holds a job for a while before it starts again",
    "JobHeldUser": "held; let it go with scontrol release {job}",
    "JobHeldAdmin": "held by an administrator, or after a failed start; scontrol release {job}",
}
NEVER_BEGAN = "removed from the queue before it began"
_ERROR = re.compile(r"error: |[\w.]*(Error|Exception)\b|.*oom.kill", re.IGNORECASE)
_ENDS = {"OUT_OF_MEMORY": "out of memory", "TIMEOUT": "the time limit", "NODE_FAIL": "its node failed"}


class Verdict(NamedTuple):
    """A state, and why in words where there is something to say."""

    state: StateName
    why: str = ""


@dataclass(frozen=True)
class Part:
    """A job, or one task of an array."""

    submission: runs.Submission
    job: str
    queue: Mapping[str, runs.State] | None
    """What squeue says of all jobs; None: it does not answer."""
    now: float

    @cached_property
    def verdict(self) -> Verdict:
        """Its state, and why."""
        verdict = self._local() if self._note.executor == "local" else self._slurm()
        if verdict == ("running", ""):
            return self._signs_of_life()
        if verdict.state == "failed" and (words := _last_error(self._blamed)):
            return Verdict("failed", f"{verdict.why}: {words}")
        return verdict

    @property
    def log(self) -> Path:
        """Where to look."""
        return self._blamed if self.verdict.state == "failed" else self._file(0, "log.out")

    @property
    def restarts(self) -> int:
        """SLURM begins an attempt again; on this machine a job that was told to stop goes on by itself."""
        events = Counter(event.event for event in self._events)
        return events["notice"] if self._note.executor == "local" else max(0, events["begin"] - 1)

    @property
    def since(self) -> float:
        """When its newest attempt began."""
        times = [event.time for event in self._events if event.event in ("begin", "notice")]
        return times[-1] if times else self._note.submitted

    def _local(self) -> Verdict:
        alive = runs.live(self._note)
        if alive:
            return Verdict("running")
        controller = self.submission.logs / "controller.log"
        if controller.exists() and "KeyboardInterrupt" in controller.read_text(errors="replace"):
            return Verdict("cancelled")
        if verdict := self._result():
            return verdict
        if alive is None:
            return self._unseen(unreachable(self._note))
        return Verdict("failed", "it ended without a result: killed, or out of memory")

    def _slurm(self) -> Verdict:
        found = (self.queue or {}).get(self.job)
        last = self._events[-1] if self._events else None
        end = last if last and last.event == "end" else None
        if found is None:
            return self._by_files(last, end)
        if found.state == "COMPLETING" and end:
            return _end(end, "running", "SLURM is still clearing up")
        if found.state in runs.LIVE:
            return self._in_queue(found)
        if found.state == "COMPLETED" or (end and end.kind == "done"):
            return Verdict("done")
        if found.state == "CANCELLED":
            return Verdict("cancelled", "" if last else NEVER_BEGAN)
        why = end.why if end and not end.again else None
        return Verdict("failed", why or _ENDS.get(found.state, f"SLURM says {found.state}"))

    def _in_queue(self, found: runs.State) -> Verdict:
        if found.state not in _WAITING:
            return Verdict("running", "SLURM has suspended it" if found.state == "SUSPENDED" else "")
        words = _REASONS.get(found.reason, "").replace("{job}", self.job)
        reason = f"{found.reason or found.state}{words and ': '}{words}"
        if not self._events:
            return Verdict("queued", reason)
        ends = [event.why for event in self._events if event.event == "end"]
        return Verdict("requeued", f"attempt {self.restarts + 1}: {ends[-1] if ends else 'lost'}; {reason}")

    def _by_files(self, last: attempts.Event | None, end: attempts.Event | None) -> Verdict:
        """When squeue does not know the job, or does not answer."""
        unasked = unreachable(self._note) if self.queue is None else ""
        if end:
            return _end(end, "unknown" if unasked else "cancelled", unasked or "it is no longer in the queue")
        if verdict := self._result():
            return verdict
        if unasked:
            return self._unseen(unasked) if last else Verdict("unknown", unasked)
        if last:
            return Verdict("failed", "it vanished: SLURM does not know it, and nothing noted its end")
        return Verdict("cancelled", NEVER_BEGAN)

    def _unseen(self, why: str) -> Verdict:
        """Of a job that began, and of which nobody can be asked."""
        silent, limit = self._silence
        if silent < limit:
            return Verdict("running")
        return Verdict("unknown", f"{why}; no sign for {span(silent)}")

    def _result(self) -> Verdict | None:
        """As its processes left it; None while one has left no result and none an error."""
        if "error" in self._results:
            return Verdict("failed", f"process {self._results.index('error')}")
        return None if None in self._results else Verdict("done")

    def _signs_of_life(self) -> Verdict:
        """Of a running job: whether it hangs."""
        (silent, limit), run = self._silence, self._run
        just_started = self._note.executor == "slurm" and (
            not self._events or self._events[-1].event == "end"
        )
        if silent < limit or just_started:
            return Verdict("running")
        if self._note.stage != WITH_HEARTBEAT:
            return Verdict("running", f"quiet for {span(silent)}")
        traces = f"what each rank was at: {run}/nccl_trace_rank_*; "
        traces = traces if any(run.glob("nccl_trace_rank_*")) else ""
        what = f"no heartbeat for {span(silent)}, {span(limit)} are allowed"
        return Verdict(
            "hung", f"{what}; {traces}end it with python -m slurm cancel {run}, and submit it again"
        )

    @cached_property
    def _silence(self) -> tuple[float, float]:
        """Seconds since it last gave a sign of life, and how many are no reason to worry."""
        run = self._run
        if self._note.stage == WITH_HEARTBEAT:
            beat = heartbeat(run).get("time", 0)
            return (
                (self.now - beat, _timeout(run)) if beat >= self.since else (self.now - self.since, QUIET_S)
            )
        # A folder of pieces changes when a piece is added. Those of an array are not this part's.
        pieces = (
            [] if self._note.array else [run / name for name in PIECES - {"logs"}] + [*run.glob("cells/*")]
        )
        times = [path.stat().st_mtime for path in (*self._files, *pieces) if path.exists()]
        return self.now - max(times, default=self.since), QUIET_S

    @property
    def _run(self) -> Path:
        return self.submission.logs.parents[1]

    @property
    def _note(self) -> runs.JobNote:
        return self.submission.note

    @cached_property
    def _events(self) -> list[attempts.Event]:
        return attempts.read(self.submission.logs, self.job)

    def _file(self, rank: int, end: str) -> Path:
        return self.submission.logs / f"{self.job}_{rank}_{end}"

    @property
    def _files(self) -> list[Path]:
        return [self._file(rank, end) for rank in range(self._note.tasks) for end in ("log.out", "log.err")]

    @cached_property
    def _results(self) -> list[str | None]:
        """What each process left, if it did so in this attempt."""
        paths = [self._file(rank, "result.pkl") for rank in range(self._note.tasks)]
        return [
            pickle_load(path)[0] if path.exists() and path.stat().st_mtime > self.since - 1 else None
            for path in paths
        ]

    @property
    def _blamed(self) -> Path:
        """What the process wrote that failed, or else the first one without a result."""
        at_fault = next((what for what in ("error", None) if what in self._results), "success")
        return self._file(self._results.index(at_fault), "log.err")


def _end(last: attempts.Event, otherwise: StateName, note: str) -> Verdict:
    """By an attempt's end.

    Args:
        last: The end.
        otherwise: The state of a job that may, or may not, be queued again.
        note: What is known of that.
    """
    why = last.why or ""
    if last.kind == "done":
        return Verdict("done")
    if not last.again and last.kind != "by Slurm":
        return Verdict("failed", why)
    if last.again and otherwise == "cancelled":
        return Verdict("failed", f"{why}; but it is not in the queue: submit it again")
    return Verdict("requeued" if last.again else otherwise, f"{why}; {note}")


def _last_error(log: Path, length: int = 200) -> str:
    """The last line that names an error, of the end of a log; empty when there is none."""
    if not log.exists():
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 65536))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    # That of a stage says no more than its exit code.
    named = [line for line in lines if _ERROR.match(line) and "ended with exit code" not in line]
    return textwrap.shorten(named[-1], length, placeholder=" ...") if named else ""


def unreachable(note: runs.JobNote) -> str:
    """Why it cannot be told whether a job lives."""
    return "SLURM does not answer" if note.executor == "slurm" else f"only {note.host} can tell"


class _Timeout(pydantic.BaseModel):
    """The one field of a pretraining's config that counts here: its schema would import torch."""

    timeout_s: float = 300


def _timeout(run: Path) -> float:
    try:
        return configs.load(run / "config.yaml", schema=_Timeout).timeout_s
    except ConfigError:
        return _Timeout().timeout_s


def heartbeat(run: Path) -> dict[str, Any]:
    """Empty before the first one."""
    with suppress(OSError, ValueError):
        beat: dict[str, Any] = json.loads((run / "heartbeat.json").read_text())
        return beat
    return {}


def span(seconds: float) -> str:
    """A length of time for people."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{int(unit != 'min')}f} {unit}"
    return f"{seconds:.0f} s"
