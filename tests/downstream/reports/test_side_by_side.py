"""Finished runs side by side and beside the papers: from real evaluations to four formats and back."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import lxml.etree
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from configs import ConfigError
from data_prep.beton import read_labels
from downstream.bootstrap import ClusterBootstrap
from downstream.config import DownstreamConfig, Study
from downstream.evaluate import evaluate
from downstream.reports import printed
from downstream.reports.across import compare_runs
from downstream.reports.papers import paper_sheet
from downstream.reports.printed.config import PaperTable
from downstream.reports.sheet import Sheet, plain
from downstream.reports.summary import write_results_markdown
from downstream.results import read_metrics
from downstream.tasks import make
from pretrain import backbones

ROOT = Path(__file__).parents[3]
SEEDS = (11, 12, 13)
MODE = "linear"
RESAMPLES = 200
PIXELS = [{"kind": "pixels", "name": "pixels", "size": 8}]
"""An evaluation without a network."""


@pytest.fixture(scope="module")
def runs(labelled_set: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three seeds of one evaluation, whose pixels know no seed."""
    folder = tmp_path_factory.mktemp("seeds")
    return [_evaluate(labelled_set, folder / f"seed{seed}", seed) for seed in SEEDS]


def _evaluate(data: Path, output: Path, seed: int, **changes: object) -> str:
    path = output.parent / f"{seed}.safetensors"
    header = {"architecture": "resnet18", "width": "0.25", "image_size": "32"}
    header |= {"mean": json.dumps([0.5] * 3), "std": json.dumps([0.3] * 3)}
    backbones.save_backbone(path, backbones.random("resnet18", 0.25, seed=seed), header)
    tree = {
        "data": str(data),
        "output": str(output),
        "initialisations": [
            {"kind": "checkpoint", "name": "pretrained", "path": str(path)},
            {"kind": "random", "name": "random", "like": str(path), "seed": 100 + seed},
            {"kind": "pixels", "name": "pixels", "size": 8},
        ],
        "tasks": ["landmarks", "affect", "action_units"],
        "fractions": [1.0, 0.1],
        "modes": [MODE],
        "bootstrap": {"samples": RESAMPLES},
        "device": "cpu",
    } | changes
    evaluate(DownstreamConfig.model_validate_json(json.dumps(tree)))
    return str(output)


# --- four formats --------------------------------------------------------------------------------------------


def cells_of_html(text: str, levels: int) -> list[list[str]]:
    (table,) = pd.read_html(io.StringIO(text), keep_default_na=False)
    return [[str(cell) for cell in row[levels:]] for row in table.to_numpy()]


def cells_of_markdown(text: str, levels: int) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [[cell.strip("*") for cell in row[levels:]] for row in rows]


