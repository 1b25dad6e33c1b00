"""SimFLE's protocols (supplement B) on a toy whose classes a colour tells apart, with their own config files."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import torch as safetensors
from torchvision.transforms import RandomResizedCrop

from configs import ConfigError, load
from data_prep.beton import Beton, SourceNote, write_beton
from downstream import matrix
from downstream.augment import augment, draw
from downstream.config import DownstreamConfig, ReportConfig
from downstream.evaluate import evaluate
from downstream.features import read_pictures, statistics
from downstream.model import TaskNetwork, load_model
from downstream.recipe import Augmentation, Phase, Recipe
from downstream.reports import printed
from downstream.reports.page import write_report
from downstream.reports.papers import paper_sheet
from downstream.reports.pictures import confusion
from downstream.reports.printed.config import PaperTable, TablesConfig
from downstream.results import Metrics
from downstream.tasks import make
from downstream.train import even_batch, train
from pretrain.flops import step_multiply_adds
from pretrain.train import PretrainConfig
from tests.downstream.conftest import write_backbone

SETS = Path(__file__).parents[2] / "configs/downstream"
SEVEN = ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger"]
COLOURS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
STILL = {"flip": False, "rotation": 0, "scale": 0, "shift": 0, "brightness": 0}


def write_coloured(path: Path, classes: int, seed: int) -> Path:
    """14 pictures of each class, 4 of them for testing; of class 0 thrice as many to learn from."""
    rng = np.random.default_rng(seed)
    rows = [
        (kind, "val" if i < 4 else "train") for kind in range(classes) for i in range(34 if kind == 0 else 14)
    ]
    jpegs = []
    for kind, _ in rows:
        noise = rng.integers(0, 60, (8, 8, 3)) + 150 * np.array(COLOURS[kind]) + 20
        buffer = io.BytesIO()
        Image.fromarray(noise.astype(np.uint8)).resize((256, 256)).save(buffer, "JPEG")
        jpegs.append(buffer.getvalue())
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"expression": [kind for kind, _ in rows], "split": [part for _, part in rows]}
    pq.write_table(pa.table(table), path.with_suffix(".parquet"))
    count = len(rows)
    note = SourceNote(name="colours", kind="synthetic", synthetic=True, images=count)
    write_beton(path, jpegs, np.arange(count), np.full(count, -1), sources=[note])
    return path


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight.beton, seven.beton and backbone.safetensors."""
    folder = tmp_path_factory.mktemp("colours")
    write_coloured(folder / "eight.beton", 8, seed=0)
    write_coloured(folder / "seven.beton", 7, seed=1)
    write_backbone(folder / "backbone.safetensors")
    return folder


def protocol(name: str, toys: Path, output: Path, data: str = "eight", **changes: object) -> DownstreamConfig:
    """configs/downstream/simfle_NAME.yaml on a toy, short: 12 epochs of small batches of small pictures."""
    rows = load(SETS / f"simfle_{name}.yaml", schema=DownstreamConfig).model_dump(mode="json")
    cfg = {"initialisations": rows["initialisations"][:1], "heads": {}, "recipe": rows["recipe"]}
    cfg["initialisations"][0]["path"] = str(toys / "backbone.safetensors")
    for phase in (cfg["recipe"], cfg["recipe"].get("head_first")):
        if phase:
            phase |= {"epochs": 12, "batch_size": 20}
            phase["augmentation"]["crop"] = [0.3, 1]
    given = {
        **cfg,
        "data": str(toys / f"{data}.beton"),
        "output": str(output),
        "protocol": {"kind": "column", "column": "split", "train": ["train"], "test": ["val"]},
        "image_size": 32,
        "device": "cpu",
        "bootstrap": {"samples": 100},
        **changes,
    }
    words = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    return load(SETS / f"simfle_{name}.yaml", words, schema=DownstreamConfig)


def accuracy(metrics: Metrics) -> float:
    (value,) = {m.value for m in metrics.measurements if m.metric == "accuracy"}
    return value


@pytest.fixture(scope="module")
def linear(toys: Path) -> tuple[DownstreamConfig, Metrics]:
    """B.1 on eight classes; the classifier is kept."""
    cfg = protocol("linear", toys, toys / "linear")
    return cfg, evaluate(cfg)


