"""What one evaluation is made of: the labelled set, the rows to compare, the regimes and the recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs import Config

TaskName = Literal["landmarks", "pose", "affect", "action_units", "identity"]
Mode = Literal["frozen", "finetune"]


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
    """Antialiased raw pixels as features; only for the mode 'frozen'."""
    name: str
    """The row's name in tables."""
    size: int = Field(default=16, ge=1, le=64)
    """Pixels a side."""


Initialisation = Annotated[Checkpoint | Random | Pixels, Field(discriminator="kind")]


class FinetuneRun(Config):
    """One cell of the matrix that is fine-tuned."""

    task: Literal["landmarks", "pose", "affect", "action_units"]
    """The task."""
    fraction: float = Field(gt=0, le=1)
    """Share of the training labels; one of 'fractions'."""


class Recipe(Config):
    """How a backbone and a linear head are fine-tuned: AdamW, one cosine, the same for every row."""

    runs: tuple[FinetuneRun, ...] = ()
    """The cells to fine-tune; empty: every task at every fraction."""
    steps: int = Field(default=150, ge=1)
    """Optimiser steps, whatever the number of labels."""
    batch_size: int = Field(default=32, ge=2)
    """Pictures a step."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the backbone."""
    head_lr: float = Field(default=3e-3, gt=0)
    """Peak learning rate of the linear head."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps with a linearly rising rate."""
    flip: bool = True
    """Mirror half of the pictures, and their labels."""
    rotation: float = Field(default=15.0, ge=0, le=90)
    """Degrees, +- at most."""
    scale: float = Field(default=0.15, ge=0, lt=1)
    """Zoom between 1 - scale and 1 + scale."""
    shift: float = Field(default=0.05, ge=0, lt=0.5)
    """Translation, share of the picture's side, +- at most."""
    brightness: float = Field(default=0.2, ge=0, lt=1)
    """Gain between 1 - brightness and 1 + brightness."""
    seed: int = Field(default=0, ge=0)
    """Seed of batches and augmentation; the same for every row."""


class Bootstrap(Config):
    """The intervals: held-out identities are drawn with replacement."""

    samples: int = Field(default=1000, ge=100)
    """Resamplings."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws."""


class DownstreamConfig(Config):
    """One evaluation matrix: rows x tasks x label fractions x modes."""

    data: str
    """The labelled .beton; its set.parquet lies beside it."""
    output: str
    """Run directory: metrics.json, predictions.npz, config.yaml."""
    initialisations: tuple[Initialisation, ...] = Field(min_length=1)
    """The rows to compare."""
    pretrain_data: str | None = None
    """The .beton used for pretraining: refused if it shares a person with 'data'."""
    tasks: tuple[TaskName, ...] = ("landmarks", "pose", "affect", "action_units", "identity")
    """What is predicted."""
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0, 0.1, 0.02)
    """Shares of the training labels."""
    modes: tuple[Mode, ...] = ("frozen",)
    """frozen: ridge on fixed features. finetune: everything is trained."""
    image_size: int | None = Field(default=None, ge=16)
    """Pixels a side at which every network sees the pictures; null: the size named in its header."""
    test_share: float = Field(default=0.4, gt=0, lt=1)
    """Share of the identities that is held out for testing."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the split by identity and of the label subsets; keep it fixed over all experiments on a set."""
    split: str | None = None
    """File that keeps the split and the label subsets; null: beside 'data', where every experiment finds it."""
    finetune: Recipe = Recipe()
    """The recipe of the mode 'finetune'."""
    bootstrap: Bootstrap = Bootstrap()
    """The intervals."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto takes a GPU when there is one."""

    @model_validator(mode="after")
    def _rows_and_cells_exist(self) -> DownstreamConfig:
        names = [row.name for row in self.initialisations]
        if len(set(names)) < len(names):
            raise ValueError("two initialisations have the same name; name each row differently")
        for run in self.finetune.runs:
            if run.task not in self.tasks or run.fraction not in self.fractions:
                raise ValueError(
                    f"finetune.runs asks for {run.task} at {run.fraction}: add it to tasks and fractions"
                )
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
    """Heading of its section."""
    runs: tuple[str, ...] = Field(min_length=1)
    """Run directories of the evaluations, one a seed."""
    text: str | None = None
    """A paragraph under the heading."""
    pretrain: str | None = None
    """Run directory of the pretraining whose loss and probes are drawn; null: none."""


class ResultsConfig(Config):
    """Several studies in one file."""

    studies: tuple[Study, ...] = Field(min_length=1)
    """The tables, in order."""
    output: str = "docs/results.md"
    """The Markdown file to write; pictures go beside it."""
