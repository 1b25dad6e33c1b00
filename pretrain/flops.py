"""What a pretraining method costs, in multiply-adds: a number of the method, not of the machine.

Counted are convolutions, matrix products and attention in the forward passes of one training step, by torch's own
counter; what is multiplied once and added once counts as one. The backward pass, batch norms, the optimiser and the
mean of a momentum network are not counted. SimFLE's "FLOPs" (tables 3 and 4) are such, by inference: a ResNet-50 has
4.1 G at 224 px, MoCo with a query and a key has 8.2 G there, BYOL with two views through two networks 16.5 G.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.distributed import Ranks
from pretrain.methods.method import Moment
from pretrain.train import PretrainConfig, build

PICTURES = 2
"""In the step that is counted: a batch norm needs more than one."""


def multiply_adds(work: Callable[[], Any]) -> int:
    """Those of all that ``work`` computes."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    # torch counts a multiplication and an addition as two.
    return int(counter.get_total_flops()) // 2


def step_multiply_adds(config: PretrainConfig) -> int:
    """Multiply-adds a picture of one training step's forward passes, all views and networks together."""
    place = Ranks(rank=0, world=1, local_rank=0, local_world=1, device=torch.get_default_device())
    method = build(config, place)
    views = [torch.randn(crop.count * PICTURES, 3, crop.size, crop.size) for crop in config.views.crops]
    moment = Moment(step=0, steps_per_epoch=1, total=1, seed=0, rows=np.arange(PICTURES))
    return multiply_adds(lambda: method(views, moment)) // PICTURES
