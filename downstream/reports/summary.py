"""docs/results.md: a section a study; paired seeds side by side, their spread, and tests of the differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

from configs import ConfigError
from data_prep.files import atomic_write
from downstream.config import Study
from downstream.reports import by_row, figures
from downstream.reports.paired import least_sign_p, paired
from downstream.reports.tables import (
    Line,
    at_several_shares,
    caution,
    clear,
    heading,
    held_out,
    in_markdown,
    lines,
    markdown_table,
    number,
    of_people,
    of_subset,
    percent,
    span,
)
from downstream.results import Metrics, read_metrics

SECTION = "\n## "
MODES = {
    "linear": "Frozen features + ridge",
    "knn": "Frozen features + nearest neighbours",
    "frozen": "Trained heads on frozen backbones",
    "finetune": "Fine-tuned",
}


def write_results_markdown(studies: Sequence[Study], output: str | Path) -> None:
    """Write a section for each study, whose runs are evaluations of one matrix on one split, one a seed.

    Sections of other titles that are in the file stay: their runs, of hours, need not be here.

    Raises:
        ConfigError: if a run has no metrics.json, or the runs of a study do not measure the same.
    """
    sections = _sections(Path(output))
    for study in studies:
        lines_of = _study(study, _evaluations(study.runs), Path(output))
        sections[study.title] = "\n".join(lines_of) + "\n"
    with atomic_write(output, "w") as file:
        file.write("".join(["# Results\n", *sections.values()]))


def _sections(path: Path) -> dict[str, str]:
    """Title -> section of a file that was written before; none if it was not."""
    if not path.is_file():
        return {}
    sections = path.read_text().split(SECTION)[1:]
    return {section.partition("\n")[0]: SECTION + section for section in sections}


def _evaluations(runs: Sequence[str]) -> list[Metrics]:
    evaluations = [read_metrics(run) for run in runs]
    first = evaluations[0]
    for run, other in zip(runs, evaluations, strict=True):
        if other.data.split_sha256 != first.data.split_sha256:
            raise ConfigError(f"runs: {run} and {runs[0]} have other splits; evaluate both on the same set")
        if [row.name for row in other.rows] != [row.name for row in first.rows]:
            raise ConfigError(f"runs: {run} and {runs[0]} have other rows; give them the same names")
    measured = [dict.fromkeys(line.key for line in lines(other, leading_only=False)) for other in evaluations]
    every = dict.fromkeys(chain.from_iterable(measured))
    for run, own in zip(runs, measured, strict=True):
        for task, mode, fraction, subset, metric in every:
            if (task, mode, fraction, subset, metric) not in own:
                raise ConfigError(
                    f"runs: {run} lacks {metric} of {task}, {mode}, {percent(fraction)} of the labels"
                    f"{of_subset(subset)}, which another run of the study has; evaluate all alike"
                )
    return evaluations


def _side_by_side(evaluations: Sequence[Metrics], leading_only: bool) -> list[tuple[Line, ...]]:
    """Each line of the first evaluation with the same one of the others."""
    found = [{line.key: line for line in lines(each, leading_only)} for each in evaluations]
    return [tuple(own[key] for own in found) for key in found[0]]


def _mean(same: tuple[Line, ...]) -> Line:
    """For a figure: the seeds' mean with their range, of one seed itself with its interval."""
    if len(same) == 1:
        return same[0]
    values = {}
    for row, measured in same[0].values.items():
        found = [line.values[row].value for line in same]
        middle = {"value": mean(found), "low": min(found), "high": max(found)}
        values[row] = measured.model_copy(update=middle)
    return replace(same[0], values=values)


def _study(study: Study, evaluations: list[Metrics], output: Path) -> Iterator[str]:
    data = evaluations[0].data
    yield f"{SECTION}{study.title}\n"
    if data.synthetic:
        yield "**Synthetic faces.** All faces are rendered; nothing here speaks about photographs of people.\n"
    if study.text:
        yield study.text.strip() + "\n"
    yield " ".join(
        [
            _seeds(study),
            f"{data.train_pictures} training pictures{of_people(data.train_identities)}, {data.test_pictures} test "
            f"pictures{of_people(data.test_identities)}; one split and one subset of the labels for all.",
            *_marked(study, evaluations[0]),
            *filter(None, [caution(data)]),
            "The metrics are defined in [downstream.md](downstream.md).",
            f"Measured with {_versions(evaluations[0])}.",
        ]
    )
    leading = _side_by_side(evaluations, leading_only=True)
    if study.table == "rows":
        yield from by_row.tables(evaluations, leading)
        name = f"{output.stem}-{study.title.lower().replace(' ', '-')}.svg"
        with atomic_write(output.with_name(name)) as file:
            file.write(figures.as_svg(figures.rows_at_a_glance(list(by_row.by_task(leading)))))
        yield f"\n![Each row and seed, a panel a task]({name})\n\nA mark is a seed."
    else:
        yield from _lines(study, evaluations, leading, output)
    yield "\n### Runs\n"
    for run, evaluation in zip(study.runs, evaluations, strict=True):
        sources = ", ".join(f"{r.name}: {r.source_sha256[:12]}" for r in evaluation.rows if r.source_sha256)
        seeds = ", ".join(f"{r.name}: seed {r.seed}" for r in evaluation.rows if r.seed is not None)
        yield f"* `{run}`: inputs {evaluation.inputs}; weights {sources}; {seeds}"


