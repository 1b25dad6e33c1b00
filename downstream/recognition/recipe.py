"""How a backbone is fine-tuned to tell people apart."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs import Config


class CosFaceRecipe(Config):
    """CosFace on identities, augmented by mirroring alone. Defaults of Bulat et al. 2022, supplement 1.2, where it
    gives a number.
    """

    epochs: int = Field(default=18, ge=1)
    """Over the pictures at hand; the supplement has 18 to 54."""
    batch_size: int = Field(default=512, ge=2)
    """Pictures a step; all of them where there are fewer."""
    lr: float = Field(default=0.1, gt=0)
    """Peak learning rate."""
    final_lr: float = Field(default=0.0, ge=0)
    """Reached by a cosine at the last step; schedule and end are ours."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs with a linearly rising rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of the stochastic gradient descent."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Of backbone and classes."""
    margin: float = Field(default=0.35, ge=0, lt=1)
    """m of CosFace."""
    scale: float = Field(default=64.0, gt=0)
    """s of CosFace; the supplement gives none, 64 is insightface's."""
    sample_rate: float = Field(default=1.0, gt=0, le=1)
    """Share of the identities that a step compares with; for very many of them."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of mirroring."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the autocast regions."""
    decoder: Literal["ffcv", "pillow"] = "ffcv"
    """Of the pictures; pillow needs no compiled package."""
    workers: int = Field(default=0, ge=0)
    """Decoding threads; 0: a share of the cores."""
    checkpoint_steps: int = Field(default=1000, ge=1)
    """Steps between checkpoints."""
