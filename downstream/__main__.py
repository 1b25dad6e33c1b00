"""``python -m downstream CONFIG [key=value ...]`` evaluates backbones; with a word before it, it does something else.

:data:`COMMANDS` lists the words.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import cli, load
from data_prep.stage import WHOLE, parse_part

# torch and others take seconds to import: what a command needs is looked up when it is called.


@dataclass(frozen=True)
class Command:
    """What a config is the whole input of."""

    schema: str
    """``module:class`` of the config."""
    work: Callable[[Any], None]
    """What is done with it; prints what was made, last where it is."""
    about: str = ""
    """For --help, after the schema's own docstring."""


def _evaluate(cfg: Any) -> None:
    from downstream.evaluate import evaluate
    from downstream.reports.tables import terminal_table

    print(terminal_table(evaluate(cfg)))
    print(f"{cfg.output}/metrics.json")


def _report(cfg: Any) -> None:
    from downstream.reports.page import write_report
    from downstream.reports.tables import terminal_table

    print(terminal_table(write_report(cfg).metrics))
    print(cfg.output)


def _results(cfg: Any) -> None:
    from downstream.reports.summary import write_results_markdown

    write_results_markdown(cfg.studies, cfg.output)
    print(cfg.output)


def _tables(cfg: Any) -> None:
    from downstream.reports.papers import write_tables

    for name, sheet in write_tables(cfg).items():
        print(f"{sheet.caption}\n\n{sheet.terminal()}\n\n{cfg.output}/{name}.html\n")


def _verify(cfg: Any) -> None:
    from downstream.recognition.show import markdown
    from downstream.recognition.verify import verify

    print(markdown(verify(cfg).results))
    print(f"{cfg.output}/verification.json")


def _convert(cfg: Any) -> None:
    from downstream.morphable.model import save_model

    model = cfg.source.read()
    save_model(cfg.output, model)
    surface = "no triangles" if model.triangles is None else f"{len(model.triangles)} triangles"
    shape, expression = model.sizes
    print(f"{model.name}: {len(model.mean)} vertices, {surface}, {shape} + {expression} components")
    print(cfg.output)


def _florence(cfg: Any) -> None:
    from downstream.morphable.florence import florence

    result = florence(cfg)
    print(
        f"{result['pairs']} pairs: mean error {result['mean_error']:.4f} of the distance of the outer eye corners, "
        f"{result['mean_millimetres']:.2f} mm"
    )
    print(f"{cfg.output}/florence.json")


COMMANDS = {
    "report": Command("downstream.config:ReportConfig", _report),
    "results": Command("downstream.config:ResultsConfig", _results),
    "tables": Command("downstream.reports.printed.config:TablesConfig", _tables),
    "verify": Command("downstream.recognition.config:VerifyConfig", _verify),
    "convert-model": Command("downstream.morphable.convert:ConvertConfig", _convert),
    "florence": Command("downstream.morphable.florence:FlorenceConfig", _florence),
}
EVALUATE = Command(
    "downstream.config:DownstreamConfig",
    _evaluate,
    """
Beside it there are, each with a --help of its own,

  cells          does the costly part beforehand, on as many machines as there are
  report         writes the page of a finished evaluation
  compare        tests finished evaluations against each other
  tables         puts them beside what papers print
  results        writes studies of several seeds as Markdown
  predict        reads anybody's pictures with a trained model
  attention      draws where a trained model looks when it names an expression
  cases          draws the pictures on which an evaluation of expressions errs, or chosen ones
  export         writes a trained model as ONNX
  verify         measures backbones on face verification sets
  convert-model  makes the file of a morphable model
  florence       compares reconstructed faces with scans
""",
)


def main() -> int:
    """Choose by the first word; without one of the words, evaluate."""
    words = sys.argv[1:]
    action = words[0] if words else ""
    other = {
        "cells": _run_cells,
        "compare": _run_compare,
        "predict": _run_predict,
        "attention": _run_attention,
        "cases": _run_cases,
        "export": _run_export,
    }
    if action in other:
        other[action](words[1:])
    elif action in COMMANDS:
        _run(action, COMMANDS[action], words[1:])
    else:
        _run("", EVALUATE, words)
    return cli.DONE


def _run(action: str, command: Command, words: list[str]) -> None:
    arguments = _config_parser(action, command.schema, command.about).parse_args(words)
    command.work(load(arguments.config, arguments.overrides, schema=_named(command.schema)))


