"""Multi-crop views: ``f(images, seed, epoch, sample index, view)``, a pure function on the images' device.

The parameters of every view (box, flip, colour, blur) are drawn on the host by a counter-based generator, so
a sample is seen with the same pixels whatever the rank, the world size, the number of workers or the number
of restarts. The distributions are those of torchvision's RandomResizedCrop and ColorJitter with the strengths
of SwAV (Caron et al. 2020, appendix): crop, flip, jitter, grey, blur, normalise. Before the last comes, where it
is asked for, BYOL's solarization (Grill et al. 2020, appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from configs import Config

_ATTEMPTS = 10  # as torchvision's RandomResizedCrop, before it takes the whole picture
BOX_NUMBERS = 2 * _ATTEMPTS + 2  # uniform numbers that one box uses
_SLOTS = BOX_NUMBERS + 14  # uniform numbers that one view of one sample uses
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma, as Pillow and torchvision


class CropConfig(Config):
    """One resolution of the multi-crop."""

    count: int = Field(ge=1, description="views of this size a sample")
    # With 16 or less a ResNet's last stage sees a single pixel, and oneDNN (torch 2.15) then computes its
    # bfloat16 weight gradient from uninitialised memory.
    size: int = Field(ge=17, description="pixels a side")
    scale: tuple[float, float] | None = Field(
        None, description="range of the crop's share of the picture's area; needed unless plain"
    )
    plain: bool = Field(False, description="the whole picture, resized and normalised, and nothing else")
    blur: float | None = Field(None, ge=0, le=1, description="in place of views.blur")
    solarize: float | None = Field(None, ge=0, le=1, description="in place of views.solarize")

    @model_validator(mode="after")
    def _consistent(self) -> CropConfig:
        if self.plain and (self.scale or self.blur or self.solarize):
            raise ValueError("a plain crop has no scale, blur or solarize; take them out")
        if not self.plain and not self.scale:
            raise ValueError("give scale: [smallest, largest], shares of the picture's area, or plain: true")
        return self


class ViewsConfig(Config):
    """The multi-crop augmentation."""

    crops: tuple[CropConfig, ...] = Field(
        description="first the large crops, which are assigned to prototypes"
    )
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="range of a crop's width / height")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    jitter: float = Field(0.8, ge=0, le=1, description="probability of the colour jitter")
    brightness: float = Field(0.8, ge=0, description="factor from 1-x to 1+x")
    contrast: float = Field(0.8, ge=0, description="factor from 1-x to 1+x")
    saturation: float = Field(0.8, ge=0, description="factor from 1-x to 1+x")
    hue: float = Field(0.2, ge=0, le=0.5, description="shift from -x to x of the colour circle")
    grey: float = Field(0.2, ge=0, le=1, description="probability of greyscale")
    blur: float = Field(0.5, ge=0, le=1, description="probability of Gaussian blur")
    blur_sigma: tuple[float, float] = Field(
        (0.1, 2.0), description="range of the blur's sigma, in view pixels"
    )
    solarize: float = Field(
        0, ge=0, le=1, description="probability that values from one half on are inverted"
    )
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="RGB mean, of values in 0..1")
    std: tuple[float, float, float] = Field(
        (0.228, 0.224, 0.225), description="RGB deviation; .228 is SwAV's, .229 ImageNet's"
    )


@dataclass(frozen=True)
class ViewParameters:
    """What one view does to each of n samples; numpy arrays with the sample as first axis."""

    box: npt.NDArray[np.int64]  # (n, 4) top, left, height, width in picture pixels
    flip: npt.NDArray[np.bool_]  # (n,)
    jitter: npt.NDArray[np.bool_]  # (n,)
    order: npt.NDArray[np.int64]  # (n, 4) position -> 0 brightness, 1 contrast, 2 saturation, 3 hue
    factors: npt.NDArray[np.float32]  # (n, 4) by operation
    grey: npt.NDArray[np.bool_]  # (n,)
    sigma: npt.NDArray[np.float32]  # (n,) blur in pixels, 0 = none
    solarize: npt.NDArray[np.bool_]  # (n,)


def make_views(
    images: Tensor, config: ViewsConfig, *, seed: int, epoch: int, index: npt.NDArray[np.int64]
) -> list[Tensor]:
    """All views of a batch, one tensor a resolution.

    Args:
        images: (B, H, W, 3) uint8 pictures, on any device.
        config: The augmentation.
        seed: Of the run.
        epoch: Counted from 0.
        index: (B,) the samples' rows in the data set.

    Returns:
        For each entry of ``config.crops`` a (count * B, 3, size, size) float32 tensor, view-major, normalised
        with mean and std, in channels_last memory.
    """
    groups, view = [], 0
    for crop in config.crops:
        parts = [
            draw(config, crop, images.shape[1:3], seed=seed, epoch=epoch, index=index, view=view + i)
            for i in range(crop.count)
        ]
        groups.append(apply(images, _concatenate(parts), crop.size, config))
        view += crop.count
    return groups


# --- the parameters ------------------------------------------------------------------------------------------


def draw(
    config: ViewsConfig,
    crop: CropConfig,
    picture_size: tuple[int, int] | torch.Size,
    *,
    seed: int,
    epoch: int,
    index: npt.NDArray[np.int64],
    view: int,
) -> ViewParameters:
    """Parameters of view number ``view`` for the samples ``index`` (n,)."""
    u = uniforms(seed, epoch, view, index, _SLOTS)
    crop_u, (flip, jitter, grey, blur, sigma), order_u, factor_u = (
        u[:, :BOX_NUMBERS],
        u[:, BOX_NUMBERS : BOX_NUMBERS + 5].T,
        u[:, -9:-5],
        u[:, -5:-1],
    )
    if crop.plain:
        return _plain(len(u), picture_size)
    assert crop.scale is not None
    strength = np.array([config.brightness, config.contrast, config.saturation])
    low, high = np.maximum(0, 1 - strength), 1 + strength
    factors = np.concatenate(
        [low + (high - low) * factor_u[:, :3], config.hue * (2 * factor_u[:, 3:] - 1)], axis=1
    )
    smallest, largest = config.blur_sigma
    return ViewParameters(
        box=crop_boxes(crop_u, picture_size, crop.scale, config.ratio),
        flip=flip < config.flip,
        jitter=jitter < config.jitter,
        order=np.argsort(order_u, axis=1, kind="stable"),
        factors=factors.astype(np.float32),
        grey=grey < config.grey,
        sigma=np.where(
            blur < _own(crop.blur, config.blur), smallest + (largest - smallest) * sigma, 0
        ).astype(np.float32),
        solarize=u[:, -1] < _own(crop.solarize, config.solarize),
    )


def _own(of_crop: float | None, of_views: float) -> float:
    return of_views if of_crop is None else of_crop


def _plain(count: int, picture_size: tuple[int, int] | torch.Size) -> ViewParameters:
    """Of the picture as it is."""
    no = np.zeros(count, np.bool_)
    return ViewParameters(
        box=np.tile(np.array([0, 0, *picture_size], np.int64), (count, 1)),
        flip=no,
        jitter=no,
        order=np.zeros((count, 4), np.int64),
        factors=np.ones((count, 4), np.float32),
        grey=no,
        sigma=np.zeros(count, np.float32),
        solarize=no,
    )


def uniforms(
    seed: int, epoch: int, view: int, index: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """(n, count) numbers in [0, 1), a pure function of the arguments: SplitMix64 seeded by their hash."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, view):
        key = _mix(key + _GOLDEN + np.uint64(part))
    state = _mix(key ^ _mix(index.astype(np.uint64) + _GOLDEN))
    steps = _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    bits = _mix(state[:, None] + steps) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014); arithmetic modulo 2**64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def crop_boxes(
    u: npt.NDArray[np.float64],
    picture_size: tuple[int, int] | torch.Size,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> npt.NDArray[np.int64]:
    """Crop boxes as torchvision's RandomResizedCrop draws them: the first attempt that fits, else the whole.

    Args:
        u: (n, BOX_NUMBERS) in [0, 1).
        picture_size: Height and width, pixels.
        scale: Range of the crop's share of the picture's area.
        ratio: Range of its width / height.

    Returns:
        (n, 4) top, left, height, width in picture pixels.
    """
    full_h, full_w = picture_size
    area = full_h * full_w * (scale[0] + (scale[1] - scale[0]) * u[:, :_ATTEMPTS])
    log_ratio = np.log(ratio)
    aspect = np.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u[:, _ATTEMPTS : 2 * _ATTEMPTS])
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= full_w) & (heights > 0) & (heights <= full_h)
    first, some = fits.argmax(axis=1), fits.any(axis=1)
    rows = np.arange(len(u))
    width = np.where(some, widths[rows, first], full_w)
    height = np.where(some, heights[rows, first], full_h)
    top = np.floor(u[:, -2] * (full_h - height + 1))
    left = np.floor(u[:, -1] * (full_w - width + 1))
    return np.stack([top, left, height, width], axis=1).astype(np.int64)