def cells_of_latex(text: str, levels: int) -> list[list[str]]:
    body = text.partition("\\midrule")[2].partition("\\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith("\\\\")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix("\\\\"))] for line in lines]
    return [[cell.removeprefix("\\bfseries ").replace("$-$", "-") for cell in row[levels:]] for row in rows]


def numbers(cells: list[list[str]]) -> np.ndarray:
    return np.array(
        [[float(c.replace("\N{MINUS SIGN}", "-")) if c else np.nan for c in row] for row in cells]
    )


def assert_equal_in_all_formats(sheet: Sheet, folder: Path, tolerance: float) -> None:
    sheet.write(folder, "table")
    texts = {suffix: (folder / f"table.{suffix}").read_text() for suffix in ("html", "md", "tex", "json")}
    levels = sheet.values.index.nlevels
    parsed = {
        "html": cells_of_html(texts["html"], levels),
        "md": cells_of_markdown(texts["md"], levels),
        "tex": cells_of_latex(texts["tex"], levels),
    }
    expected = sheet.values.to_numpy(dtype=float)
    for cells in parsed.values():
        np.testing.assert_allclose(numbers(cells), expected, atol=tolerance)
    rows = json.loads(texts["json"])["rows"]
    np.testing.assert_array_equal(np.array([row["values"] for row in rows], dtype=float), expected)
    bold = int(sheet.bold.to_numpy().sum())
    assert sum(cell.startswith("**") for cell in re.split(r" *\| *", texts["md"])) == bold
    assert texts["tex"].count("\\bfseries ") == bold
    (selectors,) = re.findall(r"\n([^}]*?)\s*{\s*font-weight: bold;", texts["html"]) or [""]
    assert len([s for s in selectors.split(",") if s.strip()]) == bold
    assert texts["tex"].isascii()  # any LaTeX reads it
    for rule in ("\\toprule", "\\midrule", "\\bottomrule"):
        assert rule in texts["tex"]


@pytest.mark.parametrize(
    ("kinds", "warned"), [(("disfa",), False), (("csv",), True), (("disfa", "csv"), True), ((), True)]
)
def test_a_caption_says_whose_faces_they_are(
    kinds: tuple[str, ...], warned: bool, runs: list[str], tmp_path: Path
) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    tree = json.loads((tmp_path / "run/metrics.json").read_text())
    assert tree["data"]["kinds"] == ["synthetic"]
    tree["data"] |= {"kinds": kinds, "synthetic": False}
    (tmp_path / "run/metrics.json").write_text(json.dumps(tree))
    caption = paper_sheet(PaperTable(printed="disfa", runs=(str(tmp_path / "run"),))).caption
    assert (
        f" of {tree['data']['path']}" + (f" ({', '.join(kinds)})" if kinds else "") + ", trained" in caption
    )
    assert ("is not known to be the data in the title" in caption) == warned


@pytest.mark.parametrize("name", ["disfa", "affectnet", "bp4d"])
def test_a_paper_table_reads_back_from_every_format(name: str, runs: list[str], tmp_path: Path) -> None:
    sheet = paper_sheet(PaperTable(printed=name, runs=tuple(runs)))
    assert_equal_in_all_formats(sheet, tmp_path, 0.5 * 10 ** -printed.read(name).digits + 1e-9)


def test_comparisons_read_back_from_every_format(runs: list[str], tmp_path: Path) -> None:
    values, differences = compare_runs(runs)
    assert_equal_in_all_formats(values, tmp_path, 0.5e-2 + 1e-9)
    few = differences.values.columns.isin(["sign p", "t p"])
    rounded = Sheet(
        differences.caption,
        differences.values.loc[:, ~few],
        differences.text.loc[:, ~few],
        differences.bold.loc[:, ~few],
    )
    assert_equal_in_all_formats(rounded, tmp_path, 0.5e-2 + 1e-9)


def test_names_cannot_break_a_table(tmp_path: Path) -> None:
    names = ["a & b", "50 % of_x", "<script>|{}", r"\end{table} $1 #~^", "plain"]
    index = pd.MultiIndex.from_tuples([(0.02, name) for name in names], names=["Labels", "Row_1"])
    values = pd.DataFrame({"a|b": [0.1, -0.2, np.nan, 0.4, -0.0001], "c & d": range(5)}, index, dtype=float)
    sheet = Sheet("A & B < 5 %", values, plain(values, 2), values > 0.3)
    assert_equal_in_all_formats(sheet, tmp_path, 0.5e-2)
    assert "-0.00" not in sheet.terminal().replace("\N{MINUS SIGN}", "-")
    page = lxml.etree.HTML((tmp_path / "table.html").read_text())
    assert page.find(".//script") is None
    assert [th.text for th in page.findall(".//tbody//th")][1:] == names
    latex = sheet.latex()
    assert latex.count("\\end{table}") == 1
    assert r"\caption{A \& B \textless{} 5 \%}" in latex
    assert "2 \\%" in latex


# --- beside the papers ---------------------------------------------------------------------------------------


def test_ours_are_the_means_of_the_runs_and_theirs_as_printed(runs: list[str]) -> None:
    sheet = paper_sheet(PaperTable(printed="disfa", runs=tuple(runs)))
    ours = sheet.values.loc[(1.0, "measured here", f"random, {MODE}, mean of 3 seeds")]
    measured = [
        [_value(run, "random", "action_units", 1.0, f"icc_au{unit}") for unit in (1, 2, 26)] for run in runs
    ]
    np.testing.assert_allclose(ours[["AU1", "AU2", "AU26"]], np.mean(measured, axis=0))
    spread = sheet.more["std"].loc[(1.0, "measured here", f"random, {MODE}, mean of 3 seeds")]
    np.testing.assert_allclose(spread[["AU1", "AU2", "AU26"]], np.std(measured, axis=0, ddof=1))
    icc = np.mean([_value(run, "random", "action_units", 1.0, "icc") for run in runs])
    assert ours["Avg."] == pytest.approx(icc)
    theirs = sheet.values.xs("printed", level="Figures")
    assert theirs.to_numpy().tolist() == [list(row.values) for row in printed.read("disfa").rows]
    assert sheet.text.loc[(0.01, "printed", "Bulat et al."), "AU1"] == "0.636"
    names = sheet.values.xs("measured here", level="Figures").index.get_level_values("Method")
    assert f"pixels, {MODE}" in names  # one measurement, however many runs repeat it


def _value(run: str, row: str, task: str, fraction: float, metric: str, subset: str = "all") -> float:
    key = (row, task, MODE, fraction, metric, subset)
    (value,) = (
        m.value
        for m in read_metrics(run).measurements
        if (m.row, m.task, m.mode, m.fraction, m.metric, m.subset) == key
    )
    return value


def test_what_was_not_measured_stays_empty(runs: list[str]) -> None:
    """AU10 and AU14 are no units of ours, so there is no average over BP4D's five either."""
    sheet = paper_sheet(PaperTable(printed="bp4d", runs=(runs[0],)))
    ours = sheet.values.xs("measured here", level="Figures")
    assert ours[["AU10", "AU14", "Avg."]].isna().all().all()
    assert ours[["AU6", "AU12", "AU17"]].notna().all().all()
    text = sheet.text.xs("measured here", level="Figures")
    assert set(text["AU10"]) == {""}
    entry = next(row for row in sheet.json()["rows"] if row["index"][1] == "measured here")
    assert entry["values"][1] is None
    affect = paper_sheet(PaperTable(printed="affectnet", runs=(runs[0],)))
    assert affect.values.xs("measured here", level="Figures")["", "Acc."].isna().all()


def test_the_best_of_a_block_is_bold(runs: list[str]) -> None:
    sheet = paper_sheet(PaperTable(printed="affectnet", runs=(runs[0],)))
    theirs = sheet.bold.xs("printed", level="Figures")
    assert theirs.loc[0.02][("", "Acc.")].to_dict() == {
        "random": False,
        "imagenet": False,
        "vggface": True,
        "Bulat et al.": False,
    }
    for share in (1.0, 0.1):
        block = sheet.values.xs((share, "measured here"), level=("Labels", "Figures"))
        bold = sheet.bold.xs((share, "measured here"), level=("Labels", "Figures"))
        rmse = ("Valence", "RMSE")
        assert block[rmse][bold[rmse]].round(3).unique().tolist() == [block[rmse].round(3).min()]
        ccc = ("Arousal", "CCC")
        assert block[ccc][bold[ccc]].round(3).unique().tolist() == [block[ccc].round(3).max()]


def test_every_caption_says_that_faces_are_synthetic(runs: list[str]) -> None:
    sheets = [paper_sheet(PaperTable(printed=name, runs=tuple(runs))) for name in ("disfa", "affectnet")]
    for sheet in (*sheets, *compare_runs(runs)):
        for text in (sheet.html(), sheet.markdown(), sheet.latex(), sheet.json()["caption"]):
            assert "Synthetic faces" in text


def test_a_percentage_stands_as_a_share_where_the_paper_prints_shares(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printed, "FOLDER", tmp_path)
    columns = [{"title": "NME", "metric": "nme"}, {"title": "hard", "metric": "nme", "subset": "hard"}]
    table = {"title": "Any", "source": "nowhere", "rows_are": "Method", "task": "landmarks", "digits": 3}
    table |= {"corpora": {"": "300w"}}
    table |= {
        "better": "lower",
        "columns": columns,
        "rows": [{"name": "a", "share": 1, "values": [0.1, None]}],
    }
    for name, unit in (("share", ""), ("percent", "%")):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(table | {"unit": unit}))
    measured = _value(runs[0], "pixels", "landmarks", 1.0, "nme")
    for name, expected in (("share", measured / 100), ("percent", measured)):
        sheet = paper_sheet(PaperTable(printed=name, runs=(runs[0],)))
        line = sheet.values.loc[(1.0, "measured here", f"pixels, {MODE}")]
        assert line["NME"] == pytest.approx(expected)
        assert np.isnan(line["hard"])  # the figure of all pictures is not put where that of a subset belongs
        assert sheet.text.loc[(1.0, "printed", "a"), "hard"] == ""


