"""Train a task's head, and the backbone with it or not: one recipe for every initialisation.

Every random choice is a function of (seed, step) or (seed, epoch), so all rows of a table see the same batches, and a
training that was killed goes on from its last checkpoint to the same bits (on a CPU, or a GPU with deterministic
kernels).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data_prep.files import atomic_write
from downstream.augment import augment, draw
from downstream.features import Network, Pictures
from downstream.model import TaskNetwork
from downstream.protocols import Indices
from downstream.recipe import Phase
from downstream.tasks import Task
from downstream.tasks.task import Array


def train(
    network: Network,
    task: Task,
    pictures: Pictures,
    rows: Indices,
    labels: Array,
    recipe: Phase,
    *,
    steps: int,
    frozen: bool,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    name: str,
    head: Mapping[str, Tensor] | None = None,
) -> TaskNetwork:
    """Train on ``rows`` of ``pictures``. ``network`` itself is left as it was.

    Args:
        network: Where it starts.
        task: What is learnt.
        pictures: Of the network's size.
        rows: (N,) the pictures to learn from.
        labels: (N, D) of the task.
        recipe: How.
        steps: How long.
        frozen: Leave the backbone as it is, its batch norms too.
        seed: Of the head's first weights, the batches and the augmentation.
        device: Where.
        checkpoint: File that is kept during the training and removed with its caller's folder.
        name: For the progress bar.
        head: What the head starts from; None: its own first weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TaskNetwork(task, copy.deepcopy(network), labels).to(device)
    if head is not None:
        model.head.load_state_dict(head)
    model.backbone.requires_grad_(not frozen)
    optimiser = _optimiser(model, recipe, frozen)
    first = _restore(checkpoint, model, optimiser, device)
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, leave=False, mininterval=1)
    if recipe.oversample:
        assert task.class_column is not None  # the config was refused otherwise
        classes = labels[:, task.class_column].astype(np.int64)
        picked = (even_batch(classes, recipe.batch_size, seed, step) for step in bar)
    else:
        picked = (batch(len(rows), recipe.batch_size, seed, step) for step in bar)
    for step, (chosen, images) in enumerate(_ahead(pictures, rows, picked), first):
        model.train()
        if frozen:
            model.backbone.eval()
        moves = draw(recipe.augmentation, len(chosen), seed, step)
        seen = network.normalise(augment(images.to(device), moves))
        truth = task.move(labels[chosen], moves.affine, moves.flipped)
        loss = model.head.loss(model(seen), torch.as_tensor(truth, dtype=torch.float32, device=device))
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * rate(recipe, step, steps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % recipe.checkpoint_every == 0 and step + 1 < steps:
            _save(checkpoint, model, optimiser, step + 1)
    with suppress(FileNotFoundError):
        checkpoint.unlink()
    return model.eval()


def _optimiser(model: TaskNetwork, recipe: Phase, frozen: bool) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": list(model.head.parameters()), "peak": recipe.head_lr or recipe.lr}
    ]
    if not frozen:
        groups.append({"params": list(model.backbone.parameters()), "peak": recipe.lr})
    common: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=recipe.momentum, **common)
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, betas=recipe.betas, **common)


def rate(recipe: Phase, step: int, steps: int) -> float:
    """The factor on the peak learning rates in step number ``step``."""
    warmup = max(1, round(recipe.warmup * steps)) if recipe.warmup else 0
    if step < warmup:
        return (step + 1) / warmup
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def batch(count: int, size: int, seed: int, step: int) -> Indices:
    """(size,) picture numbers of a step: consecutive stretches of one permutation after another."""
    positions = np.arange(step * size, (step + 1) * size)
    picked = np.empty(size, dtype=np.int64)
    for epoch in np.unique(positions // count):
        here = positions // count == epoch
        order = np.random.default_rng(np.random.SeedSequence([seed, 0, int(epoch)])).permutation(count)
        picked[here] = order[positions[here] % count]
    return picked


def even_batch(classes: Indices, size: int, seed: int, step: int) -> Indices:
    """(size,) picture numbers of a step, of each class of (N,) ``classes`` as many, but for the last few.

    The classes come in one random order after another, and each gives its pictures as :func:`batch` does: none comes
    again before all others of its class did.
    """
    positions = np.arange(step * size, (step + 1) * size)
    kinds, members = np.unique(classes), np.argsort(classes, kind="stable")
    ends = np.cumsum(np.bincount(np.searchsorted(kinds, classes)))
    turn, place = np.divmod(positions, len(kinds))
    which = np.empty(size, dtype=np.int64)
    for each in np.unique(turn):
        order = np.random.default_rng(np.random.SeedSequence([seed, 2, int(each)])).permutation(len(kinds))
        which[turn == each] = order[place[turn == each]]
    picked = np.empty(size, dtype=np.int64)
    for kind in np.unique(which):
        own = members[ends[kind - 1] if kind else 0 : ends[kind]]
        here = which == kind
        epoch, index = np.divmod(turn[here], len(own))
        for number in np.unique(epoch):
            sequence = np.random.SeedSequence([seed, 3, int(kind), int(number)])
            order = np.random.default_rng(sequence).permutation(own)
            picked[np.flatnonzero(here)[epoch == number]] = order[index[epoch == number]]
    return picked


def _ahead(pictures: Pictures, rows: Indices, picked: Iterator[Indices]) -> Iterator[tuple[Indices, Tensor]]:
    """The pictures of each step, read while the step before is computed."""
    with ThreadPoolExecutor(1) as reader:
        waiting = None
        for chosen in picked:
            coming = chosen, reader.submit(pictures.take, rows[chosen])
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting:
            yield waiting[0], waiting[1].result()


def _save(path: Path, model: TaskNetwork, optimiser: torch.optim.Optimizer, step: int) -> None:
    with atomic_write(path) as file:
        torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, file)


def _restore(path: Path, model: TaskNetwork, optimiser: torch.optim.Optimizer, device: torch.device) -> int:
    """The number of steps behind the checkpoint, 0 if there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
