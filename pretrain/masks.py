"""What SimFLE masks and paints, over a run: figures 3 and 4 of the paper, from the checkpoints that were kept."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import configs
from configs import ConfigError
from data_prep.beton import Beton
from data_prep.files import atomic_write
from pretrain import checkpoint
from pretrain.data import read_rows
from pretrain.distributed import Ranks
from pretrain.methods import Moment
from pretrain.methods.simfle import Reconstruction, SimFLE
from pretrain.train import PretrainConfig, build
from pretrain.views import make_views

GROUPS = 8
"""Channel groups shown of a picture, as in figure 4."""
DRAWS = 4
"""Groups, and random masks, that a picture's averages are taken over."""
GAP, GREY = 4, 128


class Moments(NamedTuple):
    """What a checkpoint does on average."""

    epoch: float
    kept: npt.NDArray[np.float64]
    """(p, p) share of the pictures and groups in which a patch is kept; 12 / 49 everywhere if by chance."""
    error: npt.NDArray[np.float64]
    """(s, s) squared error of a pixel, in the network's units, where it is masked at random."""


def draw_masks(run: Path, output: Path, *, count: int, shown: int) -> list[Path]:
    """Write masking.png and reconstruction.png.

    Args:
        run: Folder of a SimFLE run; ``checkpoint.keep_every_steps`` says which checkpoints it keeps.
        output: Where to.
        count: Pictures of the run's data, evenly spread, that the averages are of.
        shown: How many of them are shown.

    Raises:
        ConfigError: it is no run of SimFLE with FaceMAE, or has no checkpoint.
    """
    config = configs.load(run / "config.yaml", schema=PretrainConfig)
    place = Ranks(0, 1, 0, 1, torch.device("cpu"))
    method = build(config, place)
    if not isinstance(method, SimFLE) or method.config.facemae is None:
        raise ConfigError(f"{run}: is no run of SimFLE with FaceMAE; nothing is masked there")
    steps = checkpoint.steps(run / "checkpoints")
    if not steps:
        raise ConfigError(f"{run}: has no checkpoint yet; let it reach checkpoint.every_steps")
    set_ = Beton(config.data.path)
    learnt = (
        read_rows(config.data.rows, len(set_), config.data.path) if config.data.rows else np.arange(len(set_))
    )
    rows = np.unique(learnt[np.linspace(0, len(learnt) - 1, count).round().astype(np.int64)])
    pictures = _pictures(config, set_, rows)
    per_epoch = len(learnt) // config.batch_size
    found = []
    for step in tqdm(steps, unit="checkpoint", disable=None):
        method.load_state_dict(checkpoint.load(run / "checkpoints", step)["method"])
        kept, error = _averages(method.eval(), pictures, config.seed)
        found.append(Moments(step / per_epoch, kept, error))
    written = [output / "masking.png", output / "reconstruction.png"]
    with atomic_write(written[0]) as file:
        _maps(found).savefig(file, format="png", dpi=150)
    with atomic_write(written[1]) as file:
        _sheet(method, pictures[:shown], config).save(file, "PNG")
    return written


def _pictures(config: PretrainConfig, set_: Beton, rows: npt.NDArray[np.int64]) -> Tensor:
    """(N, 3, s, s) as FaceMAE sees them."""
    whole = config.views.model_copy(
        update={"crops": tuple(crop for crop in config.views.crops if crop.plain)}
    )
    images = torch.from_numpy(np.stack([set_.image(int(row)) for row in rows]))
    return make_views(images, whole, seed=0, epoch=0, index=rows)[0]


def _draw(method: SimFLE, pictures: Tensor, seed: int, number: int, *, at_random: bool) -> Reconstruction:
    """With masks that are a function of the seed, the number of the draw and the picture's place."""
    moment = Moment(number, 1, 1, seed, np.arange(len(pictures)))
    return method.reconstruct(pictures, moment, at_random=at_random)


def _averages(
    method: SimFLE, pictures: Tensor, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    kept = torch.stack(
        [_draw(method, pictures, seed, i, at_random=False).kept.double().mean(0) for i in range(DRAWS)]
    ).mean(0)
    side = round(len(kept) ** 0.5)
    error, masked = torch.zeros(pictures.shape[2:]), torch.zeros(pictures.shape[2:])
    for i in range(DRAWS):
        made = _draw(method, pictures, seed, i, at_random=True)
        hidden = _pixels(~made.kept, pictures.shape[-1])
        error += ((made.pictures - pictures).square().mean(1) * hidden).sum(0)
        masked += hidden.sum(0)
    return kept.reshape(side, side).numpy(), (error / masked.clamp(min=1)).double().numpy()


def _pixels(patches: Tensor, size: int) -> Tensor:
    """(N, P) of the patches -> (N, s, s) of the pixels."""
    side = round(patches.shape[1] ** 0.5)
    return F.interpolate(patches.reshape(-1, 1, side, side).float(), size=(size, size))[:, 0]


def _maps(found: list[Moments]) -> Figure:
    """The error above, what is kept below; a column a checkpoint."""
    figure = Figure(figsize=(1.6 * len(found) + 1.6, 3.9), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for line, name, label in (
        (0, "error", "squared error,\nrandom masks"),
        (1, "kept", "share kept,\nthe run's masks"),
    ):
        maps = [getattr(each, name) for each in found]
        scale = mpl.colors.Normalize(min(x.min() for x in maps), max(x.max() for x in maps))
        for axis, each, content in zip(axes[line], found, maps, strict=True):
            axis.imshow(content, cmap="inferno", norm=scale)
            axis.set(xticks=[], yticks=[])
            if line == 0:
                axis.set_title(f"epoch {each.epoch:.3g}", fontsize=9)
        axes[line, 0].set_ylabel(label, fontsize=9)
        figure.colorbar(mpl.cm.ScalarMappable(scale, "inferno"), ax=axes[line].tolist(), shrink=0.8)
    return figure


def _sheet(method: SimFLE, pictures: Tensor, config: PretrainConfig) -> Image.Image:
    """A row a picture: it, masked by several groups, and what is painted from the first of these."""
    columns = [pictures]
    for i in range(GROUPS):
        made = _draw(method, pictures, config.seed, i, at_random=False)
        columns.append(torch.where(_pixels(made.kept, pictures.shape[-1])[:, None] > 0, pictures, torch.nan))
    columns.append(_draw(method, pictures, config.seed, 0, at_random=False).pictures)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (config.views.mean, config.views.std))
    size = pictures.shape[-1] + GAP
    page = np.full((len(pictures) * size + GAP, len(columns) * size + GAP, 3), 255, np.uint8)
    for j, column in enumerate(columns):
        values = (255 * (column * std + mean)).clamp(0, 255).nan_to_num(GREY).round().byte()
        for i, tile in enumerate(values.permute(0, 2, 3, 1).numpy()):
            page[GAP + i * size :, GAP + j * size :][: size - GAP, : size - GAP] = tile
    return Image.fromarray(page)
