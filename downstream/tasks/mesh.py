"""3D reconstruction: the vertices of a morphable model in the crop; error of 68 points by how far the head is turned.

A label is compact, whatever the model's number of vertices: these follow from a weak-perspective camera and the
coefficients. ``labels: fit`` takes them from the fits of 300W-LP and AFLW2000-3D (shape_para, exp_para, pose_para, of
the source picture; ``affine`` leads to the crop); a model of fewer components takes the first of them. ``labels:
synthetic`` takes the coefficients of the project's own faces and fits the camera to their 68 points: the renderer is
a pinhole, so that a rest remains (docs/reconstruction.md).

What is tested are always the points of the data, landmarks68, not those of the model. The error and its bins are
AFLW2000-3D's (:mod:`downstream.morphable.nme`); what the error is divided by is the size of the points' upright box
in the source picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from configs import ConfigError
from downstream import drawing
from downstream.heads import Head
from downstream.morphable import geometry, nme
from downstream.morphable.draw import draw_mesh
from downstream.morphable.florence import save_mesh
from downstream.morphable.heads import CAMERA, CoefficientsHead, GraphHead
from downstream.morphable.model import Indices, MorphableModel, load_model
from downstream.tasks.mirror import MIRRORS
from downstream.tasks.task import SIDE, Array, Metric, Task, back_to_source, matrix, points_moved, zoom_of

POINTS = slice(2, 138)
"""Where a label has x, y of the 68 points; before them stand yaw and size."""
PARAMETERS = slice(138, None)
"""Where it has the camera and the coefficients."""
LARGEST = 8e9
"""Bytes of vertices that may be read off features at once."""


class Mesh(Task):
    """A face's surface."""

    name: Literal["mesh"] = "mesh"
    model: Path
    """The morphable model: 'python -m downstream convert-model' makes its file."""
    labels: Literal["fit", "synthetic"] = "fit"
    """fit: those of 300W-LP and AFLW2000-3D. synthetic: those of the project's own faces, for its own model."""
    head_kind: Literal["coefficients", "mesh"] = "coefficients"
    """coefficients: the head predicts a camera and coefficients of the model. mesh: it predicts the vertices."""
    yaw_bins: tuple[Annotated[float, Field(gt=0, lt=90)], ...] = (30.0, 60.0)
    """Degrees of |yaw| at which the bins end that count the same in the error; []: one bin."""
    source_height: float = Field(default=450.0, gt=0)
    """Of the source pictures, pixels; a fit counts its rows from below."""

    @model_validator(mode="after")
    def _rising(self) -> Mesh:
        if list(self.yaw_bins) != sorted(set(self.yaw_bins)):
            raise ValueError("yaw_bins: give rising numbers")
        return self

    @property
    def title(self) -> str:
        """3D face."""
        return "3D face"

    @property
    def columns(self) -> tuple[str, ...]:
        """The fit and where the crop lies; or the coefficients."""
        if self.labels == "fit":
            return ("landmarks68", "shape_para", "exp_para", "pose_para", "affine")
        return ("landmarks68", "shape", "action_units")

    @property
    def files(self) -> tuple[Path, ...]:
        """The morphable model."""
        return (self.model,)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Mean of the bins, each bin, plain mean."""
        bins = nme.bin_names(self.yaw_bins)
        return (
            Metric("nme", "NME, mean of yaw bins", "%", "lower"),
            *(Metric(f"nme_{name}", f"NME, yaw {name.replace('_', '-')}", "%", "lower") for name in bins),
            Metric("nme_all", "NME, all pictures", "%", "lower"),
        )

    def encode(self, table: pa.Table) -> Array:
        """(N, 138 + 12 + K): yaw in degrees, size in crop pixels, 68 points, camera row by row, coefficients."""
        model = self._model
        points = matrix(table, "landmarks68")
        named = ("shape_para", "exp_para") if self.labels == "fit" else ("shape", "action_units")
        coefficients = []
        for column, size in zip(named, model.sizes, strict=True):
            given = matrix(table, column)
            if given.shape[1] < size or (self.labels == "synthetic" and given.shape[1] != size):
                raise ConfigError(
                    f"tasks: mesh.model={self.model} has {size} components where the data's {column} has "
                    f"{given.shape[1]}; convert the model that these labels belong to"
                )
            coefficients.append(given[:, :size])
        known = np.concatenate(coefficients, axis=1)
        cameras, sizes, yaw = (self._fitted if self.labels == "fit" else self._posed)(table, points, known)
        flat = cameras.reshape(len(cameras), CAMERA)
        return np.concatenate([yaw[:, None], sizes[:, None], points, flat, known], axis=1)

    def _fitted(self, table: pa.Table, points: Array, _known: Array) -> tuple[Array, Array, Array]:
        """Cameras, sizes and yaws of the fits of 300W-LP."""
        pose, affine = matrix(table, "pose_para"), matrix(table, "affine").reshape(-1, 2, 3)
        cameras, sizes = np.full((len(pose), 3, 4), np.nan), np.full(len(pose), np.nan)
        there = np.isfinite(pose).all(axis=1) & np.isfinite(affine).all(axis=(1, 2))
        source = geometry.fitted_cameras(pose[there], self.source_height)
        cameras[there] = geometry.follow(source, affine[there])
        there &= np.isfinite(points).all(axis=1)
        back = np.stack([back_to_source(each) for each in affine[there]]) if there.any() else affine[:0]
        zoom = np.sqrt(np.linalg.det(affine[there, :, :2]))
        sizes[there] = zoom * nme.box_size(points_moved(points[there].reshape(-1, 68, 2), back))
        return cameras, sizes, np.degrees(pose[:, 1])

    def _posed(self, _table: pa.Table, points: Array, known: Array) -> tuple[Array, Array, Array]:
        """Cameras, sizes and yaws of synthetic faces."""
        cameras, yaw = np.full((len(points), 3, 4), np.nan), np.full(len(points), np.nan)
        marks = points.reshape(-1, 68, 2)
        there = np.isfinite(points).all(axis=1) & np.isfinite(known).all(axis=1)
        if there.any():
            vertices = self._model.vertices(known[there], self._model.landmarks)
            cameras[there] = geometry.fit_cameras(vertices, marks[there])
            yaw[there] = geometry.fitted_angles(cameras[there])[:, 1]
        return cameras, nme.box_size(marks), yaw

    def check(self, labels: Array) -> None:
        """Every bin needs a picture, every face an extent."""
        nme.check(labels[:, 1], labels[:, 0], self.yaw_bins)

    def targets(self, labels: Array) -> Array:
        """Camera and coefficients; with ``head_kind: mesh``, all vertices."""
        if self.head_kind == "coefficients":
            return labels[:, PARAMETERS]
        model = self._model
        if len(labels) * model.mean.size * 8 > LARGEST:
            raise ConfigError(
                f"tasks: mesh: a readout of {len(model.mean)} vertices on {len(labels)} pictures does not fit "
                "into memory; use head_kind: coefficients, or the modes frozen and finetune"
            )
        cameras, coefficients = _split(labels[:, PARAMETERS])
        return geometry.project(cameras, model.vertices(coefficients)).reshape(len(labels), -1)

    def vertices(self, prediction: Array, at: Indices | slice = slice(None)) -> Array:
        """(N, P) predictions -> (N, V, 3) x, y in crop pixels, z to the viewer; or only the vertices ``at`` these."""
        if self.head_kind == "mesh":
            return prediction.reshape(len(prediction), -1, 3)[:, at]
        cameras, coefficients = _split(prediction)
        return geometry.project(cameras, self._model.vertices(coefficients, at))

    def save(self, path: str | Path, prediction: Array) -> None:
        """Write the surface of (P,) predictions as .ply, upright (y up), for 'python -m downstream florence'."""
        upright = self.vertices(prediction[None])[0] * [1, -1, 1]
        save_mesh(path, upright, self._model.triangles)

    def statistics(self, prediction: Array, truth: Array) -> Array:
        """(N, P), (N, D) -> (N, 1 + 2 B); see :func:`downstream.morphable.nme.statistics`."""
        points = self.vertices(prediction, self._model.landmarks)[..., :2]
        known = truth[:, POINTS].reshape(-1, 68, 2)
        return nme.statistics(points, known, truth[:, 1], truth[:, 0], self.yaw_bins)

    def reduce(self, means: Array) -> Array:
        """Mean of the bins, each bin, plain mean."""
        return nme.reduce(means, self.yaw_bins)

    def move(self, labels: Array, affine: Array, flipped: NDArray[np.bool_]) -> Array:
        """Points and camera follow the picture; a mirrored face has the coefficients of its mirror image."""
        points = labels[:, POINTS].reshape(-1, 68, 2)
        cameras, coefficients = _split(labels[:, PARAMETERS])
        if flipped.any():
            turned, offset = self._model.mirroring
            other = flipped[:, None]
            coefficients = np.where(other, coefficients @ turned.T + offset, coefficients)
            cameras = np.where(other[..., None], geometry.mirror(cameras, SIDE), cameras)
            points = np.where(other[..., None], points[:, MIRRORS[68]] * [-1, 1] + [SIDE, 0], points)
        yaw = np.where(flipped, -labels[:, 0], labels[:, 0])
        size = labels[:, 1] * np.sqrt(np.linalg.det(affine[:, :, :2]))
        moved = geometry.follow(cameras, affine).reshape(len(labels), CAMERA)
        marks = points_moved(points, affine).reshape(len(labels), -1)
        return np.concatenate([yaw[:, None], size[:, None], marks, moved, coefficients], axis=1)

    def head(self, widths: Sequence[int], labels: Array) -> Head:
        """A linear layer to camera and coefficients, or a decoder of graph convolutions."""
        kind = CoefficientsHead if self.head_kind == "coefficients" else GraphHead
        return kind(widths[-1], self._model, PARAMETERS, labels[:, PARAMETERS])

    def errors(self, prediction: Array, truth: Array) -> Array:
        """The NME of each picture, in %."""
        return self.statistics(prediction, truth)[:, 0]

    def mark(
        self, picture: Image.Image, prediction: Array, affine: Array, truth: Array | None = None
    ) -> None:
        """The mesh, and the 68 points on it."""
        back, zoom = back_to_source(affine), zoom_of(affine)
        mesh = self.vertices(prediction[None])[0]
        mesh = np.concatenate([points_moved(mesh[None, :, :2], back[None])[0], zoom * mesh[:, 2:]], axis=1)
        picture.paste(draw_mesh(picture, mesh, self._model.triangles))
        known = None if truth is None else points_moved(truth[POINTS].reshape(1, 68, 2), back[None])[0]
        drawing.mark_points(picture, mesh[self._model.landmarks, :2], known, zoom)

    def describe(self, prediction: Array, affine: Array) -> dict[str, Any]:
        """X, y, z of the 68 points in pixels of the source picture, the pose in degrees, and the coefficients."""
        model = self._model
        points = self.vertices(prediction[None], model.landmarks)
        back = back_to_source(affine)
        zoom = np.sqrt(np.linalg.det(back[:, :2]))
        points = np.concatenate([points_moved(points[..., :2], back[None]), zoom * points[..., 2:]], axis=-1)
        found: dict[str, Any] = {"landmarks": points[0].round(2).tolist()}
        face = np.zeros((1, sum(model.sizes)))
        if self.head_kind == "coefficients":
            face = prediction[None, CAMERA:]
            found["coefficients"] = [float(f"{value:.6g}") for value in face[0]]
        # Fitted, not read off the camera: that of a regression need be no rotation, and a free mesh has none.
        pose = geometry.head_pose(geometry.fit_cameras(model.vertices(face, model.landmarks), points))[0]
        named = zip(("yaw", "pitch", "roll"), pose, strict=True)
        return found | {"pose": {name: round(float(angle), 2) for name, angle in named}}

    @property
    def _model(self) -> MorphableModel:
        return load_model(self.model)


def _split(parameters: Array) -> tuple[Array, Array]:
    """(N, 12 + K) -> (N, 3, 4) cameras, (N, K) coefficients."""
    return parameters[:, :CAMERA].reshape(-1, 3, 4), parameters[:, CAMERA:]
