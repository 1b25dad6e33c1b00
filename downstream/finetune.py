"""Fine-tune a backbone and a linear head: one recipe for every initialisation.

AdamW, linear warm-up and one cosine over a fixed number of steps; no early stopping, no choice among epochs, so
nothing is tuned on held-out pictures. Targets are standardised by the labels at hand, and the features by a
batch norm without parameters before the head, so that no row suffers from the scale its features happen to
have. Every random choice is a function of (seed, step) or (seed, epoch): rows see the same batches.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from downstream.config import Recipe
from downstream.features import Network, extract
from downstream.tasks import Task
from downstream.tasks.task import SIDE, Array
from pretrain.backbones import feature_dim


@dataclass(frozen=True)
class Moves:
    """Geometric augmentation of one batch: mirror first, then map by the affine.

    Attributes:
        flipped: (B,) bool.
        affine: (B, 2, 3) float64, old to new crop pixels.
        gain: (B,) factor on the grey values.
    """

    flipped: np.ndarray
    affine: np.ndarray
    gain: np.ndarray


def finetune(
    network: Network,
    task: Task,
    train: Tensor,
    labels: Array,
    test: Tensor,
    recipe: Recipe,
    device: torch.device,
    name: str,
) -> Array:
    """Train on ``train`` (N, 3, s, s) uint8 with ``labels`` (N, D); predict ``test``: (N_test, D).

    ``network`` itself is left as it was.
    """
    mean, scale = labels.mean(axis=0), labels.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    model = _model(network, outputs=labels.shape[1]).to(device).train()
    optimiser, schedule = _optimiser(model, recipe)
    for step in tqdm(range(recipe.steps), desc=f"fine-tuning {name}", leave=False, mininterval=1):
        picked = batch(len(train), recipe.batch_size, recipe.seed, step)
        moves = draw(recipe, len(picked), step)
        images = network.normalise(augment(train[picked].to(device), moves))
        truth = (task.move(labels[picked], moves.affine, moves.flipped) - mean) / scale
        loss = functional.mse_loss(model(images), torch.as_tensor(truth, dtype=torch.float32, device=device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    tuned = Network(model, network.architecture, network.width, network.size, network.mean, network.std)
    prediction: Array = extract(tuned, test, device, name) * scale + mean
    return prediction


def _model(network: Network, outputs: int) -> nn.Sequential:
    backbone = copy.deepcopy(network.module)
    width = feature_dim(backbone)
    head = nn.Linear(width, outputs)
    # It starts by predicting the mean label, whatever the features are.
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(backbone, nn.BatchNorm1d(width, affine=False), head)


def _optimiser(
    model: nn.Sequential, recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "lr": recipe.lr},
            {"params": model[2].parameters(), "lr": recipe.head_lr},
        ],
        weight_decay=recipe.weight_decay,
    )
    warmup = max(1, round(recipe.warmup * recipe.steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, recipe.steps - warmup)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def batch(count: int, size: int, seed: int, step: int) -> np.ndarray:
    """(size,) picture numbers of a step: consecutive stretches of one permutation after another."""
    positions = np.arange(step * size, (step + 1) * size)
    picked = np.empty(size, dtype=np.int64)
    for epoch in np.unique(positions // count):
        here = positions // count == epoch
        order = np.random.default_rng(np.random.SeedSequence([seed, 0, int(epoch)])).permutation(count)
        picked[here] = order[positions[here] % count]
    return picked


def draw(recipe: Recipe, count: int, step: int) -> Moves:
    """The augmentation of the ``count`` pictures of a step, in crop pixels, about the crop's centre."""
    rng = np.random.default_rng(np.random.SeedSequence([recipe.seed, 1, step]))
    angle = np.radians(rng.uniform(-recipe.rotation, recipe.rotation, count))
    zoom = rng.uniform(1 - recipe.scale, 1 + recipe.scale, count)
    shift = rng.uniform(-recipe.shift, recipe.shift, (count, 2)) * SIDE
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    linear = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=1)
    centre = np.full(2, SIDE / 2)
    offset = centre + shift - linear @ centre
    flipped = (rng.random(count) < 0.5) & recipe.flip
    gain = rng.uniform(1 - recipe.brightness, 1 + recipe.brightness, count)
    return Moves(flipped, np.concatenate([linear, offset[..., None]], axis=2), gain)


def augment(images: Tensor, moves: Moves) -> Tensor:
    """(B, 3, s, s) uint8 -> float32 0..255 after ``moves``; what lies outside repeats the border."""
    flipped = torch.as_tensor(moves.flipped, device=images.device)[:, None, None, None]
    images = torch.where(flipped, images.flip(-1), images).float()
    # grid_sample wants, for each new pixel, where to look, in coordinates from -1 to 1.
    unit = np.array([[2 / SIDE, 0, -1], [0, 2 / SIDE, -1], [0, 0, 1]])
    square = np.concatenate([moves.affine, np.broadcast_to([[[0, 0, 1]]], (len(moves.affine), 1, 3))], axis=1)
    look = np.linalg.inv(unit @ square @ np.linalg.inv(unit))[:, :2]
    theta = torch.as_tensor(look, dtype=torch.float32, device=images.device)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain = torch.as_tensor(moves.gain, dtype=torch.float32, device=images.device)
    return (moved * gain[:, None, None, None]).clamp(0, 255)