def test_a_subset_stands_in_its_own_column(runs: list[str], labelled_set: Path, tmp_path: Path) -> None:
    with np.load(Path(runs[0]) / "predictions.npz") as archive:
        who = int(read_labels(labelled_set).column("identity")[int(archive["rows"][0])].as_py())
    changes = {"tasks": ["landmarks"], "fractions": [1.0], "subsets": {"common": {"identity": who}}}
    some = [_evaluate(labelled_set, tmp_path / "run", 11, **changes), str(tmp_path / "again")]
    shutil.copytree(*some)
    sheet = paper_sheet(PaperTable(printed="300w", runs=(some[0],)))
    line = sheet.values.loc[(1.0, "measured here", f"random, {MODE}")]
    assert line["common"] == _value(some[0], "random", "landmarks", 1.0, "nme", "common")
    assert line[["challenge", "full", "test"]].isna().all()
    assert line["common"] != _value(some[0], "random", "landmarks", 1.0, "nme")
    assert_equal_in_all_formats(sheet, tmp_path, 0.5e-2 + 1e-9)
    compare_runs(some, str(tmp_path / "out"))
    stored = json.loads((tmp_path / "out/differences.json").read_text())
    assert "Pictures" in stored["index"]
    at = stored["index"].index("Pictures")
    for entry in stored["rows"]:  # which pictures are in a subset is not stored
        assert (entry["values"][2] is None) == (entry["index"][at] == "common")
    with pytest.raises(ConfigError, match="measures landmarks with points 68, wflw has 98"):
        paper_sheet(PaperTable(printed="wflw", runs=(some[0],)))
    task = {"name": "landmarks", "normaliser": "pupils"}
    changes |= {"tasks": [task], "initialisations": PIXELS}
    other = _evaluate(labelled_set, tmp_path / "other", 11, **changes)
    with pytest.raises(ConfigError, match="measure 'landmarks' by other settings"):
        compare_runs([some[0], other])


