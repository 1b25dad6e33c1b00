"""Runs a stage: finds the shards that need work, does them in worker processes, commits each."""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures import wait as wait_for_all
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tqdm import tqdm

from configs import ConfigError
from data_prep.files import Commit, claim, commit, last_holder, read_commit, shard_paths

if TYPE_CHECKING:
    import pyarrow as pa

# One thread a worker: the processes already fill the cores, and spinning threads would double the CPU time.
SINGLE_THREADED = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
WHOLE = slice(None)


def parse_part(text: str) -> slice:
    """``I/N`` of a command line as a slice: of numbered things, those whose number % N is I.

    Raises:
        argparse.ArgumentTypeError: unless 0 <= I < N.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with I from 0 to N-1, for example 0/4")
    return slice(int(found[1]), None, int(found[2]))


class StageError(RuntimeError):
    """A shard could not be made for a reason outside of the code. The message is one line: place, reason, mend."""


@dataclass(frozen=True)
class Shard:
    """A unit of work. ``inputs`` hashes what it is made from; ``payload`` tells the worker where that is."""

    number: int
    size: int
    inputs: str
    payload: Any


@dataclass(frozen=True)
class Stage:
    """A folder of shards made by one function.

    ``version`` goes up when the algorithm changes; ``settings`` are the configuration fields, by dotted name,
    that alter the output. Both, with each shard's ``inputs``, decide whether a shard on disk is still right.
    ``work`` makes the table of a shard. ``processes`` says, when there is work, how many of the allowed processes
    are of use; all, unless given.
    """

    name: str
    folder: Path
    version: int
    settings: dict[str, Any]
    work: Callable[[Shard], pa.Table]
    processes: Callable[[int], int] = int

    def mark(self, number: int) -> Commit:
        """The mark of one shard; raises ConfigError where it is missing, or made by other settings or versions."""
        mark = read_commit(self.folder, number)
        if mark is None:
            place = shard_paths(self.folder, number)[1]
            raise ConfigError(f"{place}: stage '{self.name}' is not done; run it, or the stage 'all'")
        _require_same_making(self, number, mark)
        return mark

    def commits(self, shards: int) -> list[Commit]:
        """The marks of all shards, in order; raises as :meth:`mark`, or if there are more."""
        _refuse_surplus(self, shards)
        return [self.mark(number) for number in range(shards)]


def run(
    stage: Stage, shards: Sequence[Shard], total: int, *, workers: int, retry_failed: bool = False
) -> bool:
    """Bring ``shards``, some or all of the ``total`` that the source has, up to date. False: they were.

    Shards that are done are left alone. One made with other settings, by another version or from other
    inputs is refused: nothing computed is thrown away unasked. With ``retry_failed`` a shard that has failed
    rows, or whose inputs changed because an earlier stage retried, is done again.

    Raises:
        ConfigError: a shard on disk was made differently; the message names the field and the mend.
        RuntimeError: a shard cannot be made; the message names its table. Those that are done stay. It is a
            StageError where a process was killed, the disk is full or a table is damaged.
    """
    todo = unfinished(stage, shards, total, retry_failed)
    if todo:
        workers = stage.processes(workers)
        rows = sum(shard.size for shard in shards)
        done = rows - sum(shard.size for shard in todo)
        with tqdm(total=rows, initial=done, desc=stage.name, unit="row") as bar:
            # Shards that another process is at are left to the end, and then waited for.
            busy = _sweep(stage, todo, workers, retry_failed, wait=False, bar=bar)
            _sweep(stage, busy, workers, retry_failed, wait=True, bar=bar)
    return bool(todo)


def unfinished(stage: Stage, shards: Sequence[Shard], total: int, retry_failed: bool = False) -> list[Shard]:
    """The shards that :func:`run` would do; raises as it does."""
    _refuse_surplus(stage, total)
    return [shard for shard in shards if _needs_work(stage, shard, retry_failed)]


def _needs_work(stage: Stage, shard: Shard, retry_failed: bool) -> bool:
    mark = read_commit(stage.folder, shard.number)
    if mark is None:
        return True
    _require_same_making(stage, shard.number, mark)
    if mark.inputs != shard.inputs:
        if retry_failed:
            return True
        place = shard_paths(stage.folder, shard.number)[1]
        raise ConfigError(
            f"{place}: its inputs have changed since it was made; add --retry-failed if pictures were repaired, "
            f"or {_mend(stage)}"
        )
    return retry_failed and mark.failed > 0


def _refuse_surplus(stage: Stage, total: int) -> None:
    surplus = shard_paths(stage.folder, total)[1]
    if surplus.exists():
        raise ConfigError(f"{surplus}: the source had more pictures when this was made; {_mend(stage)}")


def _require_same_making(stage: Stage, number: int, mark: Commit) -> None:
    place = shard_paths(stage.folder, number)[1]
    if mark.version != stage.version:
        raise ConfigError(
            f"{place}: made by version {mark.version} of the stage, this is {stage.version}; {_mend(stage)}"
        )
    if mark.settings != stage.settings:
        raise ConfigError(f"{place}: {_difference(mark.settings, stage.settings)}; {_mend(stage)}")


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    first = changed[0]
    more = f" (and {len(changed) - 1} more fields)" if len(changed) > 1 else ""
    return f"made with {first}={before.get(first)}, now {first}={now.get(first)}{more}"


def _mend(stage: Stage) -> str:
    return f"give another output=FOLDER, or remove {stage.folder} and what was made from it"


def _sweep(
    stage: Stage, shards: list[Shard], workers: int, retry_failed: bool, *, wait: bool, bar: tqdm[Any]
) -> list[Shard]:
    """Do ``shards``; returns those that another process holds."""
    busy = []
    with closing(_each(stage, shards, min(workers, len(shards)), retry_failed, wait)) as each:
        for shard, finished in each:
            if finished:
                bar.update(shard.size)
            else:
                busy.append(shard)
    return busy


def _each(
    stage: Stage, shards: list[Shard], workers: int, retry_failed: bool, wait: bool
) -> Generator[tuple[Shard, bool], None, None]:
    if workers <= 1:
        for shard in shards:
            yield shard, _attempt(stage, shard, retry_failed, wait)
        return
    with _environment(SINGLE_THREADED), _pool(workers) as pool:
        futures: dict[Future[bool], Shard] = {}
        try:
            for shard in shards:
                futures[_submit(pool, stage, shard, retry_failed, wait)] = shard
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            # The pool has ended the workers that it knew. For one that was just being started it would wait for ever.
            for process in _Worker.started:
                process.terminate()
            pool.shutdown()
            lost = [shard for future, shard in futures.items() if future.exception()]
            raise _worker_died(stage, lost) from None
        except Exception:
            wait_for_all([future for future in futures if not future.cancel()])  # what is begun is ended
            raise
        finally:
            # The pool would ask the workers to end and wait; where one is killed meanwhile, for ever, for it takes
            # the lock of their queue with it. They have nothing left to do, or the command was told to stop.
            for process in _Worker.started:
                process.kill()


def _submit(
    pool: ProcessPoolExecutor, stage: Stage, shard: Shard, retry_failed: bool, wait: bool
) -> Future[bool]:
    try:
        return pool.submit(_attempt, stage, shard, retry_failed, wait)
    except (
        OSError
    ) as error:  # a worker has just died, and the pool has closed its pipe but does not say so yet
        raise BrokenProcessPool from error


def _worker_died(stage: Stage, lost: list[Shard]) -> StageError:
    """Names the shard that a worker was at when it died, and how it died."""
    # The others were ended with SIGTERM.
    first = max(_Worker.started, key=lambda process: process.exitcode not in (0, -signal.SIGTERM))
    code = first.exitcode or 0
    how = f"killed by signal {-code}" if code < 0 else f"with exit code {code}"
    if code == -signal.SIGKILL:
        how += ", as the system does when memory runs out"
    at = [shard.number for shard in lost if last_holder(stage.folder, shard.number) == first.pid]
    place = shard_paths(stage.folder, at[0])[0] if at else stage.folder
    return StageError(
        f"{place}: stage '{stage.name}': the worker process that was at it died ({how}). What is done is kept: run "
        f"the same command again; with workers={max(1, len(_Worker.started) // 2)} it needs less memory"
    )


def _attempt(stage: Stage, shard: Shard, retry_failed: bool, wait: bool) -> bool:
    """Do one shard unless somebody else has it or has done it; False: somebody is at it."""
    place = f"{shard_paths(stage.folder, shard.number)[0]}: stage '{stage.name}' cannot make this shard"
    try:
        with claim(stage.folder, shard.number, wait) as mine:
            if not mine:
                return False
            if _needs_work(stage, shard, retry_failed):
                _make(stage, shard)
    except ConfigError:
        raise
    except OSError as error:
        raise StageError(
            f"{place}: {error}. What is done is kept: mend it and run the same command again"
        ) from error
    except Exception as error:
        raise RuntimeError(f"{place}: {error or repr(error)}") from error
    return True


_timings: dict[str, float] = defaultdict(float)
_timings_lock = threading.Lock()


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Book the time inside to ``name`` in the mark of the shard that this process is at; threads add up."""
    started = time.perf_counter()
    try:
        yield
    finally:
        with _timings_lock:
            _timings[name] += time.perf_counter() - started


def _make(stage: Stage, shard: Shard) -> None:
    _timings.clear()
    started = time.monotonic()
    table = stage.work(shard)
    commit(
        stage.folder,
        shard.number,
        table,
        stage=stage.name,
        version=stage.version,
        settings=stage.settings,
        inputs=shard.inputs,
        seconds=round(time.monotonic() - started, 3),
        timings={name: round(seconds, 6) for name, seconds in _timings.items()},
    )


# --- processes -----------------------------------------------------------------------------------------------


class _Worker(SpawnProcess):
    """A worker of the pool. The pool itself tells nobody which processes it has started."""

    started: ClassVar[list[_Worker]] = []

    def start(self) -> None:
        """Start it, and note that it was."""
        super().start()
        self.started.append(self)


class _Context(SpawnContext):
    Process = _Worker


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn, not fork: a forked child would inherit locks held by the threads of pyarrow or torch.
    _Worker.started.clear()
    return ProcessPoolExecutor(workers, mp_context=_Context(), initializer=_follow_parent)


def _follow_parent() -> None:
    """A worker whose parent was killed must not go on computing for nobody. Ctrl-C is its parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
