"""What became of the jobs of run directories, from their files and from squeue; and how to end them.

The files alone tell most of it: it works without SLURM's accounting, while SLURM does not answer, and long after it
has forgotten a job. Where squeue still knows a job to be queued or running, that counts.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pydantic
from submitit.core.utils import pickle_load
from tabulate import tabulate

import configs
from configs import ConfigError, cli
from pretrain.log import read_metrics
from slurm import attempts, runs

StateName = Literal["hung", "failed", "running", "requeued", "queued", "unknown", "cancelled", "done"]
# An array is in the first of these that one of its parts is in.
STATES: tuple[StateName, ...] = get_args(StateName)
NEED_ATTENTION = ("hung", "failed")
WITH_HEARTBEAT = "pretrain"
QUIET_S = 30 * 60  # so long may a pretraining take to its first step, and another stage write nothing
CANCEL_S = 10
WIDTH_OF_RUN, WIDTH = 36, 136
_COLOURS = {"hung": 31, "failed": 31, "running": 32, "requeued": 33, "queued": 33, "done": 2}

# Folders of a run that hold pieces, by the thousand, and no other run.
_PIECES = {
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
_NEVER_BEGAN = "removed from the queue before it began"
_ERROR = re.compile(r"error: |[\w.]*(Error|Exception)\b|.*oom.kill", re.IGNORECASE)
_ENDS = {"OUT_OF_MEMORY": "out of memory", "TIMEOUT": "the time limit", "NODE_FAIL": "its node failed"}


@dataclass(frozen=True)
class RunStatus:
    """The newest submission of one stage in a run directory."""

    run: str
    stage: str
    name: str
    """In the queue."""
    job: str
    state: StateName
    why: str = ""
    """In words, when there is something to say."""
    log: str = ""
    parts: dict[str, int] = field(default_factory=dict)
    """Of an array: how many of its parts are in which state."""
    restarts: int = 0
    """Of an array: those of all its parts."""
    step: int | None = None
    total: int | None = None
    images_per_second: float | None = None
    loss: float | None = None
    knn: float | None = None
    left_s: float | None = None
    """Seconds to the last step at the pace of the newest rows, while it runs."""
    heartbeat_s: float | None = None
    """Seconds since the last heartbeat."""


# --- commands ------------------------------------------------------------------------------------------------


def show(folders: Sequence[Path], *, as_json: bool = False, verbose: bool = False) -> int:
    """Print the runs at or below ``folders``; exit code 1 if one of them failed or hangs.

    Raises:
        ConfigError: when a folder holds no run.
    """
    rows = status(find_runs(folders))
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(table(rows, verbose=verbose, colours=sys.stdout.isatty()))
    return cli.FAILED if any(row.state in NEED_ATTENTION for row in rows) else cli.DONE


def cancel(folders: Sequence[Path]) -> int:
    """End what is queued or running of the runs at or below ``folders``; exit code 1 if something may be left.

    Raises:
        ConfigError: when a folder holds no run, or scancel refuses.
    """
    code = cli.DONE
    submitted = {run: [note for _, note in runs.submissions(run)] for run in find_runs(folders)}
    queue = _queue(note for notes in submitted.values() for note in notes)
    for run, notes in submitted.items():
        live = {note: alive for note in notes if (alive := _live(note, queue)) is not False}
        for note, alive in live.items():
            ended, what = _cancel(note) if alive else (False, f"may still run: {_unreachable(note)}")
            print(f"{run}: job {note.job} ({note.stage}) {what}", file=sys.stdout if ended else sys.stderr)
            code = code if ended else cli.FAILED
        if not live:
            print(f"{run}: nothing is queued or running")
    return code


def _cancel(note: runs.JobNote) -> tuple[bool, str]:
    runs.cancel(note)
    deadline = time.monotonic() + CANCEL_S
    while note.executor == "local" and runs.live(note):
        if time.monotonic() > deadline:
            return False, f"was told to stop and still runs; end its processes: pkill -KILL -P {note.job}"
        time.sleep(0.1)
    return True, "cancelled"


def _unreachable(note: runs.JobNote) -> str:
    return "SLURM does not answer" if note.executor == "slurm" else f"only {note.host} can tell"


def _live(note: runs.JobNote, queue: Mapping[str, runs.State] | None) -> bool | None:
    """As runs.live, with squeue's answer at hand."""
    if note.executor == "local":
        return runs.live(note)
    return None if queue is None else any(queue[job].state in runs.LIVE for job in note.ids if job in queue)


