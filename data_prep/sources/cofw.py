"""COFW: faces behind things, 29 points with occlusion, and 68 points for those of the test set.

Burgos-Artizzu et al., "Robust Face Landmark Estimation under Occlusion", ICCV 2013; 68 points: Ghiasi and Fowlkes,
"Occlusion Coherence", 2015. Below the folder, as MATLAB 7.3 files, which are HDF5:

    COFW_train_color.mat         IsTr {N}: pictures, colour or grey; phisTr (N, 87): 29 x, 29 y, 29 times 1 where
                                 something is in front of the point; bboxesTr (N, 4): x, y, width, height
    COFW_test_color.mat          IsT, phisT, bboxesT likewise

and, for the second set of points, from cofw68-benchmark, MATLAB 5:

    COFW68_Data/test_annotations/1_points.mat    Points (68, 2), Occ (1, 68) of the first picture of the test set
    COFW68_Data/cofw68_test_bboxes.mat           bboxes (507, 4): x, y, width, height, of the detector of 300W

HDF5 has the axes of MATLAB in the reverse order: (87, N), and a picture is (3, W, H) or (W, H). The first 845
pictures of the training set are LFPW's, in which hardly anything is in front of a face; the other 500 are COFW's own.

Both sets of points and the boxes count pixels from 1, as MATLAB does, in which their authors draw them onto the
pictures. Here the middle of the first pixel is (0.5, 0.5), so 0.5 is taken off.

The pictures are no files, but each stage, the report and a published list name a picture by its path and hash. So
they are written once, while they are listed, beside the other output. An address inside a file would be a second way
of reading in each of these places, for one corpus of 1,852 pictures. They are written as BMP: nothing is lost, and
the bytes, which a published list promises, do not depend on the version of a compressor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from configs import ConfigError
from data_prep.sources import Found, Photographs, Published
from data_prep.sources.corpus import Corpus, flags, input_schema, known
from data_prep.sources.matlab import numbers, read_mat
from data_prep.stage import Shard
from data_prep.tables import vector

if TYPE_CHECKING:
    import h5py

NAMES = {"train": ("IsTr", "phisTr", "bboxesTr"), "test": ("IsT", "phisT", "bboxesT")}
"""What pictures, points and boxes are called in the file of each split."""
FROM_LFPW = 845
"""As many pictures of the training set, the first ones, are LFPW's."""

LABELS: pa.StructType = pa.struct(
    {
        "box": vector(4),
        "detector_box": vector(4),
        "landmarks29": vector(58),
        "occluded29": vector(29, pa.bool_()),
        "landmarks68": vector(136),
        "occluded68": vector(68, pa.bool_()),
        "split": pa.string(),
        "subset": pa.string(),
    }
)
"""detector_box, landmarks68, occluded68: of the test set, null without COFW68_Data. split: train or test. subset:
lfpw or cofw."""

PUBLISHED = {
    split: Published(f"pictures of {split}", count, "Burgos-Artizzu et al. (2013)", prefix=f"{split}/")
    for split, count in (("train", 1_345), ("test", 507))
}


class COFWConfig(Photographs):
    """COFW."""

    kind: Literal["cofw"]
    """cofw"""
    path: Path
    """The folder with COFW_train_color.mat and COFW_test_color.mat in it, and COFW68_Data where that is at hand."""
    splits: tuple[Literal["train", "test"], ...] = Field(("train", "test"), min_length=1)
    """Which files."""