def classifier(cfg: DownstreamConfig) -> Path:
    (row,) = cfg.initialisations
    return Path(cfg.output) / f"models/{row.name}-expression-{cfg.modes[0]}-1.safetensors"


# --- the files -----------------------------------------------------------------------------------------------


def test_the_recipes_are_the_printed_ones() -> None:
    """Supplement B, protocol by protocol."""
    head = (2.0, 0.0, 1024, "constant")
    printed = {"linear": head, "semi": (0.05, 1e-4, 512, "cosine")}
    printed |= dict.fromkeys(("finetune", "transfer"), (1e-3, 1e-4, 512, "cosine"))
    for name, wanted in printed.items():
        cfg = load(SETS / f"simfle_{name}.yaml", schema=DownstreamConfig)
        assert cfg.image_size == 224
        assert (cfg.recipe.head_first is not None) == (name == "finetune")
        for phase, values in zip(cfg.recipe.phases, (wanted, head), strict=False):
            assert (phase.lr, phase.weight_decay, phase.batch_size, phase.schedule) == values
            assert (phase.optimiser, phase.momentum, phase.epochs, phase.warmup) == ("sgd", 0.9, 100, 0)
            assert phase.head_lr is None
            assert phase.epochs_at == ()
            assert phase.augmentation == Augmentation(crop=(0.08, 1), **STILL | {"flip": True})
        assert cfg.modes == ("frozen",) if name == "linear" else ("finetune",)
        assert cfg.fractions == ((0.1, 0.01) if name == "semi" else (1.0,))
        assert [task.standardise for task in cfg.tasks] == [False]


# --- the protocols -------------------------------------------------------------------------------------------


def test_linear_learns_on_a_backbone_that_stays(linear: tuple[DownstreamConfig, Metrics], toys: Path) -> None:
    cfg, metrics = linear
    assert accuracy(metrics) > 2 * 100 / 8
    model, _ = load_model(classifier(cfg))
    start = matrix.backbones.load(toys / "backbone.safetensors")[0].state_dict()
    for name, values in model.backbone.state_dict().items():
        torch.testing.assert_close(values, start[name], rtol=0, atol=0)
    assert [type(layer) for layer in model.head.children()] == [torch.nn.Identity, torch.nn.Linear]


def test_semi_supervised(toys: Path, tmp_path: Path) -> None:
    cfg = protocol("semi", toys, tmp_path, fractions=[0.5])
    assert accuracy(evaluate(cfg)) > 2 * 100 / 8


def test_fine_tuning_trains_the_head_first(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[Phase, bool, TaskNetwork, Mapping[str, torch.Tensor] | None]] = []

    def note(*args: object, **settings: object) -> TaskNetwork:
        model = train(*args, **settings)  # type: ignore[arg-type]
        state = {name: values.clone() for name, values in model.state_dict().items()}
        trained.append((args[5], settings["frozen"], state, settings["head"]))  # type: ignore[arg-type]
        return model

    monkeypatch.setattr(matrix, "train", note)
    cfg = protocol("finetune", toys, tmp_path, keep_models=True)
    assert accuracy(evaluate(cfg)) > 2 * 100 / 8
    (first, frozen, state, given), (second, still_frozen, end, head) = trained
    assert (first, frozen, given) == (cfg.recipe.head_first, True, None)
    assert (second, still_frozen) == (cfg.recipe, False)
    start = matrix.backbones.load(toys / "backbone.safetensors")[0].state_dict()
    for name, values in start.items():  # weights, and means, variances and counts of the batch norms
        torch.testing.assert_close(state[f"backbone.{name}"], values, rtol=0, atol=0)
    assert state["head.linear.weight"].abs().max() > 0
    for name, values in head.items():
        torch.testing.assert_close(values, state[f"head.{name}"], rtol=0, atol=0)
    assert not torch.equal(end["backbone.conv1.weight"], start["conv1.weight"])
    assert not torch.equal(end["backbone.bn1.running_mean"], start["bn1.running_mean"])