def _queue(notes: Iterator[runs.JobNote]) -> dict[str, runs.State] | None:
    """What squeue knows, in one call: the id of an array stands for all its parts."""
    return runs.states([note.job for note in notes if note.executor == "slurm"])


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run directories at or below each of ``folders``: those with a submitted job.

    Raises:
        ConfigError: naming the folder without one.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        below = list(_runs_below(folder)) if folder.is_dir() else []
        if not below:
            raise ConfigError(f"{folder}: no submitted run there; give a run directory, or a folder above it")
        found |= dict.fromkeys(below)
    return list(found)


def _runs_below(folder: Path) -> Iterator[Path]:
    if is_run := any((folder / "logs").glob("[0-9]*/job.json")):
        yield folder
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in sorted(names):
        if not (is_run and name in _PIECES) and not name.startswith((".", "_")):
            yield from _runs_below(folder / name)


# --- states --------------------------------------------------------------------------------------------------


def status(folders: Sequence[Path]) -> list[RunStatus]:
    """The newest submission of each stage in these run directories; SLURM is asked once."""
    newest = [submission for folder in folders for submission in _newest(folder)]
    queue = _queue(note for _, note in newest)
    rows = [_row(submission, queue, time.time()) for submission in newest]
    # A job is looked up by number, so that one can say what another one waits for.
    known = {note.job: row for row, (_, note) in zip(rows, newest, strict=True) if note.executor == "slurm"}
    return [
        replace(row, why=_with_names(row.why, note.after, known))
        for row, (_, note) in zip(rows, newest, strict=True)
    ]


def _newest(run: Path) -> list[runs.Submission]:
    try:
        return list({submission.note.stage: submission for submission in runs.submissions(run)}.values())
    except OSError as error:
        print(f"{run} is left out: {error}", file=sys.stderr)
        return []


def _with_names(why: str, after: Sequence[str], known: Mapping[str, RunStatus]) -> str:
    """``why`` with what the jobs before this one are, or came to."""
    if "{after}" in why:
        return why.replace("{after}", ", ".join(_named(job, known) for job in after))
    if why != _NEVER_BEGAN or not after:
        return why
    ended = [job for job in after if job in known and known[job].state in ("failed", "cancelled")]
    if not ended:
        return f"{why}: one of those before it did not end well ({', '.join(after)})"
    what = "failed" if known[ended[0]].state == "failed" else "was cancelled"
    return f"{_named(ended[0], known)} before it {what}"


def _named(job: str, known: Mapping[str, RunStatus]) -> str:
    return f"job {job} ({known[job].name})" if job in known else f"job {job}"


def _row(submission: runs.Submission, queue: Mapping[str, runs.State] | None, now: float) -> RunStatus:
    note, run = submission.note, submission.logs.parents[1]
    parts = [_Part(submission, job, queue, now) for job in note.ids]
    first = min(parts, key=lambda part: STATES.index(part.verdict.state))
    counts = Counter(part.verdict.state for part in parts)
    row = RunStatus(
        run=str(run),
        stage=note.stage,
        name=note.name,
        job=note.job,
        state=first.verdict.state,
        why=first.verdict.why,
        log=str(first.log),
        parts={} if note.array is None else {state: counts[state] for state in STATES if counts[state]},
        restarts=sum(part.restarts for part in parts),
    )
    if note.stage != WITH_HEARTBEAT:
        return row
    progress = _progress(run, first.since, now)
    return replace(row, **progress | ({} if row.state == "running" else {"left_s": None}))


class _Verdict(NamedTuple):
    state: StateName
    why: str = ""


