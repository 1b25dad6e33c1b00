"""Worker processes that go at the wrong moment."""

import time
from pathlib import Path

import pyarrow as pa
import pytest

from data_prep import stage as stages
from data_prep.stage import Shard, Stage, StageError, run


def table(shard: Shard) -> pa.Table:
    """Some rows."""
    return pa.table({"row": list(range(shard.size)), "error": pa.nulls(shard.size, pa.string())})


def test_a_worker_that_dies_while_the_next_one_is_started_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's pool ends the workers that it knows at that moment, and then waits for all of them."""
    start = stages._Worker.start

    def start_slowly(worker: stages._Worker) -> None:
        start(worker)
        for earlier in stages._Worker.started[:-1]:
            earlier.kill()
            earlier.join()
            time.sleep(0.5)  # the pool hears of it, and does not know of this one yet

    monkeypatch.setattr(stages._Worker, "start", start_slowly)
    stage = Stage("count", tmp_path, 1, {}, table)
    shards = [Shard(number, 3, "", None) for number in range(4)]
    with pytest.raises(StageError, match=r"the worker process that was at it died \(killed by signal 9"):
        run(stage, shards, 4, workers=2)
    assert not any(worker.is_alive() for worker in stages._Worker.started)
    monkeypatch.undo()
    assert run(stage, shards, 4, workers=2)
