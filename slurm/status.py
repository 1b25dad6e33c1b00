"""What became of the jobs of run directories, from their files and from squeue; and how to end them.

The files alone tell most of it: it works without SLURM's accounting, while SLURM does not answer, and long after it
has forgotten a job. Where squeue still knows a job to be queued or running, that counts.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from configs import ConfigError, cli
from pretrain.log import read_metrics
from slurm import runs
from slurm.verdict import (
    NEVER_BEGAN,
    PIECES,
    STATES,
    WITH_HEARTBEAT,
    Part,
    StateName,
    heartbeat,
    span,
    unreachable,
)

NEED_ATTENTION = ("hung", "failed")
CANCEL_S = 10
WIDTH_OF_RUN, WIDTH = 36, 136
_COLOURS = {"hung": 31, "failed": 31, "running": 32, "requeued": 33, "queued": 33, "done": 2}


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
        live = {note: alive for note in notes if (alive := runs.live_in(note, queue)) is not False}
        for note, alive in live.items():
            ended, what = _cancel(note) if alive else (False, f"may still run: {unreachable(note)}")
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
        if not (is_run and name in PIECES) and not name.startswith((".", "_")):
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
    if why != NEVER_BEGAN or not after:
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
    parts = [Part(submission, job, queue, now) for job in note.ids]
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


# --- progress of a pretraining -------------------------------------------------------------------------------


def _progress(run: Path, since: float, now: float) -> dict[str, Any]:
    """The fields of a RunStatus that ``heartbeat.json`` and ``metrics.jsonl`` tell.

    Args:
        run: A pretraining's run directory.
        since: When the attempt began: its pace is not that of the one before.
        now: Seconds since 1970.
    """
    beat, rows = heartbeat(run), []
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
        "" if row.left_s is None else span(row.left_s),
        "" if row.heartbeat_s is None else span(row.heartbeat_s),
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