def test_a_run_that_measures_nothing_of_a_table_is_refused(labelled_set: Path, tmp_path: Path) -> None:
    changes = {"tasks": ["landmarks"], "fractions": [1.0], "initialisations": PIXELS}
    run = _evaluate(labelled_set, tmp_path / "run", 11, **changes)
    with pytest.raises(ConfigError, match="measures nothing of disfa: it has no task action_units"):
        paper_sheet(PaperTable(printed="disfa", runs=(run,)))
    with pytest.raises(
        ConfigError, match="of 300w: it has no 'subsets' called common, challenge, full, test; take the table"
    ):
        paper_sheet(PaperTable(printed="300w", runs=(run,)))


# --- against each other --------------------------------------------------------------------------------------


def _difference(sheet: Sheet, row: str, against: str, task: str, fraction: float) -> pd.Series:
    at = sheet.values.reset_index()
    at = at[(at["Row"] == row) & (at["Against"] == against) & (at["Task"] == task)]
    (line,) = (at.loc[i] for i in at.index if at.loc[i, "Labels"] == fraction)
    return line


def test_seeds_are_tested_as_scipy_does(runs: list[str]) -> None:
    _, differences = compare_runs(runs)
    for task, metric in (("landmarks", "nme"), ("affect", "ccc"), ("action_units", "icc")):
        for baseline in ("random", "pixels"):
            line = _difference(differences, "pretrained", baseline, task, 1.0)
            ours = [_value(run, "pretrained", task, 1.0, metric) for run in runs]
            theirs = [_value(run, baseline, task, 1.0, metric) for run in runs]
            gain = np.subtract(ours, theirs) * (-1 if metric == "nme" else 1)
            assert line["difference"] == pytest.approx(np.mean(ours) - np.mean(theirs))
            assert line["±"] == pytest.approx(np.std(gain, ddof=1))
            assert line["t p"] == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
            assert (line["pairs"], line["better in"]) == (3, (gain > 0).sum())
            assert line["sign p"] == pytest.approx(stats.binomtest(int((gain > 0).sum()), 3).pvalue)
    assert any("3 pairs: 0.25" in note for note in differences.notes)