@dataclass(frozen=True)
class _Part:
    """A job, or one task of an array."""

    submission: runs.Submission
    job: str
    queue: Mapping[str, runs.State] | None
    """What squeue says of all jobs; None: it does not answer."""
    now: float

    @cached_property
    def verdict(self) -> _Verdict:
        """Its state, and why."""
        verdict = self._local() if self._note.executor == "local" else self._slurm()
        if verdict == ("running", ""):
            return self._signs_of_life()
        if verdict.state == "failed" and (words := _last_error(self._blamed)):
            return _Verdict("failed", f"{verdict.why}: {words}")
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

    def _local(self) -> _Verdict:
        alive = runs.live(self._note)
        if alive:
            return _Verdict("running")
        controller = self.submission.logs / "controller.log"
        if controller.exists() and "KeyboardInterrupt" in controller.read_text(errors="replace"):
            return _Verdict("cancelled")
        if verdict := self._result():
            return verdict
        if alive is None:
            return self._unseen(_unreachable(self._note))
        return _Verdict("failed", "it ended without a result: killed, or out of memory")

    def _slurm(self) -> _Verdict:
        found = (self.queue or {}).get(self.job)
        last = self._events[-1] if self._events else None
        end = last if last and last.event == "end" else None
        if found is None:
            return self._by_files(last, end)
        if found.state == "COMPLETING" and end:
            return _end(end, "running", "SLURM is still clearing up")
        if found.state in runs.LIVE:
            return self._in_queue(found)
        if found.state == "COMPLETED":
            return _Verdict("done")
        if found.state == "CANCELLED":
            return _Verdict("cancelled", "" if last else _NEVER_BEGAN)
        why = end.why if end and not end.again else None
        return _Verdict("failed", why or _ENDS.get(found.state, f"SLURM says {found.state}"))

    def _in_queue(self, found: runs.State) -> _Verdict:
        if found.state not in _WAITING:
            return _Verdict("running", "SLURM has suspended it" if found.state == "SUSPENDED" else "")
        words = _REASONS.get(found.reason, "").replace("{job}", self.job)
        reason = f"{found.reason or found.state}{words and ': '}{words}"
        if not self._events:
            return _Verdict("queued", reason)
        ends = [event.why for event in self._events if event.event == "end"]
        return _Verdict("requeued", f"attempt {self.restarts + 1}: {ends[-1] if ends else 'lost'}; {reason}")

    def _by_files(self, last: attempts.Event | None, end: attempts.Event | None) -> _Verdict:
        """When squeue does not know the job, or does not answer."""
        unasked = _unreachable(self._note) if self.queue is None else ""
        if end:
            return _end(end, "unknown" if unasked else "cancelled", unasked or "it is no longer in the queue")
        if verdict := self._result():
            return verdict
        if unasked:
            return self._unseen(unasked) if last else _Verdict("unknown", unasked)
        if last:
            return _Verdict("failed", "it vanished: SLURM does not know it, and nothing noted its end")
        return _Verdict("cancelled", _NEVER_BEGAN)

    def _unseen(self, why: str) -> _Verdict:
        """Of a job that began, and of which nobody can be asked."""
        silent, limit = self._silence
        if silent < limit:
            return _Verdict("running")
        return _Verdict("unknown", f"{why}; no sign for {_span(silent)}")

    def _result(self) -> _Verdict | None:
        """As its processes left it; None while one has left no result and none an error."""
        if "error" in self._results:
            return _Verdict("failed", f"process {self._results.index('error')}")
        return None if None in self._results else _Verdict("done")

    def _signs_of_life(self) -> _Verdict:
        """Of a running job: whether it hangs."""
        (silent, limit), run = self._silence, self._run
        just_started = self._note.executor == "slurm" and (
            not self._events or self._events[-1].event == "end"
        )
        if silent < limit or just_started:
            return _Verdict("running")
        if self._note.stage != WITH_HEARTBEAT:
            return _Verdict("running", f"quiet for {_span(silent)}")
        traces = f"what each rank was at: {run}/nccl_trace_rank_*; "
        traces = traces if any(run.glob("nccl_trace_rank_*")) else ""
        what = f"no heartbeat for {_span(silent)}, {_span(limit)} are allowed"
        return _Verdict(
            "hung", f"{what}; {traces}end it with python -m slurm cancel {run}, and submit it again"
        )

    @cached_property
    def _silence(self) -> tuple[float, float]:
        """Seconds since it last gave a sign of life, and how many are no reason to worry."""
        run = self._run
        if self._note.stage == WITH_HEARTBEAT:
            beat = _heartbeat(run).get("time", 0)
            return (
                (self.now - beat, _timeout(run)) if beat >= self.since else (self.now - self.since, QUIET_S)
            )
        # A folder of pieces changes when a piece is added. Those of an array are not this part's.
        pieces = (
            [] if self._note.array else [run / name for name in _PIECES - {"logs"}] + [*run.glob("cells/*")]
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


def _end(last: attempts.Event, otherwise: StateName, note: str) -> _Verdict:
    """By an attempt's end.

    Args:
        last: The end.
        otherwise: The state of a job that may, or may not, be queued again.
        note: What is known of that.
    """
    why = last.why or ""
    if last.kind == "done":
        return _Verdict("done")
    if not last.again and last.kind != "by Slurm":
        return _Verdict("failed", why)
    if last.again and otherwise == "cancelled":
        return _Verdict("failed", f"{why}; but it is not in the queue: submit it again")
    return _Verdict("requeued" if last.again else otherwise, f"{why}; {note}")


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


# --- progress of a pretraining -------------------------------------------------------------------------------


class _Timeout(pydantic.BaseModel):
    """The one field of a pretraining's config that counts here: its schema would import torch."""

    timeout_s: float = 300


def _timeout(run: Path) -> float:
    try:
        return configs.load(run / "config.yaml", schema=_Timeout).timeout_s
    except ConfigError:
        return _Timeout().timeout_s


def _heartbeat(run: Path) -> dict[str, Any]:
    """Empty before the first one."""
    with suppress(OSError, ValueError):
        beat: dict[str, Any] = json.loads((run / "heartbeat.json").read_text())
        return beat
    return {}


def _progress(run: Path, since: float, now: float) -> dict[str, Any]:
    """The fields of a RunStatus that ``heartbeat.json`` and ``metrics.jsonl`` tell.

    Args:
        run: A pretraining's run directory.
        since: When the attempt began: its pace is not that of the one before.
        now: Seconds since 1970.
    """
    beat, rows = _heartbeat(run), []
    with suppress(ValueError):  # a power cut may leave a line of anything
        rows = read_metrics(run / "metrics.jsonl")
    signs = [*rows[-20:], *([beat] if beat else [])]
    if not signs:
        return {}
    newest = rows[-1] if rows else {}
    step, total = max(int(sign["step"]) for sign in signs), beat.get("total")
    timed = [(sign["step"], sign["time"]) for sign in signs if sign.get("time", 0) >= since]
    first, last = min(timed, default=(0, 0)), max(timed, default=(0, 0))
    pace = (last[1] - first[1]) / (last[0] - first[0]) if last[0] > first[0] else None
    return {
        "step": step,
        "total": total,
        "images_per_second": newest.get("images_per_second"),
        "loss": newest.get("loss"),
        "knn": next((row["knn"] for row in reversed(rows) if "knn" in row), None),
        "left_s": (total - step) * pace if pace and total else None,
        "heartbeat_s": now - beat["time"] if beat else None,
    }


# --- the table -----------------------------------------------------------------------------------------------

_HEADER = ("run", "stage", "job", "state", "restarts", "step", "images/s", "loss", "k-NN", "left", "beat")
_ALIGN = ("left", "left", "left", "left", *("right",) * 7)


def table(rows: Sequence[RunStatus], *, verbose: bool = False, colours: bool = False) -> str:
    """One line a row; below it what there is to say.

    Args:
        rows: What to show.
        verbose: Say of every row where its log is, not only where something is wrong.
        colours: Colour the states, for a terminal.
    """
    cells = [_cells(row, colours) for row in rows]
    header, line, *body = tabulate(
        cells, _HEADER, tablefmt="simple", disable_numparse=True, colalign=_ALIGN
    ).splitlines()
    below = [_below(row, verbose) for row in rows]
    return "\n".join(
        [header, line, *(text for row, more in zip(body, below, strict=True) for text in (row, *more))]
    )


def _cells(row: RunStatus, colours: bool) -> list[str]:
    state = f"{row.parts[row.state]} {row.state}" if len(row.parts) == 1 else row.state
    colour = _COLOURS.get(row.state) if colours else None
    run = row.run if len(row.run) <= WIDTH_OF_RUN else f"...{row.run[3 - WIDTH_OF_RUN :]}"
    return [
        run,
        row.stage,
        row.job,
        f"\033[{colour}m{state}\033[0m" if colour else state,
        str(row.restarts or ""),
        "" if row.step is None else f"{row.step}/{row.total or '?'}",
        _number(row.images_per_second, ".0f"),
        _number(row.loss, ".3f"),
        _number(row.knn, ".3f"),
        "" if row.left_s is None else _span(row.left_s),
        "" if row.heartbeat_s is None else _span(row.heartbeat_s),
    ]


def _below(row: RunStatus, verbose: bool) -> list[str]:
    counts = ", ".join(f"{count} {state}" for state, count in row.parts.items()) if len(row.parts) > 1 else ""
    said = "; ".join(text for text in (counts, row.why) if text)
    log = f"log: {row.log}" if verbose or row.state in NEED_ATTENTION else ""
    fold = textwrap.TextWrapper(
        WIDTH,
        initial_indent=" " * 4,
        subsequent_indent=" " * 4,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line for text in (said, log) for line in fold.wrap(text)]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{int(unit != 'min')}f} {unit}"
    return f"{seconds:.0f} s"
