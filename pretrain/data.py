"""From a ``.beton`` to uint8 batches, in an order that is a pure function of (seed, epoch).

FFCV decodes and does nothing else. The order, the position in it and the share of a rank are ours, so a run
resumes from the step number alone and the global batch does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from configs import Config, ConfigError
from data_prep.beton import Beton
from pretrain.distributed import Ranks

Indices = npt.NDArray[np.int64]


class DataConfig(Config):
    """The pictures to learn from."""

    path: str = Field(description="a .beton written by data_prep")
    rows: str | None = Field(
        None, description="a .npy of row numbers: learn from these pictures only; null: from all"
    )
    decoder: Literal["ffcv", "pillow"] = Field(
        "ffcv",
        description="ffcv reads 1.8 times as fast (benchmarks/loader.py); pillow needs no compiled package. Their "
        "pixels differ by a few grey levels, so a run keeps the one it began with",
    )
    workers: int = Field(
        0, ge=0, description="decoding threads; 0 = this rank's share of the cores, at most 8"
    )


class Batch(NamedTuple):
    """One rank's share of a global batch; on a CPU the next one may overwrite it."""

    images: Tensor  # (B, H, W, 3) uint8, on the rank's device
    rows: Indices  # (B,) of the data set


class Decoder(Protocol):
    """Reads the pictures of an epoch in a given order."""

    def epoch(self, order: Indices, batch_size: int) -> Iterator[Tensor]:
        """(batch_size, H, W, 3) uint8 CPU tensors for consecutive parts of ``order``, valid until the next."""


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
        self._rows = read_rows(config.rows, len(beton)) if config.rows else None
        self.count = len(beton) if self._rows is None else len(self._rows)
        self.steps_per_epoch = self.count // batch_size
        if not self.steps_per_epoch:
            raise ConfigError(
                f"batch_size: {batch_size} is more than the {self.count} pictures of {config.rows or config.path}"
            )
        self._place, self._seed = place, seed
        self._batch_size, self._rank_batch = batch_size, batch_size // place.world
        workers = config.workers or min(8, place.cores)
        decoder = FFCVDecoder if config.decoder == "ffcv" else PillowDecoder
        self._decoder: Decoder = decoder(beton, self._rank_batch, workers)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches of ``step``, ``step + 1``, ... without end."""
        epoch, first = divmod(step, self.steps_per_epoch)
        while True:
            order = epoch_order(self._seed, epoch, self.count)
            order = self._share(order if self._rows is None else self._rows[order])[first:].reshape(-1)
            size = self._rank_batch
            for i, images in enumerate(self._decoder.epoch(order, size)):
                there = images.to(self._place.device, non_blocking=True)
                yield Batch(there, order[i * size : (i + 1) * size])
            epoch, first = epoch + 1, 0

    def _share(self, order: Indices) -> Indices:
        """(steps, B / world): what this rank reads at each step of the epoch."""
        whole = order[: self.steps_per_epoch * self._batch_size]
        return whole.reshape(self.steps_per_epoch, self._place.world, -1)[:, self._place.rank]


def read_rows(path: str, count: int) -> Indices:
    """The row numbers in the .npy file at ``path``, of a set of ``count`` pictures.

    Raises:
        ConfigError: if it is no list of different rows of that set.
    """
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


class PillowDecoder:
    """numpy and Pillow in threads: the same samples without FFCV, slower."""

    def __init__(self, beton: Beton, batch_size: int, workers: int) -> None:
        self._beton, self._workers = beton, workers

    def epoch(self, order: Indices, batch_size: int) -> Iterator[Tensor]:
        """See :class:`Decoder`. Pillow releases the interpreter lock while it decodes."""
        with ThreadPoolExecutor(self._workers) as pool:
            ahead = [pool.submit(self._beton.image, i) for i in order[:batch_size]]
            for start in range(0, len(order), batch_size):
                following = order[start + batch_size : start + 2 * batch_size]
                images = [future.result() for future in ahead]
                ahead = [pool.submit(self._beton.image, i) for i in following]
                yield torch.from_numpy(np.stack(images))


class FFCVDecoder:
    """FFCV's JPEG decoder in an order of ours."""

    def __init__(self, beton: Beton, batch_size: int, workers: int) -> None:
        try:
            from ffcv.fields.rgb_image import SimpleRGBImageDecoder
            from ffcv.loader import Loader, OrderOption
            from ffcv.transforms import ToTensor
        except ImportError as error:
            raise ConfigError(f"data.decoder: ffcv cannot be imported ({error}); write pillow") from None
        self._loader = Loader(
            str(beton.path),
            batch_size=batch_size,
            num_workers=workers,  # never FFCV's default, which ignores the cores this process may use
            os_cache=True,
            order=OrderOption.SEQUENTIAL,
            pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()], "index": None, "label": None},
        )

    def epoch(self, order: Indices, batch_size: int) -> Iterator[Tensor]:
        """See :class:`Decoder`."""
        # FFCV 1.0.2 cannot take an order class in its constructor; it asks this object at each epoch.
        self._loader.traversal_order = _FixedOrder(order)
        iterator, whole = iter(self._loader), False
        try:
            for (images,) in iterator:
                yield images
            whole = True
        finally:
            if not whole:
                _stop(iterator)


def _stop(iterator: Any) -> None:
    """End FFCV's thread, which otherwise outlives an epoch that is left early, with its buffers."""
    iterator.close()
    while iterator.is_alive():
        # The thread does not look for the end while it waits to put its last item into a full queue.
        with suppress(Empty):
            iterator.output_queue.get(timeout=0.05)


class _FixedOrder:
    """An FFCV traversal order that is given from outside."""

    def __init__(self, order: Indices) -> None:
        self._order = order.astype(np.uint64)

    def sample_order(self, epoch: int) -> Any:
        return self._order