def _concatenate(parts: list[ViewParameters]) -> ViewParameters:
    fields = ViewParameters.__dataclass_fields__
    return ViewParameters(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in fields})


# --- the pixels ----------------------------------------------------------------------------------------------


def apply(images: Tensor, parameters: ViewParameters, size: int, config: ViewsConfig) -> Tensor:
    """Apply (V * B) parameters, view-major, to B uint8 pictures; see :func:`make_views` for the shapes."""
    crop = _crop_each if images.device.type == "cpu" else crop_batched
    views = crop(images, parameters.box, size)
    flip = _where(parameters.flip, views.device)
    views[flip] = views[flip].flip(-1)
    views = colour(views, parameters)
    views = blur(views, parameters.sigma)
    if parameters.solarize.any():  # on the host: most recipes do not solarize
        rows = _where(parameters.solarize, views.device)
        views[rows] = torch.where(views[rows] < 0.5, views[rows], 1 - views[rows])
    mean, std = (views.new_tensor(x).view(1, 3, 1, 1) for x in (config.mean, config.std))
    return ((views - mean) / std).contiguous(memory_format=torch.channels_last)


def _crop_each(images: Tensor, box: npt.NDArray[np.int64], size: int) -> Tensor:
    """Crop and antialiased resize, one sample after another: on a CPU torch's uint8 kernel, which rounds to
    whole grey levels, is 6 to 10 times faster than the batched product (benchmarks/loader.py, 224 pixels).
    """
    pictures = images.permute(0, 3, 1, 2)
    views = images.new_empty((len(box), size, size, 3)).permute(0, 3, 1, 2)
    for i, (top, left, height, width) in enumerate(box.tolist()):
        b = i % len(images)
        crop = pictures[b : b + 1, :, top : top + height, left : left + width]
        views[i] = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
    return views.float() / 255


