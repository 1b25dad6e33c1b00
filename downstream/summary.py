"""docs/results.md: a section a study; paired seeds side by side, and how often the sign of the difference holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from statistics import mean

from scipy.stats import binomtest

from configs import ConfigError
from data_prep.files import atomic_write
from downstream import figures
from downstream.config import Study
from downstream.results import Metrics, read_curve, read_metrics
from downstream.tables import Line, heading, lines, number, percent, span

MODES = {
    "linear": "Frozen features + ridge",
    "frozen": "Trained heads on frozen backbones",
    "finetune": "Fine-tuned",
}


def write_results_markdown(studies: Sequence[Study], output: str | Path) -> None:
    """Write a section for each study, whose runs are evaluations of one matrix on one split, one a seed.

    Raises:
        ConfigError: if a run has no metrics.json, or the runs of a study do not measure the same.
    """
    lines_of = [_study(study, _evaluations(study.runs), Path(output)) for study in studies]
    with atomic_write(output, "w") as file:
        file.write("\n".join(["# Results", *chain.from_iterable(lines_of)]) + "\n")


def _evaluations(runs: Sequence[str]) -> list[Metrics]:
    evaluations = [read_metrics(run) for run in runs]
    first = evaluations[0]
    for run, other in zip(runs, evaluations, strict=True):
        if other.data.split_sha256 != first.data.split_sha256:
            raise ConfigError(f"runs: {run} and {runs[0]} have other splits; evaluate both on the same set")
        if [row.name for row in other.rows] != [row.name for row in first.rows]:
            raise ConfigError(f"runs: {run} and {runs[0]} have other rows; give them the same names")
    return evaluations


def _study(study: Study, evaluations: list[Metrics], output: Path) -> Iterator[str]:
    data = evaluations[0].data
    yield f"\n## {study.title}\n"
    if data.synthetic:
        yield "**Synthetic faces.** All faces are rendered; nothing here speaks about photographs of people.\n"
    if study.text:
        yield study.text.strip() + "\n"
    versions = ", ".join(
        f"{name} {evaluations[0].versions[name]}" for name in ("torch", "torchvision", "ffcv")
    )
    yield (
        f"{_seeds(len(study.runs))} "
        f"{data.train_pictures} training pictures of {data.train_identities} people, {data.test_pictures} test "
        f"pictures of {data.test_identities} others; one split and one subset of the labels for all. "
        f"Brackets hold the 95 % interval over held-out people "
        f"({evaluations[0].bootstrap_samples} resamples); a difference is bold where its interval leaves out "
        f"zero. The metrics are defined in [downstream.md](downstream.md). Measured with {versions}."
    )
    if study.pretrain:
        picture = output.with_name(f"{output.stem}-{study.title.lower().replace(' ', '-')}.svg")
        with atomic_write(picture) as file:
            file.write(figures.as_svg(figures.pretraining(read_curve(study.pretrain))))
        yield f"\n![The loss and the probes during the pretraining]({picture.name})"
    leading = list(zip(*(lines(e, leading_only=True) for e in evaluations), strict=True))
    every = list(zip(*(lines(e, leading_only=False) for e in evaluations), strict=True))
    rest = [same for same in every if same not in leading and "_au" not in same[0].metric.name]
    for mode, title in MODES.items():
        yield from _section(
            f"### {title}", evaluations[0], [same for same in leading if same[0].mode == mode]
        )
    for mode, title in MODES.items():
        table = [same for same in rest if same[0].mode == mode]
        yield from _section(f"### {title}, the other metrics", evaluations[0], table)
    yield "\n### Runs\n"
    for run, evaluation in zip(study.runs, evaluations, strict=True):
        sources = ", ".join(f"{r.name}: {r.source_sha256[:12]}" for r in evaluation.rows if r.source_sha256)
        seeds = ", ".join(f"{r.name}: seed {r.seed}" for r in evaluation.rows if r.seed is not None)
        yield f"* `{run}`: inputs {evaluation.inputs}; weights {sources}; {seeds}"


def _seeds(count: int) -> str:
    if count == 1:
        return "One pretraining seed and one random initialisation of the same network."
    return (
        f"{count} pretraining seeds, each paired with another random initialisation of the same network; values "
        "are those of the seeds, in order. *Same sign* counts the seeds in which the pretrained backbone is "
        f"better; p is the two-sided sign test, whose smallest value with {count} seeds is "
        f"{_sign_test(count, count):.3g}."
    )


def _section(title: str, metrics: Metrics, table: list[tuple[Line, ...]]) -> Iterator[str]:
    if table:
        yield f"\n{title}\n"
        yield from _table(metrics, table)


def _table(metrics: Metrics, table: list[tuple[Line, ...]]) -> Iterator[str]:
    names = [row.name for row in metrics.rows]
    baselines = list(dict.fromkeys(c.baseline for c in metrics.comparisons))
    signs = len(table[0]) > 1
    header = ["Task", "Metric", "Labels", *names]
    header += [word for name in baselines for word in (f"vs {name}", *["same sign"] * signs)]
    yield "| " + " | ".join(header) + " |"
    yield "|---" * len(header) + "|"
    for same in table:
        first = same[0]
        unit = first.metric.unit
        arrow = "↓" if first.metric.better == "lower" else "↑"
        cells = [first.task.title, f"{heading(first.metric)} {arrow}", percent(first.fraction)]
        for name in names:
            cells.append(" · ".join(number(x.values[name].value, unit) for x in same if name in x.values))
        for name in baselines:
            cells += _differences(same, name)[: 1 + signs]
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
    if len(compared) == 1:
        return texts[0], ""
    p = _sign_test(better, len(compared))
    average = number(mean(c.difference for c in compared), unit, sign=True)
    return "<br>".join(texts) + f"<br>mean {average}", f"{better} of {len(compared)}, p = {p:.3g}"


def _sign_test(successes: int, count: int) -> float:
    return float(binomtest(successes, count).pvalue)
