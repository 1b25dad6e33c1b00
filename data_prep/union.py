"""``python -m data_prep union``: the crops of several runs as one set, written once."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, field_validator

import configs
from configs import Config, ConfigError, cli
from data_prep.beton import Manifest, SourceNote
from data_prep.config import DataPrepConfig
from data_prep.exclude import ExcludeConfig
from data_prep.files import Commit, digest, read_commit, shard_paths
from data_prep.removed import read_list
from data_prep.tables import CROPS, PIXEL_POINTS, label_column
from data_prep.write import WriteConfig, read_jpegs, read_rows, standing_set, write_rows

VERSION = 1
ABOUT = """\
Write the crops of several runs as one set: set.beton, set.parquet and set.json. Each run must be done up to its
crops; a set of its own it need not have. The crops' files go in unchanged, in the order of the parts.

example:
  python -m data_prep union configs/data/large_scale_face.yaml
"""


class PartConfig(Config):
    """A run whose crops are taken."""

    path: Path
    """The output folder of the run."""
    split: str | None = None
    """Take only crops whose column `split` says this."""


class UnionConfig(Config):
    """Several runs, one set."""

    output: Path
    """The folder that the set is written to."""
    parts: dict[str, PartConfig] = Field(min_length=1)
    """The runs, each under a name that its rows carry."""
    write: WriteConfig = WriteConfig()
    """The set."""
    exclude: ExcludeConfig = ExcludeConfig()
    """Which crops stay out of it."""

    @field_validator("parts")
    @classmethod
    def _named(cls, parts: dict[str, PartConfig]) -> dict[str, PartConfig]:
        if wrong := [name for name in parts if not re.fullmatch(r"\w[\w-]*", name, re.ASCII)]:
            raise ValueError(f"'{wrong[0]}' is no name for a part; use letters, digits, _ and -")
        return parts


@dataclass(frozen=True)
class Part:
    """The crops of a finished run, not yet read."""

    name: str
    config: PartConfig
    images: list[Commit]
    crops: list[Commit]
    run: DataPrepConfig

    @property
    def folder(self) -> Path:
        """Of the crop tables."""
        return self.config.path / "crops"

    def rows(self, offset: int) -> tuple[pa.Table, NDArray[np.bool_]]:
        """Its rows of the union, with identities counted on from ``offset``; and which of its crops they are."""
        table = read_rows(self.folder, len(self.crops))
        chosen = np.ones(len(table), bool)
        if self.config.split is not None:
            if "split" not in table.column_names:
                raise ConfigError(
                    f"parts.{self.name}.split: {self.folder} has no column 'split'; leave it out"
                )
            chosen = pc.fill_null(pc.equal(table["split"], self.config.split), False).to_numpy()
        if not chosen.any():
            raise ConfigError(
                f"parts.{self.name}: {self.folder} has no crop to take; correct or drop the part"
            )
        return self._as_part(table.filter(pa.array(chosen)), offset), chosen

    def _as_part(self, table: pa.Table, offset: int) -> pa.Table:
        """With ids, identities and labels that no other part has."""
        for name in ("face_id", "image_id"):
            ids = pc.binary_join_element_wise(self.name, table[name], "/")
            table = table.set_column(table.column_names.index(name), name, ids)
        known = pc.greater_equal(table["identity"], 0)
        identity = pc.if_else(known, pc.add(table["identity"], offset), table["identity"])
        table = table.set_column(table.column_names.index("identity"), "identity", identity)
        table = table.rename_columns([self._column(name) for name in table.column_names])
        return table.add_column(2, "part", pa.repeat(self.name, len(table)))

    def _column(self, name: str) -> str:
        # What is in crop pixels means the same in every corpus. Of the others nobody knows: "expression" is a class
        # of emotion in AffectNet, and 0 or 1 in WIDER FACE.
        shared = {*CROPS.names, *map(label_column, PIXEL_POINTS)}
        return name if name in shared else f"{self.name}.{name}"

    def note(self, faces: int, offset: int) -> SourceNote:
        """What the manifest says of it."""
        return SourceNote(
            name=self.name,
            kind=self.run.source.kind,
            synthetic=self.run.source.synthetic,
            images=sum(commit.rows for commit in self.images),
            faces=faces,
            identity_offset=offset,
        )


def write_union(config: UnionConfig) -> Manifest:
    """Write the set unless it stands already.

    Raises:
        ConfigError: a part is not finished, was cut in another way than the first, or has no crop; or the set on
            disk was made from others.
    """
    parts = [open_part(name, part) for name, part in config.parts.items()]
    for part in parts[1:]:
        _require_same_crops(parts[0], part)
    inputs = _inputs(config, parts)
    if standing := standing_set(config.output, inputs):
        return standing
    tables, jpegs, notes, offset = [], [], [], 0
    for part in parts:
        table, chosen = part.rows(offset)
        tables.append(table)
        jpegs.append(_chosen(part, chosen))
        notes.append(part.note(len(table), offset))
        offset = max(offset, pc.max(table["identity"]).as_py() + 1)
    return write_rows(
        config.output,
        pa.concat_tables(tables, promote_options="default"),
        itertools.chain.from_iterable(jpegs),
        label_name="none",
        sources=notes,
        config_hash=configs.config_hash(config, exclude={"output": True}),
        inputs=inputs,
        crop=parts[0].run.crop.model_dump(),
        storage=config.write.storage,
        exclude=config.exclude,
    )


def finished(config: UnionConfig) -> bool:
    """Whether the set stands and its parts do; raises as :func:`write_union` does where it was made from others."""
    try:
        parts = [open_part(name, part) for name, part in config.parts.items()]
    except ConfigError:
        return False  # they may be still to come
    return standing_set(config.output, _inputs(config, parts)) is not None


def open_part(name: str, part: PartConfig) -> Part:
    """The marks of a run.

    Raises:
        ConfigError: it is not done up to its crops.
    """
    place, mend = f"parts.{name}.path={part.path}", "run 'python -m data_prep crop CONFIG', without --part"
    if not (part.path / "config.yaml").exists():
        # A run in parts leaves none: only one without looks whether all the shards of the source are there.
        raise ConfigError(f"{place}: no run that is whole is there; after its stages list and detect {mend}")
    if read_list(part.path).under_way:
        raise ConfigError(f"{place}: a removal is under way; {mend}")
    run = configs.load(part.path / "config.yaml", schema=DataPrepConfig)
    shards = len(list((part.path / "images").glob("[0-9]*.json")))
    marks: dict[str, list[Commit]] = {"images": [], "faces": [], "crops": []}
    for (stage, found), number in itertools.product(marks.items(), range(shards)):
        mark = read_commit(part.path / stage, number)
        if mark is None:
            raise ConfigError(f"{place}: {shard_paths(part.path / stage, number)[1]} is missing; {mend}")
        found.append(mark)
    for number, (image, face, crop) in enumerate(zip(*marks.values(), strict=True)):
        if crop.inputs != digest([image.sha256, face.sha256]):
            path = shard_paths(part.path / "crops", number)[1]
            raise ConfigError(f"{place}: {path}: made from other faces than are there now; {mend}")
    return Part(name, part, marks["images"], marks["crops"], run)


def _require_same_crops(first: Part, other: Part) -> None:
    expected, found = _settings(first), _settings(other)
    for field in [*expected, *found]:
        if expected.get(field) != found.get(field):
            raise ConfigError(
                f"parts.{other.name}: its crops were made with {field}={found.get(field)}, "
                f"those of {first.name} with {field}={expected.get(field)}; make one of them again like the other"
            )


def _settings(part: Part) -> dict[str, Any]:
    return part.crops[0].settings | {"version": part.crops[0].version}


def _inputs(config: UnionConfig, parts: Sequence[Part]) -> str:
    chosen = [[part.name, part.config.split, [commit.sha256 for commit in part.crops]] for part in parts]
    return digest([VERSION, config.write.storage, chosen, *config.exclude.inputs()])


def _chosen(part: Part, chosen: NDArray[np.bool_]) -> Iterable[bytes]:
    return itertools.compress(read_jpegs(part.folder, len(part.crops)), chosen)


def main(argv: Sequence[str]) -> None:
    """The command line; the last line names the set."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep union",
        description=ABOUT,
        epilog="fields of the config, with [default]; NAME stands for a part:\n" + cli.describe(UnionConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m data_prep union CONFIG [field=value ...]",
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_args(argv)
    config = configs.load(args.config, args.overrides, schema=UnionConfig)
    manifest = write_union(config)
    for note in manifest.sources:
        print(f"{note.name}: {note.faces:,} faces of {note.images:,} pictures")
    print(f"{config.output / 'set.beton'}: {manifest.count:,} faces")
