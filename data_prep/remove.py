"""``python -m data_prep remove``: a person leaves everything that a run has made."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from configs import ConfigError
from data_prep.config import DataPrepConfig
from data_prep.files import read_commit, shard_paths, write_json
from data_prep.pipeline import Pipeline
from data_prep.removed import RemovalList, Removed, finish, read_list, stale_table
from data_prep.tables import read_shard

ABOUT = """\
Remove pictures from everything that a run has made: image, face and crop tables, rendered pictures, quarantine,
set and report. An identity stands for all pictures in which the source has annotated it, also those without a crop;
a picture goes as a whole, with all the faces in it, and with it every file of the same bytes. Its row in the image
table stays, as "removed", with its id and path alone, so that the counts remain right.

The pictures are listed in removed.json, and no later run of this config takes them in again. Stopped in the middle,
the same command, or any other run of the config, goes on. Stop the jobs that are at work on the run first.

In a file for --from-file each line is one of: identity ID, image-id ID, sha256 HASH. Empty lines and lines that
start with # are passed over.
"""
OUT_OF_REACH = """\
This does not reach:
  the source's own files: remove them there ({files})
  copies of the set made elsewhere, unions made from it, pages of 'compare'; the set's SHA-256 was
    {sha256}
  index files of subsets: they count rows, so make them again
  backbones that were trained on it, and what was made from those
  backups and snapshots, and what the disk keeps of deleted files
  other versions of the pictures, re-encoded or cut: look at the near-duplicates in the report\
