"""From a ``.beton`` to uint8 batches, in an order that is a pure function of (seed, epoch).

FFCV's decoder decodes and does nothing else. The order, the position in it and the share of a rank are ours, so a run
resumes from the step number alone and the global batch does not depend on the number of ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from configs import Config, ConfigError
from data_prep.beton import Beton, read_manifest
from data_prep.subset import read_note
from pretrain.distributed import Ranks

Indices = npt.NDArray[np.int64]
Images = npt.NDArray[np.uint8]


class DataConfig(Config):
    """The pictures to learn from."""

    path: str = Field(description="a .beton written by data_prep")
    rows: str | None = Field(
        None,
        description="a .npy of row numbers (python -m data_prep subset): learn from these pictures only; null: "
        "from all",
    )
    decoder: Literal["ffcv", "pillow"] = Field(
        "ffcv",
        description="ffcv reads 1.5 times as fast (benchmarks/loader.py); pillow needs no compiled package. Their "
        "pixels differ by a few grey levels, so a run keeps the one it began with",
    )
    workers: int = Field(
        0, ge=0, description="decoding threads; 0 = this rank's share of the cores, at most 8"
    )


class Batch(NamedTuple):
    """One rank's share of a global batch; on a CPU the next one may overwrite it."""

    images: Tensor  # (B, H, W, 3) uint8, on the rank's device
    rows: Indices  # (B,) of the data set


def epoch_order(seed: int, epoch: int, count: int) -> Indices:
    """The permutation of ``count`` samples that ``epoch`` visits. (seed 0, epoch 1) is not (seed 1, epoch 0)."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(count)


class Batches:
    """The endless sequence of batches of one rank, entered at any step.

    Global batch b of an epoch is the positions [b * B, (b + 1) * B) of its order; rank r takes the r-th of
    ``world`` equal slices. The last, incomplete batch of an epoch is dropped.
    """

    def __init__(self, config: DataConfig, place: Ranks, *, batch_size: int, seed: int) -> None:
        if batch_size % place.world:
            raise ConfigError(
                f"batch_size: {batch_size} is not a multiple of the {place.world} ranks; change one"
            )
        beton = Beton(config.path)
        self._rows = read_rows(config.rows, len(beton), config.path) if config.rows else None
        self.count = len(beton) if self._rows is None else len(self._rows)
        self.steps_per_epoch = self.count // batch_size
        if not self.steps_per_epoch:
            raise ConfigError(
                f"batch_size: {batch_size} is more than the {self.count} pictures of {config.rows or config.path}"
            )
        self._place, self._seed = place, seed
        self._batch_size, self._rank_batch = batch_size, batch_size // place.world
        workers = config.workers or min(8, place.cores)
        self._decoder = Decoder(beton, config, workers, pinned=place.device.type == "cuda")

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches of ``step``, ``step + 1``, ... without end."""
        epoch, first = divmod(step, self.steps_per_epoch)
        while True:
            order = epoch_order(self._seed, epoch, self.count)
            order = self._share(order if self._rows is None else self._rows[order])[first:].reshape(-1)
            size = self._rank_batch
            for i, images in enumerate(self._decoder.epoch(order, size)):
                there = images.to(self._place.device, non_blocking=True)
                copied = torch.cuda.current_stream().record_event() if there.is_cuda else None
                yield Batch(there, order[i * size : (i + 1) * size])
                if copied is not None:
                    copied.synchronize()  # long ago; from here on the buffer may be filled anew
            epoch, first = epoch + 1, 0

    def _share(self, order: Indices) -> Indices:
        """(steps, B / world): what this rank reads at each step of the epoch."""
        whole = order[: self.steps_per_epoch * self._batch_size]
        return whole.reshape(self.steps_per_epoch, self._place.world, -1)[:, self._place.rank]


