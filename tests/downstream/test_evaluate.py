"""The whole matrix on a small rendered set: figures, files, refusals, and the write-ups."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from configs import ConfigError, load
from data_prep.beton import Beton, read_labels
from downstream.__main__ import main
from downstream.config import DownstreamConfig, ReportConfig, Study
from downstream.evaluate import evaluate, keep_cells
from downstream.reports.examples import labelled_set as labelled_set_of
from downstream.reports.examples import strips
from downstream.reports.page import inside, sentence, write_report
from downstream.reports.summary import write_results_markdown
from downstream.reports.tables import (
    at_several_shares,
    clear,
    held_out,
    lines,
    number,
    terminal_table,
    unseen,
)
from downstream.results import Metrics, Results, finished, inputs_hash, read_metrics
from downstream.tasks import make

ROOT = Path(__file__).parents[2]


def _config(labelled_set: Path, backbone: Path, output: Path, **changes: object) -> DownstreamConfig:
    tree = {
        "data": str(labelled_set),
        "output": str(output),
        "initialisations": [
            {"kind": "checkpoint", "name": "pretrained", "path": str(backbone)},
            {"kind": "random", "name": "random", "like": str(backbone), "seed": 0},
            {"kind": "pixels", "name": "pixels", "size": 16},
        ],
        "fractions": [1.0, 0.2],
        "modes": ["linear", "finetune"],
        "recipe": {"steps": 4, "batch_size": 8},
        "trained": [{"task": "landmarks", "fraction": 0.2}],
        "bootstrap": {"samples": 200},
        "device": "cpu",
    } | changes
    return DownstreamConfig.model_validate_json(json.dumps(tree))


@pytest.fixture(scope="module")
def run(
    labelled_set: Path, other_people: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DownstreamConfig, Metrics]:
    output = tmp_path_factory.mktemp("run")
    cfg = _config(labelled_set, backbone, output, pretrain_data=str(other_people))
    return cfg, evaluate(cfg)


def test_every_cell_is_measured_and_compared(run: tuple[DownstreamConfig, Metrics]) -> None:
    _, metrics = run
    fitted = [task for task in metrics.tasks if task.name != "recognition"]
    linear = 2 * sum(len(task.metrics) for task in fitted) + len(metrics.task("recognition").metrics)
    tuned = len(metrics.task("landmarks").metrics)
    assert len(metrics.measurements) == 3 * linear + 2 * tuned  # pixels are not fine-tuned
    assert len(metrics.comparisons) == 2 * linear + tuned
    assert metrics.data.disjoint_from_pretraining is True
    assert metrics.data.synthetic is True
    assert metrics.data.train_pictures + metrics.data.test_pictures == metrics.data.pictures == 240
    for m in metrics.measurements:
        assert m.low <= m.value + 1e-9, m
        assert m.value <= m.high + 1e-9, m


def test_the_figures_are_those_of_the_stored_predictions(run: tuple[DownstreamConfig, Metrics]) -> None:
    cfg, metrics = run
    with np.load(Path(cfg.output) / "predictions.npz") as archive:
        rows = archive["rows"]
        labels = read_labels(cfg.data).take(rows)
        for task in ("landmarks", "pose", "affect", "action_units"):
            prediction = archive[f"random/{task}/linear/0.2"].astype(np.float64)
            expected = make(task).evaluate(prediction, make(task).encode(labels))
            for metric, value in expected.items():
                measured = next(
                    m.value
                    for m in metrics.measurements
                    if (m.row, m.task, m.mode, m.fraction, m.metric)
                    == ("random", task, "linear", 0.2, metric)
                )
                assert measured == pytest.approx(value, abs=1e-4)
    held_out = set(np.unique(read_labels(cfg.data).column("identity").to_numpy()[rows]))
    assert len(held_out) == metrics.data.test_identities
    trained = (
        read_labels(cfg.data)
        .column("identity")
        .to_numpy()[json.loads((Path(cfg.output) / "split.json").read_text())["parts"][0]["train_rows"]]
    )
    assert not held_out & set(trained)


def test_the_mode_knn_takes_labels_of_pictures_that_may_be_used(
    labelled_set: Path, backbone: Path, tmp_path: Path
) -> None:
    cfg = _config(labelled_set, backbone, tmp_path / "run", modes=["knn"], trained=[], neighbours=1)
    metrics = evaluate(cfg)
    fitted = [task for task in metrics.tasks if task.name != "recognition"]
    assert len(metrics.measurements) == 3 * 2 * sum(len(task.metrics) for task in fitted)
    assert {m.mode for m in metrics.measurements} == {"knn"}
    page = ReportConfig(
        downstream=cfg.output,
        output=str(tmp_path / "page/index.html"),
        results=str(tmp_path / "results.json"),
    )
    write_report(page)
    assert "<b>Head pose, neighbours</b>" in Path(page.output).read_text()
    poses = make("pose").encode(read_labels(cfg.data))
    usable = np.array(json.loads((tmp_path / "run/split.json").read_text())["parts"][0]["train_rows"])
    with np.load(tmp_path / "run/predictions.npz") as archive:
        for row in ("pretrained", "random", "pixels"):
            for fraction in (1.0, 0.2):
                known = poses[usable[: round(fraction * len(usable))]].astype(np.float32)
                found = archive[f"{row}/pose/knn/{fraction:g}"]
                distances = np.abs(found[:, None] - known[None]).max(axis=2)
                assert distances.min(axis=1).max() < 1e-4
                assert len(np.unique(distances.argmin(axis=1))) > 5


def test_verdicts_follow_the_intervals(run: tuple[DownstreamConfig, Metrics]) -> None:
    _, metrics = run
    for c in metrics.comparisons:
        assert c.excludes_zero == (c.low > 0 or c.high < 0)
        expected = "undecided"
        if c.excludes_zero:
            expected = "better" if (c.difference > 0) == (c.better == "higher") else "worse"
        assert c.verdict == expected
    # 16 x 16 pixels of centred faces carry the head's pose: far better than a network that was never trained.
    against = [c for c in metrics.comparisons if (c.task, c.fraction, c.metric) == ("pose", 1.0, "mae")]
    assert {c.baseline: c.verdict for c in against}["pixels"] == "worse"


def test_neighbours_count_only_where_they_are_asked(
    labelled_set: Path, backbone: Path, tmp_path: Path
) -> None:
    """Of no evaluation without them does the number decide whether it is done."""

    def inputs(mode: str, neighbours: int) -> str:
        changes: dict[str, object] = {"modes": [mode], "trained": [], "neighbours": neighbours}
        return inputs_hash(_config(labelled_set, backbone, tmp_path, **changes))

    assert inputs("linear", 20) == inputs("linear", 5)
    assert inputs("knn", 20) != inputs("knn", 5)


def test_a_second_run_is_a_no_op_and_a_changed_one_is_not(run: tuple[DownstreamConfig, Metrics]) -> None:
    cfg, metrics = run
    path = Path(cfg.output) / "predictions.npz"
    before = path.stat().st_mtime_ns
    assert evaluate(cfg) == metrics
    assert path.stat().st_mtime_ns == before
    assert finished(cfg)
    changed = cfg.model_copy(update={"tasks": (make("pose"),), "modes": ("linear",), "trained": ()})
    assert not finished(changed)
    with pytest.raises(ConfigError, match="holds another evaluation, of other settings, data or weights"):
        evaluate(changed)
    with pytest.raises(ConfigError, match="holds another evaluation"):
        keep_cells(cfg.model_copy(update={"train_seed": 1}))
    assert path.stat().st_mtime_ns == before
    assert evaluate(changed.model_copy(update={"output": cfg.output + "-2"})).inputs != metrics.inputs


def test_a_folder_that_is_not_an_evaluations_own_is_refused(
    labelled_set: Path, backbone: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere.safetensors"  # is not even looked for
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(ConfigError, match=r"output: .* cannot be a folder"):
            evaluate(_config(labelled_set, nowhere, output))
    with pytest.raises(ConfigError, match=r"output: .* holds a data set; name a folder of its own"):
        evaluate(_config(labelled_set, nowhere, labelled_set.parent))
    assert not (labelled_set.parent / "config.yaml").exists()


def test_an_evaluation_gives_the_same_figures_again(
    run: tuple[DownstreamConfig, Metrics], tmp_path: Path
) -> None:
    cfg, metrics = run
    again = evaluate(cfg.model_copy(update={"output": str(tmp_path)}))
    assert again.measurements == metrics.measurements
    assert again.comparisons == metrics.comparisons


@pytest.mark.chaos
def test_fine_tuning_goes_on_after_a_kill(run: tuple[DownstreamConfig, Metrics], tmp_path: Path) -> None:
    cfg, metrics = run
    cfg = cfg.model_copy(update={"output": str(tmp_path)})
    (tmp_path / "config.json").write_text(cfg.model_dump_json())
    command = [sys.executable, "-m", "downstream", str(tmp_path / "config.json")]
    process = subprocess.Popen(command, cwd=ROOT)
    while not (done := list(tmp_path.glob("cells/*/pretrained-*.npy"))):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "metrics.json").exists(), "killed too late to prove anything"
    stored = np.load(done[0])
    np.save(done[0], stored + 1)  # so that it is seen who computed the result
    again = evaluate(cfg)
    with np.load(tmp_path / "predictions.npz") as archive:
        np.testing.assert_allclose(archive["pretrained/landmarks/finetune/0.2"], stored + 1, rtol=1e-5)
    assert [m for m in again.measurements if m.row != "pretrained"] == [
        m for m in metrics.measurements if m.row != "pretrained"
    ]
    assert not (tmp_path / "cells").exists()


def test_shared_people_are_refused(labelled_set: Path, backbone: Path, tmp_path: Path) -> None:
    cfg = _config(labelled_set, backbone, tmp_path, pretrain_data=str(labelled_set))
    with pytest.raises(ConfigError, match=r"24 people of .* are also in"):
        evaluate(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.beton"}, "data: nowhere.beton does not exist"),
        ({"pretrain_data": "nowhere.beton"}, "pretrain_data: nowhere.beton does not exist"),
        ({"device": "cuda"}, "device: 'cuda' was asked for but torch sees no GPU"),
    ],
)
def test_what_is_missing_is_named(
    changes: dict[str, object], message: str, labelled_set: Path, backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        evaluate(_config(labelled_set, backbone, tmp_path, **changes))


def test_missing_and_constant_labels_are_named(labelled_set: Path, backbone: Path, tmp_path: Path) -> None:
    for suffix in (".beton", ".json", ".parquet"):
        (tmp_path / f"set{suffix}").write_bytes(labelled_set.with_suffix(suffix).read_bytes())
    table = pq.read_table(labelled_set.with_suffix(".parquet"))
    changes: dict[str, object] = {"tasks": ["affect"], "modes": ["linear"], "trained": []}
    cfg = _config(tmp_path / "set.beton", backbone, tmp_path / "run", **changes)
    pq.write_table(table.drop_columns(["valence"]), tmp_path / "set.parquet")
    with pytest.raises(ConfigError, match="no labels 'valence'"):
        evaluate(cfg)
    index = table.column_names.index("valence")
    constant = table.set_column(index, "valence", [[0.5] * len(table)])
    pq.write_table(constant, tmp_path / "set.parquet")
    with pytest.raises(ConfigError, match="affect has the same label 'valence' on every test picture"):
        evaluate(cfg)
    some = table.set_column(index, "valence", [[None, *table["valence"].to_pylist()[1:]]])
    pq.write_table(some, tmp_path / "set.parquet")
    assert evaluate(cfg).data.pictures == len(table) - 1
    assert finished(cfg)
    pq.write_table(table, tmp_path / "set.parquet")  # the .beton is the same
    assert not finished(cfg)


def test_a_config_that_names_a_cell_outside_the_matrix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "data": "set.beton",
                "output": "run",
                "initialisations": [{"kind": "pixels", "name": "pixels"}],
                "fractions": [1.0],
                "trained": [{"task": "pose", "fraction": 0.02}],
            }
        )
    )
    with pytest.raises(ConfigError, match=r"trained asks for pose at 0.02"):
        load(path, schema=DownstreamConfig)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fractions": [0.5, 0.5], "trained": []}, "fractions: one is named twice"),
        ({"modes": ["linear", "knn"]}, "trained: the modes linear and knn train nothing"),
        (
            {"tasks": [{"name": "recognition", "recipe": {}}], "trained": []},
            "recognition is trained by its 'cosface'",
        ),
        ({"protocol": {"kind": "folds"}}, "recognition cannot be fine-tuned in folds"),
        ({"subsets": {"all": {"a": 1}}}, "'all' is the name of all test pictures"),
        ({"test_data": "other.beton"}, "only the protocol 'sets' tests on it"),
        ({"tasks": ["recognition"], "modes": ["frozen"], "trained": []}, "modes: nothing is measured"),
        (
            {
                "initialisations": [{"kind": "pixels", "name": "pixels"}],
                "modes": ["finetune"],
                "tasks": ["pose"],
                "trained": [],
            },
            "modes: nothing is measured",
        ),
        ({"modes": [], "trained": []}, "modes: nothing is measured"),
        ({"tasks": ["recognition"], "modes": ["knn"], "trained": []}, "modes: nothing is measured"),
    ],
)
def test_what_makes_no_sense_together_is_refused(
    changes: dict[str, object], message: str, labelled_set: Path, backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        _config(labelled_set, backbone, tmp_path, **changes)


def test_the_page_holds_the_figures_and_needs_nothing_else(
    run: tuple[DownstreamConfig, Metrics], other_people: Path, tmp_path: Path
) -> None:
    cfg, metrics = run
    pretrain = tmp_path / "pretrain"
    pretrain.mkdir()
    rows = [{"step": 10 * i, "loss": 4.6 - 0.1 * i, "ln_k": 4.605, "knn": i / 10} for i in range(5)]
    (pretrain / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = ReportConfig(
        downstream=cfg.output,
        output=str(tmp_path / "report" / "index.html"),
        results=str(tmp_path / "results.json"),
        pretrain=str(pretrain),
        pretrain_data=str(other_people),
        commands=("make demo",),
        examples=3,
    )
    results = write_report(report)
    assert Results.model_validate_json((tmp_path / "results.json").read_bytes()) == results
    assert results.metrics == metrics
    assert results.pretrain is not None
    assert results.pretrain.probe == (0.0, 0.1, 0.2, 0.3, 0.4)
    assert sum(results.face_sizes.values()) == 30
    page = Path(report.output).read_text()
    assert "Synthetic faces" in page
    assert sentence([], metrics) not in page
    leading = list(lines(metrics, leading_only=True))
    for line in leading:
        for name, m in line.values.items():
            assert number(m.value, m.unit) in page, (line, name)
    several = at_several_shares([line for line in leading if line.mode == "linear"])
    assert {line.task.name for line in several} == {"landmarks", "pose", "affect", "action_units"}
    assert page.count("Each task's metric against the share of labels") == 1  # of the linear readout
    assets = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"'\s>)]+)", page)
    assert assets
    assert all(asset.startswith("data:") for asset in assets)
    # Three faces each: landmarks of two rows, pose, valence and arousal, action units.
    titles = [task.title for task in metrics.tasks if task.name != "recognition"]
    shown = {title: len(re.findall(f'alt="{title} by', page)) for title in titles}
    assert shown == {"68 landmarks": 6, "Head pose": 3, "Valence and arousal": 3, "12 action units": 3}


def test_a_title_within_a_sentence_keeps_its_abbreviations() -> None:
    titles = ["Head pose", "3D face", "68 landmarks", "Valence and arousal"]
    assert [inside(title) for title in titles] == [
        "head pose",
        "3D face",
        "68 landmarks",
        "valence and arousal",
    ]


def test_the_page_does_without_landmarks_people_and_a_linear_readout(
    labelled_set: Path, backbone: Path, tmp_path: Path
) -> None:
    """Folds of a set that does not know its people, and nothing but trained heads."""
    for suffix in (".beton", ".json"):
        (tmp_path / f"set{suffix}").write_bytes(labelled_set.with_suffix(suffix).read_bytes())
    table = pq.read_table(labelled_set.with_suffix(".parquet")).drop_columns(["identity", "landmarks68"])
    rng = np.random.default_rng(2)
    points = [row.tolist() for row in rng.uniform(50, 200, (len(table), 58))]
    table = table.append_column("landmarks29", [points]).append_column(
        "fold", [[i % 2 for i in range(len(table))]]
    )
    pq.write_table(table, tmp_path / "set.parquet")
    changes: dict[str, object] = {
        "tasks": ["pose", {"name": "landmarks", "points": 29, "head_kind": "linear"}],
        "modes": ["frozen"],
        "fractions": [0.2],
        "trained": [],
        "protocol": {"kind": "folds", "column": "fold"},
        "subsets": {"even": {"fold": 0}},
        "recipe": {"steps": 1, "batch_size": 4},
    }
    cfg = _config(tmp_path / "set.beton", backbone, tmp_path / "run", **changes)
    metrics = evaluate(cfg)
    report = ReportConfig(
        downstream=cfg.output,
        output=str(tmp_path / "page.html"),
        results=str(tmp_path / "r.json"),
        examples=2,
    )
    write_report(report)
    page = (tmp_path / "page.html").read_text()
    assert metrics.data.test_identities is None
    assert "None" not in re.sub(r"base64,[^\"]+", "", page)
    assert page.count('alt="29 landmarks by') == 2
    assert page.count('alt="Head pose by') == 4  # the first task, of the untrained row too
    assert "a head trained on the frozen backbone" in page
    assert "240 test pictures" in page


def test_examples_come_from_the_second_set(
    labelled_set: Path, other_people: Path, backbone: Path, tmp_path: Path
) -> None:
    changes: dict[str, object] = {
        "tasks": ["pose"],
        "modes": ["linear"],
        "trained": [],
        "protocol": {"kind": "sets"},
        "test_data": str(other_people),
        "split": str(tmp_path / "split.json"),
    }
    metrics = evaluate(_config(labelled_set, backbone, tmp_path / "run", **changes))
    with np.load(tmp_path / "run/predictions.npz") as archive:
        predictions = dict(archive)
    assert predictions["rows"].min() == 240
    (strip, other) = strips(metrics, labelled_set_of(metrics), predictions, 2)
    assert (strip.row, other.row) == ("pretrained", "random")
    task, truth = make("pose"), make("pose").encode(read_labels(other_people))
    errors = np.sort(task.errors(predictions["pretrained/pose/linear/0.2"].astype(np.float64), truth))
    wanted = errors[[round(0.05 * 29), round(0.95 * 29)]]
    assert strip.errors == [f"{error:.2f}°" for error in wanted]
    # Where nothing is drawn, the picture is the test set's.
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip.pictures[0].partition(",")[2]))), int)
    row = int(np.argsort(task.errors(predictions["pretrained/pose/linear/0.2"].astype(np.float64), truth))[1])
    assert np.abs(picture[:40] - Beton(other_people).image(row)[:40]).mean() < 4


def test_seeds_side_by_side(run: tuple[DownstreamConfig, Metrics], tmp_path: Path) -> None:
    cfg, metrics = run
    other = metrics.model_copy(
        update={
            "comparisons": tuple(
                c.model_copy(update={"difference": -c.difference}) for c in metrics.comparisons
            )
        }
    )
    (tmp_path / "metrics.json").write_text(other.model_dump_json())
    output = tmp_path / "results.md"
    two = Study(title="Two seeds", runs=(cfg.output, str(tmp_path)))
    write_results_markdown([two], output)
    text = output.read_text()
    assert "**Synthetic faces.**" in text
    assert "Lines are the means of the seeds, bands reach from the least of them to the largest." in text
    assert (tmp_path / "results-two-seeds-linear.svg").exists()
    pose = next(line for line in text.splitlines() if line.startswith("| Head pose | MAE (°)"))
    assert pose.count("1 of 2, p = 1") == 2  # the sign differs between the two
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_single_seed_has_its_own_intervals(run: tuple[DownstreamConfig, Metrics], tmp_path: Path) -> None:
    cfg, _ = run
    study = Study(title="One seed", text="What it is.", runs=(cfg.output,))
    write_results_markdown([study], tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert "## One seed" in text
    assert "What it is." in text
    assert "same sign" not in text
    assert "Bands are the 95 % intervals." in text
    assert "](results-one-seed-linear.svg)" in text
    assert (tmp_path / "results-one-seed-linear.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("differences", "mark"),
    [
        ((-2.0, -3.0), "**"),
        ((2.0, 3.0), "*"),
        ((-2.0, 2.0), ""),
        ((-2.0, -0.004), ""),  # which reads as zero
    ],
)
def test_a_table_of_rows_marks_what_is_clear_in_every_seed(
    differences: tuple[float, float], mark: str, run: tuple[DownstreamConfig, Metrics], tmp_path: Path
) -> None:
    _, metrics = run
    for difference, seed in zip(differences, "ab", strict=True):
        (tmp_path / seed).mkdir()
        verdict = "better" if difference < 0 else "worse"
        figures = {
            "difference": difference,
            "low": difference - 0.001,
            "high": difference + 0.001,
            "verdict": verdict,
        }
        said = tuple(c.model_copy(update=figures) for c in metrics.comparisons)
        (tmp_path / seed / "metrics.json").write_text(
            metrics.model_copy(update={"comparisons": said}).model_dump_json()
        )
    study = Study(title="All rows", runs=(str(tmp_path / "a"), str(tmp_path / "b")), table="rows")
    write_results_markdown([study], tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert (tmp_path / "results-all-rows.svg").read_text().count("<svg") == 1
    assert "**bold** where it is better than `random` in each of the 2 seeds" in text
    assert "| Linear, 20 % | Linear, 100 % | Fine-tuned, 20 % |" in text  # of landmarks
    assert "| Linear, no labels |" in text  # of recognition
    at = ("pose", "linear", 1.0, "mae")
    values = {
        m.row: number(m.value, "deg")
        for m in metrics.measurements
        if (m.task, m.mode, m.fraction, m.metric) == at
    }
    of_pose = text.partition("### Head pose")[2].partition("###")[0].splitlines()
    shown = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in of_pose if "|" in line}
    assert shown["pretrained"] == f"{mark}{values['pretrained']}{mark}", "equal seeds have no deviation"
    assert (shown["random"], shown["pixels"]) == (values["random"], values["pixels"])


def test_a_study_replaces_its_own_section_only(run: tuple[DownstreamConfig, Metrics], tmp_path: Path) -> None:
    cfg, _ = run
    output = tmp_path / "results.md"
    write_results_markdown([Study(title="Old", text="Of last year.", runs=(cfg.output,))], output)
    old = output.read_text()
    write_results_markdown([Study(title="New", runs=(cfg.output,), table="rows")], output)
    both = output.read_text()
    assert both.startswith(old + "\n## New\n")
    write_results_markdown([Study(title="Old", text="Of today.", runs=(cfg.output,))], output)
    assert output.read_text() == both.replace("Of last year.", "Of today.")
    with pytest.raises(ConfigError, match="run 'python -m downstream CONFIG' first"):
        write_results_markdown([Study(title="New", runs=(str(tmp_path / "gone"),))], output)


@pytest.mark.parametrize(
    "wrong", [{"title": "a/b"}, {"title": "a\nb"}, {"text": "## a"}, {"text": "a\n## b"}]
)
def test_a_study_that_would_break_its_section_is_refused(wrong: dict[str, str]) -> None:
    tree: dict[str, Any] = {"title": "a", "runs": ("b",), "text": "c\n### d"}
    assert Study.model_validate(tree)
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Study.model_validate(tree | wrong)


def test_seeds_on_other_splits_are_refused(run: tuple[DownstreamConfig, Metrics], tmp_path: Path) -> None:
    cfg, metrics = run
    data = metrics.data.model_copy(update={"split_sha256": "0"})
    (tmp_path / "metrics.json").write_text(metrics.model_copy(update={"data": data}).model_dump_json())
    study = Study(title="Two seeds", runs=(cfg.output, str(tmp_path)))
    with pytest.raises(ConfigError, match="other splits"):
        write_results_markdown([study], tmp_path / "results.md")


def test_seeds_that_do_not_measure_the_same_are_refused(
    run: tuple[DownstreamConfig, Metrics], tmp_path: Path
) -> None:
    cfg, metrics = run
    some = tuple(m for m in metrics.measurements if m.mode == "linear")
    (tmp_path / "metrics.json").write_text(
        metrics.model_copy(update={"measurements": some}).model_dump_json()
    )
    for runs in ((cfg.output, str(tmp_path)), (str(tmp_path), cfg.output)):
        with pytest.raises(
            ConfigError, match=rf"{tmp_path} lacks nme of landmarks, finetune, 20 % of the labels, which"
        ):
            write_results_markdown([Study(title="Two", runs=runs)], tmp_path / "results.md")


def test_seeds_are_matched_by_what_they_measure(
    run: tuple[DownstreamConfig, Metrics], tmp_path: Path
) -> None:
    cfg, metrics = run
    (tmp_path / "metrics.json").write_text(
        metrics.model_copy(update={"tasks": metrics.tasks[::-1]}).model_dump_json()
    )
    write_results_markdown([Study(title="Two", runs=(cfg.output, str(tmp_path)))], tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    pose = next(line for line in text.splitlines() if line.startswith("| Head pose | MAE (°)"))
    cells = [cell.strip() for cell in pose.split("|")[4:7]]
    assert all(len(set(cell.split(" · "))) == 1 for cell in cells), "both are the same evaluation"


def test_a_study_names_the_subsets(run: tuple[DownstreamConfig, Metrics], tmp_path: Path) -> None:
    _, metrics = run
    more = tuple(m.model_copy(update={"subset": "monday"}) for m in metrics.measurements)
    (tmp_path / "metrics.json").write_text(
        metrics.model_copy(update={"measurements": metrics.measurements + more}).model_dump_json()
    )
    write_results_markdown([Study(title="One", runs=(str(tmp_path),))], tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert "| Head pose | MAE (°) ↓ | 20 % |" in text
    assert "| Head pose | MAE (°) ↓, monday | 20 % |" in text


def test_the_terminal_table_marks_what_is_clear(run: tuple[DownstreamConfig, Metrics]) -> None:
    _, metrics = run
    table = terminal_table(metrics).splitlines()
    assert max(map(len, table)) <= 130
    assert any("68 landmarks" in line and "finetune" in line for line in table)
    assert ("*" in "".join(table[2:-1])) == any(c.excludes_zero for c in metrics.comparisons)


def test_numbers_read_like_numbers() -> None:
    assert number(-0.0001, "") == "0.000"
    assert number(-1.234, "%", sign=True) == "\N{MINUS SIGN}1.23"
    assert number(1.234, "", sign=True) == "+1.234"


@pytest.mark.parametrize("table", ["seeds", "rows"])
def test_a_bar_in_a_name_makes_no_column(
    table: Literal["seeds", "rows"], run: tuple[DownstreamConfig, Metrics], tmp_path: Path
) -> None:
    text = run[1].model_dump_json().replace('"pretrained"', '"ours|<2>"')
    (tmp_path / "metrics.json").write_text(text)
    study = Study(title="Bars", runs=(str(tmp_path),), table=table)
    write_results_markdown([study], tmp_path / "results.md")
    written = (tmp_path / "results.md").read_text().splitlines()
    assert any(r"ours\|&lt;2&gt;" in line for line in written)
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in written]
    rules = [i for i, line in enumerate(written) if line.startswith("|---")]
    assert rules
    assert all(bars[i - 1] == bars[i] == bars[i + 1] for i in rules)


def test_a_damaged_metrics_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"metrics.json: .*delete it"):
        read_metrics(tmp_path)
    with pytest.raises(ConfigError, match=r"metrics.json is no run directory"):
        read_metrics(tmp_path / "metrics.json")


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: a.beton\noutput: run\ninitialisations: []\nfractoins: [1.0]\n")
    done = subprocess.run(
        [sys.executable, "-m", "downstream", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    help_text = subprocess.run(
        [sys.executable, "-m", "downstream", "report", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "pretrain_data" in help_text


def test_overrides_are_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["downstream"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.splitlines()[-1].endswith("arguments are required: config")


def test_people_on_both_sides_of_a_published_division_are_counted(
    labelled_set: Path, backbone: Path, tmp_path: Path
) -> None:
    for suffix in (".beton", ".json"):
        (tmp_path / f"set{suffix}").write_bytes(labelled_set.with_suffix(suffix).read_bytes())
    table = pq.read_table(labelled_set.with_suffix(".parquet"))
    people = table["identity"].to_numpy()
    first, *_, last = np.unique(people)
    # All of the last person are tested on, and every other picture of the first one.
    test = (people == last) | ((people == first) & (np.cumsum(people == first) % 2 == 0))
    split = np.where(test, "test", "train")
    pq.write_table(table.append_column("split", [split.tolist()]), tmp_path / "set.parquet")
    changes: dict[str, object] = {
        "tasks": ["pose"],
        "modes": ["linear"],
        "trained": [],
        "protocol": {"kind": "column"},
        "split": str(tmp_path / "split.json"),
    }
    metrics = evaluate(_config(tmp_path / "set.beton", backbone, tmp_path / "run", **changes))
    assert (metrics.data.train_identities, metrics.data.test_identities) == (23, 2)
    assert metrics.data.shared_identities == 1
    assert held_out(metrics.data) == "2 people, 1 of whom were learnt from too,"
    assert terminal_table(metrics).splitlines()[-1].startswith("Only 2 people are resampled")
    report = ReportConfig(
        downstream=str(tmp_path / "run"), output=str(tmp_path / "page.html"), results=str(tmp_path / "r.json")
    )
    write_report(report)
    page = " ".join((tmp_path / "page.html").read_text().split())
    pictures = (
        f"{metrics.data.test_pictures} pictures of 2 people, 1 of whom were learnt from too. Only 2 people"
    )
    assert pictures in page
    assert "held out; " + f"{metrics.data.train_pictures} of 23 people may be learnt from" in page
    assert "A pretrained network is compared with the same network untrained and raw pixels, on" in page


@pytest.mark.parametrize(
    ("shared", "disjoint", "said"),
    [
        (0, True, " that neither pretraining nor training has seen"),
        (0, None, " that training has not seen"),
        (None, True, " that pretraining has not seen"),
        (None, None, ""),
        (3, True, ", 3 of whom were learnt from too"),
    ],
)
def test_what_is_not_known_of_people_is_not_said(
    run: tuple[DownstreamConfig, Metrics], shared: int | None, disjoint: bool | None, said: str
) -> None:
    changes = {"shared_identities": shared, "disjoint_from_pretraining": disjoint}
    assert unseen(run[1].data.model_copy(update=changes)) == said


def test_a_share_that_leaves_too_little_is_refused_before_a_picture_is_read(
    labelled_set: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downstream.evaluate.read_pictures", lambda *_: pytest.fail("read too early"))
    cfg = _config(
        labelled_set, backbone, tmp_path / "few", fractions=[1.0, 0.01], modes=["linear"], trained=[]
    )
    with pytest.raises(
        ConfigError,
        match=r"fractions: at 0.01 only 1 picture to learn from has all labels of .* 0\.0\d+ is the",
    ) as caught:
        evaluate(cfg)
    least = float(re.findall(r"and (\S+) is the smallest share", str(caught.value))[0])
    monkeypatch.undo()
    changes: dict[str, object] = {"tasks": ["pose"], "modes": ["linear"], "trained": []}
    enough = evaluate(_config(labelled_set, backbone, tmp_path / "run", **changes, fractions=[least]))
    assert {m.train_labels for m in enough.measurements} == {2}


def test_a_task_that_nothing_is_known_of_is_named(labelled_set: Path, backbone: Path, tmp_path: Path) -> None:
    for suffix in (".beton", ".json"):
        (tmp_path / f"set{suffix}").write_bytes(labelled_set.with_suffix(suffix).read_bytes())
    table = pq.read_table(labelled_set.with_suffix(".parquet"))
    unknown = table.set_column(table.column_names.index("identity"), "identity", [[-1] * len(table)])
    pq.write_table(unknown, tmp_path / "set.parquet")
    cfg = _config(tmp_path / "set.beton", backbone, tmp_path / "run")
    with pytest.raises(
        ConfigError, match="knows identity of no picture, which recognition needs; take it out"
    ):
        evaluate(cfg)


def test_what_reads_as_zero_does_not_stand_out() -> None:
    assert clear(0.01, 0.005, 0.02, "")
    assert not clear(0.0004, 0.0001, 0.0009, "")
    assert clear(-0.006, -0.01, -0.001, "%")
    assert not clear(0.3, -0.1, 0.7, "")
