"""How a network is trained on a task: optimiser, length, augmentation. The same for every row of a table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs import Config


class Augmentation(Config):
    """What is done to a training picture; labels follow."""

    flip: bool = True
    """Mirror half of the pictures."""
    rotation: float = Field(default=15.0, ge=0, le=180)
    """Degrees, +- at most."""
    scale: float = Field(default=0.15, ge=0, lt=1)
    """Zoom between 1 - scale and 1 + scale."""
    shift: float = Field(default=0.05, ge=0, lt=0.5)
    """Translation, share of the picture's side, +- at most."""
    crop: tuple[float, float] | None = None
    """Smallest and largest share of the picture's area that is seen, enlarged to the whole, as torchvision's
    RandomResizedCrop takes it, after all other moves; null: the whole. Not for labels that move with the picture."""
    brightness: float = Field(default=0.2, ge=0)
    """Factor between 1 - x and 1 + x, as the next two."""
    contrast: float = Field(default=0.0, ge=0)
    """Of the grey values about their mean."""
    saturation: float = Field(default=0.0, ge=0)
    """Of the colours about their grey."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Turn of the colour circle, +- at most."""
    blur: float = Field(default=0.0, ge=0, le=1)
    """Share of the pictures that are blurred by a Gaussian."""
    blur_sigma: tuple[float, float] = (1.1, 1.85)
    """Its smallest and largest sigma, in pixels of the network's input. The default is what OpenCV takes for kernels
    of 5 and 10 px."""

    @model_validator(mode="after")
    def _crop_is_a_range(self) -> Augmentation:
        if self.crop and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError("crop: must be shares of the area, the smaller one first, for example [0.08, 1]")
        return self


class Phase(Config):
    """One training from its first to its last step."""

    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    """adamw decouples the weight decay; adam adds it to the gradient."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the backbone."""
    head_lr: float | None = Field(default=3e-3, gt=0)
    """Peak learning rate of the head; null: that of the backbone."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adamw and adam."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd."""
    weight_decay: float = Field(default=0.01, ge=0)
    """On all weights."""
    steps: int = Field(default=150, ge=1)
    """Optimiser steps, whatever the number of labels."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over the labels at hand, in place of steps."""
    epochs_at: tuple[tuple[float, int], ...] = ()
    """Other numbers of passes at some shares of the labels: [[0.1, 120], [0.02, 480]]."""
    batch_size: int = Field(default=32, ge=2)
    """Pictures a step."""
    oversample: bool = False
    """Draw each class equally often; an epoch has as many pictures as without it."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Of the learning rates after the warm-up."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps with a linearly rising rate."""
    augmentation: Augmentation = Augmentation()
    """What is done to a training picture."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints; a training that was killed goes on from the last one, to the same bits."""

    @model_validator(mode="after")
    def _epochs_at_with_epochs(self) -> Phase:
        if self.epochs_at and self.epochs is None:
            raise ValueError("epochs_at: give epochs too, for the other shares of the labels")
        return self

    def length(self, labels: int, fraction: float) -> int:
        """Steps of a training on ``labels`` pictures, which are ``fraction`` of all."""
        if self.epochs is None:
            return self.steps
        epochs = dict(self.epochs_at).get(fraction, self.epochs)
        return max(1, round(epochs * labels / self.batch_size))


class Recipe(Phase):
    """How a backbone and a head are trained. Nothing is stopped early and the last weights count, so no figure is
    tuned on held-out pictures. The defaults are what suits an untrained network on the demo's synthetic faces
    (docs/downstream.md).
    """

    head_first: Phase | None = None
    """How the head is trained on the frozen backbone before both are, and in the mode frozen, which ends there; null:
    both start together, and the mode frozen takes the recipe itself."""

    def for_head(self) -> Phase:
        """How a head is trained on a backbone that stays as it is."""
        return self.head_first or self

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All there are."""
        return (self, self.head_first) if self.head_first else (self,)
