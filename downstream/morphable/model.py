"""A morphable model in a file: vertices = mean + shape basis . p + expression basis . q (Blanz & Vetter 1999).

One ``.safetensors`` holds a model, whoever made it. Its tensors, for V vertices and T triangles:

    mean                  (V, 3) float32       x to the picture's right, y up, z to the viewer
    shape                 (V, 3, Ks) float32   one column an identity coefficient
    expression            (V, 3, Ke) float32   one column an expression coefficient
    shape_deviation       (Ks,) float32        the coefficients' standard deviations; absent where unknown
    expression_deviation  (Ke,) float32        likewise
    triangles             (T, 3) int32         absent where the source has none: no surface, only points
    landmarks             (68,) int32          the vertices of iBUG's 68 points
    mirror                (V,) int32           what each becomes in the mirror x -> -x; absent where unknown

Its header says ``format`` ("facerep morphable model 1"), ``name`` and ``unit`` ("mm", "cm" or "um"). safetensors is
numbers and a JSON header: nothing in it is executed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from configs import ConfigError
from data_prep.files import atomic_write

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Indices = NDArray[np.int32]

FORMAT = "facerep morphable model 1"
MILLIMETRES = {"um": 1e-3, "mm": 1.0, "cm": 10.0}
"""Millimetres of one unit."""


@dataclass(frozen=True, eq=False)
class MorphableModel:
    """The linear model; the module's text describes its arrays.

    Raises:
        ValueError: on building one whose arrays do not fit together. The message names the array.
    """

    name: str
    unit: str
    mean: Floats
    shape: Floats
    expression: Floats
    landmarks: Indices
    triangles: Indices | None = None
    mirror: Indices | None = None
    shape_deviation: Floats | None = None
    expression_deviation: Floats | None = None

    def __post_init__(self) -> None:
        count = len(self.mean)
        wanted = {
            "mean": (count, 3),
            "shape": (count, 3, self.shape.shape[-1]),
            "expression": (count, 3, self.expression.shape[-1]),
            "landmarks": (68,),
            "triangles": (0 if self.triangles is None else len(self.triangles), 3),
            "mirror": (count,),
            "shape_deviation": self.shape.shape[-1:],
            "expression_deviation": self.expression.shape[-1:],
        }
        for name, shape in wanted.items():
            array = getattr(self, name)
            if array is None:
                continue
            if array.shape != shape:
                raise ValueError(f"{name} has the shape {array.shape} instead of {shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds something else than finite numbers")
            if name in ("landmarks", "triangles", "mirror") and ((array < 0) | (array >= count)).any():
                raise ValueError(f"{name} names vertices that the model has not: it has {count}")
        if self.mirror is not None and (self.mirror[self.mirror] != np.arange(count)).any():
            raise ValueError("mirror leads a vertex elsewhere than back when it is applied twice")
        if self.unit not in MILLIMETRES:
            raise ValueError(f"unit is '{self.unit}'; it must be one of {', '.join(MILLIMETRES)}")

    @property
    def sizes(self) -> tuple[int, int]:
        """(Ks, Ke): numbers of shape and of expression coefficients."""
        return self.shape.shape[-1], self.expression.shape[-1]

    def vertices(self, coefficients: Array, at: Indices | slice = slice(None)) -> Array:
        """(..., Ks + Ke) coefficients, shape first -> (..., V, 3) vertices, or only those ``at`` these indices."""
        basis = np.concatenate([self.shape[at], self.expression[at]], axis=-1)
        moved = np.asarray(coefficients) @ basis.reshape(-1, sum(self.sizes)).T
        return np.asarray(moved.reshape(*moved.shape[:-1], -1, 3) + self.mean[at], np.float64)

    @cached_property
    def mirroring(self) -> tuple[Array, Array]:
        """(K, K) matrix A and (K,) offset b: the mirrored face has the coefficients A c + b, by least squares.

        Exact where the mirror image of every face of the model is one of its faces.

        Raises:
            ConfigError: the model has no ``mirror``.
        """
        if self.mirror is None:
            raise ConfigError(
                f"{self.name}: the model has no permutation of its vertices for the mirror image; "
                "train with flip: false"
            )
        reflect = np.array([-1.0, 1.0, 1.0])
        basis = np.concatenate([self.shape, self.expression], axis=-1).astype(np.float64)
        mirrored = basis[self.mirror] * reflect[:, None]
        offset = self.mean[self.mirror] * reflect - self.mean
        targets = np.concatenate([mirrored.reshape(-1, basis.shape[-1]), offset.reshape(-1, 1)], axis=1)
        solved = np.linalg.lstsq(basis.reshape(-1, basis.shape[-1]), targets, rcond=None)[0]
        return solved[:, :-1], solved[:, -1]


def save_model(path: str | Path, model: MorphableModel) -> None:
    """Write the file, atomically."""
    values = {field.name: getattr(model, field.name) for field in fields(model)}
    header = {"format": FORMAT, "name": values.pop("name"), "unit": values.pop("unit")}
    arrays = {name: np.ascontiguousarray(array) for name, array in values.items() if array is not None}
    with atomic_write(path) as file:
        file.write(safetensors.numpy.save(arrays, header))


@lru_cache(maxsize=4)
def load_model(path: str | Path) -> MorphableModel:
    """Read and check the file; the same object for the same path, to be treated as read-only.

    Raises:
        ConfigError: it is missing, damaged, of another format, or its arrays do not fit together.
    """
    mend = "make it with 'python -m downstream convert-model CONFIG'"
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such morphable model; {mend}")
    try:
        with safetensors.safe_open(str(path), "np") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{path}: damaged, or no .safetensors ({error}); {mend}") from None
    if header.get("format") != FORMAT:
        raise ConfigError(f"{path}: not a '{FORMAT}'; {mend}")
    known = {field.name for field in fields(MorphableModel)}
    if extra := sorted(set(arrays) - known):
        raise ConfigError(f"{path}: unknown array {extra[0]}; {mend}")
    try:
        return MorphableModel(name=header.get("name", ""), unit=header.get("unit", ""), **_typed(arrays))
    except TypeError:
        needed = ("mean", "shape", "expression", "landmarks")
        missing = ", ".join(name for name in needed if name not in arrays)
        raise ConfigError(f"{path}: {missing} is missing; {mend}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; {mend}") from None


def _typed(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    whole = {"landmarks", "triangles", "mirror"}
    for name, array in arrays.items():
        if array.dtype != (np.int32 if name in whole else np.float32):
            raise ValueError(f"{name} has the type {array.dtype}")
        if name in ("shape", "expression") and array.ndim != 3:
            raise ValueError(f"{name} has the shape {array.shape} instead of (V, 3, K)")
    return arrays


def mirror_permutation(mean: NDArray[np.floating], tolerance: float) -> Indices | None:
    """(V,) the vertex at the mirror image of each; None where the mesh is not symmetric within ``tolerance``."""
    from scipy.spatial import cKDTree  # here: it is needed where a model is made, not where it is read

    distance, nearest = cKDTree(mean).query(mean * np.array([-1, 1, 1]))
    if distance.max() > tolerance or (nearest[nearest] != np.arange(len(mean))).any():
        return None
    return np.asarray(nearest, np.int32)