def _lines(
    study: Study, evaluations: list[Metrics], leading: list[tuple[Line, ...]], output: Path
) -> Iterator[str]:
    """A line a task, metric and share of the labels."""
    every = _side_by_side(evaluations, leading_only=False)
    rest = [same for same in every if same not in leading and "_au" not in same[0].metric.name]
    for mode, title in MODES.items():
        table = [same for same in leading if same[0].mode == mode]
        yield from _section(f"### {title}", evaluations[0], table)
        learnt = at_several_shares([_mean(same) for same in table])
        if learnt:
            name = f"{output.stem}-{study.title.lower().replace(' ', '-')}-{mode}.svg"
            with atomic_write(output.with_name(name)) as file:
                file.write(figures.as_svg(figures.label_efficiency(evaluations[0], learnt)))
            said = (
                "Bands are the 95 % intervals."
                if len(evaluations) == 1
                else "Lines are the means of the seeds, bands reach from the least of them to the largest."
            )
            yield f"\n![Each task against the share of labels]({name})\n\n{said}"
    for mode, title in MODES.items():
        table = [same for same in rest if same[0].mode == mode]
        yield from _section(f"### {title}, the other metrics", evaluations[0], table)


def _seeds(study: Study) -> str:
    count = len(study.runs)
    if count == 1:
        return "One pretraining seed and one random initialisation of the same network."
    if study.table == "rows":
        return (
            f"{count} seeds, of the pretraining and of the untrained network; values are their mean ± standard "
            "deviation (n − 1)."
        )
    return (
        f"{count} pretraining seeds, each paired with another random initialisation of the same network; values "
        "are those of the seeds, in order, and below them their mean ± standard deviation (n − 1). *Same sign* "
        "counts the seeds in which the pretrained backbone is better; p is the two-sided sign test, whose smallest "
        f"value with {count} seeds is {least_sign_p(count):.3g}, and t p the paired t-test over the seeds, which "
        "takes the differences as normal. No p is corrected for the number of lines."
    )


def _marked(study: Study, metrics: Metrics) -> Iterator[str]:
    """What stands out, and by which interval."""
    interval = f"the 95 % interval over {held_out(metrics.data)} ({metrics.bootstrap_samples} resamples)"
    if study.table == "seeds":
        yield f"Brackets hold {interval}; a difference is bold where its interval leaves out zero."
    elif (against := by_row.untrained(metrics)) is not None:
        each = f" in each of the {len(study.runs)} seeds" if len(study.runs) > 1 else ""
        yield (
            f"A pretrained row is **bold** where it is better than `{against}`{each}, *slanted* where it is worse: "
            f"{interval} of the difference leaves out zero. No interval is corrected for the number of figures."
        )


def _versions(metrics: Metrics) -> str:
    return ", ".join(f"{name} {metrics.versions[name]}" for name in ("torch", "torchvision", "ffcv"))


def _section(title: str, metrics: Metrics, table: list[tuple[Line, ...]]) -> Iterator[str]:
    if table:
        yield f"\n{title}\n"
        yield from _table(metrics, table)


def _table(metrics: Metrics, table: list[tuple[Line, ...]]) -> Iterator[str]:
    names = [row.name for row in metrics.rows]
    baselines = list(dict.fromkeys(c.baseline for c in metrics.comparisons))
    signs = len(table[0]) > 1
    header = ["Task", "Metric", "Labels", *map(in_markdown, names)]
    header += [word for name in baselines for word in (f"vs {in_markdown(name)}", *["same sign"] * signs)]
    body = []
    for same in table:
        first = same[0]
        unit = first.metric.unit
        arrow = "↓" if first.metric.better == "lower" else "↑"
        metric = f"{heading(first.metric)} {arrow}{of_subset(first.subset)}"
        cells = [first.task.title, metric, percent(first.fraction)]
        for name in names:
            cells.append(_values([x.values[name].value for x in same if name in x.values], unit))
        for name in baselines:
            cells += _differences(same, name)[: 1 + signs]
        body.append(cells)
    yield from markdown_table(header, body)


def _values(seeds: Sequence[float], unit: Literal["%", "deg", ""]) -> str:
    """Each, and what they have in common if they differ."""
    text = " · ".join(number(value, unit) for value in seeds)
    if len(set(seeds)) < 2:
        return text
    return f"{text}<br>{number(mean(seeds), unit)} ± {number(stdev(seeds), unit)}"


def _differences(same: tuple[Line, ...], baseline: str) -> tuple[str, str]:
    compared = [line.comparisons[baseline] for line in same if baseline in line.comparisons]
    if not compared:
        return "", ""
    unit = same[0].metric.unit
    texts = []
    for c in compared:
        text = f"{number(c.difference, unit, sign=True)} {span(c.low, c.high, unit)}"
        texts.append(f"**{text}**" if clear(c.difference, c.low, c.high, unit) else text)
    if len(compared) == 1:
        return texts[0], ""
    tests = paired([c.difference for c in compared], [0.0] * len(compared), same[0].metric.better)
    spread = f"mean {number(tests.mean, unit, sign=True)} ± {number(tests.std or 0.0, unit)}"
    sign = f"{tests.better} of {tests.count}" + (
        f", p = {tests.sign_p:.3g}" if tests.sign_p is not None else ""
    )
    return "<br>".join([*texts, spread]), sign + (
        f"<br>t p = {tests.t_p:.2g}" if tests.t_p is not None else ""
    )
