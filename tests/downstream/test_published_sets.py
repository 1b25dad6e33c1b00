"""Each published set, from its corpus's own layout to figures: its file in configs/downstream, its division.

The corpora are tiny and rendered; what they have in common with the real ones is their form.
"""

from __future__ import annotations

import json
import shlex
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs import load
from data_prep.__main__ import main as data_prep
from data_prep.beton import read_labels
from data_prep.sources.affectnet import CLASSES
from downstream import matrix
from downstream.config import DownstreamConfig
from downstream.evaluate import evaluate
from downstream.model import load_model
from downstream.recipe import Recipe
from downstream.reports import printed
from downstream.reports.cases import Wanted, draw_cases
from downstream.reports.papers import write_tables
from downstream.reports.printed.config import TablesConfig
from downstream.results import Metrics
from downstream.tasks.expression import Expression
from pretrain.train import PretrainConfig
from tests.downstream import corpora

ROOT = Path(__file__).parents[2]
SETS = ROOT / "configs/downstream"
SHORT = (
    "recipe.steps=1",
    "recipe.epochs=null",
    "recipe.epochs_at=[]",
    "recipe.batch_size=4",
    "image_size=32",
    "fractions=[1.0]",
    "modes=[linear,frozen,finetune]",
    "bootstrap.samples=100",
    "device=cpu",
)
"""One step on small pictures with all labels, for two percent of a few are none."""

