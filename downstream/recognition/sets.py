"""A verification set as configured: its pairs or templates, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs import ConfigError
from data_prep.beton import Beton, read_labels
from data_prep.images import PictureError, decode_picture
from downstream.features import resize
from downstream.recognition import pairs, templates
from downstream.recognition.config import BinSet, IdentitiesSet, IjbSet, PairSet
from downstream.recognition.draw import draw_pairs, people_of
from downstream.recognition.pairs import Pairs
from downstream.recognition.templates import Templates

BATCH = 256


@dataclass(frozen=True)
class Pictures:
    """N pictures, and where they are."""

    count: int
    read: Callable[[int], NDArray[np.uint8]]
    """i -> (H, W, 3) uint8 RGB."""
    row: NDArray[np.int64]
    """(N,) -1 where there is no picture: no face was found in it."""
    score: NDArray[np.float64]
    """(N,) the detector's, 1 where there is none."""

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """The pictures that are there: their numbers, and (B, 3, size, size) uint8, antialiased."""
        there = np.flatnonzero(self.row >= 0)
        for start in range(0, len(there), BATCH):
            part = there[start : start + BATCH]
            pictures = (torch.tensor(self.read(int(self.row[i]))).permute(2, 0, 1)[None] for i in part)
            yield part, torch.cat([resize(picture, size) for picture in pictures])


def open_pairs(config: PairSet) -> tuple[Pairs, Pictures]:
    """The pairs of a set, and the pictures that they name.

    Raises:
        ConfigError: a file is missing or damaged, or the .beton has none of the pictures.
    """
    if isinstance(config, BinSet):
        listed, files = pairs.read_bin(config.path)
        everywhere = np.arange(len(files))
        return listed, Pictures(
            len(files), lambda i: _decode(files[i], config.path, i), everywhere, np.ones(len(files))
        )
    if isinstance(config, IdentitiesSet):
        listed = draw_pairs(people_of(config.data, config.split), config.pairs, config.seed, config.data)
        rows = np.array(listed.names, np.int64)
        return listed, Pictures(len(rows), Beton(config.data).image, rows, np.ones(len(rows)))
    listed = _READERS[config.kind](config.pairs)
    return listed, find_pictures(config.data, listed.names)


_READERS: dict[str, Callable[[Path], Pairs]] = {
    "lfw": pairs.read_lfw,
    "calfw": pairs.read_two_lines,
    "cplfw": pairs.read_two_lines,
    "cfp_fp": pairs.read_cfp,
    "cfp_ff": lambda path: pairs.read_cfp(path, "FF"),
    "agedb": pairs.read_agedb,
}


def open_templates(config: IjbSet) -> tuple[Templates, Pictures]:
    """The templates of a set, and the pictures that they are made of; raises as :func:`open_pairs`."""
    listed = templates.read_templates(config.faces, config.pairs)
    return listed, find_pictures(config.data, listed.names)


def find_pictures(data: Path, names: Sequence[str]) -> Pictures:
    """The rows of the .beton whose ``image_id`` is a name, or ends with "/" and the name.

    Raises:
        ConfigError: it is not there, has none of them, or several rows for one of them.
    """
    if not data.is_file():
        raise ConfigError(f"sets.data: {data} does not exist; run the data preparation of its pictures first")
    table = read_labels(data)
    rows = _rows(table, names, data)
    if (rows < 0).all():
        raise ConfigError(
            f"sets.data: {data} has none of the {len(names)} pictures, for example '{names[0]}'; its image_id are "
            f"like '{table['image_id'][0]}'"
        )
    scores = np.ones(len(names))
    scores[rows >= 0] = table["score"].to_numpy()[rows[rows >= 0]]
    return Pictures(len(names), Beton(data).image, rows, scores)


def _rows(table: pa.Table, names: Sequence[str], data: Path) -> NDArray[np.int64]:
    wanted = {name: number for number, name in enumerate(dict.fromkeys(names))}
    depths = {name.count("/") + 1 for name in names}
    rows = np.full(len(wanted), -1)
    for row, image_id in enumerate(table["image_id"].to_pylist()):
        parts = image_id.split("/")
        for depth in depths:
            number = wanted.get("/".join(parts[-depth:]), -1) if depth <= len(parts) else -1
            if number >= 0:
                if rows[number] >= 0:
                    raise ConfigError(
                        f"sets.data: {data} has several faces or pictures for '{'/'.join(parts[-depth:])}'; make it "
                        "with keep.rule=largest_central, from this dataset's folder alone"
                    )
                rows[number] = row
    return rows[[wanted[name] for name in names]]


def _decode(file: bytes, path: Path, number: int) -> NDArray[np.uint8]:
    try:
        return np.asarray(decode_picture(file))
    except PictureError as error:
        raise ConfigError(f"{path}: picture {number} cannot be decoded ({error})") from None