"""
KINDS = ("identity", "image-id", "sha256")


@dataclass(frozen=True)
class Request:
    """What is to go: ``kind`` is one of ``KINDS``."""

    kind: str
    value: str

    def __str__(self) -> str:
        return f"{self.kind} {self.value}"


def main(argv: Sequence[str]) -> None:
    """Remove what the command line names; the last line tells where the report is."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep remove",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m data_prep remove CONFIG_OR_FOLDER [field=value ...] [--identity ID] [--image-id ID] "
        "[--sha256 HASH] [--from-file FILE] [--why TEXT]",
    )
    parser.add_argument("words", nargs="+", help=argparse.SUPPRESS)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", action="append", default=[], help="may be given several times")
    parser.add_argument("--from-file", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--why", default="", help="kept in removed.json; give no name")
    args = parser.parse_intermixed_args(argv)
    requests = [Request(kind, value) for kind in KINDS for value in getattr(args, kind.replace("-", "_"))]
    requests += [request for path in args.from_file for request in read_requests(path)]
    if not requests:
        parser.error("name what is to go: --identity, --image-id, --sha256 or --from-file")
    from data_prep.__main__ import load_config

    source, *overrides = args.words
    remove(load_config(source, overrides), requests, args.why)


def read_requests(path: Path) -> list[Request]:
    """The lines of a file for ``--from-file``; ConfigError with file and line for any other."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--from-file {path}: cannot be read ({error})") from None
    requests = []
    for number, line in enumerate(lines, 1):
        kind, _, value = line.strip().partition(" ")
        if not kind or kind.startswith("#"):
            continue
        if kind not in KINDS or not value.strip():
            raise ConfigError(
                f"{path}, line {number}: expected 'identity ID', 'image-id ID' or 'sha256 HASH'"
            )
        requests.append(Request(kind, value.strip()))
    return requests


def remove(config: DataPrepConfig, requests: Sequence[Request], why: str = "") -> None:
    """Remove pictures, then write the set and the report again.

    Raises:
        ConfigError: a request names nothing, or the tables are not in a state in which they can be filtered;
            nothing was changed then.
    """
    pipeline = Pipeline(config)
    finish(config.output, pipeline.source.labels)
    earlier = read_list(config.output)
    new = _find(pipeline, requests, earlier, why)
    sha256 = _set_sha256(config.output)
    if new:
        shards = sorted({picture.shard for picture in new})
        for number in shards:
            _require_order(pipeline, number)
        listed = RemovalList(under_way=tuple(shards), pictures=(*earlier.pictures, *new))
        write_json(config.output / "removed.json", listed.model_dump())
        finish(config.output, pipeline.source.labels)
    asked, values = {str(request) for request in requests}, {request.value for request in requests}
    files = [
        p for p in read_list(config.output).pictures if p.asked in asked or {p.image_id, p.sha256} & values
    ]
    print(
        f"removed: {len(new)} pictures"
        + (f", {len(files) - len(new)} before" if len(files) > len(new) else "")
    )
    _make_again(pipeline)
    print(OUT_OF_REACH.format(files=f"{len(files)} files, see removed.json", sha256=sha256 or "unknown"))
    report = config.output / "report" / "index.html"
    print(f"report: {report}" if report.exists() else f"done: {config.output}")


def _require_order(pipeline: Pipeline, number: int) -> None:
    """Refuse to filter tables of a shard that are damaged, stale, or of other settings: nothing was changed yet."""
    if table := stale_table(pipeline.config.output, number):
        place = shard_paths(pipeline.config.output / table, number)[0]
        raise ConfigError(f"{place}: not up to date with the tables before it; run 'all' first, then this")
    for stage in (pipeline.images, pipeline.faces, pipeline.crops):
        if read_commit(stage.folder, number):
            stage.mark(number)
            read_shard(stage.folder, number, [])


def _set_sha256(output: Path) -> str:
    from data_prep.beton import read_manifest

    path = output / "set.beton"
    return read_manifest(path).sha256 if path.with_suffix(".json").exists() else ""


def _make_again(pipeline: Pipeline) -> None:
    """The set and the report, if all crops are there."""
    crops, count = pipeline.crops.folder, len(pipeline.shards)
    if not all(shard_paths(crops, number)[1].exists() for number in range(count)):
        print("The set was not written yet; go on with 'all'.")
    elif not any(
        pc.any(pc.equal(read_shard(crops, i, ["error"])["error"], "")).as_py() for i in range(count)
    ):
        print("No face is left, so there is no set any more.")
    else:
        pipeline.run(("write", "report"))


def _find(pipeline: Pipeline, requests: Sequence[Request], earlier: RemovalList, why: str) -> list[Removed]:
    """The pictures that the requests name and that are not removed yet.

    Raises:
        ConfigError: a request names none.
    """
    table = _pictures(pipeline, any(request.kind == "identity" for request in requests))
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    found: dict[str, Removed] = {}
    unknown = []
    for request in requests:
        rows = table.filter(_matches(table, request))
        # and every other file of the same bytes
        same = pc.is_in(table["sha256"], value_set=rows["sha256"].drop_null().combine_chunks())
        rows = pa.concat_tables([rows, table.filter(same)])
        if not len(rows) and not _is_gone(request, earlier):
            unknown.append(str(request))
        for row in rows.select(["image_id", "sha256", "shard"]).to_pylist():
            found.setdefault(row["image_id"], Removed(**row, asked=str(request), when=now, why=why))
    if unknown:
        raise ConfigError(
            f"{pipeline.images.folder}: none of the {len(table):,} pictures that are not removed has "
            f"{'; '.join(unknown)}; nothing was removed"
        )
    return [*found.values()]


def _is_gone(request: Request, earlier: RemovalList) -> bool:
    """Did an earlier removal take what is asked for?"""
    return any(
        str(request) == gone.asked or request.value in (gone.image_id, gone.sha256)
        for gone in earlier.pictures
    )


def _matches(table: pa.Table, request: Request) -> pa.ChunkedArray:
    if request.kind == "identity":
        rows = [request.value in identities for identities in table["identities"].to_pylist()]
        return pa.chunked_array([pa.array(rows, pa.bool_())])
    column = "image_id" if request.kind == "image-id" else "sha256"
    value = request.value if column == "image_id" else request.value.lower()
    return pc.fill_null(pc.equal(table[column], value), False)


def _pictures(pipeline: Pipeline, identities: bool) -> pa.Table:
    """``image_id``, ``sha256``, ``shard`` and, where wanted, ``identities`` (texts) of all pictures still there."""
    folder, labels = pipeline.images.folder, pipeline.source.labels
    if identities and "identity" not in labels.names:
        raise ConfigError(
            f"--identity: the source '{pipeline.config.source.kind}' names no identities; give ids"
        )
    pipeline.images.commits(len(pipeline.shards))
    columns = ["image_id", "sha256", "status", *(["annotations"] if identities else [])]
    parts = []
    numbers = range(len(pipeline.shards))
    for number in tqdm(numbers, desc="search", unit="shard", disable=len(numbers) < 100):
        part = read_shard(folder, number, columns)
        part = part.filter(pc.not_equal(part["status"], "removed"))
        part = part.append_column("shard", pa.array([number] * len(part), pa.int64()))
        if identities:
            texts = [[str(a["identity"]) for a in row or ()] for row in part["annotations"].to_pylist()]
            part = part.append_column("identities", pa.array(texts, pa.list_(pa.string())))
            part = part.drop_columns(["annotations"])
        parts.append(part)
    return pa.concat_tables(parts)