def read_rows(path: str, count: int, beton: str) -> Indices:
    """The row numbers in the .npy file at ``path``, of the set ``beton`` with ``count`` pictures.

    Raises:
        ConfigError: if it is no list of different rows of that set, or was drawn from another one.
    """
    note = read_note(Path(path))
    if note and note.set != read_manifest(beton).sha256:
        raise ConfigError(
            f"data.rows: {path} was drawn from another set than {beton}; draw again with 'python -m data_prep subset'"
        )
    try:
        rows: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.rows: {path} cannot be read as a .npy file ({error})") from None
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise ConfigError(
            f"data.rows: {path} holds {rows.dtype} {rows.shape}; write whole numbers in one axis"
        )
    if len(rows) and not (rows.min() >= 0 and rows.max() < count):
        raise ConfigError(f"data.rows: {path} names row {rows.max()}, but the set has rows 0 to {count - 1}")
    if len(np.unique(rows)) < len(rows):
        raise ConfigError(f"data.rows: {path} names a row twice; write each once")
    return rows.astype(np.int64)


_AHEAD = 2  # batches


class Decoder:
    """Decodes the pictures of an epoch in threads, two batches ahead: no thread waits for another one's share."""

    def __init__(self, beton: Beton, config: DataConfig, workers: int, *, pinned: bool) -> None:
        self._beton, self._workers, self._pinned = beton, workers, pinned
        self._decode = _ffcv() if config.decoder == "ffcv" else _pillow

    def epoch(self, order: Indices, batch_size: int) -> Iterator[Tensor]:
        """(batch_size, H, W, 3) uint8 CPU tensors for consecutive parts of ``order``, valid until the next."""
        side = self._beton.image(0).shape[0]
        ring = [
            torch.empty((batch_size, side, side, 3), dtype=torch.uint8, pin_memory=self._pinned)
            for _ in range(_AHEAD + 1)
        ]
        batches = np.split(order, range(batch_size, len(order), batch_size))
        with ThreadPoolExecutor(self._workers) as pool:
            under_way = deque(self._start(pool, *work) for work in zip(batches[:_AHEAD], ring, strict=False))
            for number, rows in enumerate(batches):
                for part in under_way.popleft():
                    part.result()
                if (later := number + _AHEAD) < len(batches):
                    # Into the buffer of the batch before this one, with which the caller is done.
                    under_way.append(self._start(pool, batches[later], ring[later % len(ring)]))
                yield ring[number % len(ring)][: len(rows)]

    def _start(self, pool: ThreadPoolExecutor, rows: Indices, images: Tensor) -> list[Future[None]]:
        """Fill ``images`` with the pictures ``rows``, an equal part in each thread."""
        parts = np.array_split(np.arange(len(rows)), self._workers)
        return [pool.submit(self._fill, rows, images.numpy(), part) for part in parts if len(part)]

    def _fill(self, rows: Indices, images: Images, places: Indices) -> None:
        for place in places:
            self._decode(self._beton, int(rows[place]), images[place])


def _pillow(beton: Beton, row: int, out: Images) -> None:
    """Pillow lets go of the interpreter while it decodes."""
    out[:] = beton.image(row)


def _ffcv() -> Callable[[Beton, int, Images], None]:
    """FFCV's own C function, without its Loader.

    The Loader builds Python sets for every row (gigabytes and minutes for millions), compiles for seconds at each
    start, cannot be given an order, and hands out zeros for a picture that it cannot read.
    """
    try:
        from ffcv.libffcv import imdecode
    except ImportError as error:
        raise ConfigError(f"data.decoder: ffcv cannot be imported ({error}); write pillow") from None

    def decode(beton: Beton, row: int, out: Images) -> None:
        if beton.is_raw(row):
            out[:] = beton.image(row)
            return
        side = len(out)
        if imdecode(beton.stored(row), out, side, side, side, side, 0, 0, 1, 1, False, False):
            raise OSError(f"{beton.path}: row {row} is no whole JPEG; copy the file again, or write it again")

    return decode
