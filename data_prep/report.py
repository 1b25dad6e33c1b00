"""The stage ``report``: what became of every picture and face, as a page for people and a JSON for programs."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from configs import ConfigError, dump
from data_prep.beton import Beton
from data_prep.crop import crop, crop_affine
from data_prep.exclude import read_columns
from data_prep.files import atomic_write, write_json
from data_prep.images import PictureError, read_picture
from data_prep.lists import write_list
from data_prep.summary import Tables, read_tables, summarise

if TYPE_CHECKING:
    from data_prep.pipeline import Pipeline

KEPT_SHOWN, REJECTED_SHOWN, FAILED_SHOWN = 60, 24, 50
GROUPS_SHOWN, GROUP_SHOWN = 16, 5
THUMBNAIL = 128
INK, KEPT, REJECTED = "#42505c", "#2a7f6f", "#d98b5f"


def write_report(pipeline: Pipeline, inputs: str) -> None:
    """Write index.html, list.csv.gz and then summary.json in report/; ``inputs`` is the hash of what they show."""
    folder = pipeline.config.output / "report"
    beton = Beton(pipeline.config.output / "set.beton")
    tables = read_tables(pipeline)
    summary = summarise(pipeline, tables, written=len(beton))
    template = Path(__file__).with_name("report.html").read_text()
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    with atomic_write(folder / "index.html", "w") as file:
        file.write(
            page.render(
                summary=summary,
                failed=_failed(tables),
                kept_sheet=list(_kept_sheet(beton)),
                near_sheet=list(_near_sheet(beton, tables)),
                rejected_sheet=list(_rejected_sheet(pipeline, tables)),
                charts=_charts(pipeline, summary),
                config=dump(pipeline.config),
                command=f"python -m data_prep all {shlex.quote(str(pipeline.config.output / 'config.yaml'))}",
                versions={name: version(name) for name in ("numpy", "pillow", "pyarrow", "torch")},
            )
        )
    write_list(folder / "list.csv.gz", tables.images, read_columns(beton.path, ["image_id"]))
    write_json(folder / "summary.json", summary | {"inputs": inputs})


def _failed(tables: Tables) -> list[dict[str, str]]:
    """The first pictures that could not be used: id and reason."""
    listed = tables.images.filter(pc.equal(tables.images["status"], "failed"))
    both = pa.concat_tables(table.select(["image_id", "error"]) for table in (listed, tables.unread))
    rows: list[dict[str, str]] = both.slice(0, FAILED_SHOWN).to_pylist()
    return rows


def sample(count: int, wanted: int) -> NDArray[np.int64]:
    """Up to ``wanted`` of ``count`` rows, the same ones every time, in order."""
    generator = np.random.default_rng(np.random.SeedSequence([0, count]))
    return np.sort(generator.choice(count, min(wanted, count), replace=False))


def _kept_sheet(beton: Beton) -> Iterator[str]:
    """Thumbnails of rows of the set, as they are stored."""
    for row in sample(len(beton), KEPT_SHOWN).tolist():
        yield data_uri(Image.fromarray(beton.image(row)))


def _near_sheet(beton: Beton, tables: Tables) -> Iterator[list[str]]:
    """Thumbnails of groups of near-duplicates, a list a group."""
    first, counts = np.unique(tables.near, return_counts=True)
    many = first[counts > 1]
    for group in many[sample(len(many), GROUPS_SHOWN)]:
        rows = np.flatnonzero(tables.near == group)[:GROUP_SHOWN]
        yield [data_uri(Image.fromarray(beton.image(row))) for row in rows.tolist()]


def _rejected_sheet(pipeline: Pipeline, tables: Tables) -> Iterator[dict[str, Any]]:
    """Thumbnails of rejected faces, cut from their pictures in the same way, with the reason."""
    rejected = tables.faces.filter(pc.invert(tables.faces["kept"]))
    rows = rejected.take(sample(len(rejected), REJECTED_SHOWN)).to_pylist()
    wanted = pa.array([row["image_id"] for row in rows], pa.string())
    pictures = {
        row["image_id"]: row
        for row in tables.images.filter(pc.is_in(tables.images["image_id"], wanted)).to_pylist()
    }
    for row in rows:
        picture = pictures[row["image_id"]]
        try:
            pixels = np.asarray(read_picture(picture["path"], picture["sha256"]))
            image = crop(pixels, crop_affine(row, pipeline.config.crop), pipeline.config.crop)
        except (PictureError, ConfigError):
            continue  # the source may be gone by now, or there is nothing to align by; the tables still hold
        yield row | {"image": data_uri(image)}


def data_uri(image: Image.Image) -> str:
    """A thumbnail of ``THUMBNAIL`` squared as a data URI."""
    buffer = io.BytesIO()
    image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# --- charts --------------------------------------------------------------------------------------------------


def _charts(pipeline: Pipeline, summary: dict[str, Any]) -> dict[str, str]:
    keep = pipeline.config.keep
    sizes = _chart(summary["face_size"], "mean side of the face in its picture, px", keep.min_size, log=True)
    yaw = "offset of the nose from the middle of the eyes, in spans of the eyes"
    return {
        "size": sizes,
        "score": _chart(summary["score"], "detector's score", keep.min_score, log=False),
        "yaw": _chart(summary["yaw"], yaw, None, log=False),
    }


def _chart(counts: dict[str, Sequence[float]], label: str, limit: float | None, *, log: bool) -> str:
    """A histogram of kept and rejected faces as an inline SVG, with the least value that is kept, if any."""
    edges = np.array(counts["edges"])
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": label,  # the same figures give the same bytes
        "font.family": "sans-serif",
        "font.size": 10,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK
        ),
    }
    with rc_context(style):
        figure = Figure(figsize=(5.4, 2.5), layout="constrained")
        axes = figure.subplots()
        bottom = np.zeros(len(edges) - 1)
        for name, colour in (("kept", KEPT), ("rejected", REJECTED)):
            height = np.array(counts[name])
            axes.bar(
                edges[:-1], height, np.diff(edges) * 0.92, bottom, align="edge", color=colour, label=name
            )
            bottom += height
        if limit is not None:
            axes.axvline(limit, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        if log:
            ticks = [
                tick for tick in (8, 16, 32, 64, 128, 256, 512, 1024, 2048) if edges[0] <= tick <= edges[-1]
            ]
            axes.set_xscale("log")
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.set_xticks([], minor=True)
        axes.set(xlabel=label, ylabel="faces")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]