@dataclass(frozen=True)
class COFW(Corpus):
    """Pictures in the order of the files; ``image_id`` is the split and the number, from 1, as in MATLAB.

    ``folder`` is where the pictures are written to.
    """

    config: COFWConfig
    shard_size: int
    folder: Path
    labels: pa.StructType = LABELS
    label_name: str = "none"

    @property
    def published(self) -> tuple[Published, ...]:
        """The pictures of the chosen splits."""
        return tuple(PUBLISHED[split] for split in dict.fromkeys(self.config.splits))

    def inputs(self) -> pa.Table:
        """The pictures of the chosen splits, with all labels; no picture is read.

        Raises:
            ConfigError: a file is missing, damaged or holds something else.
        """
        rows = [row for split in dict.fromkeys(self.config.splits) for row in self._rows(split)]
        return pa.Table.from_pylist(rows, schema=input_schema(LABELS))

    def _rows(self, split: str) -> Iterator[dict[str, Any]]:
        _, phis, bboxes = NAMES[split]
        with open_mat(self.root, split) as file:
            points, boxes = _columns(file, phis, 87), _columns(file, bboxes, 4)
        if len(points) != len(boxes):
            raise ConfigError(
                f"{file_of(self.root, split)}: {phis} and {bboxes} are not of equally many pictures"
            )
        detected = self._detected(len(points)) if split == "test" else None
        for i, (point, box) in enumerate(zip(points, boxes, strict=True)):
            name = f"{split}/{i + 1:04d}"
            face: dict[str, Any] = {
                "box": _box(box),
                "landmarks29": known(point[:58].reshape(2, 29).T - 0.5),
                "occluded29": flags(point[58:]),
                "split": split,
                "subset": "lfpw" if split == "train" and i < FROM_LFPW else "cofw",
            }
            error = ""
            if detected is not None:
                face["detector_box"] = _box(detected[i])
            if split == "test":
                try:
                    face |= self._second(i + 1)
                except ValueError as reason:
                    error = str(reason)
            yield {"image_id": name, "path": f"{name}.bmp", "error": error, "annotations": [face]}

    def _second(self, number: int) -> dict[str, Any]:
        """landmarks68 and occluded68 of a picture of the test set; nothing where there is no COFW68_Data."""
        folder = self.root / "COFW68_Data" / "test_annotations"
        if not folder.is_dir():
            return {}
        name = f"{number}_points.mat"
        try:
            content = read_mat(folder / name, "Points", "Occ")
            points = numbers(content, "Points", (68, 2), gaps=True)
            content["Occ"] = np.reshape(content.get("Occ", ()), (1, -1))  # a row or a column
            return {
                "landmarks68": known(points - 0.5),
                "occluded68": flags(numbers(content, "Occ", (1, 68), True)),
            }
        except ValueError as error:
            raise ValueError(f"{folder.name}/{name}: {error}") from None

    def _detected(self, count: int) -> NDArray[np.float64] | None:
        path = self.root / "COFW68_Data" / "cofw68_test_bboxes.mat"
        if not path.exists():
            return None
        try:
            return numbers(read_mat(path, "bboxes"), "bboxes", (count, 4))
        except ValueError as error:
            raise ConfigError(f"{path}: {error}; replace it, or remove it to do without its boxes") from None

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The pictures of one shard; they are written to ``folder``, as often as they are asked for."""
        with ExitStack() as opened:
            files: dict[str, h5py.File] = {}
            for found in super().pictures(shard):
                split, _, number = found.image_id.partition("/")
                if split not in files:
                    files[split] = opened.enter_context(open_mat(self.root, split))
                yield self._written(found, files[split], NAMES[split][0], int(number) - 1)

    def _written(self, found: Found, file: h5py.File, cells: str, place: int) -> Found:
        path = self.folder / f"{found.image_id}.bmp"
        try:
            picture = read_picture(file, cells, place)
        except ValueError as error:
            return replace(found, path=path, error=found.error or str(error))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not synced, as no rendered picture is: the table holds each file's hash, so one lost in a power cut shows up
        # in the next stage, and --retry-failed writes it again.
        Image.fromarray(picture).save(path)
        return replace(found, path=path)


def file_of(root: Path, split: str) -> Path:
    """The file of a split."""
    return root / f"COFW_{split}_color.mat"


def open_mat(root: Path, split: str) -> h5py.File:
    """The file of a split.

    Raises:
        ConfigError: it is missing or damaged.
    """
    import h5py  # here: a run that finds every shard done needs none

    path = file_of(root, split)
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise ConfigError(f"source.path={root}: no {path.name} there; check the path") from None
    except OSError:
        raise ConfigError(f"{path}: damaged, or no MATLAB 7.3 file; replace it") from None


def read_picture(file: h5py.File, cells: str, place: int) -> NDArray[np.uint8]:
    """(H, W, 3) RGB or (H, W) grey, out of the cell array ``cells``, counted from 0.

    Raises:
        ValueError: it is damaged or no picture. The message is the reason, with file and place.
    """
    where = f"{Path(file.filename).name}: {cells}{{{place + 1}}}"
    try:
        stored = file[file[cells][()].reshape(-1)[place]][()]
    except Exception as error:  # HDF5 stumbles over damage with whatever comes first
        raise ValueError(f"{where}: missing or damaged: {error}") from None
    picture = np.asarray(stored).T
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
        raise ValueError(f"{where}: {picture.dtype} of the shape {picture.shape} is no picture")
    return np.ascontiguousarray(picture)


def _columns(file: h5py.File, name: str, length: int) -> NDArray[np.float64]:
    """(N, length) of a MATLAB matrix, one row a picture."""
    try:
        stored = np.asarray(file[name][()])
    except Exception as error:  # HDF5 stumbles over damage with whatever comes first
        raise ConfigError(
            f"{file.filename}: {name} is missing or damaged: {error}; replace the file"
        ) from None
    if stored.ndim != 2 or len(stored) != length or stored.dtype.kind not in "fiu":
        raise ConfigError(f"{file.filename}: {name} has the shape {stored.shape} instead of ({length}, N)")
    return stored.T.astype(np.float64)


def _box(box: NDArray[np.float64]) -> list[float | None] | None:
    """x, y, width, height as MATLAB draws them -> x0, y0, x1, y1; None where it is empty."""
    whole = np.isfinite(box).all() and (box[2:] > 0).all()
    return known(np.concatenate([box[:2], box[:2] + box[2:]]) - 0.5) if whole else None
