"""``python -m data_prep subset``: some rows of a set as a file of row numbers, without a copy of the pictures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydantic
from numpy.typing import NDArray

from configs import ConfigError
from data_prep.beton import read_labels, read_manifest
from data_prep.files import atomic_write, write_json

ABOUT = """\
Choose rows of a set by a label, draw some at random, or both. Their numbers are written, sorted, as a .npy of int64,
and beside it a .npy.json that says which set they are of. Pretraining takes the file as data.rows. The pictures are
not copied.

examples:
  python -m data_prep subset runs/data/vggface2/set.beton runs/data/vggface2/small.npy --count 1000000
  python -m data_prep subset runs/data/mine/set.beton runs/data/mine/tenth.npy --share 0.1 --seed 1
  python -m data_prep subset runs/data/affectnet/set.beton runs/data/affectnet/train.npy --where split=train
"""


class Subset(pydantic.BaseModel):
    """``OUT.npy.json``: what the row numbers beside it are."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    set: str
    """SHA-256 of the .beton."""
    count: int
    seed: int
    where: dict[str, str] = {}
    """Columns of set.parquet and the value that a row has there."""


def draw(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """``count`` of the rows 0 .. total-1, sorted. With the same seed a smaller draw is part of a larger one."""
    order = np.random.default_rng(np.random.SeedSequence([seed, total])).permutation(total)
    return np.sort(order[:count]).astype(np.int64)


def write_subset(
    beton: Path,
    out: Path,
    *,
    seed: int,
    count: int | None = None,
    share: float | None = None,
    where: Mapping[str, str] | None = None,
) -> Subset:
    """Write ``count`` rows, or the ``share``, of those ``where`` columns have these values; by default all of them.

    Raises:
        ConfigError: there is no such set or column, it has fewer rows, or ``out`` holds other ones.
    """
    manifest = read_manifest(beton)
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"share: {share} is not above 0 and up to 1")
    candidates = rows_where(read_labels(beton), where, str(beton)) if where else np.arange(manifest.count)
    total = len(candidates)
    wanted = count if count is not None else round((1 if share is None else share) * total)
    if not 0 < wanted <= total:
        raise ConfigError(f"{beton}: {wanted} rows of {total} cannot be drawn; give another number")
    if out.suffix != ".npy":
        raise ConfigError(f"{out}: give a name that ends in .npy")
    rows = candidates[draw(total, wanted, seed)]
    note = Subset(set=manifest.sha256, count=wanted, seed=seed, where=dict(where or {}))
    if out.exists():
        if read_note(out) == note and np.array_equal(np.load(out, allow_pickle=False), rows):
            return note
        raise ConfigError(f"{out}: holds other rows; give another name, or remove it")
    write_json(_note_path(out), note.model_dump(exclude_defaults=True))
    with atomic_write(out) as file:
        np.save(file, rows)
    return note


def parse_where(words: Sequence[str]) -> dict[str, str]:
    """COLUMN=VALUE, each as --where has it.

    Raises:
        ConfigError: one is something else.
    """
    if bad := [word for word in words if "=" not in word]:
        raise ConfigError(f"--where {bad[0]}: write COLUMN=VALUE")
    return dict(word.split("=", 1) for word in words)


def rows_where(table: pa.Table, where: Mapping[str, str], name: str) -> NDArray[np.int64]:
    """The rows of a set's table whose labels, as text, are these.

    Raises:
        ConfigError: no such column, or no row with the value, in what is called ``name``.
    """
    chosen = np.ones(len(table), np.bool_)
    for column, value in where.items():
        if column not in table.column_names:
            known = ", ".join(table.column_names)
            raise ConfigError(f"--where {column}: {name} has no such label (known: {known})")
        found = [str(each) for each in table[column].to_pylist()]
        if value not in found:
            some = ", ".join(sorted(set(found))[:8])
            raise ConfigError(f"--where {column}={value}: no row of {name} has it (there are: {some})")
        chosen &= np.array(found) == value
    return np.flatnonzero(chosen)


def read_note(rows: Path) -> Subset | None:
    """What stands beside a file of row numbers; None where nothing does."""
    path = _note_path(rows)
    return Subset.model_validate_json(path.read_bytes()) if path.exists() else None


def _note_path(rows: Path) -> Path:
    # Not OUT.json: for set.npy that would be the manifest of set.beton.
    return rows.with_name(f"{rows.name}.json")


def main(argv: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep subset",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("set", type=Path, metavar="SET.beton")
    parser.add_argument("out", type=Path, metavar="OUT.npy")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only rows with this label; may be given several times",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--count", type=int, help="rows")
    size.add_argument("--share", type=float, help="of these rows, above 0 and up to 1")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other rows [0]")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error("--seed: give a whole number from 0")
    if not (args.where or args.count is not None or args.share is not None):
        parser.error("give --where, --count or --share")
    where = parse_where(args.where)
    note = write_subset(args.set, args.out, seed=args.seed, count=args.count, share=args.share, where=where)
    print(f"{args.out}: {note.count:,} rows of {args.set}")
