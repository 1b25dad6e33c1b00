"""docs/results.md: paired seeds side by side, and how often the sign of the difference holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from scipy.stats import binomtest

from configs import ConfigError
from data_prep.files import atomic_write
from downstream.results import Metrics, read_metrics
from downstream.tables import Line, heading, lines, number, percent, span
from downstream.tasks import TASKS

MODES = {"frozen": "Frozen features + ridge", "finetune": "Fine-tuned"}


def write_results_markdown(runs: Sequence[str], output: str) -> None:
    """Write the table of several evaluations, one a seed, of the same matrix on the same split.

    Raises:
        ConfigError: if a run has no metrics.json, or the runs do not measure the same.
    """
    evaluations = [read_metrics(run) for run in runs]
    first = evaluations[0]
    for run, other in zip(runs, evaluations, strict=True):
        if other.data.split_sha256 != first.data.split_sha256:
            raise ConfigError(f"runs: {run} and {runs[0]} have other splits; evaluate both on the same set")
        if [row.name for row in other.rows] != [row.name for row in first.rows]:
            raise ConfigError(f"runs: {run} and {runs[0]} have other rows; give them the same names")
    with atomic_write(output, "w") as file:
        file.write("\n".join(_document(runs, evaluations)) + "\n")


def _document(runs: Sequence[str], evaluations: list[Metrics]) -> Iterator[str]:
    data = evaluations[0].data
    yield "# Results"
    yield ""
    if data.synthetic:
        yield "**Synthetic faces.** All faces are rendered; nothing here speaks about photographs of people."
        yield ""
    versions = ", ".join(
        f"{name} {evaluations[0].versions[name]}" for name in ("torch", "torchvision", "ffcv")
    )
    yield f"Written by `make results`; {versions}."
    yield ""
    yield (
        f"{len(runs)} pretraining seeds, each paired with another random initialisation of the same network. "
        f"{data.train_pictures} training pictures of {data.train_identities} people, {data.test_pictures} test "
        f"pictures of {data.test_identities} others; one split and one subset of the labels for all. "
        f"Values are those of the seeds, in order; brackets hold the 95 % interval over held-out people "
        f"({evaluations[0].bootstrap_samples} resamples); a difference is bold where its interval leaves out "
        "zero. The metrics are defined in [downstream.md](downstream.md)."
    )
    yield ""
    yield (
        f"*Same sign* counts the seeds in which the pretrained backbone is better; p is the two-sided sign "
        f"test, whose smallest value with {len(runs)} seeds is {_sign_test(len(runs), len(runs)):.3g}."
    )
    leading = list(zip(*(lines(e, leading_only=True) for e in evaluations), strict=True))
    every = list(zip(*(lines(e, leading_only=False) for e in evaluations), strict=True))
    rest = [same for same in every if same not in leading and "_au" not in same[0].metric.name]
    for mode, title in MODES.items():
        yield from _section(f"## {title}", evaluations[0], [same for same in leading if same[0].mode == mode])
    yield "\n## The other metrics"
    for mode, title in MODES.items():
        yield from _section(f"### {title}", evaluations[0], [same for same in rest if same[0].mode == mode])
    yield "\n## Runs\n"
    for run, evaluation in zip(runs, evaluations, strict=True):
        sources = ", ".join(f"{r.name}: {r.source_sha256[:12]}" for r in evaluation.rows if r.source_sha256)
        seeds = ", ".join(f"{r.name}: seed {r.seed}" for r in evaluation.rows if r.seed is not None)
        yield f"* `{run}`: inputs {evaluation.inputs}; weights {sources}; {seeds}"


def _section(title: str, metrics: Metrics, table: list[tuple[Line, ...]]) -> Iterator[str]:
    if table:
        yield f"\n{title}\n"
        yield from _table(metrics, table)


def _table(metrics: Metrics, table: list[tuple[Line, ...]]) -> Iterator[str]:
    names = [row.name for row in metrics.rows]
    baselines = list(dict.fromkeys(c.baseline for c in metrics.comparisons))
    header = ["Task", "Metric", "Labels", *names, *(f"vs {name} | same sign" for name in baselines)]
    yield "| " + " | ".join(header) + " |"
    yield "|---" * (3 + len(names) + 2 * len(baselines)) + "|"
    for same in table:
        first = same[0]
        unit = first.metric.unit
        arrow = "↓" if first.metric.better == "lower" else "↑"
        cells = [TASKS[first.task].title, f"{heading(first.metric)} {arrow}", percent(first.fraction)]
        for name in names:
            cells.append(" · ".join(number(x.values[name].value, unit) for x in same if name in x.values))
        for name in baselines:
            cells += _differences(same, name)
        yield "| " + " | ".join(cells) + " |"


def _differences(same: tuple[Line, ...], baseline: str) -> tuple[str, str]:
    compared = [line.comparisons[baseline] for line in same if baseline in line.comparisons]
    if not compared:
        return "", ""
    unit, wanted = same[0].metric.unit, -1 if same[0].metric.better == "lower" else 1
    texts = []
    for c in compared:
        text = f"{number(c.difference, unit, sign=True)} {span(c.low, c.high, unit)}"
        texts.append(f"**{text}**" if c.excludes_zero else text)
    better = sum(c.difference * wanted > 0 for c in compared)
    p = _sign_test(better, len(compared))
    average = number(mean(c.difference for c in compared), unit, sign=True)
    return "<br>".join(texts) + f"<br>mean {average}", f"{better} of {len(compared)}, p = {p:.3g}"


def _sign_test(successes: int, count: int) -> float:
    return float(binomtest(successes, count).pvalue)
