"""The learning rate of a step: linear warm-up, then half a cosine as in SwAV's pretraining scripts, or no change."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from configs import Config


class ScheduleConfig(Config):
    """Learning rate over a run. Bulat et al. (supplement 1.1): 10 epochs up to 4.8, cosine down to 0.045;
    the SwAV scripts end at 0.0048.
    """

    lr: float = Field(gt=0, description="the highest learning rate")
    final_lr: float = Field(0.0, ge=0, description="reached at the last step")
    start_lr: float = Field(0.0, ge=0, description="of the first step, when there is a warm-up")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear rise from start_lr to lr")
    decay: Literal["cosine", "constant"] = Field(
        "cosine",
        description="after the warm-up; constant stays at lr, and such a run may be given more epochs later",
    )


def learning_rate(config: ScheduleConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of ``step`` (counted from 0) of ``total_steps``."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.start_lr + (config.lr - config.start_lr) * step / max(1, warmup - 1)
    if config.decay == "constant":
        return config.lr
    progress = (step - warmup) / max(1, total_steps - warmup)
    return config.final_lr + 0.5 * (config.lr - config.final_lr) * (1 + math.cos(math.pi * progress))
