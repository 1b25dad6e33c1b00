"""What one evaluation is made of: the labelled set, the rows to compare, the regimes and the recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs import Config
from downstream.protocols import People, Protocol
from downstream.recipe import Recipe
from downstream.tasks import AnyTask, make

Mode = Literal["linear", "knn", "frozen", "finetune"]
UNTRAINED: frozenset[Mode] = frozenset({"linear", "knn"})
"""What is read off features as they are: no network is trained."""
Positive = Annotated[float, Field(gt=0)]


class Checkpoint(Config):
    """A pretrained backbone."""

    kind: Literal["checkpoint"]
    """Weights from a backbone.safetensors."""
    name: str
    """The row's name in tables."""
    path: str
    """The backbone.safetensors; its header says architecture, image size and normalisation."""


class Random(Config):
    """The same network, untrained."""

    kind: Literal["random"]
    """torchvision's default initialisation."""
    name: str
    """The row's name in tables."""
    like: str
    """A backbone.safetensors whose architecture, image size and normalisation are copied, not its weights."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights."""
    calibrate: bool = False
    """Set the batch-norm statistics to those of the training pictures; measured, it makes a weaker baseline."""


class Pixels(Config):
    """The picture itself: no network at all."""

    kind: Literal["pixels"]
    """Antialiased raw pixels as features; only for the modes 'linear' and 'knn'."""
    name: str
    """The row's name in tables."""
    size: int = Field(default=16, ge=1, le=64)
    """Pixels a side."""


Initialisation = Annotated[Checkpoint | Random | Pixels, Field(discriminator="kind")]


class Normalisation(Config):
    """What is taken from the colours of a picture, and by what they are divided."""

    mean: tuple[float, float, float]
    """RGB, of values 0..1."""
    std: tuple[Positive, Positive, Positive]
    """RGB."""


class TrainedCell(Config):
    """What of the matrix is trained."""

    task: str
    """One of 'tasks'."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of the training labels, one of 'fractions'; null: all of these."""


class Bootstrap(Config):
    """The intervals: held-out identities are drawn with replacement."""

    samples: int = Field(default=1000, ge=100)
    """Resamplings."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws."""