def _named(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def _config_parser(action: str, schema: str, about: str) -> argparse.ArgumentParser:
    model = _named(schema)
    parser = _parser(
        action,
        f"{model.__doc__}{about}",
        epilog=f"Fields of CONFIG, each of which key=value overrides:\n{cli.describe(model)}",
    )
    parser.add_argument("config", help="a YAML file, for example configs/downstream/demo.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="for example bootstrap.samples=2000"
    )
    return parser


def _parser(action: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m downstream {action}".strip(),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


# --- commands with words of their own --------------------------------------------------------------------------

CELLS = """ Here only its trained cells, row x task x mode x
fraction x fold, which the evaluation then finds. On two machines that share the folder:

  python -m downstream cells configs/downstream/demo.yaml --part 0/2    (and 1/2)
  python -m downstream configs/downstream/demo.yaml                     once, when all parts are done
"""


def _run_cells(words: list[str]) -> None:
    parser = _config_parser("cells", EVALUATE.schema, CELLS)
    parser.add_argument(
        "--part",
        type=parse_part,
        default=WHOLE,
        metavar="I/N",
        help="only the cells whose number %% N is I; the N parts may run at once",
    )
    arguments = parser.parse_intermixed_args(words)
    cfg = load(arguments.config, arguments.overrides, schema=_named(EVALUATE.schema))

    from downstream.evaluate import keep_cells

    print(f"{keep_cells(cfg, arguments.part)} cells trained for {cfg.output}")


COMPARE = """\
Finished evaluations on the same test pictures side by side: mean and spread over seeds, paired tests over seeds, and
intervals of the differences over people. Rows of one name are seeds of one thing.
"""


def _run_compare(words: list[str]) -> None:
    parser = _parser("compare", COMPARE)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run directory; NAME=RUN puts NAME before the names of its rows",
    )
    parser.add_argument("--output", metavar="FOLDER", help="all metrics as HTML, Markdown, LaTeX and JSON")
    arguments = parser.parse_args(words)
    if len(arguments.runs) < 2:
        parser.error("give two runs or more")

    from downstream.reports.across import compare_runs

    for sheet in compare_runs(arguments.runs, arguments.output):
        print(f"{sheet.caption}\n\n{sheet.terminal()}\n")
    if arguments.output:
        print(f"{arguments.output}/values.html, {arguments.output}/differences.html")


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


def _run_predict(words: list[str]) -> None:
    arguments = _models_and_pictures("predict", PREDICT, "predictions").parse_intermixed_args(words)

    from downstream.predict import predict

    models = [arguments.model, *arguments.also]
    counts = predict(models, arguments.pictures, arguments.output, arguments.device)
    print(
        f"{counts['pictures']} pictures, {counts['faces']} faces; {counts['without_face']} without a face, "
        f"{counts['unreadable']} unreadable"
    )
    print(arguments.output / "predictions.json")


ATTENTION = """\
Find the faces in pictures and draw on each where the model looks for the expression that it names (Grad-CAM).

MODEL is a trained task with classes, which an evaluation left in models/ because of keep_models=true.

  python -m downstream attention EXPRESSION photo.jpg holidays/
  python -m downstream attention SIMFLE photo.jpg --also BYOL --also SUPERVISED

The folder gets a sheet for each picture: every face, and beside it the map of each model, from dark to bright.
"""


def _run_attention(words: list[str]) -> None:
    arguments = _models_and_pictures("attention", ATTENTION, "attention").parse_intermixed_args(words)

    from downstream.attention import draw_attention

    models = [arguments.model, *arguments.also]
    without = draw_attention(models, arguments.pictures, arguments.output, arguments.device)
    for path, reason in without.items():
        print(f"{path}: {reason}", file=sys.stderr)
    print(arguments.output)


CASES = """\
Draw test pictures of a finished evaluation of expressions, each with what was said of it, what is true, and the
probability of both (of the mode linear: its scores; of knn: the votes). These are the ones it errs on: the surest
first, in turns of the true classes. --where and --list choose among the test pictures, for example those of occluded
faces.

  python -m downstream cases runs/rafdb --heat
  python -m downstream cases runs/rafdb --list rafdb_occlusion_list.txt --all --heat
  python -m downstream cases runs/mine --where glasses=True --row BYOL --mode frozen --fraction 0.1

What is written to the folder: cases.jpg, and the same in words as cases.json.
"""


def _run_cases(words: list[str]) -> None:
    parser = _parser("cases", CASES)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--row", help="of the evaluation; default: the first pretrained one")
    parser.add_argument("--mode", help="default: finetune, frozen, knn or linear, the first that it has")
    parser.add_argument("--fraction", type=float, help="share of the labels; default: the largest")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only pictures with this label in set.parquet; may be given several times",
    )
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="only pictures whose names it has, one a line"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="right ones too, at even steps from the most right to the most wrong",
    )
    parser.add_argument(
        "--heat",
        action="store_true",
        help="beside each where the network looked (Grad-CAM); takes keep_models=true",
    )
    parser.add_argument("--count", type=int, default=24, help="at most so many; default: 24")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: RUN/cases")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    given = parser.parse_args(words)
    if given.count < 1:
        parser.error("--count: give a whole number from 1")

    from data_prep.subset import parse_where
    from downstream.reports.cases import Wanted, draw_cases

    output = given.output or given.run / "cases"
    where = parse_where(given.where)
    wanted = Wanted(
        given.row, given.mode, given.fraction, where, given.list, given.all, given.heat, given.count
    )
    told = draw_cases(given.run, wanted, output, given.device)
    for which in ("test", "chosen") if where or given.list else ("test",):
        count, wrong = told[which]["pictures"], told[which]["wrong"]
        print(f"{which} pictures: {count}, {wrong} of them wrong, accuracy {100 * (1 - wrong / count):.1f} %")
    print(output / "cases.jpg")


def _models_and_pictures(action: str, about: str, output: str) -> argparse.ArgumentParser:
    parser = _parser(action, about)
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
        "--output", type=Path, default=Path(output), metavar="FOLDER", help=f"default: {output}"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    return parser


EXPORT = """\
Write a trained task as ONNX, with a model card beside it: RGB pictures of faces with values 0..255, (N, 3, s, s), to
predictions (N, P). Normalisation and decoding are inside.
"""


def _run_export(words: list[str]) -> None:
    parser = _parser("export", EXPORT)
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


if __name__ == "__main__":
    cli.run(main)