def crop_batched(images: Tensor, box: npt.NDArray[np.int64], size: int) -> Tensor:
    """Crop and antialiased bilinear resize of a whole batch as two products with per-sample weights.

    Equal to ``interpolate(..., antialias=True)`` in float arithmetic; no loop and no host sync.
    Returns (n, 3, size, size) float32 in 0..1.
    """
    boxes = torch.from_numpy(box).to(images.device, torch.float32)
    repeats = len(box) // len(images)
    pictures = images.permute(0, 3, 1, 2).float().repeat(repeats, 1, 1, 1) / 255
    rows = resize_weights(boxes[:, 0], boxes[:, 2], images.shape[1], size)
    columns = resize_weights(boxes[:, 1], boxes[:, 3], images.shape[2], size)
    return rows[:, None] @ pictures @ columns[:, None].transpose(2, 3)


def resize_weights(start: Tensor, length: Tensor, full: int, size: int) -> Tensor:
    """(n, size, full) weights that resample [start, start + length) to ``size`` with a triangle filter that
    is widened where the crop shrinks.
    """
    scale = (length / size)[:, None, None]
    out = torch.arange(size, device=start.device)[None, :, None] + 0.5
    pixel = torch.arange(full, device=start.device)[None, None, :] + 0.5
    centre = start[:, None, None] + out * scale
    weights = (1 - (pixel - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    inside = (pixel > start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weights = weights * inside
    return weights / weights.sum(2, keepdim=True)


def colour(views: Tensor, parameters: ViewParameters) -> Tensor:
    """Colour jitter in each sample's own order, then greyscale. (n, 3, h, w) float in 0..1, changed in place.

    The subsets are known on the host, so each operation runs once for each sample that needs it.
    """
    operations = (_brightness, _contrast, _saturation, _hue)
    for position in range(4):
        for number, operation in enumerate(operations):
            chosen = parameters.jitter & (parameters.order[:, position] == number)
            rows = _where(chosen, views.device)
            factor = torch.from_numpy(parameters.factors[chosen, number]).to(views.device)
            views[rows] = operation(views[rows], factor.view(-1, 1, 1, 1))
    rows = _where(parameters.grey, views.device)
    views[rows] = _luma(views[rows]).expand(-1, 3, -1, -1)
    return views


def _where(mask: npt.NDArray[np.bool_], device: torch.device) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask)).to(device, non_blocking=True)


def _luma(x: Tensor) -> Tensor:
    return (x * x.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_luma(x).mean((1, 2, 3), keepdim=True), x, factor).clamp(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_luma(x), x, factor).clamp(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` of a full circle, through HSV as torchvision does."""
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1)
    red, green, blue = x.unbind(1)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * shift[:, 0]
    offsets = x.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (hue[:, None] + offsets).remainder(6)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(views: Tensor, sigma: npt.NDArray[np.float32]) -> Tensor:
    """Gaussian blur of the samples whose ``sigma`` (pixels) is not 0; the border pixel is repeated outwards.

    SwAV's code calls Pillow, which approximates the Gaussian by three box filters; this is the Gaussian.
    """
    rows = _where(sigma > 0, views.device)
    weights = _gaussian(torch.from_numpy(sigma[sigma > 0]).to(views.device), views.shape[-1])
    chosen = views[rows].transpose(0, 1)  # (3, m, h, w): one contiguous batched product a channel
    views[rows] = torch.stack([weights @ channel @ weights.transpose(1, 2) for channel in chosen], 1)
    return views


def _gaussian(sigma: Tensor, size: int) -> Tensor:
    """(m, size, size) matrices that blur along one axis."""
    pad = size  # 3 sigma and more: the largest sigma is far below the view's size
    tap = torch.arange(-pad, size + pad, device=sigma.device)
    out = torch.arange(size, device=sigma.device)
    distance = (tap[None, :] - out[:, None]).float()
    weights = torch.exp(-0.5 * (distance / sigma[:, None, None]) ** 2)
    weights = weights / weights.sum(2, keepdim=True)
    inner = weights[:, :, pad:-pad].clone()
    inner[:, :, 0] += weights[:, :, :pad].sum(2)
    inner[:, :, -1] += weights[:, :, -pad:].sum(2)
    return inner