class DownstreamConfig(Config):
    """One evaluation matrix: rows x tasks x label fractions x modes, on one labelled set."""

    data: str
    """The labelled .beton; its set.parquet lies beside it."""
    test_data: str | None = None
    """Another one to test on, for the protocol 'sets'."""
    output: str
    """Run directory: metrics.json, predictions.npz, config.yaml."""
    initialisations: tuple[Initialisation, ...] = Field(min_length=1)
    """The rows to compare."""
    pretrain_data: str | None = None
    """The .beton used for pretraining: refused if it shares a person with 'data'."""
    tasks: tuple[AnyTask, ...] = Field(
        default=tuple(map(make, ("landmarks", "pose", "affect", "action_units", "recognition"))), min_length=1
    )
    """What is predicted: names, or mappings with a name and settings."""
    protocol: Protocol = People()
    """Who is learnt from and who is tested on."""
    subsets: dict[str, dict[str, str | bool | int]] = Field(default={})
    """Parts of the test pictures that get figures of their own: name -> {column: value}."""
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(1.0, 0.1, 0.02), min_length=1)
    """Shares of the training labels."""
    modes: tuple[Mode, ...] = ("linear",)
    """linear: a ridge regression on the pooled features, which stay as they are. knn: the labels of the pictures with
    the nearest features. frozen: the task's head is trained, the backbone stays. finetune: both are trained."""
    neighbours: int = Field(default=20, ge=1)
    """How many pictures the mode knn asks; all, where there are fewer."""
    trained: tuple[TrainedCell, ...] = ()
    """The cells that are trained, of the modes frozen and finetune; empty: every task at every fraction."""
    recipe: Recipe = Recipe()
    """How they are trained, unless the task says otherwise."""
    train_seed: int = Field(default=0, ge=0)
    """Seed of first weights of heads, batches and augmentation; the same for every row."""
    heads: dict[str, str] = Field(default={})
    """Row -> a trained task from 'models' of another run, whose head the row's heads start from. It must have been
    trained on the same backbone in the mode frozen; of expressions, those that 'classes' has not are dropped."""
    keep_models: bool = False
    """Keep the trained networks in 'models', for 'python -m downstream predict'."""
    image_size: int | None = Field(default=None, ge=17)
    """Pixels a side at which every network sees the pictures; null: the size named in its header."""
    normalisation: Normalisation | Literal["data"] | None = None
    """Of the pictures before every network; data: mean and deviation of those that are learnt from; null: as the
    network's header says."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the people held out and of the label subsets; keep it fixed over all experiments on a set."""
    split: str | None = None
    """File that keeps the split and the label subsets; null: beside 'data', where every experiment finds it."""
    memory_gb: float = Field(default=8.0, ge=0)
    """The pictures are kept decoded where they fit into so much; otherwise they are decoded each time."""
    bootstrap: Bootstrap = Bootstrap()
    """The intervals."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto takes a GPU when there is one."""

    @model_validator(mode="after")
    def _rows_and_cells_exist(self) -> DownstreamConfig:
        for field in ("initialisations", "tasks"):
            names = [entry.name for entry in getattr(self, field)]
            if len(set(names)) < len(names):
                raise ValueError(f"{field}: two have the same name; name each differently")
        names = [task.name for task in self.tasks]
        for cell in self.trained:
            if cell.task not in names or cell.fraction not in (None, *self.fractions):
                raise ValueError(
                    f"trained asks for {cell.task} at {cell.fraction}: add it to tasks and fractions"
                )
        for field in ("fractions", "modes"):
            if len(set(getattr(self, field))) < len(getattr(self, field)):
                raise ValueError(f"{field}: one is named twice; keep one")
        if self.trained and UNTRAINED.issuperset(self.modes):
            raise ValueError(
                "trained: the modes linear and knn train nothing; add frozen or finetune to modes"
            )
        people = [task for task in self.tasks if task.name == "recognition"]
        if people and people[0].recipe:
            raise ValueError("tasks: recognition is trained by its 'cosface', not by 'recipe'; take that out")
        if people and self.protocol.kind == "folds" and "finetune" in self.modes:
            raise ValueError(
                "tasks: recognition cannot be fine-tuned in folds, for features of different networks cannot be "
                "compared; take it or the mode out"
            )
        for task in self.tasks:
            if task.name != "recognition":
                task.check_recipe(task.recipe or self.recipe)
        rows = [row.name for row in self.initialisations if not isinstance(row, Pixels)]
        if strange := [name for name in self.heads if name not in rows]:
            raise ValueError(f"heads: '{strange[0]}' is no row with a network; name one of {', '.join(rows)}")
        wanted = {cell.task for cell in self.trained} or set(names)
        measured = {
            "linear": set(names),
            "knn": set(names) - {"recognition"},
            "frozen": wanted - {"recognition"} if rows else set(),
            "finetune": wanted if rows else set(),
        }
        if not any(measured[mode] for mode in self.modes):
            raise ValueError(
                "modes: nothing is measured: pixels have no network to train, and recognition no head and no labels "
                "to take from a neighbour, so that both need the mode linear; add it"
            )
        if self.heads and UNTRAINED.issuperset(self.modes):
            raise ValueError("heads: the modes linear and knn have none; add frozen or finetune to modes")
        if self.test_data is not None and self.protocol.kind != "sets":
            raise ValueError("test_data: only the protocol 'sets' tests on it; write protocol: {kind: sets}")
        if "all" in self.subsets:
            raise ValueError("subsets: 'all' is the name of all test pictures; choose another")
        return self


class ReportConfig(Config):
    """The page that shows what one pretrained backbone is worth."""

    downstream: str
    """Run directory of the evaluation."""
    output: str
    """The page to write, for example runs/demo/report/index.html."""
    results: str
    """The same figures as JSON, for example runs/demo/results.json."""
    pretrain: str | None = None
    """Run directory of the pretraining; null leaves its curves out."""
    pretrain_data: str | None = None
    """The .beton used for pretraining; null leaves its pictures out."""
    title: str = "What the pretrained backbone is worth"
    """Heading of the page."""
    commands: tuple[str, ...] = ()
    """The exact commands that led here, in order."""
    examples: int = Field(default=6, ge=2, le=12)
    """Faces on which predictions are drawn."""


class Study(Config):
    """One table: paired seeds of the same pretraining."""

    title: str
    """Heading of its section, which the next study of that title replaces; and in the names of its pictures."""
    runs: tuple[str, ...] = Field(min_length=1)
    """Run directories of the evaluations, one a seed."""
    text: str | None = None
    """Paragraphs under the heading."""
    table: Literal["seeds", "rows"] = "seeds"
    """seeds: a line a task, metric and share of the labels, with every seed and every test. rows: for many
    initialisations, a line each, with the mean of the seeds and the first metric of each task only."""

    @model_validator(mode="after")
    def _is_one_section(self) -> Study:
        if "/" in self.title or "\n" in self.title or not self.title.strip():
            raise ValueError("title: must be one line without '/', for it is in the names of pictures")
        if any(line.startswith("## ") for line in (self.text or "").splitlines()):
            raise ValueError("text: a line begins with '## ' like the next section; write '### '")
        return self


class ResultsConfig(Config):
    """Several studies in one file."""

    studies: tuple[Study, ...] = Field(min_length=1)
    """The tables, in order."""
    output: str = "docs/results.md"
    """The Markdown file to write; pictures go beside it. Sections of other titles that are in it stay."""
