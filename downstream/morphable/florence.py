"""How far a reconstructed face is from a scan: the protocol for Florence/MICC that is stated here.

Papers show error curves on Florence, and no reference evaluator is public, so this protocol is the project's own.
Figures are comparable with each other, not with those of papers. For each pair of a predicted mesh and a scan:

1. The scan is cropped to the vertices within ``radius`` (95 mm) of the tip of its nose, in a straight line.
2. The predicted mesh is brought to the scan by the similarity that fits the landmarks given for the scan best
   (Umeyama, 1991; no reflection): a picture does not tell the size of a face. ``scale: false`` keeps the mesh's size.
3. Rigid ICP (trimesh): the cropped scan's points to the mesh's surface, at most ``samples`` of them, until the mean
   squared distance no longer falls.
4. The error is the mean over all vertices of the cropped scan of the distance to the mesh's surface, divided by the
   distance of the outer corners of the eyes of the scan, in space.

The curve gives for each threshold the share of the pairs whose error is at most that.

Florence's scans come without landmarks: somebody has to mark them. A landmark file is JSON, iBUG's numbers from 0 and
positions in the scan's unit: ``{"30": [x, y, z], "36": ..., "45": ...}``; 30, 36 and 45, the tip of the nose and the
outer corners of the eyes, must be there, and the more the better the start of ICP.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tqdm import tqdm

from configs import Config, ConfigError
from data_prep.files import atomic_write, write_json
from downstream.morphable.model import MILLIMETRES, Indices, load_model

Array = NDArray[np.float64]

NOSE, LEFT_EYE, RIGHT_EYE = 30, 36, 45


class Scoring(Config):
    """How a mesh is compared with a scan."""

    radius: float = Field(default=95.0, gt=0)
    """Millimetres around the tip of the nose that count."""
    scale: bool = True
    """Bring the mesh to the size of the scan by the landmarks."""
    samples: int = Field(default=5000, ge=10)
    """Points of the scan that ICP uses, drawn without replacement; the error is over all."""
    iterations: int = Field(default=100, ge=0)
    """Of ICP, at most; 0: the landmarks alone."""
    seed: int = Field(default=0, ge=0)
    """Of that draw."""


class FlorenceConfig(Config):
    """Compares predicted meshes with scans: point-to-surface error after ICP, and its curve."""

    pairs: Path
    """A CSV with the header prediction,scan,landmarks: files, relative to it. A prediction has the vertices of
    ``model`` in its order, for example as save_mesh of downstream.morphable.florence writes it."""
    model: Path
    """The morphable model of the predictions: its landmarks, and its triangles where a prediction has none."""
    output: Path
    """Folder for florence.json and curve.svg."""
    scan_unit: str = Field(default="mm", pattern="^(um|mm|cm)$")
    """Unit of the scans and of their landmarks."""
    scoring: Scoring = Scoring()
    """The protocol."""
    limit: float = Field(default=0.1, gt=0)
    """Where the curve ends."""


@dataclass(frozen=True)
class Score:
    """One mesh against one scan.

    Attributes:
        error: Mean distance / distance of the outer eye corners.
        millimetres: Mean distance.
        points: Vertices of the scan that counted.
    """

    error: float
    millimetres: float
    points: int


def score(
    vertices: Array,
    triangles: Indices,
    landmarks: Indices,
    scan: Array,
    marks: dict[int, Array],
    scoring: Scoring,
) -> Score:
    """Compare one mesh with one scan.

    Args:
        vertices: (V, 3) of the prediction, millimetres where ``scoring.scale`` is off, else any unit.
        triangles: (T, 3) of the prediction.
        landmarks: (68,) its vertices that are iBUG's points.
        scan: (S, 3) vertices of the scan, millimetres.
        marks: iBUG's number -> (3,) position on the scan, millimetres; 30, 36 and 45 among them.
        scoring: The protocol.

    Raises:
        ConfigError: no vertex of the scan lies near the nose, or the marks do not determine a similarity.
    """
    import trimesh

    cropped = scan[np.linalg.norm(scan - marks[NOSE], axis=1) <= scoring.radius]
    if len(cropped) < 3:
        raise ConfigError(
            f"no scan within {scoring.radius:g} mm of its nose tip; check its unit and landmark {NOSE}"
        )
    numbers = sorted(marks)
    target = np.stack([marks[number] for number in numbers])
    spread = np.linalg.svd(target - target.mean(axis=0), compute_uv=False)
    if spread[1] < 1e-3 * spread[0]:
        raise ConfigError("the landmarks of the scan lie on one line; mark points that span the face")
    start, _, _ = trimesh.registration.procrustes(
        vertices[landmarks[numbers]], target, reflection=False, scale=scoring.scale
    )
    mesh = trimesh.Trimesh(trimesh.transform_points(vertices, start), triangles, process=False)
    chosen = np.random.default_rng(scoring.seed).permutation(len(cropped))[: scoring.samples]
    place = np.eye(4)
    if scoring.iterations:
        place, _, _ = trimesh.registration.icp(
            cropped[chosen],
            mesh,
            threshold=1e-6,
            max_iterations=scoring.iterations,
            reflection=False,
            scale=False,
        )
    moved = trimesh.transform_points(cropped, place)
    distance = np.concatenate(
        [mesh.nearest.on_surface(moved[first : first + 4096])[1] for first in range(0, len(moved), 4096)]
    )
    mean = float(distance.mean())
    return Score(mean / float(np.linalg.norm(marks[LEFT_EYE] - marks[RIGHT_EYE])), mean, len(cropped))


def curve(errors: Array, thresholds: Array) -> Array:
    """(N,) errors, (K,) thresholds -> (K,) the shares of the errors that are at most each."""
    return np.searchsorted(np.sort(errors), thresholds, side="right") / len(errors)


def read_mesh(path: Path) -> tuple[Array, Indices]:
    """(V, 3) vertices and (T, 3) triangles, none where there are points only, of a file that trimesh knows.

    A .ply keeps its vertices and their order; of an .obj those that belong to no triangle are left out.

    Raises:
        ConfigError: it is missing, damaged, or has no vertices.
    """
    import trimesh

    if not path.is_file():
        raise ConfigError(f"{path}: no such file; check the list of pairs")
    try:
        loaded: Any = trimesh.load(path, process=False, maintain_order=True, skip_materials=True)
        if isinstance(loaded, trimesh.Scene):  # an .obj of several materials
            loaded = loaded.to_mesh()
        vertices = np.asarray(loaded.vertices, np.float64)
        triangles = np.asarray(getattr(loaded, "faces", np.empty((0, 3))), np.int32)
    except Exception as error:  # the parsers stumble over damage with whatever comes first
        raise ConfigError(f"{path}: no mesh that can be read ({error or repr(error)})") from None
    if not len(vertices) or vertices.shape[1:] != (3,) or not np.isfinite(vertices).all():
        raise ConfigError(f"{path}: has no vertices, or some that are no points in space; check the file")
    return vertices, triangles


def save_mesh(path: str | Path, vertices: Array, triangles: Indices | None) -> None:
    """Write (V, 3) vertices, in their order, and (T, 3) triangles as .ply."""
    import trimesh

    mesh = (
        trimesh.PointCloud(vertices)
        if triangles is None
        else trimesh.Trimesh(vertices, triangles, process=False)
    )
    with atomic_write(path) as file:
        file.write(mesh.export(file_type="ply"))


def read_marks(path: Path, unit: float) -> dict[int, Array]:
    """The landmark file of a scan: iBUG's number -> (3,) millimetres; ``unit`` is its unit's millimetres.

    Raises:
        ConfigError: it is missing, is no such JSON, or lacks a point that is needed.
    """
    mend = 'write {"30": [x, y, z], "36": ..., "45": ...}'
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        marks = {int(number): unit * np.array(place, np.float64) for number, place in tree.items()}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the list of pairs") from None
    except (ValueError, AttributeError, TypeError):
        raise ConfigError(f"{path}: no landmarks; {mend}") from None
    for number, place in marks.items():
        if not 0 <= number < 68 or place.shape != (3,) or not np.isfinite(place).all():
            raise ConfigError(f"{path}: landmark {number} is no point of iBUG's 68 in space; {mend}")
    for number in (NOSE, LEFT_EYE, RIGHT_EYE):
        if number not in marks:
            raise ConfigError(f"{path}: landmark {number} is missing; {mend}")
    if not np.linalg.norm(marks[LEFT_EYE] - marks[RIGHT_EYE]) > 0:
        raise ConfigError(f"{path}: both eye corners are in one point; mend it")
    return marks


def florence(cfg: FlorenceConfig) -> dict[str, Any]:
    """Score all pairs; write florence.json and curve.svg; returns what the JSON holds.

    Raises:
        ConfigError: a file is missing or does not fit; the message names it.
    """
    model = load_model(cfg.model)
    rows = []
    for line in tqdm(_pairs(cfg.pairs), desc="scans", leave=False, mininterval=1):
        prediction, scan, marks = (
            cfg.pairs.parent / line[name] for name in ("prediction", "scan", "landmarks")
        )
        vertices, triangles = read_mesh(prediction)
        if len(vertices) != len(model.mean):
            raise ConfigError(
                f"{prediction}: {len(vertices)} vertices, but {cfg.model} has {len(model.mean)}; "
                "give the meshes as the model orders them"
            )
        if not len(triangles):
            if model.triangles is None:
                raise ConfigError(
                    f"{prediction}: neither it nor {cfg.model} has triangles; convert the model with its triangles"
                )
            triangles = model.triangles
        unit = MILLIMETRES[cfg.scan_unit]
        places = read_marks(marks, unit)
        points = read_mesh(scan)[0] * unit
        vertices = vertices * MILLIMETRES[model.unit]
        try:
            result = score(vertices, triangles, model.landmarks, points, places, cfg.scoring)
        except ConfigError as error:
            raise ConfigError(f"{scan}: {error}") from None
        rows.append({**line, **result.__dict__})
    errors = np.array([row["error"] for row in rows])
    thresholds = np.linspace(0, cfg.limit, 101)
    shares = curve(errors, thresholds)
    summary = {
        "protocol": cfg.scoring.model_dump(),
        "normaliser": "distance of the outer eye corners of the scan",
        "pairs": len(rows),
        "mean_error": float(errors.mean()),
        "median_error": float(np.median(errors)),
        "mean_millimetres": float(np.mean([row["millimetres"] for row in rows])),
        "thresholds": thresholds.tolist(),
        "shares": shares.tolist(),
        "scores": rows,
    }
    write_json(cfg.output / "florence.json", summary)
    _draw_curve(cfg.output / "curve.svg", thresholds, shares)
    return summary


def _pairs(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a CSV of pairs") from None
    if not lines or set(lines[0]) != {"prediction", "scan", "landmarks"} or None in lines[0].values():
        raise ConfigError(f"{path}: needs the header prediction,scan,landmarks and a line for each pair")
    return lines


def _draw_curve(path: Path, thresholds: Array, shares: Array) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3.2), layout="constrained")
    axes = figure.add_subplot(
        xlabel="error / outer inter-ocular distance", ylabel="share of the scans", ylim=(0, 1.02)
    )
    axes.plot(thresholds, shares)
    axes.set_xlim(0, thresholds[-1])
    axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