def test_in_the_mode_frozen_the_head_alone_is_all(
    linear: tuple[DownstreamConfig, Metrics], toys: Path, tmp_path: Path
) -> None:
    """So one config gives the figures of B.1 and of B.3."""
    cfg = protocol("finetune", toys, tmp_path, modes=["frozen"])
    assert accuracy(evaluate(cfg)) == accuracy(linear[1])


def test_transfer_takes_over_the_classes_by_name(
    linear: tuple[DownstreamConfig, Metrics], toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seven classes in another order, without contempt."""
    order = [*SEVEN[::-1]]
    heads: list[Mapping[str, torch.Tensor]] = []

    def note(*args: object, head: Mapping[str, torch.Tensor], **settings: object) -> TaskNetwork:
        heads.append(head)
        return train(*args, head=head, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(matrix, "train", note)
    task = {"name": "expression", "standardise": False, "classes": order}
    changes = {"data": "seven", "tasks": [task], "heads": {"pretrained": str(classifier(linear[0]))}}
    cfg = protocol("transfer", toys, tmp_path, **changes)
    with np.errstate(all="raise"):
        evaluate(cfg)
    source = load_model(classifier(linear[0]))[0].head
    (head,) = heads
    for row, name in enumerate(order):
        theirs = linear[0].tasks[0].classes.index(name)  # type: ignore[attr-defined]
        for key in ("linear.weight", "linear.bias", "mean"):
            torch.testing.assert_close(head[key][row], source.state_dict()[key][theirs], rtol=0, atol=0)
    assert len(head["linear.weight"]) == 7


def test_a_transferred_classifier_is_worth_something_from_the_first_step(
    linear: tuple[DownstreamConfig, Metrics], toys: Path, tmp_path: Path
) -> None:
    task = {"name": "expression", "standardise": False, "classes": SEVEN}
    recipe = {"steps": 1, "lr": 1e-9, "batch_size": 2, "warmup": 0}
    changes: dict[str, object] = {"tasks": [task], "recipe": recipe, "modes": ["frozen"]}
    heads = {"pretrained": str(classifier(linear[0]))}
    without = accuracy(evaluate(protocol("transfer", toys, tmp_path / "0", "seven", **changes)))
    having = accuracy(evaluate(protocol("transfer", toys, tmp_path / "1", "seven", **changes, heads=heads)))
    assert without == pytest.approx(100 / 7)
    assert having > 2 * 100 / 7


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"classes": [*SEVEN, "boredom"]}, "does not know the class boredom"),
        ({"standardise": True}, "another 'standardise'"),
        ({"name": "affect", "classes": 7}, "is of expression; take affect out of 'tasks'"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    task: dict[str, object],
    message: str,
    linear: tuple[DownstreamConfig, Metrics],
    toys: Path,
    tmp_path: Path,
) -> None:
    whole = {"name": "expression", "standardise": False} | task
    if whole["name"] == "affect":
        whole.pop("standardise")
        table = pq.read_table(toys / "eight.parquet")
        for column in ("valence", "arousal"):
            table = table.append_column(column, [np.linspace(-1, 1, len(table))])
        (tmp_path / "set.beton").write_bytes((toys / "eight.beton").read_bytes())
        (tmp_path / "set.json").write_bytes((toys / "eight.json").read_bytes())
        pq.write_table(table, tmp_path / "set.parquet")
        toys, data = tmp_path, "set"
        write_backbone(tmp_path / "backbone.safetensors")
    else:
        data = "eight"
    heads = {"pretrained": str(classifier(linear[0]))}
    cfg = protocol("transfer", toys, tmp_path / "run", data, tasks=[whole], heads=heads)
    with pytest.raises(ConfigError, match=rf"^heads.pretrained: .*frozen-1.safetensors.*{message}"):
        evaluate(cfg)


def test_a_head_of_another_backbone_is_refused(
    linear: tuple[DownstreamConfig, Metrics], toys: Path, tmp_path: Path
) -> None:
    heads = {"other": str(classifier(linear[0]))}
    like = str(toys / "backbone.safetensors")
    rows = [{"kind": "random", "name": "other", "like": like, "seed": 5}]
    cfg = protocol("transfer", toys, tmp_path, tasks=[linear[0].tasks[0].model_dump(mode="json")])
    cfg = cfg.model_validate_json(
        json.dumps(cfg.model_dump(mode="json") | {"initialisations": rows, "heads": heads})
    )
    with pytest.raises(ConfigError, match=r"heads.other: .* did not stand on the frozen backbone"):
        evaluate(cfg)
    with pytest.raises(ConfigError, match="cannot be read"):
        evaluate(cfg.model_copy(update={"heads": {"other": str(tmp_path / "nowhere")}}))


def test_a_killed_fine_tuning_gives_the_same_figures(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first phase, between the two and in the second one; it goes on from the last checkpoint."""
    changes: dict[str, object] = {"recipe": _short_recipe()}
    whole = evaluate(protocol("finetune", toys, tmp_path / "whole", **changes))

    class KilledError(Exception):
        pass

    done: list[tuple[str, int]] = []
    kills = iter(((4, "head"), (0, "both"), (7, "both")))
    kill = next(kills)

    def stop(augmentation: Augmentation, count: int, seed: int, step: int) -> object:
        nonlocal kill
        phase = "head" if augmentation.crop == (0.5, 1) else "both"
        if kill == (step, phase):
            kill = next(kills, (-1, ""))
            raise KilledError
        done.append((phase, step))
        return draw(augmentation, count, seed, step)

    monkeypatch.setattr("downstream.train.draw", stop)
    cfg = protocol("finetune", toys, tmp_path / "killed", **changes)
    for _ in range(3):
        with pytest.raises(KilledError):
            evaluate(cfg)
    again = evaluate(cfg)
    assert [step for phase, step in done if phase == "head"] == [0, 1, 2, 3, 3, *range(4, 10)]
    assert [step for phase, step in done if phase == "both"] == [*range(7), 6, *range(7, 12)]
    assert again.measurements == whole.measurements


@pytest.mark.chaos
def test_a_process_that_is_killed_between_the_phases(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _short_recipe() | {"steps": 3000, "checkpoint_every": 5000}
    cfg = protocol("finetune", toys, tmp_path / "run", recipe=recipe)
    (tmp_path / "config.json").write_text(cfg.model_dump_json())
    command = [sys.executable, "-m", "downstream", "cells", str(tmp_path / "config.json")]
    process = subprocess.Popen(command, cwd=SETS.parents[1])
    while not (kept := list(tmp_path.glob("run/cells/*/*.head"))):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not list(tmp_path.glob("run/cells/*/*.npy")), "killed too late to prove anything"
    before, phases = kept[0].read_bytes(), []

    def note(*args: object, **settings: object) -> TaskNetwork:
        phases.append((settings["frozen"], settings["head"]))
        return train(*args, **settings | {"steps": 1})  # type: ignore[arg-type]

    monkeypatch.setattr(matrix, "train", note)
    evaluate(cfg)
    ((frozen, head),) = phases
    assert not frozen
    for name, values in safetensors.load(before).items():
        torch.testing.assert_close(head[name], values, rtol=0, atol=0)


def _short_recipe() -> dict[str, object]:
    phase = {"lr": 0.05, "batch_size": 8, "checkpoint_every": 3, "steps": 12}
    return phase | {
        "augmentation": STILL | {"crop": [0.3, 1]},
        "head_first": phase | {"steps": 10, "augmentation": STILL | {"crop": [0.5, 1]}},
    }


# --- the tables ----------------------------------------------------------------------------------------------


def test_the_runs_of_all_protocols_stand_beside_the_printed_figures(
    linear: tuple[DownstreamConfig, Metrics], toys: Path, tmp_path: Path
) -> None:
    semi = evaluate(protocol("semi", toys, tmp_path / "semi", fractions=[0.5, 0.1]))
    tuned = [
        evaluate(
            protocol("finetune", toys, tmp_path / f"tuned{seed}", recipe=_short_recipe(), train_seed=seed)
        )
        for seed in (0, 1)
    ]
    runs = {
        "linear8": (linear[0].output,),
        "semi8": (str(tmp_path / "semi"),),
        "finetune8": tuple(str(tmp_path / f"tuned{seed}") for seed in (0, 1)),
    }
    sheet = paper_sheet(PaperTable(printed="simfle", runs=runs))
    assert list(sheet.values.index.names) == ["Figures", "Pretraining"]
    assert sheet.text.loc[("printed", "SimFLE"), ("Semi-supervised", "AN-8 1 %")] == "35.89"
    assert sheet.bold.loc["printed"].sum().tolist() == [1] * 11
    ours = sheet.values.loc[("measured here", "pretrained")].dropna().to_dict()
    assert ours == {
        ("Linear", "AN-8"): pytest.approx(accuracy(linear[1])),
        ("Semi-supervised", "AN-8 10 %"): pytest.approx(
            next(m.value for m in semi.measurements if (m.metric, m.fraction) == ("accuracy", 0.1))
        ),
        ("Fine-tuning", "AN-8"): pytest.approx(np.mean([accuracy(run) for run in tuned])),
    }
    spread = sheet.more["std"].loc[("measured here", "pretrained"), ("Fine-tuning", "AN-8")]
    assert spread == pytest.approx(np.std([accuracy(run) for run in tuned], ddof=1))
    kinds = ", ".join(linear[1].data.kinds)
    measured = f"32 test pictures of {linear[0].data} ({kinds}), trained on up to 100 others"
    assert f"linear8 {measured}, semi8 {measured}, finetune8 {measured}" in sheet.caption
    assert "Synthetic faces" in sheet.caption
    assert "|" in sheet.markdown()


def test_the_page_shows_which_expressions_are_confused(toys: Path, tmp_path: Path) -> None:
    like = str(toys / "backbone.safetensors")
    rows = [
        {"kind": "checkpoint", "name": "pretrained", "path": like},
        {"kind": "random", "name": "random", "like": like},
    ]
    cfg = protocol(
        "finetune",
        toys,
        tmp_path / "run",
        recipe=_short_recipe(),
        initialisations=rows,
        modes=["frozen", "finetune"],
        fractions=[0.5, 1.0],
    )
    evaluate(cfg)
    report = ReportConfig(
        downstream=cfg.output, output=str(tmp_path / "page.html"), results=str(tmp_path / "results.json")
    )
    write_report(report)
    page = Path(report.output).read_text()
    for mode in ("a head trained on the frozen backbone", "fine-tuning"):
        assert f'alt="Expressions, predicted against true, {mode}"' in page
        assert f"pretrained, {mode}, 100 % of the labels: how often" in page
    drawn = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)" alt="Expressions', page)
    assert len(drawn) == 2
    task = cfg.tasks[0]
    with np.load(Path(cfg.output) / "predictions.npz") as archive:
        guesses = archive["pretrained/expression/frozen/1"].argmax(axis=1)
        truth = np.array(pq.read_table(toys / "eight.parquet")["expression"])[archive["rows"]]
    assert base64.b64decode(drawn[0]) == confusion(truth, guesses, task.classes)  # type: ignore[attr-defined]


def test_the_cost_of_a_pretraining_is_counted(
    linear: tuple[DownstreamConfig, Metrics], tmp_path: Path
) -> None:
    text = {
        "output": "unused",
        "data": {"path": "unused"},
        "views": {"crops": [{"count": 2, "size": 64, "scale": [0.14, 1]}]},
        "backbone": {"architecture": "resnet18"},
        "schedule": {"lr": 0.1},
    }
    path = tmp_path / "pretrain.json"
    path.write_text(json.dumps(text))
    runs = {"linear8": (linear[0].output,)}
    table = PaperTable(printed="simfle_parts", runs=runs, pretraining={"pretrained": str(path)})
    sheet = paper_sheet(table)
    cost = sheet.values.loc[("measured here", "pretrained"), "FLOPs, G"]
    assert cost == step_multiply_adds(load(path, schema=PretrainConfig)) / 1e9
    assert sheet.text.loc[("measured here", "pretrained"), "FLOPs, G"] == f"{cost:.1f}"
    assert sheet.text.loc[("printed", "(a) GFL")].tolist() == ["16.5", "41.64"]
    assert not sheet.bold["FLOPs, G"].any()
    for wrong, message in (("simfle", "no column of costs"), ("simfle_supervised", "measures nothing")):
        other = {"linear8": (linear[0].output,)} if wrong == "simfle" else {"sfew": (linear[0].output,)}
        pretraining = {"pretrained": str(path)} if wrong == "simfle" else {}
        with pytest.raises(ConfigError, match=message):
            paper_sheet(PaperTable(printed=wrong, runs=other, pretraining=pretraining))


def test_every_evaluation_of_the_tables_is_one_of_the_protocols() -> None:
    cfg = load(SETS / "simfle_tables.yaml", schema=TablesConfig)
    named = {"simfle", "simfle_supervised", "simfle_parts", "simfle_contrastive"}
    assert {table.printed for table in cfg.tables} == named
    for table in cfg.tables:
        assert tuple(table.evaluations) == printed.read(table.printed).evaluations


# --- the normalisation ---------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_pixels(toys: Path) -> None:
    pictures = read_pictures([Beton(toys / "eight.beton")], [32], memory=1e9)[32]
    rows = np.array([3, 50, 80, 81])
    mean, std = statistics(pictures, rows)
    values = pictures.take(rows).numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, values.std(axis=(0, 2, 3)), rtol=1e-6)