def test_values_are_the_runs_with_mean_and_deviation(runs: list[str], tmp_path: Path) -> None:
    compare_runs(runs, str(tmp_path))
    page = lxml.etree.HTML((tmp_path / "values.html").read_text())
    shown = [unquote(image.get("src")) for image in page.findall(".//img")]
    assert sorted(shown) == sorted(path.name for path in tmp_path.glob("*.svg"))
    assert shown
    stored = json.loads((tmp_path / "values.json").read_text())
    columns = [tuple(column) for column in stored["columns"]]
    assert columns.count(("pixels", "")) == 1  # the same in all runs
    first = next(r for r in stored["rows"] if r["index"] == ["landmarks", MODE, 0.1, "nme (%) ↓"])
    cells = dict(zip(columns, first["values"], strict=True))
    each = [_value(run, "pretrained", "landmarks", 0.1, "nme") for run in runs]
    assert [cells["pretrained", f"run {i}"] for i in (1, 2, 3)] == each
    assert cells["pretrained", "mean"] == pytest.approx(np.mean(each))
    assert cells["pretrained", "±"] == pytest.approx(np.std(each, ddof=1))
    assert cells["pixels", ""] == _value(runs[0], "pixels", "landmarks", 0.1, "nme")
    sheet, _ = compare_runs(runs)
    assert ("68 landmarks", MODE, 0.1, "NME, eye corners (%) ↓") in sheet.text.index, (
        "as in the table of one run"
    )
    leads = [column for column in sheet.text.columns if column[1] in ("", "mean")]
    shown, bold = sheet.text[leads].to_numpy(), sheet.bold[leads].to_numpy()
    for line, marked in zip(shown, bold, strict=True):
        assert len(set(line[marked])) == 1
        assert (line == line[marked][0]).tolist() == marked.tolist(), "what reads alike stands out alike"
    metrics = {row["index"][-1].split()[0] for row in stored["rows"] if row["index"][0] == "action_units"}
    assert metrics == {metric.name for metric in make("action_units").metrics}


def _drawn(run: str) -> list[np.ndarray]:
    """The test pictures of each resample, drawn for real."""
    metrics = read_metrics(run)
    with np.load(Path(run) / "predictions.npz") as archive:
        people = read_labels(metrics.data.path).column("identity").to_numpy()[archive["rows"]]
    names = np.unique(people)
    counts = ClusterBootstrap(people, RESAMPLES, metrics.seeds["bootstrap"]).counts.astype(int)
    return [
        np.concatenate(
            [np.tile(np.flatnonzero(people == who), n) for who, n in zip(names, count, strict=True)]
        )
        for count in counts
    ]


def _scores(run: str, row: str, draws: list[np.ndarray]) -> np.ndarray:
    """CCC of valence and arousal on each resample, computed on the pictures drawn."""
    task = make("affect")
    with np.load(Path(run) / "predictions.npz") as archive:
        truth = task.encode(read_labels(read_metrics(run).data.path).take(archive["rows"]))
        prediction = archive[f"{row}/affect/{MODE}/1"].astype(np.float64)
    return np.array([task.evaluate(prediction[draw], truth[draw])["ccc"] for draw in draws])


def test_intervals_over_people_are_those_of_pictures_drawn_for_real(runs: list[str]) -> None:
    draws = _drawn(runs[0])
    _, differences = compare_runs(runs)
    line = _difference(differences, "pretrained", "random", "affect", 1.0)
    ours = np.mean([_scores(run, "pretrained", draws) for run in runs], axis=0)
    theirs = np.mean([_scores(run, "random", draws) for run in runs], axis=0)
    np.testing.assert_allclose(
        [line["low"], line["high"]], np.quantile(ours - theirs, [0.025, 0.975]), atol=1e-9
    )