Evaluation = tuple[DownstreamConfig, Metrics, list[dict[str, object]]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the set of a corpus with ``python -m data_prep configs/data/NAME.yaml``, once."""
    folder, made = tmp_path_factory.mktemp("corpora"), {}

    def prepare(corpus: str, config: str, *overrides: str) -> Path:
        key = " ".join((corpus, *overrides))
        if key not in made:
            root, output = folder / corpus, folder / f"set{len(made)}"
            with pytest.MonkeyPatch.context() as patch:
                if not root.exists():
                    getattr(corpora, corpus)(root, patch)
                words = ["all", str(ROOT / f"configs/data/{config}.yaml"), f"source.path={root}"]
                patch.setattr("sys.argv", ["data_prep", *words, f"output={output}", "workers=1", *overrides])
                assert data_prep() == 0
            made[key] = output / "set.beton"
        return made[key]

    return prepare


@pytest.fixture
def evaluated(prepared: Callable[..., Path], backbone: Path, tmp_path: Path) -> Callable[..., Evaluation]:
    """Runs configs/downstream/NAME.yaml: its config, its figures and the rows of the set, or of both."""

    def run(name: str, data: Path, test_data: Path | None = None) -> Evaluation:
        rows = load(SETS / f"{name}.yaml", schema=DownstreamConfig).model_dump(mode="json")["initialisations"]
        for row in rows:
            row |= {field: str(backbone) for field in ("path", "like") if field in row}
        given = [*SHORT, f"data={data}", f"output={tmp_path / 'run'}", f"initialisations={json.dumps(rows)}"]
        if test_data:
            given.append(f"test_data={test_data}")
        cfg = load(SETS / f"{name}.yaml", given, schema=DownstreamConfig)
        metrics = evaluate(cfg)
        faces = [row for path in (data, test_data) if path for row in read_labels(path).to_pylist()]
        modes = {(m.row, m.mode) for m in metrics.measurements if m.subset == "all"}
        assert modes == {("pixels", "linear")} | {
            (row, mode) for row in ("pretrained", "random") for mode in ("linear", "frozen", "finetune")
        }
        return cfg, metrics, faces

    return run


def parts(cfg: DownstreamConfig, faces: list[dict[str, object]], column: str) -> list[tuple[list, list]]:
    """For each part what stands in a column of the rows to learn from and of those to test on."""
    split = json.loads((Path(cfg.output) / "split.json").read_text())
    return [
        tuple(sorted(faces[row][column] for row in part[side]) for side in ("train_rows", "test_rows"))
        for part in split["parts"]
    ]


def subset_value(cfg: DownstreamConfig, faces: list[dict[str, object]], wanted: set[str]) -> float:
    """The leading metric of the untrained network's predictions for the faces of some pictures."""
    (task,) = cfg.tasks
    with np.load(Path(cfg.output) / "predictions.npz") as archive:
        inside = np.array([faces[row]["image_id"] in wanted for row in archive["rows"]])
        prediction = archive[f"random/{task.name}/finetune/1"][inside].astype(np.float64)
        truth = task.encode(read_labels(cfg.data)).take(archive["rows"][inside], axis=0)
    assert inside.sum() == len(wanted)
    return task.evaluate(prediction, truth)[task.metrics[0].name]


def measured(metrics: Metrics, subset: str) -> float:
    (value,) = (
        m.value
        for m in metrics.measurements
        if (m.row, m.mode, m.subset, m.metric)
        == ("random", "finetune", subset, metrics.tasks[0].metrics[0].name)
    )
    return value


# --- action units --------------------------------------------------------------------------------------------


def test_disfa(prepared: Callable[..., Path], evaluated: Callable[..., Evaluation]) -> None:
    cfg, metrics, faces = evaluated("disfa", prepared("disfa", "disfa"))
    assert len(faces) == 18
    folds = [{1, 2}, {6, 11}, {3, 4}]
    people = parts(cfg, faces, "identity")
    assert [set(test) for _, test in people] == folds
    assert all(set(train) == {1, 2, 3, 4, 6, 11} - set(test) for train, test in people)
    assert metrics.data.test_pictures == 18
    assert {m.metric for m in metrics.measurements} >= {"icc", "icc_au26", "mse_au1", "mae_au12"}


def test_bp4d(prepared: Callable[..., Path], evaluated: Callable[..., Evaluation]) -> None:
    cfg, metrics, faces = evaluated("bp4d", prepared("bp4d", "bp4d"))
    ((train, test),) = parts(cfg, faces, "subject")
    assert (set(train), set(test)) == ({"F001", "F003", "M003"}, {"F002", "F004", "M002"})
    assert metrics.data.test_pictures == 9, "a frame with unknown units counts for the others"


def test_bp4d_folds(prepared: Callable[..., Path], evaluated: Callable[..., Evaluation]) -> None:
    cfg, _, faces = evaluated("bp4d_folds", prepared("bp4d", "bp4d"))
    people = parts(cfg, faces, "subject")
    assert [set(test) for _, test in people] == [{"F001", "F002"}, {"F003", "M002"}, {"F004", "M003"}]
    assert not any(set(train) & set(test) for train, test in people)


# --- landmarks -----------------------------------------------------------------------------------------------


def test_300w(prepared: Callable[..., Path], evaluated: Callable[..., Evaluation]) -> None:
    cfg, metrics, faces = evaluated("w300", prepared("w300", "300w"))
    named = {part: set(names) for part, names in corpora.W300.items()}
    ((train, test),) = parts(cfg, faces, "image_id")
    assert set(train) == named["train"]
    assert set(test) == named["common"] | named["challenge"]
    for subset in ("common", "challenge"):
        assert measured(metrics, subset) == pytest.approx(subset_value(cfg, faces, named[subset]), rel=1e-5)
    assert {m.metric for m in metrics.measurements} == {"nme", "nme_pupils", "nme_box", "failures", "auc"}


def test_300w_test(prepared: Callable[..., Path], evaluated: Callable[..., Evaluation]) -> None:
    cfg, metrics, faces = evaluated("w300_test", prepared("w300", "300w"))
    ((train, test),) = parts(cfg, faces, "image_id")
    assert set(train) == set(corpora.W300["train"])
    assert set(test) == {*corpora.W300["indoor"], *corpora.W300["outdoor"]}
    for subset in ("indoor", "outdoor"):
        expected = subset_value(cfg, faces, set(corpora.W300[subset]))
        assert measured(metrics, subset) == pytest.approx(expected, rel=1e-5)


def test_cofw(prepared: Callable[..., Path], evaluated: Callable[..., Evaluation]) -> None:
    cfg, _, faces = evaluated("cofw", prepared("cofw", "cofw"))
    ((train, test),) = parts(cfg, faces, "image_id")
    assert train == [f"train/000{i}" for i in (1, 2, 3, 4)]
    assert test == [f"test/000{i}" for i in (1, 2, 3)]


def test_cofw68(prepared: Callable[..., Path], evaluated: Callable[..., Evaluation]) -> None:
    learnt = prepared("w300", "300w", "source.subsets=[train]")
    cfg, metrics, faces = evaluated("cofw68", learnt, prepared("cofw", "cofw"))
    ((train, test),) = parts(cfg, faces, "image_id")
    assert set(train) == set(corpora.W300["train"])
    assert test == [f"test/000{i}" for i in (1, 2, 3)], "only these have 68 points"
    assert metrics.data.test_path == cfg.test_data


def test_aflw(prepared: Callable[..., Path], evaluated: Callable[..., Evaluation]) -> None:
    cfg, metrics, faces = evaluated("aflw", prepared("aflw", "aflw"))
    ((train, test),) = parts(cfg, faces, "image_id")
    assert train == [f"0/image{i}.jpg" for i in (0, 1, 2, 4, 7)]
    assert test == [f"0/image{i}.jpg" for i in (3, 5, 6)]
    frontal = subset_value(cfg, faces, {"0/image3.jpg", "0/image5.jpg"})
    assert measured(metrics, "frontal") == pytest.approx(frontal, rel=1e-5)
    by = {m.metric: m.value for m in metrics.measurements if (m.row, m.mode) == ("pixels", "linear")}
    # The boxes are 100 x 80 px.
    assert by["nme_face_diagonal"] / by["nme"] == pytest.approx(np.sqrt(8000) / np.hypot(100, 80), rel=1e-5)


def test_wflw(prepared: Callable[..., Path], evaluated: Callable[..., Evaluation]) -> None:
    cfg, metrics, faces = evaluated("wflw", prepared("wflw", "wflw"))
    ((train, test),) = parts(cfg, faces, "split")
    assert (len(train), len(test)) == (4, 7)
    for subset in ("large_pose", "expression", "illumination", "make_up", "occlusion", "blur"):
        name = {"large_pose": "pose"}.get(subset, subset)
        wanted = {f"{name}.jpg"} | ({"both.jpg"} if subset in ("large_pose", "blur") else set())
        expected = subset_value(cfg, faces, {f"test/1--Handshaking/{name}" for name in wanted})
        assert measured(metrics, subset) == pytest.approx(expected, rel=1e-5), subset


def check_a_list(cfg: DownstreamConfig, faces: list[dict[str, object]], form: str) -> None:
    """A list of occluded faces, in the form in which Wang et al. publish it, chooses the pictures that it names."""
    (part,) = json.loads((Path(cfg.output) / "split.json").read_text())["parts"]
    names = [str(faces[row]["image_id"]) for row in part["test_rows"][1:4]]
    listed = Path(cfg.output) / "list.txt"
    listed.write_text("\n".join(form.format(stem=Path(name).stem, image_id=name) for name in names))
    told = draw_cases(Path(cfg.output), Wanted(listed=listed, right=True), Path(cfg.output) / "cases", "cpu")
    assert sorted(case["image_id"] for case in told["cases"]) == sorted(names)
    assert (told["row"], told["mode"]) == ("pretrained", "finetune")


# --- emotion -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "classes"), [("affectnet", 8), ("affectnet7", 7)])
def test_affectnet(
    name: str, classes: int, prepared: Callable[..., Path], evaluated: Callable[..., Evaluation]
) -> None:
    cfg, metrics, faces = evaluated(name, prepared("affectnet", "affectnet"))
    ((train, test),) = parts(cfg, faces, "split")
    assert (set(train), set(test)) == ({"train"}, {"val"})
    ((train, test),) = parts(cfg, faces, "expression")
    assert train == test == [0, *range(classes)]
    assert {"ccc", "rmse_arousal", "sagr_valence", "accuracy"} <= {m.metric for m in metrics.measurements}
    check_a_list(cfg, faces, "val/0/{stem}/")


@pytest.mark.parametrize(
    ("name", "test_part", "count", "train_count"),
    [("rafdb", "test", 7, 14), ("ferplus", "test", 8, 8), ("sfew", "val", 7, 14)],
)
def test_expressions(
    name: str,
    test_part: str,
    count: int,
    train_count: int,
    prepared: Callable[..., Path],
    evaluated: Callable[..., Evaluation],
) -> None:
    cfg, metrics, faces = evaluated(name, prepared(name, name))
    assert parts(cfg, faces, "split") == [(["train"] * train_count, [test_part] * count)]
    (task,) = cfg.tasks
    assert isinstance(task, Expression)
    # The words of a set are those of its label: happy is happiness.
    for ours, theirs in zip(task.classes, CLASSES, strict=False):
        assert ours.startswith(theirs[:3])
    assert sorted({face["expression"] for face in faces}) == list(range(len(task.classes)))
    assert {f"accuracy_{word}" for word in task.classes} < {m.metric for m in metrics.measurements}
    forms = {"rafdb": "{stem} 3 4", "ferplus": "2_{stem}.png 8 0", "sfew": "{image_id}"}
    check_a_list(cfg, faces, forms[name])


def documented() -> list[list[str]]:
    """The words after 'python -m downstream' of the commands that docs/downstream.md has for SimFLE's tables."""
    text = (ROOT / "docs/downstream.md").read_text()
    block = next(part for part in text.split("```") if "SEVEN=" in part)
    variables, commands = {}, []
    for line in filter(None, map(str.strip, block.splitlines())):
        words = shlex.split(line)
        if words[0] == "python":
            filled = [string.Template(word).substitute(variables) for word in words[3:]]
            # As a shell does: a variable that is not in quotes is several words.
            bare = {f"${name}": value.split() for name, value in variables.items() if name == "EVEN"}
            commands.append(
                [
                    part
                    for word, whole in zip(words[3:], filled, strict=True)
                    for part in bare.get(word, [whole])
                ]
            )
        else:
            name, _, value = words[0].partition("=")
            variables[name] = value
    return commands


def test_the_documented_commands_make_the_runs_of_the_tables() -> None:
    *commands, (action, tables) = documented()
    assert action == "tables"
    made = {}
    for path, *overrides in commands:
        cfg = load(ROOT / path, overrides, schema=DownstreamConfig)
        made[cfg.output] = cfg
    wanted = load(ROOT / tables, schema=TablesConfig)
    named = {run for table in wanted.tables for runs in table.evaluations.values() for run in runs}
    assert named == made.keys()
    heads = {path for cfg in made.values() for path in cfg.heads.values()}
    for path in heads:
        run = made[str(Path(path).parents[1])]
        assert run.keep_models
        assert run.modes == ("frozen",)
        assert Path(path).name.removesuffix("-expression-frozen-1.safetensors") in {
            row.name for row in run.initialisations
        }
    assert {Path(output).name for output, cfg in made.items() if cfg.heads} == {
        "simfle_rafdb",
        "simfle_sfew",
        "simfle_ferplus",
    }
    for output, cfg in made.items():
        (task,) = cfg.tasks
        assert isinstance(task, Expression)
        assert len(task.classes) == (7 if output.endswith(("7", "rafdb", "sfew")) else 8)
        assert all(phase.oversample == ("oversample" in output) for phase in cfg.recipe.phases)


def test_the_documented_row_of_table_4_is_one() -> None:
    """From the pretraining to the cost beside the accuracy, each command leaves what the next one reads."""
    text = (ROOT / "docs/downstream.md").read_text()
    blocks = text.split("```")
    number = next(i for i, part in enumerate(blocks) if "ROW=" in part)
    seven = next(part for part in blocks if "SEVEN=" in part).strip().splitlines()[0]
    variables = dict([shlex.split(seven)[0].split("=", 1)])
    lines = blocks[number].strip().splitlines()
    variables |= [next(shlex.split(line)[0] for line in lines if line.startswith("ROW=")).split("=", 1)]
    commands = [
        [string.Template(word).substitute(variables) for word in shlex.split(line)[2:]]
        for line in lines
        if line.startswith("python")
    ]
    (_, recipe, *overrides), *evaluations, (_, action, _) = commands
    trained = load(ROOT / recipe, overrides, schema=PretrainConfig)
    made = [load(ROOT / path, words, schema=DownstreamConfig) for _, path, *words in evaluations]
    assert action == "tables"
    (row,) = {row for cfg in made for row in cfg.initialisations}
    assert row.path == f"{trained.output}/backbone.safetensors"
    (table,) = TablesConfig.model_validate_json(
        json.dumps(yaml.safe_load(blocks[number + 2].removeprefix("yaml")))
    ).tables
    assert table.evaluations == dict(
        zip(("linear8", "linear7"), ((cfg.output,) for cfg in made), strict=True)
    )
    assert table.pretraining == {row.name: f"{trained.output}/config.yaml"}
    assert row.name in {line.name for line in printed.read(table.printed).rows}


def test_simfles_tables_from_the_corpora(
    prepared: Callable[..., Path], backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documented commands themselves on the tiny corpora, one step of each training."""
    monkeypatch.chdir(tmp_path)
    for corpus in ("affectnet", "rafdb", "ferplus", "sfew"):
        made = prepared(corpus, corpus)
        folder = tmp_path / "runs/data" / {"affectnet": "affectnet_new"}.get(corpus, corpus)
        folder.mkdir(parents=True)
        for suffix in (".beton", ".json", ".parquet"):
            (folder / f"set{suffix}").write_bytes(made.with_suffix(suffix).read_bytes())
    (tmp_path / "runs/pretrain/simfle").mkdir(parents=True)
    (tmp_path / "runs/pretrain/simfle/backbone.safetensors").write_bytes(backbone.read_bytes())
    *commands, (_, tables) = documented()
    for path, *overrides in commands:
        words = [*overrides, *(word for word in SHORT if "fractions" not in word and "modes" not in word)]
        words += ["fractions=[1.0,0.1]"] if "semi" in path else []
        if "finetune" in path:
            words += [
                word.replace("recipe.", "recipe.head_first.") for word in words if word[:7] == "recipe."
            ]
        evaluate(
            load(
                ROOT / path, [w for w in words if ".head_first.head_first" not in w], schema=DownstreamConfig
            )
        )
    for name, sheet in write_tables(load(ROOT / tables, schema=TablesConfig)).items():
        ours = sheet.values.loc["measured here"]
        assert list(ours.index) == ["pretrained", "random"]
        without = [column for column in ours if ours[column].isna().any()]
        empty = {"simfle": ["AN-8 1 %", "AN-7 1 %"], "simfle_supervised": []}.get(name, ["FLOPs, G"])
        assert [column[-1] if isinstance(column, tuple) else column for column in without] == empty
        assert "Synthetic" not in sheet.caption
    header = load_model("runs/downstream/simfle_linear7/models/pretrained-expression-frozen-1.safetensors")[1]
    assert json.loads(header["task"])["classes"] == ["neutral", *Expression().classes[1:7]]


# --- the files -----------------------------------------------------------------------------------------------


def test_the_recipes_are_the_printed_ones() -> None:
    """The table of the supplement of Bulat et al. (2022)."""
    printed = {
        "w300": (24, 1e-5, (60, 480), 0.0),
        "disfa": (48, 5e-6, (60, 320), 0.4),
        "affectnet": (32, 1e-4, (60, 240), 0.0),
    }
    for name, (batch, decay, epochs, blur) in printed.items():
        recipe = load(SETS / f"{name}.yaml", schema=DownstreamConfig).recipe
        assert (recipe.optimiser, recipe.betas, recipe.head_lr) == ("adam", (0.5, 0.99), None)
        assert (recipe.batch_size, recipe.weight_decay) == (batch, decay)
        lengths = {recipe.epochs, *dict(recipe.epochs_at).values()}
        assert (min(lengths), max(lengths)) == epochs
        seen = recipe.augmentation
        assert (seen.flip, seen.rotation, seen.scale, seen.shift, seen.blur) == (True, 30, 0.15, 0, blur)
        assert recipe.length(9600, 1.0) == 60 * 9600 / batch
        assert recipe.length(96, 0.01) == epochs[1] * 96 / batch
    assert load(SETS / "w300.yaml", schema=DownstreamConfig).recipe.lr == 1e-4
    assert load(SETS / "affectnet.yaml", ["recipe.lr=0.1"], schema=DownstreamConfig).recipe.lr == 0.1


def test_a_task_may_have_a_recipe_of_its_own(
    labelled_set: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, tuple[Recipe, int]] = {}

    def note(*args: object, steps: int, **changes: object) -> object:
        asked[args[1].name] = args[5], steps
        return train(*args, steps=steps, **changes)

    train = matrix.train
    monkeypatch.setattr(matrix, "train", note)
    own = {"lr": 1e-4, "steps": 2, "batch_size": 8, "augmentation": {"flip": False}}
    tasks = [{"name": "pose", "recipe": own}, "affect"]
    tree = {
        "data": str(labelled_set),
        "output": str(tmp_path / "run"),
        "initialisations": [{"kind": "random", "name": "random", "like": str(backbone)}],
        "tasks": tasks,
        "fractions": [0.2],
        "modes": ["finetune"],
        "recipe": {"steps": 1, "batch_size": 4},
        "bootstrap": {"samples": 100},
        "device": "cpu",
    }
    evaluate(DownstreamConfig.model_validate_json(json.dumps(tree)))
    assert asked["pose"] == (Recipe.model_validate_json(json.dumps(own)), 2)
    assert asked["affect"] == (Recipe(steps=1, batch_size=4), 1)


def test_every_file_says_how_it_is_run() -> None:
    for path in SETS.glob("*.yaml"):
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any("python -m downstream " in line and path.name in line for line in head), path
