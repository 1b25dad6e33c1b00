"""``python -m downstream CONFIG [key=value ...]``: evaluate backbones; ``report`` and ``results`` write it up.

``cells`` does the costly part of an evaluation beforehand, on as many machines as there are; ``verify`` measures
backbones on face verification sets; ``compare`` tests finished runs against each other, and ``tables`` puts them
beside what papers print. ``convert-model`` makes the file of a morphable model, and ``florence``
compares reconstructed faces with scans.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

from configs import cli, load
from data_prep.stage import WHOLE, parse_part
from downstream.config import DownstreamConfig, ReportConfig, ResultsConfig
from downstream.morphable.convert import ConvertConfig
from downstream.morphable.florence import FlorenceConfig
from downstream.printed.config import TablesConfig
from downstream.recognition.config import VerifyConfig

Schema = TypeVar("Schema", bound=BaseModel)

ABOUT = {
    "": " See also: downstream cells, downstream verify, downstream compare, downstream report, downstream results, "
    "downstream tables, downstream convert-model, downstream florence.",
    "cells": """ Here only its trained cells, row x task x mode x
 fraction x fold, which the evaluation then finds. On two machines that share the folder:

  python -m downstream cells configs/downstream/demo.yaml --part 0/2    (and 1/2)
  python -m downstream configs/downstream/demo.yaml                     once, when all parts are done
""",
}


def main() -> int:
    """Choose by the first word: ``cells``, ``compare``, ``report``, ..., or else an evaluation."""
    words = sys.argv[1:]
    action = words[0] if words else ""
    if action == "cells":
        return _run_cells(words[1:])
    if action == "compare":
        return _run_compare(words[1:])
    if action == "tables":
        return _run(words[1:], TablesConfig, action, _tables)
    if action == "report":
        return _run(words[1:], ReportConfig, action, _report)
    if action == "results":
        return _run(words[1:], ResultsConfig, action, _results)
    if action == "verify":
        return _run(words[1:], VerifyConfig, action, _verify)
    if action == "convert-model":
        return _run(words[1:], ConvertConfig, action, _convert)
    if action == "florence":
        return _run(words[1:], FlorenceConfig, action, _florence)
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


def _run_compare(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m downstream compare",
        description="Finished evaluations on the same test pictures side by side: mean and spread over seeds, paired "
        "tests over seeds, and intervals of the differences over people. Rows of one name are seeds of one thing.",
    )
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
    _compare(arguments.runs, arguments.output)
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


def _tables(cfg: TablesConfig) -> None:
    from downstream.papers import write_tables

    for name, sheet in write_tables(cfg).items():
        print(f"{sheet.caption}\n\n{sheet.terminal()}\n\n{cfg.output}/{name}.html\n")


def _compare(runs: list[str], output: str | None) -> None:
    from downstream.across import compare_runs

    for sheet in compare_runs(runs, output):
        print(f"{sheet.caption}\n\n{sheet.terminal()}\n")
    if output:
        print(f"{output}/values.html, {output}/differences.html")


def _verify(cfg: VerifyConfig) -> None:
    from downstream.recognition.show import markdown
    from downstream.recognition.verify import verify

    print(markdown(verify(cfg).results))
    print(f"{cfg.output}/verification.json")


def _convert(cfg: ConvertConfig) -> None:
    from downstream.morphable.model import save_model

    model = cfg.source.read()
    save_model(cfg.output, model)
    surface = "no triangles" if model.triangles is None else f"{len(model.triangles)} triangles"
    print(
        f"{model.name}: {len(model.mean)} vertices, {surface}, {model.sizes[0]} + {model.sizes[1]} components"
    )
    print(cfg.output)


def _florence(cfg: FlorenceConfig) -> None:
    from downstream.morphable.florence import florence

    result = florence(cfg)
    print(
        f"{result['pairs']} pairs: mean error {result['mean_error']:.4f} of the distance of the outer eye corners, "
        f"{result['mean_millimetres']:.2f} mm"
    )
    print(f"{cfg.output}/florence.json")


if __name__ == "__main__":
    cli.run(main)
