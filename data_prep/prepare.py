"""From picture files to the batches that a detector takes, decoded ahead of it where there are threads to do it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.images import PictureError

InT = TypeVar("InT")
OutT = TypeVar("OutT")
Resize = Callable[[Image.Image], tuple[NDArray[np.uint8], float]]
"""A picture -> (H, W, 3) pixels for the network, and by how much it was enlarged (below 1: shrunk)."""


@dataclass(frozen=True)
class Prepared:
    """A picture as the network takes it, or why there is none."""

    row: dict[str, Any]
    """Of the image table."""
    pixels: NDArray[np.uint8] | None
    scale: float = 1.0
    error: str = ""


@dataclass(frozen=True)
class Batch:
    """Consecutive pictures of one size; those that cannot be read are named but not in ``pixels``."""

    pictures: list[Prepared]
    pixels: NDArray[np.uint8] | None
    """(N, H, W, 3), None where none can be read."""
    scales: list[float]
    """(N,)"""


def prepare(row: dict[str, Any], read: Callable[[dict[str, Any]], Image.Image], resize: Resize) -> Prepared:
    """Read and resize the picture of one row of the image table."""
    try:
        return Prepared(row, *resize(read(row)))
    except PictureError as error:
        return Prepared(row, None, error=str(error))


def letterbox(image: Image.Image, size: int) -> tuple[NDArray[np.uint8], float]:
    """The picture in the top left of (size, size, 3), shrunk if it must be, and the factor of the shrinking."""
    scale = min(1.0, size / max(image.size))
    if scale < 1:
        sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(sides, Image.Resampling.BILINEAR, reducing_gap=3.0)
    canvas = np.full((size, size, 3), (123, 117, 104), np.uint8)  # the network's mean: zero to it
    canvas[: image.height, : image.width] = np.asarray(image)
    return canvas, scale


def resize_like_package(image: Image.Image, allow_upscaling: bool) -> tuple[NDArray[np.uint8], float]:
    """As retina-face's ``detect_faces``: the short side to 1024 px, but the long one to no more than 1980.

    Without ``allow_upscaling`` a picture whose short side is smaller keeps its size, unless it is too long.
    """
    from retinaface.commons.preprocess import resize_image  # here: half a second of imports

    pixels, scale = resize_image(np.asarray(image), [1024, 1980], allow_upscaling)
    return pixels, float(scale)


def batches(pictures: Iterable[Prepared], key: Callable[[dict[str, Any]], Any], most: int) -> Iterator[Batch]:
    """Batches of up to ``most``; pictures whose rows differ in ``key`` do not share one."""
    for _, same in itertools.groupby(pictures, key=lambda picture: key(picture.row)):
        while batch := list(itertools.islice(same, most)):
            pixels = [picture.pixels for picture in batch if picture.pixels is not None]
            scales = [picture.scale for picture in batch if picture.pixels is not None]
            yield Batch(batch, np.stack(pixels) if pixels else None, scales)


def ahead(
    function: Callable[[InT], OutT], items: Iterable[InT], pool: Executor | None, most: int
) -> Iterator[OutT]:
    """``map``, in order. With a pool up to ``most`` results are made ahead of their use; without, none."""
    if pool is None:
        yield from map(function, items)
        return
    making: deque[Future[OutT]] = deque()
    for item in items:
        making.append(pool.submit(function, item))
        if len(making) >= most:
            yield making.popleft().result()
    while making:
        yield making.popleft().result()
