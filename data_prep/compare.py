"""``python -m data_prep compare A B``: which pictures and crops of one set are in another one too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from data_prep.beton import Beton
from data_prep.duplicates import differing, nearest
from data_prep.exclude import HASHES, hashes_of, read_columns, set_path
from data_prep.files import atomic_write
from data_prep.report import data_uri, sample
from data_prep.tables import read_shard

ABOUT = """\
Leakage between two sets: which pictures and crops of A are in B too, and which of B in A.

A and B are folders of finished runs, or paths of their set.beton. A picture is exactly the same where the files have
one SHA-256. A picture or a crop is nearly the same where its two difference hashes differ in at most --bits bits of
64 each; crops find a photograph again that two corpora cut out differently, if both sets were cropped with the same
settings. Identities are not compared: each corpus numbers its people on its own.

Nothing in A or B is changed. A picture or crop is listed with the one that is most like it, in matches.csv.
"""
PAIRS_SHOWN = 120


@dataclass(frozen=True)
class Side:
    """One of the two sets. A row of ``pictures`` and of ``crops`` has ``id``, ``sha256`` and the two hashes."""

    name: str
    beton: Beton
    pictures: pa.Table
    crops: pa.Table


def main(argv: Sequence[str]) -> None:
    """Compare two sets; prints the table, and on the last line the page."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep compare",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    parser.add_argument("--bits", type=int, choices=range(11), default=4, metavar="0..10", help="[4]")
    parser.add_argument(
        "--output", type=Path, help="[runs/compare/A-B] the folder of index.html, matches.csv"
    )
    args = parser.parse_args(argv)
    a, b = (open_side(set_path(path, name)) for path, name in ((args.a, "A"), (args.b, "B")))
    output = args.output or Path("runs/compare") / f"{a.name}-{b.name}"
    found = [
        (find(mine, theirs, args.bits), mine, theirs)
        for find in (find_pictures, find_crops)
        for mine, theirs in ((a, b), (b, a))
    ]
    rows = [summary(matches, mine) for matches, mine, _ in found]
    with atomic_write(output / "matches.csv") as file:
        pyarrow.csv.write_csv(pa.concat_tables([table_of(*each) for each in found]), file)
    crops = found[2][0]
    _write_page(output, {"a": a.name, "b": b.name, "bits": args.bits, "rows": rows}, crops, a, b)
    print(tabulate(rows, headers="keys", intfmt=","))
    if not all(HASHES[0] in side.pictures.column_names for side in (a, b)):
        print("Pictures: compared by SHA-256 only, because a set lies without the tables of its run.")
    print("Identities: not compared, because each corpus numbers its people on its own.")
    print(f"matches: {output / 'matches.csv'}\nreport: {output / 'index.html'}")


def open_side(beton: Path) -> Side:
    """The pictures and crops of a set.

    The pictures are all that were listed, where the tables of the run lie beside the set. Else they are those of
    its crops, of which only the SHA-256 is known.
    """
    names = {"face_id": "id", "image_id": "image_id", "picture_sha256": "sha256"}
    columns = read_columns(beton, (*names, *HASHES))
    crops = columns.rename_columns([*names.values(), *HASHES])
    return Side(beton.parent.resolve().name, Beton(beton), _pictures(beton.parent / "images", crops), crops)


def _pictures(folder: Path, crops: pa.Table) -> pa.Table:
    marks = sorted(folder.glob("[0-9]*.json"))
    if not marks:
        alone = crops.group_by("sha256").aggregate([("image_id", "min")])
        return alone.rename_columns({"image_id_min": "id"})
    columns = ["image_id", "sha256", *HASHES]
    shards = [
        read_shard(folder, int(mark.stem), columns)
        for mark in tqdm(marks, desc="pictures", unit="shard", disable=len(marks) < 100)
    ]
    table = pa.concat_tables(shards).rename_columns({"image_id": "id"})
    return table.filter(pc.is_valid(table[HASHES[0]]))


@dataclass(frozen=True)
class Matches:
    """Which of ``what`` ("picture" or "crop") of one set are in another one; M of them are."""

    what: str
    total: int
    mine: NDArray[np.int64]
    """(M,) rows that are in the other set, ascending."""
    theirs: NDArray[np.int64]
    """(M,) the row there that is most like it."""
    exact: NDArray[np.bool_]
    """(M,) the same file; for a crop: the same hashes."""
    bits: NDArray[np.int64]
    """(M, 2) how many bits differ, across and down; -1 where a hash is not known."""


def find_pictures(mine: Side, theirs: Side, bits: int) -> Matches:
    """The pictures of one set that are in the other."""
    a, b = mine.pictures, theirs.pictures
    same = pc.index_in(a["sha256"], value_set=b["sha256"].combine_chunks()).fill_null(-1).to_numpy()
    match, apart = same.astype(np.int64), np.full((len(a), 2), -1, np.int64)
    if all(name in table.column_names for name in HASHES for table in (a, b)):
        near, _ = nearest(hashes_of(a), hashes_of(b), bits)
        match = np.where(same >= 0, same, near)
        apart = differing(hashes_of(a), hashes_of(b)[match])  # a row without a match is not looked at again
    rows = np.flatnonzero(match >= 0)
    return Matches("picture", len(a), rows, match[rows], same[rows] >= 0, apart[rows])


def find_crops(mine: Side, theirs: Side, bits: int) -> Matches:
    """The crops of one set that are in the other."""
    a, b = hashes_of(mine.crops), hashes_of(theirs.crops)
    match, _ = nearest(a, b, bits)
    rows = np.flatnonzero(match >= 0)
    apart = differing(a[rows], b[match[rows]])
    return Matches("crop", len(a), rows, match[rows], apart.sum(axis=1) == 0, apart)


def table_of(matches: Matches, mine: Side, theirs: Side) -> pa.Table:
    """The matches with the ids of pictures or crops."""
    a, b = ((side.pictures if matches.what == "picture" else side.crops) for side in (mine, theirs))
    columns: dict[str, Any] = {
        "what": [matches.what] * len(matches.mine),
        "of": [mine.name] * len(matches.mine),
        "id": a["id"].take(matches.mine),
        "match": np.where(matches.exact, "exact", "near"),
        "in": [theirs.name] * len(matches.mine),
        "most_like": b["id"].take(matches.theirs),
        "bits_across": matches.bits[:, 0],
        "bits_down": matches.bits[:, 1],
    }
    return pa.table(columns)


def summary(matches: Matches, mine: Side) -> dict[str, Any]:
    """A row of the table that is printed."""
    exact = int(matches.exact.sum())
    return {
        "": f"{matches.what}s of {mine.name}",
        "count": matches.total,
        "exactly in the other": exact,
        "nearly": len(matches.mine) - exact,
    }


def _write_page(output: Path, page: dict[str, Any], crops: Matches, a: Side, b: Side) -> None:
    shown = sample(len(crops.mine), PAIRS_SHOWN)
    pairs = [
        {
            "images": [data_uri(Image.fromarray(side.beton.image(row))) for side, row in ((a, i), (b, j))],
            "names": [side.crops["id"][row].as_py() for side, row in ((a, i), (b, j))],
            "bits": crops.bits[n].tolist(),
        }
        for n, i, j in zip(shown.tolist(), crops.mine[shown].tolist(), crops.theirs[shown].tolist())
    ]
    template = Path(__file__).with_name("compare.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    with atomic_write(output / "index.html", "w") as file:
        file.write(environment.from_string(template).render(page, pairs=pairs, matching=len(crops.mine)))