def test_two_backbones_in_runs_of_their_own(runs: list[str]) -> None:
    _, differences = compare_runs([f"a={runs[0]}", f"b={runs[1]}"])
    draws = _drawn(runs[0])
    line = _difference(differences, "a pretrained", "b pretrained", "affect", 1.0)
    gap = _scores(runs[0], "pretrained", draws) - _scores(runs[1], "pretrained", draws)
    np.testing.assert_allclose([line["low"], line["high"]], np.quantile(gap, [0.025, 0.975]), atol=1e-9)
    assert (line["pairs"], line["sign p"]) == (1, 1.0)
    assert np.isnan(line["t p"])
    # Within a run it is the comparison that the run made itself, but for the rounding of what it stored.
    (own,) = (
        c
        for c in read_metrics(runs[0]).comparisons
        if (c.baseline, c.task, c.fraction, c.metric) == ("random", "landmarks", 0.1, "nme")
    )
    line = _difference(differences, "a pretrained", "a random", "landmarks", 0.1)
    found = [line["difference"], line["low"], line["high"]]
    np.testing.assert_allclose(found, [own.difference, own.low, own.high], rtol=1e-4)
    against = differences.values.reset_index()[["Row", "Against"]].drop_duplicates().to_numpy().tolist()
    assert ["a pretrained", "b random"] not in against


def test_backbones_with_other_numbers_of_seeds_are_not_paired(runs: list[str]) -> None:
    _, differences = compare_runs([f"a={runs[0]}", f"a={runs[1]}", f"b={runs[2]}"])
    line = _difference(differences, "a pretrained", "b pretrained", "landmarks", 1.0)
    each = [_value(run, "pretrained", "landmarks", 1.0, "nme") for run in runs]
    assert line["difference"] == pytest.approx((each[0] + each[1]) / 2 - each[2])
    assert line["pairs"] == 0
    assert np.isnan(line["t p"])
    assert line["low"] < line["difference"] < line["high"]


