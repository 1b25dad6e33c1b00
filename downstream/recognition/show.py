"""Verification results for people: a table and the ROC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from downstream.reports.figures import as_svg, roc_panels

if TYPE_CHECKING:
    from downstream.recognition.verify import Verification


def markdown(results: Sequence[Verification]) -> str:
    """One line a set and row: accuracy in the folds, area under the ROC, TAR at each FAR."""
    fars = list(results[0].tar)
    head = ["set", "backbone", "pairs", "accuracy %", "AUC %", *(f"TAR % at FAR {far}" for far in fars)]
    rows = [
        [
            result.set,
            result.row,
            result.pairs,
            "" if result.accuracy is None else f"{result.accuracy:.2f} ± {result.accuracy_std:.2f}",
            f"{result.auc:.2f}",
            *(f"{_tar(result, far):.2f}" for far in fars),
        ]
        for result in results
    ]
    text = tabulate(rows, headers=head, tablefmt="github", disable_numparse=True)
    gone = [f"{r.set}: {r.missing} pictures are missing" for r in results if r.missing]
    note = "".join(f"\n{line}; their pairs count as different people." for line in dict.fromkeys(gone))
    return f"{text}\n{note}"


def _tar(result: Verification, far: str) -> float:
    """Template sets are reported at the nearest rate, as their tables are; pairs at no more than the rate."""
    return (result.tar_nearest if result.accuracy is None else result.tar)[far]


def roc_figure(results: Sequence[Verification]) -> str:
    """An SVG with a panel a set."""
    sets = {name: [r for r in results if r.set == name] for name in dict.fromkeys(r.set for r in results)}
    curves = {name: {r.row: r.curve for r in of_set} for name, of_set in sets.items()}
    return as_svg(roc_panels(curves)).decode()