def test_the_normalisation_of_the_data_replaces_the_backbones(toys: Path, tmp_path: Path) -> None:
    recipe = {"steps": 1, "batch_size": 4}
    figures = {}
    for name, wanted in {
        "header": None,
        "data": "data",
        "given": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }.items():
        cfg = protocol("linear", toys, tmp_path / name, recipe=recipe, normalisation=wanted, keep_models=True)
        (row,) = evaluate(cfg).rows
        header = load_model(classifier(cfg))[1]
        assert json.loads(header["mean"]) == pytest.approx(row.mean)
        figures[name] = row.mean, row.std
    assert figures["header"] == (pytest.approx((0.5, 0.4, 0.4)), pytest.approx((0.3, 0.3, 0.3)))
    assert figures["given"] == (pytest.approx((0.1, 0.2, 0.3)), pytest.approx((0.4, 0.5, 0.6)))
    pictures = read_pictures([Beton(toys / "eight.beton")], [32], memory=1e9)[32]
    learnt = np.flatnonzero(np.array(pq.read_table(toys / "eight.parquet")["split"].to_pylist()) == "train")
    mean, std = statistics(pictures, learnt)
    assert figures["data"] == (tuple(mean.tolist()), tuple(std.tolist()))


# --- oversampling --------------------------------------------------------------------------------------------


