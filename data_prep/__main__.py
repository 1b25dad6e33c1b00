"""``python -m data_prep``: photographs to a set of face crops."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import configs
from configs import ConfigError, cli
from data_prep.config import DataPrepConfig
from data_prep.pipeline import IN_PARTS, STAGES, Pipeline
from data_prep.stage import WHOLE, StageError, parse_part

DOWNLOAD = "download"
ABOUT = """\
Photographs to a set of face crops, in stages. Each continues where it stopped and does nothing when it is done.

stages:
  list      open every picture once: hash, size, labels, or why it cannot be used -> images/, quarantine.json
  detect    find faces with RetinaFace and decide which are kept, and why not     -> faces/
  crop      every kept face as a 256x256 JPEG, its labels moved along             -> crops/
  write     all crops as an FFCV file with labels and a manifest                  -> set.beton, .parquet, .json
  report    counts, failures, histograms, contact sheets                          -> report/index.html
  all       the five in a row (default)

before them, for sources that are lists of addresses (flickr, imdb_face); it alone goes to the network:
  download  search and fetch the pictures that are not there yet                  -> the folder source.path

pictures out of videos, sets out of sets (each has its own --help):
  frames    videos to a folder of pictures each
  subset    some rows of a set, by a label or at random, as a file of row numbers
  union     the crops of several runs as one set

on finished runs (each has its own --help):
  compare   which pictures and crops of one set are in another one too            -> runs/compare/
  remove    take pictures, or all of a person, out of everything that a run made

examples:
  python -m data_prep ~/pictures
  python -m data_prep ~/pictures keep.min_size=60 output=runs/data/large
  python -m data_prep detect configs/data/folder.yaml source.path=~/pictures workers=8

the same on four machines; each stage starts when all parts of the one before are done, write and report run once:
  python -m data_prep detect configs/data/folder.yaml source.path=~/pictures --part 0/4      (and 1/4, 2/4, 3/4)
"""


OTHERS = ("subset", "union", "compare", "remove", "frames")
"""Commands with a module and arguments of their own."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description=ABOUT,
        epilog="fields of the config, with [default]:\n" + cli.describe(DataPrepConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m data_prep [STAGE] CONFIG_OR_FOLDER [field=value ...] [--retry-failed] [--part I/N] "
        "[--from-list FILE]",
    )
    parser.add_argument("words", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="try the failed pictures again, and what follows from them; all else stays",
    )
    parser.add_argument(
        "--part",
        type=parse_part,
        default=WHOLE,
        metavar="I/N",
        help=f"only the shards whose number %% N is I ({', '.join((*IN_PARTS, DOWNLOAD))}); "
        "the N parts may run at once",
    )
    parser.add_argument(
        "--from-list",
        metavar="FILE",
        help="only the pictures of this published list, report/list.csv.gz of another run: CSV with image_id,sha256",
    )
    args = parser.parse_intermixed_args(argv)
    stage, *rest = args.words if args.words[0] in (*STAGES, "all", DOWNLOAD) else ("all", *args.words)
    if not rest:
        parser.error(f"after '{stage}' give a config file or a folder of pictures")
    if args.part != WHOLE and stage not in (*IN_PARTS, DOWNLOAD):
        parser.error(
            f"--part goes with {', '.join(IN_PARTS)}; run '{stage}' without it when all parts are done"
        )
    args.stages = STAGES if stage == "all" else (stage,)
    args.download = stage == DOWNLOAD
    args.source, *args.overrides = rest
    if args.from_list:
        args.overrides.append(f"from_list={json.dumps(args.from_list)}")
    return args


def load_config(source: str, overrides: Sequence[str]) -> DataPrepConfig:
    """The config in the file ``source``; or, where it is a folder, configs/data/folder.yaml for that folder."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return configs.load(path, overrides, schema=DataPrepConfig)
    template = Path(configs.__file__).parent / "data" / "folder.yaml"
    output = Path("runs/data") / path.resolve().name
    given = [f"source.path={json.dumps(str(path))}", f"output={json.dumps(str(output))}"]
    return configs.load(template, [*given, *overrides], schema=DataPrepConfig)


def main() -> int:
    """Run the stages of the command line; the last line tells where the report is."""
    try:
        return _run(sys.argv[1:])
    except BrokenPipeError:
        raise
    except (StageError, OSError) as error:  # the machine's fault, not the code's: no traceback
        print(f"error: {error}", file=sys.stderr)
        return cli.FAILED


def _run(words: Sequence[str]) -> int:
    if words and words[0] in OTHERS:
        importlib.import_module(f"data_prep.{words[0]}").main(words[1:])
        return cli.DONE
    args = parse(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(args.source, args.overrides)
    if not str(config.output).strip("."):
        raise ConfigError("output: name a folder of its own, for example output=runs/data/mine")
    if args.download:
        _download(config, args)
        return cli.DONE
    Pipeline(config, args.retry_failed, args.part).run(args.stages)
    report = config.output / "report" / "index.html"
    print(f"report: {report}" if report.exists() else f"done: {config.output}")
    return cli.DONE


def _download(config: DataPrepConfig, args: argparse.Namespace) -> None:
    from data_prep.download.command import download  # here: no other stage needs the network

    counts = download(config, args.retry_failed, args.part)
    print(f"{config.source.kind}: {', '.join(f'{count} {status}' for status, count in counts.most_common())}")


if __name__ == "__main__":
    cli.run(main)
