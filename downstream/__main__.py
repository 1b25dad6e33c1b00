"""``python -m downstream CONFIG [key=value ...]``: evaluate backbones; ``report`` and ``results`` write it up.

``cells`` does the costly part of an evaluation beforehand, on as many machines as there are; ``verify`` measures
backbones on face verification sets; ``predict`` reads anybody's pictures with a trained model, and ``export`` writes
one as ONNX.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from configs import cli, load
from data_prep.stage import WHOLE, parse_part
from downstream.config import DownstreamConfig, ReportConfig, ResultsConfig
from downstream.recognition.config import VerifyConfig

Schema = TypeVar("Schema", bound=BaseModel)

ABOUT = {
    "": " See also: downstream predict, downstream export, downstream verify, downstream cells, downstream report, "
    "downstream results.",
    "cells": """ Here only its trained cells, row x task x mode x
fraction x fold, which the evaluation then finds. On two machines that share the folder:

  python -m downstream cells configs/downstream/demo.yaml --part 0/2    (and 1/2)
  python -m downstream configs/downstream/demo.yaml                     once, when all parts are done
""",
}


def main() -> int:
    """Choose by the first word: ``cells``, ``report``, ``results``, ``verify``, ``predict``, ``export``, or else an
    evaluation.
    """
    words = sys.argv[1:]
    action = words[0] if words else ""
    if action == "cells":
        return _run_cells(words[1:])
    if action == "report":
        return _run(words[1:], ReportConfig, action, _report)
    if action == "results":
        return _run(words[1:], ResultsConfig, action, _results)
    if action == "verify":
        return _run(words[1:], VerifyConfig, action, _verify)
    if action == "predict":
        return _run_predict(words[1:])
    if action == "export":
        return _run_export(words[1:])
    return _run(words, DownstreamConfig, "", _evaluate)


def _run(words: list[str], schema: type[Schema], action: str, work: Callable[[Schema], None]) -> int:
    arguments = _parser(schema, action).parse_args(words)
    work(load(arguments.config, arguments.overrides, schema=schema))
    return cli.DONE


def _run_cells(words: list[str]) -> int:
    parser = _parser(DownstreamConfig, "cells")
    parser.add_argument(
        "--part",
        type=parse_part,
        default=WHOLE,
        metavar="I/N",
        help="only the cells whose number %% N is I; the N parts may run at once",
    )
    arguments = parser.parse_intermixed_args(words)
    _cells(load(arguments.config, arguments.overrides, schema=DownstreamConfig), arguments.part)
    return cli.DONE


PREDICT = """\
Find the faces in pictures, cut them as the model's training set was cut, and write down what it reads off them.

MODEL is a file that an evaluation left in models/ because of keep_models=true. PICTURES are files, or folders with
all that lies below them.

  python -m downstream predict runs/x/models/mine-landmarks-finetune-1.safetensors photo.jpg holidays/
  python -m downstream predict LANDMARKS photo.jpg --also ACTION_UNITS --also AFFECT --output runs/mine

What is written to the folder:
  predictions.json   an entry for every picture, and in it for every face: box, score and values, in pixels of the
                     upright picture; or why there is none
  pictures/          each picture with its faces numbered, and what is predicted drawn onto them
  faces/             each face's crop with what is predicted on and beside it

A run that was interrupted goes on with the same command.
"""


def _run_predict(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m downstream predict",
        description=PREDICT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a .safetensors of a trained task")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURES", help="files and folders")
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="MODEL",
        help="another model for the same faces; may be given several times",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), metavar="FOLDER", help="default: predictions"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    arguments = parser.parse_intermixed_args(words)

    from downstream.predict import predict

    models = [arguments.model, *arguments.also]
    counts = predict(models, arguments.pictures, arguments.output, arguments.device)
    print(
        f"{counts['pictures']} pictures, {counts['faces']} faces; {counts['without_face']} without a face, "
        f"{counts['unreadable']} unreadable"
    )
    print(arguments.output / "predictions.json")
    return cli.DONE


def _run_export(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m downstream export",
        description="Write a trained task as ONNX, with a model card beside it: RGB pictures of faces with values "
        "0..255, (N, 3, s, s), to predictions (N, P). Normalisation and decoding are inside.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a .safetensors of a trained task")
    parser.add_argument("target", type=Path, metavar="TARGET.onnx", help="what to write")
    parser.add_argument(
        "--input", choices=("uint8", "float32"), default="uint8", help="type of the pictures; default: uint8"
    )
    parser.add_argument(
        "--figures", type=Path, help="the metrics.json whose figures of it the card shall show"
    )
    arguments = parser.parse_args(words)

    from downstream.export import export_model

    print(export_model(arguments.model, arguments.target, arguments.input, arguments.figures))
    return cli.DONE


def _parser(schema: type[BaseModel], action: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m downstream {action}".strip(),
        description=f"{schema.__doc__}{ABOUT.get(action, '')}",
        epilog=f"Fields of CONFIG, each of which key=value overrides:\n{cli.describe(schema)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a YAML file, for example configs/downstream/demo.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example bootstrap.samples=2000"
    )
    return parser


# torch takes seconds to import: not for a typing error in the config.


def _evaluate(cfg: DownstreamConfig) -> None:
    from downstream.evaluate import evaluate
    from downstream.tables import terminal_table

    print(terminal_table(evaluate(cfg)))
    print(f"{cfg.output}/metrics.json")


def _cells(cfg: DownstreamConfig, part: slice) -> None:
    from downstream.evaluate import keep_cells

    print(f"{keep_cells(cfg, part)} cells trained for {cfg.output}")


def _report(cfg: ReportConfig) -> None:
    from downstream.report import write_report
    from downstream.tables import terminal_table

    print(terminal_table(write_report(cfg).metrics))
    print(cfg.output)


def _results(cfg: ResultsConfig) -> None:
    from downstream.summary import write_results_markdown

    write_results_markdown(cfg.studies, cfg.output)
    print(cfg.output)


def _verify(cfg: VerifyConfig) -> None:
    from downstream.recognition.show import markdown
    from downstream.recognition.verify import verify

    print(markdown(verify(cfg).results))
    print(f"{cfg.output}/verification.json")


if __name__ == "__main__":
    cli.run(main)
