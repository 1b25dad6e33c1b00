"""300W-LP: photographs of 300W, each face turned further and further to the side, 450 x 450 px.

Zhu et al., "Face Alignment Across Large Poses", CVPR 2016. Below the folder:

    AFW/AFW_134212_1_0.jpg         a picture
    AFW/AFW_134212_1_0.mat         pt2d (2, 68): the points; Pose_Para (1, 7): the pose and the camera; and others
    AFW_Flip/AFW_134212_1_0.jpg    the same mirrored, with a .mat of its own
    HELEN, IBUG, LFPW              likewise

``pt2d`` counts pixels from 1, as MATLAB does: 3DDFA takes 1 off "for Python compatibility", and the shape and
pose in these files give the points at y = 451 - Y. Here the middle of the first pixel is (0.5, 0.5), so 0.5 is
taken off. That the points of the mirrored pictures have changed their names, left for right, is not verified.

``Pose_Para`` starts with pitch, yaw and roll in radians, R = Rx(-pitch) Ry(-yaw) Rz(-roll) for x right, y up, z
to the viewer. The label ``pose`` is the same rotation as the project writes it (docs/synthetic.md): yaw, pitch,
roll in degrees, R = Ry(yaw) Rx(-pitch) Rz(-roll). For small angles, the yaw changes its sign, the others stay.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs import Config, ConfigError
from data_prep.sources import Found, Published
from data_prep.sources.corpus import Corpus, input_schema, visible_files
from data_prep.stage import Shard
from data_prep.tables import vector

LABELS: pa.StructType = pa.struct(
    {"box": vector(4), "landmarks68": vector(136), "pose": vector(3), "subset": pa.string()}
)
"""box: the tight box of the 68 points, chin to brows, without the forehead. subset: the folder, "AFW_Flip"."""

PUBLISHED = {"AFW": 5_207, "HELEN": 37_676, "IBUG": 1_786, "LFPW": 16_556}
"""Pictures of each folder, 61,225 in all; 122,450 with the mirrored ones, which are as many in each folder."""


class W300LPConfig(Config):
    """300W-LP."""

    kind: Literal["300w_lp"]
    """300w_lp"""
    path: Path
    """The folder with AFW, AFW_Flip, HELEN ... in it."""
    flips: bool = True
    """Take the mirrored pictures too, as the corpus is counted; a training that mirrors needs them not."""

    @property
    def synthetic(self) -> bool:
        """Are the faces rendered rather than photographed? Photographs warped to other views do not count."""
        return False


@dataclass(frozen=True)
class W300LP(Corpus):
    """Pictures in the order of folder and name; ``image_id`` is the path below the folder.

    A .mat is opened together with its picture, not for the list: that would take every process minutes.
    """

    config: W300LPConfig
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "none"

    @property
    def published(self) -> tuple[Published, ...]:
        """The pictures of each folder."""
        origin = "from memory; 61,225 in all without the mirrored ones: Zhu et al. (2016)"
        return tuple(
            Published(f"pictures of {name}", PUBLISHED[name.removesuffix("_Flip")], origin, prefix=f"{name}/")
            for name in self._folders()
        )

    def _folders(self) -> list[str]:
        endings = ("", "_Flip") if self.config.flips else ("",)
        return [name + ending for name in PUBLISHED for ending in endings]

    def inputs(self) -> pa.Table:
        """All pictures, and those of which only the .mat is there.

        mat_size and mat_mtime_ns, -1 without a .mat, make a changed annotation a changed shard.

        Raises:
            ConfigError: no such folder.
        """
        if not self.root.is_dir():
            raise ConfigError(f"source.path={self.root}: no such folder; check the path")
        return pa.concat_tables(_subset(self.root / name) for name in self._folders())

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The pictures of one shard, each with its face, or with what is wrong with its .mat."""
        for found in super().pictures(shard):
            mat = found.path.with_suffix(".mat")
            try:
                face = read_mat(mat)
            except ValueError as error:
                yield replace(found, error=f"{mat.parent.name}/{mat.name}: {error}")
            else:
                yield replace(found, annotations=({**face, "subset": mat.parent.name},))


def read_mat(path: Path) -> dict[str, Any]:
    """box, landmarks68 and pose of one .mat, in the project's conventions.

    Raises:
        ValueError: it is missing, damaged or holds something else. The message is the reason, without the path.
    """
    from scipy.io import loadmat  # here: a run that finds every shard done needs none

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    try:
        content = loadmat(io.BytesIO(data), variable_names=("pt2d", "Pose_Para"))
    except Exception as error:  # the parser stumbles over damage with whatever comes first
        raise ValueError(f"damaged, or no MATLAB 5 file: {error or repr(error)}") from None
    points = _numbers(content, "pt2d", (2, 68)).T - 0.5
    pose = _numbers(content, "Pose_Para", (1, 7))[0, :3]
    box = np.concatenate([points.min(0), points.max(0)])
    values = {"box": box, "landmarks68": points.reshape(-1), "pose": project_pose(pose)}
    return {name: value.astype(np.float32).tolist() for name, value in values.items()}


def project_pose(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) pitch, yaw, roll of a .mat, radians -> (3,) yaw, pitch, roll of the same rotation, degrees."""
    from scipy.spatial.transform import Rotation

    turned = Rotation.from_euler("XYZ", -pose).as_euler("YXZ", degrees=True)
    return np.asarray(turned * [1, -1, -1], np.float64)


def _numbers(content: dict[str, Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if name not in content:
        raise ValueError(f"{name} is missing")
    value = np.asarray(content[name])
    if value.shape != shape:
        raise ValueError(f"{name} has the shape {value.shape} instead of {shape}")
    if value.dtype.kind not in "fiu" or not np.isfinite(value).all():
        raise ValueError(f"{name} holds something else than numbers")
    return value.astype(np.float64)


def _subset(folder: Path) -> pa.Table:
    """The inputs of one folder, with the size and time of each .mat."""
    pictures: list[str] = []
    mats: dict[str, os.stat_result] = {}
    for entry in visible_files(folder):
        stem, suffix = os.path.splitext(entry.name)
        if suffix.lower() == ".jpg":
            pictures.append(entry.name)
        elif suffix == ".mat":
            mats[stem] = entry.stat()
    alone = mats.keys() - {os.path.splitext(name)[0] for name in pictures}
    names = sorted([*pictures, *(f"{stem}.jpg" for stem in alone)])
    stats = [mats.get(os.path.splitext(name)[0]) for name in names]
    paths = [f"{folder.name}/{name}" for name in names]
    schema = input_schema(LABELS)
    empty: list[list[Any]] = [[] for _ in paths]
    table = pa.table([paths, paths, [""] * len(paths), empty], schema=schema)
    sizes = pa.array([stat.st_size if stat else -1 for stat in stats], pa.int64())
    times = pa.array([stat.st_mtime_ns if stat else -1 for stat in stats], pa.int64())
    return table.append_column("mat_size", sizes).append_column("mat_mtime_ns", times)