def test_every_class_is_drawn_equally_often() -> None:
    classes = np.repeat([0, 2, 3], [50, 7, 3])  # nobody is in class 1
    drawn = np.concatenate([even_batch(classes, 10, seed=4, step=step) for step in range(30)])
    assert np.bincount(classes[drawn]).tolist() == [100, 0, 100, 100]
    for kind, often in ((0, {2}), (2, {14, 15}), (3, {33, 34})):
        assert set(np.bincount(drawn)[classes == kind].tolist()) == often
    again = [even_batch(classes, 10, seed=4, step=step) for step in (0, 29)]
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate([drawn[:10], drawn[-10:]]))
    assert not np.array_equal(even_batch(classes, 10, seed=5, step=0), drawn[:10])
    few = even_batch(np.array([1, 0]), 5, seed=0, step=0)
    assert sorted(np.bincount(few).tolist()) == [2, 3]


def test_oversampling_is_what_is_trained_on(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def note(pictures: object, rows: np.ndarray, picked: object) -> object:
        batches = list(picked)  # type: ignore[call-overload]
        seen.extend(rows[chosen] for chosen in batches)
        return ahead(pictures, rows, iter(batches))

    from downstream import train as module

    ahead = module._ahead
    monkeypatch.setattr(module, "_ahead", note)
    recipe = {"steps": 4, "batch_size": 16, "oversample": True}
    cfg = protocol("linear", toys, tmp_path, recipe=recipe)
    evaluate(cfg)
    classes = np.array(pq.read_table(toys / "eight.parquet")["expression"])
    assert np.bincount(classes[np.concatenate(seen)]).tolist() == [8] * 8


# --- the crop ------------------------------------------------------------------------------------------------


def test_the_crop_is_torchvisions() -> None:
    """Boxes read back from the moves against RandomResizedCrop's own, by their distributions."""
    augmentation = Augmentation(crop=(0.08, 1), **STILL)
    affine = draw(augmentation, 4000, seed=1, step=0).affine
    sides = 256 / np.stack([affine[:, 0, 0], affine[:, 1, 1]], axis=1)
    corner = -affine[:, :, 2] / np.stack([affine[:, 0, 0], affine[:, 1, 1]], axis=1)
    assert np.abs(affine[:, [0, 1], [1, 0]]).max() == 0
    assert corner.min() > -1e-6
    assert (corner + sides).max() < 256 + 1e-6
    torch.manual_seed(0)
    picture = torch.zeros(3, 256, 256)
    theirs = np.array([RandomResizedCrop.get_params(picture, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)])
    for ours, other in (
        (corner[:, 1], theirs[:, 0]),
        (corner[:, 0], theirs[:, 1]),
        (sides[:, 1], theirs[:, 2]),
        (sides[:, 0], theirs[:, 3]),
    ):
        np.testing.assert_allclose(
            np.quantile(ours, [0.1, 0.5, 0.9]), np.quantile(other, [0.1, 0.5, 0.9]), atol=8
        )


def test_the_crop_shows_its_box() -> None:
    moves = draw(Augmentation(crop=(0.2, 0.5), **STILL), 8, seed=0, step=0)
    ramp = torch.linspace(0, 255, 256)
    images = torch.stack([ramp.expand(256, 256), ramp[:, None].expand(256, 256), torch.zeros(256, 256)])
    seen = augment(images.round().to(torch.uint8).expand(8, 3, 256, 256), moves)
    for picture, affine in zip(seen, moves.affine, strict=True):
        left, top = -affine[:, 2] / affine[[0, 1], [0, 1]]
        width, height = 256 / affine[[0, 1], [0, 1]]
        assert picture[0, 128, [2, -3]].tolist() == pytest.approx([left, left + width], abs=3)
        assert picture[1, [2, -3], 128].tolist() == pytest.approx([top, top + height], abs=3)


def test_without_a_crop_nothing_is_drawn_otherwise() -> None:
    with_crop, without = (
        draw(Augmentation(contrast=0.3, crop=crop), 5, seed=2, step=7) for crop in ((1, 1), None)
    )
    np.testing.assert_allclose(with_crop.affine, without.affine, atol=1e-9)
    np.testing.assert_array_equal(with_crop.look.factors, without.look.factors)


@pytest.mark.parametrize("where", ["recipe", "head_first", "task"])
@pytest.mark.parametrize(
    ("task", "setting", "message"),
    [
        (
            "landmarks",
            {"augmentation": {"crop": [0.1, 1]}},
            "crop: the labels of landmarks are places or angles",
        ),
        ("pose", {"augmentation": {"crop": [0.1, 1]}}, "crop: the labels of pose are places or angles"),
        ("mesh", {"augmentation": {"crop": [0.1, 1]}}, "crop: the labels of mesh are places or angles"),
        ("pose", {"oversample": True}, "oversample: pose has no classes"),
        ("affect", {"oversample": True}, "oversample: affect has no classes"),
    ],
)
def test_what_a_task_cannot_follow_is_refused(
    task: str, setting: dict[str, object], message: str, where: str
) -> None:
    recipe = {"head_first": setting} if where == "head_first" else setting
    settings: dict[str, object] = {"model": "m", "labels": "synthetic"} if task == "mesh" else {}
    tree = {
        "data": "d",
        "output": "o",
        "initialisations": [{"kind": "pixels", "name": "p"}],
        "tasks": [{"name": task} | settings | ({"recipe": recipe} if where == "task" else {})],
        "recipe": {} if where == "task" else recipe,
    }
    with pytest.raises(ValueError, match=message):
        DownstreamConfig.model_validate_json(json.dumps(tree))


def test_what_can_be_followed_is_taken() -> None:
    recipe = Recipe(oversample=True, augmentation=Augmentation(crop=(0.2, 1)))
    for task in (make("expression"), make("affect", classes=7)):
        task.check_recipe(recipe)
    make("action_units").check_recipe(Recipe(augmentation=Augmentation(crop=(0.2, 1))))
    for crop in ((0.5, 0.2), (0, 1), (0.5, 1.5)):
        with pytest.raises(ValueError, match="shares of the area"):
            Augmentation(crop=crop)
