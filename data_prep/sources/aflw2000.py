"""AFLW2000-3D: the first 2,000 pictures of AFLW with the fit of 300W-LP's morphable model, 450 x 450 px.

Zhu et al., "Face Alignment Across Large Poses", CVPR 2016. In the folder, beside a folder Code that is not read:

    image00002.jpg    a picture
    image00002.mat    pt3d_68 (3, 68): the points of the fit; pt2d (2, 21): AFLW's own points, -1 where not seen;
                      Pose_Para (1, 7), Shape_Para (199, 1), Exp_Para (29, 1): the fit; and others

``landmarks68`` is x and y of ``pt3d_68``; the benchmark takes its error in these two. ``pt2d`` has the name and not
the meaning that it has in 300W-LP: 21 points of another scheme, which are not read.

The points count pixels from 1, as the geometry of the fit shows: it gives them at y = h + 1 - V_y. Here the middle of
the first pixel is (0.5, 0.5), so 0.5 is taken off. How the fit is read, and the label ``pose``: see
:mod:`data_prep.sources.w300lp`. The benchmark sorts by the absolute yaw ``pose_para[1]`` (radians, the rotations in
its own order), which is not the yaw of ``pose`` where a head is turned about two axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from configs import ConfigError
from data_prep.sources import Found, Photographs, Published
from data_prep.sources.corpus import Corpus, labelled_files
from data_prep.sources.w300lp import FIT, read_face
from data_prep.stage import Shard
from data_prep.tables import vector

LABELS: pa.StructType = pa.struct(
    [("box", vector(4)), ("landmarks68", vector(136)), ("pose", vector(3)), *FIT]
)
"""box: the tight box of the 68 points. shape_para, exp_para, pose_para: the fit, of the whole
picture, not of the crop."""


class AFLW2000Config(Photographs):
    """AFLW2000-3D."""

    kind: Literal["aflw2000"]
    """aflw2000"""
    path: Path
    """The folder with image00002.jpg, image00002.mat ... in it."""


@dataclass(frozen=True)
class AFLW2000(Corpus):
    """Pictures in the order of their names, which are their ``image_id``; a .mat is opened with its picture."""

    config: AFLW2000Config
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "none"
    published: tuple[Published, ...] = (Published("pictures", 2_000, "Zhu et al. (2016)"),)

    def inputs(self) -> pa.Table:
        """All pictures, and those of which only the .mat is there.

        Raises:
            ConfigError: no such folder.
        """
        if not self.root.is_dir():
            raise ConfigError(f"source.path={self.root}: no such folder; check the path")
        return labelled_files(self.root, "", (".jpg",), ".mat", LABELS)

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The pictures of one shard, each with its face, or with what is wrong with its .mat."""
        for found in super().pictures(shard):
            mat = found.path.with_suffix(".mat")
            try:
                yield replace(found, annotations=(read_face(mat, "pt3d_68", (3, 68), whole=True),))
            except ValueError as error:
                yield replace(found, error=f"{mat.name}: {error}")