def test_the_same_figures_twice_are_one_pair(runs: list[str], tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(runs[1], again)
    _, differences = compare_runs([*runs[:2], str(again)])
    assert _difference(differences, "pretrained", "random", "landmarks", 1.0)["pairs"] == 2
    _, differences = compare_runs([f"a={runs[0]}", f"b={runs[1]}", f"b={again}"])
    assert _difference(differences, "a pretrained", "b pretrained", "landmarks", 1.0)["pairs"] == 1


def test_baselines_alone_have_no_differences(labelled_set: Path, tmp_path: Path) -> None:
    rows = [[{"kind": "pixels", "name": f"pixels {size}", "size": size}] for size in (4, 8)]
    both = [
        _evaluate(labelled_set, tmp_path / f"run{i}", 11, initialisations=row, tasks=["affect"])
        for i, row in enumerate(rows)
    ]
    values, differences = compare_runs(both, str(tmp_path / "out"))
    assert len(differences.values) == 0
    assert json.loads((tmp_path / "out/differences.json").read_text())["rows"] == []
    assert "pixels 4" in values.terminal()


def test_other_test_pictures_are_refused(runs: list[str], labelled_set: Path, tmp_path: Path) -> None:
    changes = {"split": str(tmp_path / "split.json"), "split_seed": 1, "initialisations": PIXELS}
    other = _evaluate(labelled_set, tmp_path / "run", 11, **changes)
    for act in (
        lambda: compare_runs([runs[0], other]),
        lambda: paper_sheet(PaperTable(printed="disfa", runs=(runs[0], other))),
    ):
        with pytest.raises(ConfigError, match=r"have other test pictures \(\d+ are in one of them only\)"):
            act()


def test_what_cannot_be_compared_is_named(runs: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is named twice"):
        compare_runs([runs[0], runs[0]])
    with pytest.raises(ConfigError, match=r"metrics.json does not exist; run 'python -m downstream CONFIG'"):
        compare_runs([runs[0], str(tmp_path / "nowhere")])
    metrics = read_metrics(runs[1])
    (tmp_path / "metrics.json").write_text(metrics.model_dump_json())
    with pytest.raises(ConfigError, match=r"predictions.npz: missing or damaged"):
        compare_runs([runs[0], str(tmp_path)])
    (tmp_path / "predictions.npz").write_bytes((Path(runs[1]) / "predictions.npz").read_bytes())
    other = metrics.model_copy(update={"data": metrics.data.model_copy(update={"sha256": "0"})})
    (tmp_path / "metrics.json").write_text(other.model_dump_json())
    with pytest.raises(ConfigError, match="evaluations of other data"):
        compare_runs([runs[0], str(tmp_path)])


def test_without_the_labels_there_are_no_intervals_over_people(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in runs[:2]:
        metrics = read_metrics(run)
        gone = metrics.model_copy(update={"data": metrics.data.model_copy(update={"path": "gone/set.beton"})})
        folder = tmp_path / Path(run).name
        folder.mkdir()
        (folder / "metrics.json").write_text(gone.model_dump_json())
        (folder / "predictions.npz").write_bytes((Path(run) / "predictions.npz").read_bytes())
    output = tmp_path / "out"
    _, differences = compare_runs([str(tmp_path / Path(run).name) for run in runs[:2]], str(output))
    assert differences.values["low"].isna().all()
    assert any("the data gone/set.beton is not here" in note for note in differences.notes)
    assert sorted(path.name for path in output.glob("*.svg")) == [
        f"action_units-{MODE}-0.1.svg",
        f"action_units-{MODE}-1.svg",
    ]


def test_a_file_in_the_place_of_the_folder_is_refused(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(ConfigError, match=r"--output: .*out cannot be a folder"):
        compare_runs(runs[:2], str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "in the way"


def test_the_results_page_has_spread_and_both_tests(runs: list[str], tmp_path: Path) -> None:
    write_results_markdown([Study(title="Three", runs=tuple(runs))], tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    line = next(x for x in text.splitlines() if x.startswith("| 68 landmarks | NME, eye") and "| 10 % |" in x)
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    ours, theirs = (
        [_value(run, row, "landmarks", 0.1, "nme") for run in runs] for row in ("pretrained", "random")
    )
    assert cells[3].endswith(f"<br>{np.mean(ours):.2f} ± {np.std(ours, ddof=1):.2f}")
    assert cells[3].count("·") == 2
    assert "±" not in cells[5]  # pixels do not differ
    gap = np.subtract(ours, theirs)
    mean = f"{gap.mean():+.2f}".replace("-", "\N{MINUS SIGN}")
    assert cells[6].endswith(f"<br>mean {mean} ± {gap.std(ddof=1):.2f}")
    p = stats.ttest_rel(ours, theirs).pvalue
    wins = int((gap < 0).sum())
    assert cells[7] == f"{wins} of 3, p = {stats.binomtest(wins, 3).pvalue:.3g}<br>t p = {p:.2g}"


# --- the commands --------------------------------------------------------------------------------------------


def _command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "downstream", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_compare_from_the_command_line(runs: list[str], tmp_path: Path) -> None:
    done = _command("compare", *runs, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "NME, eye corners (%) ↓" in done.stdout
    assert "3 pairs: 0.25" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 230
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {f"{n}.{s}" for n in ("values", "differences") for s in ("html", "md", "tex", "json")}
    pictures = {f"{t}-{MODE}-{f}.svg" for t in ("landmarks", "affect", "action_units") for f in ("1", "0.1")}
    assert written >= pictures
    for name in pictures:
        assert lxml.etree.parse(tmp_path / name).getroot().tag.endswith("svg")
    alone = _command("compare", runs[0])
    assert alone.returncode == 2
    assert "two runs or more" in alone.stderr


def test_tables_from_the_command_line(runs: list[str], tmp_path: Path) -> None:
    config = {
        "output": str(tmp_path / "out"),
        "tables": [
            {"printed": "disfa", "runs": runs},
            {"printed": "affectnet", "runs": runs[:1], "name": "affect"},
        ],
    }
    (tmp_path / "tables.yaml").write_text(yaml.safe_dump(config))
    done = _command("tables", str(tmp_path / "tables.yaml"))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}.{suffix}" for name in ("disfa", "affect") for suffix in ("html", "md", "tex", "json")
    }
    assert "SSCFL" in done.stdout
