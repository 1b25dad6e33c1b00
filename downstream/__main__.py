"""``python -m downstream CONFIG [key=value ...]``: evaluate backbones; ``report`` and ``results`` write it up."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

from configs import cli, load
from downstream.config import DownstreamConfig, ReportConfig, ResultsConfig

Schema = TypeVar("Schema", bound=BaseModel)


def main() -> int:
    """Choose by the first word: ``report``, ``results``, or else an evaluation."""
    words = sys.argv[1:]
    action = words[0] if words else ""
    if action == "report":
        return _run(words[1:], ReportConfig, action, _report)
    if action == "results":
        return _run(words[1:], ResultsConfig, action, _results)
    return _run(words, DownstreamConfig, "", _evaluate)


def _run(words: list[str], schema: type[Schema], action: str, work: Callable[[Schema], None]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m downstream {action}".strip(),
        description=f"{schema.__doc__}"
        + ("" if action else " See also: downstream report, downstream results."),
        epilog=f"Fields of CONFIG, each of which key=value overrides:\n{cli.describe(schema)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a YAML file, for example configs/downstream/demo.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example bootstrap.samples=2000"
    )
    arguments = parser.parse_args(words)
    work(load(arguments.config, arguments.overrides, schema=schema))
    return cli.DONE


# torch takes seconds to import: not for a typing error in the config.


def _evaluate(cfg: DownstreamConfig) -> None:
    from downstream.evaluate import evaluate
    from downstream.tables import terminal_table

    print(terminal_table(evaluate(cfg)))
    print(f"{cfg.output}/metrics.json")


def _report(cfg: ReportConfig) -> None:
    from downstream.report import write_report
    from downstream.tables import terminal_table

    print(terminal_table(write_report(cfg).metrics))
    print(cfg.output)


def _results(cfg: ResultsConfig) -> None:
    from downstream.summary import write_results_markdown

    write_results_markdown(cfg.runs, cfg.output)
    print(cfg.output)


if __name__ == "__main__":
    cli.run(main)
