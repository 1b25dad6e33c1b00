"""What a run says while it runs: ``metrics.jsonl``, TensorBoard and a progress line."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

from data_prep.files import atomic_write, write_json

Row = dict[str, float]

HEARTBEAT_SECONDS = 10
_WHO = {"host": socket.gethostname(), "pid": os.getpid()}


class RunLog:
    """One JSON object a row, the same numbers in TensorBoard, and a bar with images/s and the time left.

    A run that resumes at ``step`` first drops the rows that a killed process wrote after its last checkpoint,
    so every step has one row.
    """

    def __init__(self, folder: Path, *, step: int, total_steps: int, batch_size: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: who only reads metrics.jsonl needs no torch

        self._path = folder / "metrics.jsonl"
        self._batch_size, self._total_steps = batch_size, total_steps
        rows = [row for row in read_metrics(self._path) if row["step"] <= step]
        with atomic_write(self._path, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file = open(self._path, "a", buffering=1)  # noqa: SIM115 - closed in __exit__
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._bar = _progress(step * batch_size, total_steps * batch_size)
        self._since, self._images = time.monotonic(), 0
        self._beaten = -math.inf

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()

    def count_step(self, step: int) -> None:
        """Note that ``step`` steps are done; every ten seconds ``heartbeat.json`` says so to whoever watches."""
        self._images += self._batch_size
        self._bar.update(self._batch_size)
        if time.monotonic() - self._beaten > HEARTBEAT_SECONDS:
            self._beaten = time.monotonic()
            beat = {"step": step, "total": self._total_steps, "time": time.time(), **_WHO}
            write_json(self._path.with_name("heartbeat.json"), beat)

    def rate(self) -> float:
        """Images a second since the last row."""
        return self._images / (time.monotonic() - self._since)

    def write(self, row: Row) -> None:
        """Log a row, which must have ``step``; the time of writing is added."""
        self._file.write(
            json.dumps({name: _rounded(x) for name, x in row.items()} | {"time": time.time()}) + "\n"
        )
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, int(row["step"]))
        self._bar.set_postfix({k: f"{v:.3g}" for k, v in row.items() if k in _SHOWN}, refresh=False)
        self._since, self._images = time.monotonic(), 0


_SHOWN = ("epoch", "loss", "ln_k", "knn")


def read_metrics(path: Path) -> list[Row]:
    """The rows of a ``metrics.jsonl``; a half-written last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _progress(done: int, total: int) -> tqdm[NoReturn]:
    """A bar in a terminal, a line every 10 seconds in a log file."""
    in_terminal = sys.stderr.isatty()
    line = "{desc}{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    return tqdm(
        total=total,
        initial=done,
        unit=" images",
        unit_scale=True,
        mininterval=0.5 if in_terminal else 10,
        bar_format=None if in_terminal else line + "\n",
        desc="pretrain: " if not in_terminal else "pretrain",
    )
