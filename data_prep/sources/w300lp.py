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

The whole fit is in ``Shape_Para`` (199), ``Exp_Para`` (29) and ``Pose_Para`` (7: pitch, yaw, roll, tx, ty, tz, f).
In a picture of h rows a point S = mean + W_shape Shape + W_exp Exp of the model (Basel Face Model 2009, expressions
of FaceWarehouse; neither comes with the project) lies at V = f R S + t, and V at x = V_x, y = h + 1 - V_y as MATLAB
counts: here at x = V_x - 0.5, y = h + 0.5 - V_y. R = Rx Ry Rz is 3DDFA's ``angle2matrix_3ddfa``, whose three
rotations turn against the mathematical sense, hence the signs above. These labels are not moved with the crop: they
are of the whole picture, and ``affine`` leads from there to the crop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs import ConfigError
from data_prep.sources import Found, Photographs, Published
from data_prep.sources.corpus import Corpus, known, labelled_files, tight_box
from data_prep.sources.matlab import numbers, read_mat
from data_prep.stage import Shard
from data_prep.tables import vector

LABELS: pa.StructType = pa.struct(
    {"box": vector(4), "landmarks68": vector(136), "pose": vector(3), "subset": pa.string()}
)
"""box: the tight box of the 68 points, chin to brows, without the forehead. subset: the folder, "AFW_Flip"."""

PARAMETERS = {"Shape_Para": 199, "Exp_Para": 29, "Pose_Para": 7}
"""The fit of the morphable model, and how many numbers each part has."""

FIT: pa.StructType = pa.struct({name.lower(): vector(length) for name, length in PARAMETERS.items()})
"""shape_para, exp_para, pose_para: the numbers of :data:`PARAMETERS` as they are, radians and 1-based pixels too."""

PUBLISHED = {"AFW": 5_207, "HELEN": 37_676, "IBUG": 1_786, "LFPW": 16_556}
"""Pictures of each folder, 61,225 in all; 122,450 with the mirrored ones, which are as many in each folder."""


class W300LPConfig(Photographs):  # warped to other views, but not rendered
    """300W-LP."""

    kind: Literal["300w_lp"]
    """300w_lp"""
    path: Path
    """The folder with AFW, AFW_Flip, HELEN ... in it."""
    flips: bool = True
    """Take the mirrored pictures too, as the corpus is counted; a training that mirrors needs them not."""
    parameters: bool = False
    """Carry shape_para, exp_para and pose_para, the fit of the morphable model: 235 numbers more for every face."""


@dataclass(frozen=True)
class W300LP(Corpus):
    """Pictures in the order of folder and name; ``image_id`` is the path below the folder.

    A .mat is opened together with its picture, not for the list: that would take every process minutes.
    """

    config: W300LPConfig
    shard_size: int
    label_name: str = "none"

    @property
    def labels(self) -> pa.StructType:
        """With the parameters, where they are asked for."""
        return pa.struct([*LABELS, *(FIT if self.config.parameters else ())])

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

        Raises:
            ConfigError: no such folder.
        """
        if not self.root.is_dir():
            raise ConfigError(f"source.path={self.root}: no such folder; check the path")
        return pa.concat_tables(
            labelled_files(self.root, name, (".jpg",), ".mat", self.labels) for name in self._folders()
        )

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The pictures of one shard, each with its face, or with what is wrong with its .mat."""
        for found in super().pictures(shard):
            mat = found.path.with_suffix(".mat")
            try:
                face = read_face(mat, "pt2d", (2, 68), self.config.parameters)
            except ValueError as error:
                yield replace(found, error=f"{mat.parent.name}/{mat.name}: {error}")
            else:
                yield replace(found, annotations=({**face, "subset": mat.parent.name},))


def read_face(path: Path, points: str, shape: tuple[int, int], whole: bool) -> dict[str, Any]:
    """The labels in one .mat, in the project's conventions.

    Args:
        path: The .mat.
        points: The variable whose first two rows are x and y of the 68 points.
        shape: Its shape.
        whole: Read the parameters of the fit too.

    Raises:
        ValueError: it is missing, damaged or holds something else. The message is the reason, without the path.
    """
    content = read_mat(path, points, *PARAMETERS)
    xy = numbers(content, points, shape)[:2].T - 0.5
    face = {"box": tight_box(xy), "landmarks68": known(xy)}
    face["pose"] = known(project_pose(numbers(content, "Pose_Para", (1, 7))[0, :3]))
    for name, length in PARAMETERS.items() if whole else ():
        kept = (1, length) if name == "Pose_Para" else (length, 1)
        face[name.lower()] = known(numbers(content, name, kept))
    return face


def project_pose(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) pitch, yaw, roll of a .mat, radians -> (3,) yaw, pitch, roll of the same rotation, degrees."""
    from scipy.spatial.transform import Rotation

    turned = Rotation.from_euler("XYZ", -pose).as_euler("YXZ", degrees=True)
    return np.asarray(turned * [1, -1, -1], np.float64)
