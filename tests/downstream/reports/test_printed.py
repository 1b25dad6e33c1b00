"""The printed tables against themselves: their sums, and the notes on where they contradict themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs import ConfigError, load
from downstream.config import DownstreamConfig
from downstream.reports import printed
from downstream.reports.printed import Printed
from downstream.reports.printed.config import TablesConfig
from downstream.tasks import make

ROUNDING = 0.5e-3


def averages(table: Printed) -> dict[str, tuple[float, float]]:
    """row -> printed average, mean of its cells."""
    (at,) = (i for i, column in enumerate(table.columns) if column.average)
    return {
        row.name: (row.values[at], float(np.mean([v for i, v in enumerate(row.values) if i != at])))
        for row in table.rows
    }


def test_every_table_is_read() -> None:
    simfle = ["simfle", "simfle_contrastive", "simfle_parts", "simfle_supervised"]
    assert printed.names() == ["300w", "affectnet", "aflw", "bp4d", "cofw", "disfa", *simfle, "wflw"]
    empty = {
        name: sum(value is None for row in printed.read(name).rows for value in row.values)
        for name in printed.names()
    }
    assert {name: count for name, count in empty.items() if count} == {"simfle": 8, "simfle_supervised": 13}


@pytest.mark.parametrize(
    ("name", "wrong"), [("disfa", {"SSCFL": 0.417, "Bulat et al.": 0.576}), ("bp4d", {"CLFL": 0.661})]
)
def test_averages_that_contradict_their_cells_are_noted(name: str, wrong: dict[str, float]) -> None:
    """Cells and average are each rounded to three digits, which explains 0.001 and no more."""
    table = printed.read(name)
    found = {
        row: mean for row, (given, mean) in averages(table).items() if abs(given - mean) > 2 * ROUNDING + 1e-9
    }
    assert {row: round(mean, 3) for row, mean in found.items()} == wrong
    for row, mean in found.items():
        given = averages(table)[row][0]
        (note,) = (note for note in table.notes if note.startswith(f"{row}:"))
        assert f"{given:.3f}".lstrip("0") in note
        assert f"{mean:.3f}".lstrip("0") in note


def test_the_average_of_table_1() -> None:
    given, mean = averages(printed.read("disfa"))["Bulat et al."]
    assert given == 0.574
    assert mean == pytest.approx(0.5764, abs=5e-5)


def test_the_claim_of_table_3_is_held_to_its_cells() -> None:
    """'For all data regimes our unsupervised models outperform the supervised baselines'."""
    table = printed.read("affectnet")
    assert {row.share for row in table.rows} == {1.0, 0.1, 0.02}
    lost = {}
    for share in (1.0, 0.1, 0.02):
        rows = {row.name: np.array(row.values) for row in table.rows if row.share == share}
        sign = np.array([-1 if column.better == "lower" else 1 for column in table.columns])
        best = np.max([sign * values for name, values in rows.items() if name != "Bulat et al."], axis=0)
        for i in np.flatnonzero(sign * rows["Bulat et al."] < best):
            lost[share, table.columns[i].title, table.columns[i].group] = (
                rows["Bulat et al."][i],
                abs(best[i]),
            )
    assert {(title, group) for share, title, group in lost if share == 0.02} == {
        ("Acc.", ""),
        ("SAGR", "Valence"),
        ("CCC", "Valence"),
        ("CCC", "Arousal"),
    }
    (note,) = (note for note in table.notes if "outperform" in note)
    for ours, best in lost.values():
        assert f"({ours:.3f}, {best:.3f})".replace("0.", ".") in note
    assert note.count("(.") == len(lost) == 8


@pytest.mark.parametrize("name", printed.names())
def test_columns_are_metrics_that_exist(name: str) -> None:
    table = printed.read(name)
    more = {"disfa": {}, "bp4d": {"units": (6, 10, 12, 14, 17)}, "affectnet": {"classes": 8}}
    task = make(table.task, **(table.settings | more.get(name, {})))
    metrics = {metric.name: metric for metric in task.metrics}
    for column in table.columns:
        if column.metric:
            assert metrics[column.metric].better == (column.better or table.better)


def cells(name: str) -> dict[str, dict[str, float | None]]:
    """row -> heading -> figure."""
    table = printed.read(name)
    headings = [f"{column.group} {column.title}".strip() for column in table.columns]
    return {row.name: dict(zip(headings, row.values, strict=True)) for row in table.rows}


def test_simfle_is_the_best_self_supervised_method_in_every_setup() -> None:
    """'In all evaluation setups, SimFLE outperforms other self-supervised methods', and the supervised ones here."""
    table = cells("simfle")
    for heading, ours in table["SimFLE"].items():
        others = [row[heading] for name, row in table.items() if name != "SimFLE"]
        assert ours > max(value for value in others if value is not None), heading


def test_the_ablations_of_simfle_are_rows_of_its_table_1() -> None:
    table, parts, others = cells("simfle"), cells("simfle_parts"), cells("simfle_contrastive")
    one = {name: row["Linear, AN-8"] for name, row in parts.items()}
    assert one["(a) GFL"] == table["BYOL"]["Linear AN-8"]
    assert one["(d) GFL, FFL, semantic masking, distillation"] == table["SimFLE"]["Linear AN-8"]
    for name in ("SimSiam", "MoCo", "MoCov2", "SimCLR"):
        for heading in ("Linear AN-8", "Linear AN-7"):
            assert others[name][heading] == table[name][heading]
            assert others[f"SimFLE {name}"][heading] > others[name][heading]  # as the text says


def test_what_the_notes_say_of_the_costs() -> None:
    costs = {name: row["FLOPs, G"] for name, row in cells("simfle_contrastive").items()}
    added = {name: round(costs[f"SimFLE {name}"] - costs[name], 1) for name in costs if "SimFLE" not in name}
    assert added == {"SimSiam": 3.6, "MoCo": 3.6, "MoCov2": 3.5, "SimCLR": 3.6}
    parts = [row["FLOPs, G"] for row in cells("simfle_parts").values()]
    assert {round(value - parts[0], 1) for value in parts[1:]} == {3.6}
    assert any("3.6 G" in note for note in printed.read("simfle_contrastive").notes)


def test_the_same_figures_stand_in_both_comparisons_but_for_oversampling() -> None:
    ours, table = cells("simfle")["SimFLE"], cells("simfle_supervised")["SimFLE ResNet-50"]
    for name in ("RAF-DB", "FERPlus", "SFEW"):
        assert ours[f"Transfer {name}"] == table[name]
    (note,) = printed.read("simfle_supervised").notes
    for name in ("AN-8", "AN-7"):
        assert f"{table[name]:.2f}" in note
        assert f"{ours[f'Fine-tuning {name}']:.2f}" in note
        assert table[name] > ours[f"Fine-tuning {name}"]


def test_a_table_that_is_no_table_is_refused(tmp_path: Path) -> None:
    text = (printed.FOLDER / "cofw.yaml").read_text()
    (tmp_path / "short.yaml").write_text(text.replace("[3.45, 0.20]", "[3.45]"))
    with pytest.raises(ConfigError, match="row HRNetV2-W18 has 1 values for 2 columns"):
        load(tmp_path / "short.yaml", schema=Printed)
    (tmp_path / "both.yaml").write_text(text.replace("metric: failures", "metric: failures, average: true"))
    with pytest.raises(ConfigError, match="either a metric or average"):
        load(tmp_path / "both.yaml", schema=Printed)
    text = (printed.FOLDER / "simfle_parts.yaml").read_text()
    (tmp_path / "mode.yaml").write_text(text.replace("mode: frozen, ", ""))
    with pytest.raises(ConfigError, match="'of' and 'mode' belong together"):
        load(tmp_path / "mode.yaml", schema=Printed)
    text = (printed.FOLDER / "simfle_contrastive.yaml").read_text()
    (tmp_path / "some.yaml").write_text(text.replace("of: linear7, mode: frozen, ", ""))
    with pytest.raises(ConfigError, match="some say 'of' and some do not"):
        load(tmp_path / "some.yaml", schema=Printed)


def test_a_config_with_an_unknown_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tables.yaml").write_text("output: out\ntables:\n  - {printed: lfw, runs: [a]}\n")
    with pytest.raises(ConfigError, match="there is no printed table 'lfw'; take one of 300w, affectnet"):
        load(tmp_path / "tables.yaml", schema=TablesConfig)
    (tmp_path / "tables.yaml").write_text(
        "output: out\ntables:\n  - {printed: disfa, runs: [a]}\n  - {printed: disfa, runs: [b]}\n"
    )
    with pytest.raises(ConfigError, match="two are called 'disfa'"):
        load(tmp_path / "tables.yaml", schema=TablesConfig)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{printed: simfle_parts, runs: [a]}", "simfle_parts needs a mapping of linear8 to run directories"),
        ("{printed: disfa, runs: {linear8: [a]}}", "runs: disfa needs a list of run directories"),
        ("{printed: simfle_parts, runs: {sfew: [a]}}", "simfle_parts has no 'sfew'; it has linear8"),
    ],
)
def test_runs_must_be_those_of_the_table(table: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tables.yaml").write_text(f"output: out\ntables:\n  - {table}\n")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "tables.yaml", schema=TablesConfig)


def test_the_example_names_tables_that_exist() -> None:
    cfg = load(Path(__file__).parents[3] / "configs/downstream/tables.yaml", schema=TablesConfig)
    assert [table.printed for table in cfg.tables] == ["disfa", "affectnet"]


@pytest.mark.parametrize(
    ("table", "configs"), [("300w", ("w300", "w300_test")), ("wflw", ("wflw",)), ("aflw", ("aflw",))]
)
def test_the_published_sets_have_the_subsets_of_the_columns(table: str, configs: tuple[str, ...]) -> None:
    folder = Path(__file__).parents[3] / "configs/downstream"
    known = {"all"}
    for name in configs:
        known |= set(load(folder / f"{name}.yaml", schema=DownstreamConfig).subsets)
    assert {column.subset for column in printed.read(table).columns} <= known
