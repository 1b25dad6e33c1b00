"""What several methods are made of: heads, and networks that follow others."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn


def mlp(*widths: int, batch_norm: bool = True, last: bool = False) -> nn.Sequential:
    """Linear layers with a ReLU between them.

    Args:
        widths: Of the input, the hidden layers, the output.
        batch_norm: One before each ReLU; the linear layer then has no use for a bias, but has one, as in BYOL.
        last: A batch norm without parameters after the last layer, too.
    """
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(after)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
    if last:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)


M = TypeVar("M", bound=nn.Module)


def follower(network: M) -> M:
    """A copy that no gradient reaches; :func:`follow` moves it.

    In training it normalises by the statistics of its own batches, as in BYOL, MoCo and SimFLE.
    """
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, network: nn.Module, momentum: float) -> None:
    """Move the weights of ``target`` to momentum * target + (1 - momentum) * network; its buffers stay its own."""
    torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), 1 - momentum)
