"""FaceMAE: SimFLE's masked autoencoder, and the semantic masking before it (Moon and Park 2023, section 3.2).

Channels of the backbone's feature map are brought into groups, the sum of one group is the score map of a picture,
and the patches with the highest scores are kept. A vision transformer sees these and paints the others (MAE: He et
al., CVPR 2022, arXiv 2111.06377).
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

from configs import Config
from pretrain.distributed import sum_with_gradient, world_size


class FaceMAEConfig(Config):
    """Sizes. Defaults are those of the paper (section 4.1): MAE with ViT-Base; the decoder is MAE's."""

    patch: int = Field(16, ge=1, description="s, pixels a side of a patch")
    masked: float = Field(0.75, gt=0, lt=1, description="gamma, the share of the patches that is masked")
    groups: int = Field(32, ge=2, description="N_g, channel groups")
    encoder_width: int = Field(768, ge=4)
    encoder_depth: int = Field(12, ge=1)
    encoder_heads: int = Field(12, ge=1)
    decoder_width: int = Field(512, ge=4)
    decoder_depth: int = Field(8, ge=1)
    decoder_heads: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _divisible(self) -> FaceMAEConfig:
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            if width % heads or width % 4:
                raise ValueError(
                    f"{part}_width: {width} must be a multiple of 4 and of {part}_heads ({heads})"
                )
        return self

    def kept(self, patches: int) -> int:
        """How many of so many patches are not masked: 12 of 49."""
        return patches - math.ceil(patches * self.masked)


# --- semantic masking ----------------------------------------------------------------------------------------


class Grouping(nn.Module):
    """1x1 convolution, batch norm and ReLU, which bring channels that look at one place next to each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) grouped channels of a feature map of that shape."""
        return F.relu(self.norm(self.conv(features)))


def alike(channels: int) -> Grouping:
    """As the released code begins: all weights 1, all biases .1.

    All channels are equal then, which is a saddle of the grouping loss; rounding breaks the tie.
    """
    grouping = Grouping(channels)
    assert grouping.conv.bias is not None
    nn.init.ones_(grouping.conv.weight)
    nn.init.constant_(grouping.conv.bias, 0.1)
    return grouping


def apart(channels: int, groups: int) -> Grouping:
    """Groups that differ from the start, which is ours: the paper's text names no first weights.

    The rows of a group are one vector of He's normal distribution and a tenth of one of their own. Equal rows get
    equal gradients: the first tells the groups apart, the second the channels of a group.
    """
    grouping = Grouping(channels)
    common = torch.randn(groups, channels).repeat_interleave(channels // groups, 0)
    own = torch.randn(channels, channels)
    with torch.no_grad():
        grouping.conv.weight.copy_((math.sqrt(2 / channels) * (common + 0.1 * own))[..., None, None])
    return grouping


def channel_cosines(maps: Tensor) -> Tensor:
    """(C, C) cosines D of the channels of (N, C, h, w) maps, mean over the pictures of all ranks.

    The paper prints D for one picture and does not say how a batch is joined; the mean is that of the released code.
    """
    rows = F.normalize(maps.flatten(2), dim=2).transpose(0, 1).flatten(1)
    return sum_with_gradient(rows @ rows.T) / (len(maps) * world_size())


def grouping_loss(cosines: Tensor, groups: int) -> Tensor:
    """() equation 2: the squares of ``channel_cosines`` between groups, less those within a group; -1 .. 1.

    The equation is a sum over all pairs, of which there are four million with 2,048 channels: it would drown the rest
    of the loss. This is the mean over the pairs of each kind, a channel's pair with itself included as printed.
    """
    same = _same_group(len(cosines), groups, cosines)
    squares = cosines.square()
    return (squares * (1 - same)).sum() / (1 - same).sum() - (squares * same).sum() / same.sum()


def official_grouping_loss(cosines: Tensor, groups: int) -> Tensor:
    """() what the released code has for equation 2: the square of .001 |D - same group|^2 / (C / 512)^2."""
    same = _same_group(len(cosines), groups, cosines)
    return (0.001 * (cosines - same).square().sum() / (len(cosines) / 512) ** 2).square()


def _same_group(channels: int, groups: int, like: Tensor) -> Tensor:
    """(C, C) 1 where two channels are of one group, else 0; groups are contiguous."""
    number = torch.arange(channels, device=like.device) // (channels // groups)
    return (number[:, None] == number).to(like.dtype)


def patch_scores(maps: Tensor, groups: int, chosen: Tensor, size: int, patch: int) -> Tensor:
    """(N, P) mean of the chosen group's score map over each patch (equation 3).

    Args:
        maps: (N, C, h, w) of the channel grouping.
        groups: How many groups its channels are.
        chosen: (N,) int64, the group of each picture.
        size: Of the pictures, in pixels a side; the map is enlarged to it bilinearly.
        patch: Pixels a side of a patch.
    """
    sums = maps.unflatten(1, (groups, -1)).sum(2)
    score = sums[torch.arange(len(maps), device=maps.device), chosen][:, None]
    enlarged = F.interpolate(score, size=(size, size), mode="bilinear", align_corners=False)
    return F.avg_pool2d(enlarged, patch).flatten(1)


def highest(scores: Tensor, count: int) -> Tensor:
    """(N, count) int64 numbers of the patches with the highest of the (N, P) scores, highest first."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


def tied(scores: Tensor, count: int) -> Tensor:
    """(N,) bool: whether the last of the ``count`` highest of the (N, P) scores equals the first one below it.

    Then position decides which patches are kept: of equal ones those that come first, row by row.
    """
    ordered = scores.sort(dim=1, descending=True).values
    return ordered[:, count - 1] == ordered[:, count]


def straight_through(scores: Tensor) -> Tensor:
    """(N, P) factors that are 1 and have the gradient of the normalised scores.

    The factor is 1 + s - stop(s) with s_i = sigmoid((a_i - mean a) / sqrt(var a + 1e-6)), mean and variance over the
    patches of a picture. The paper says that the masking is trained by the reconstruction, not how: a hard choice has
    no gradient. This estimator is ours.
    """
    centred = scores - scores.mean(1, keepdim=True)
    soft = torch.sigmoid(centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-6))
    return 1 + (soft - soft.detach())


# --- patches -------------------------------------------------------------------------------------------------


def patchify(pictures: Tensor, patch: int) -> Tensor:
    """(N, P, 3 * patch^2) patches of (N, 3, s, s) pictures, row by row."""
    tiles = pictures.unflatten(3, (-1, patch)).unflatten(
        2, (-1, patch)
    )  # (N, 3, rows, patch, columns, patch)
    patches: Tensor = tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return patches


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """(N, 3, s, s) pictures of (N, P, 3 * patch^2) patches: the inverse of :func:`patchify`."""
    side = math.isqrt(patches.shape[1])
    tiles = patches.unflatten(2, (3, patch, patch)).unflatten(1, (side, side))
    pictures: Tensor = tiles.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return pictures


def statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """(N, P, 1) mean and standard deviation of each patch, as MAE normalises them: unbiased, with 1e-6 added."""
    return patches.mean(2, keepdim=True), (patches.var(2, keepdim=True) + 1e-6).sqrt()


def take(rows: Tensor, kept: Tensor) -> Tensor:
    """(N, K, D) the rows of (N, P, D) with the numbers (N, K)."""
    return rows.gather(1, kept[..., None].expand(-1, -1, rows.shape[2]))


def masked(kept: Tensor, patches: int) -> Tensor:
    """(N, P) bool: whether a patch is none of the (N, K) kept ones."""
    everything = torch.ones(len(kept), patches, dtype=torch.bool, device=kept.device)
    return everything.scatter(1, kept, False)


def reconstruction_loss(predicted: Tensor, wanted: Tensor, kept: Tensor) -> Tensor:
    """() equation 4: squared error, mean over the pixels of a patch and over the masked patches.

    Args:
        predicted: (N, P, D) of the decoder.
        wanted: (N, P, D).
        kept: (N, K) int64, the patches that count for nothing.
    """
    hidden = masked(kept, predicted.shape[1])
    return ((predicted - wanted).square().mean(2) * hidden).sum() / hidden.sum()


# --- the autoencoder -----------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """The vision transformer that sees the kept patches."""

    positions: Tensor

    def __init__(self, config: FaceMAEConfig, side: int) -> None:
        super().__init__()
        width = config.encoder_width
        self.embed = nn.Linear(3 * config.patch**2, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = _blocks(width, config.encoder_depth, config.encoder_heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer("positions", positions(width, side), persistent=False)
        _initialise(self)

    def forward(self, visible: Tensor, kept: Tensor) -> Tensor:
        """(N, 1 + K, width) tokens, the class token first, of (N, K, 3 * patch^2) patches with numbers (N, K)."""
        tokens = self.embed(visible) + self.positions[kept]
        first = self.cls_token.expand(len(tokens), -1, -1)
        encoded: Tensor = self.norm(self.blocks(torch.cat([first, tokens], 1)))
        return encoded


class Decoder(nn.Module):
    """The smaller transformer that paints all patches from the encoder's tokens."""

    positions: Tensor

    def __init__(self, config: FaceMAEConfig, side: int) -> None:
        super().__init__()
        width = config.decoder_width
        self.embed = nn.Linear(config.encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = _blocks(width, config.decoder_depth, config.decoder_heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, 3 * config.patch**2)
        self.register_buffer("positions", positions(width, side), persistent=False)
        _initialise(self)

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """(N, P, 3 * patch^2) patches of (N, 1 + K, encoder width) tokens of the patches with numbers (N, K)."""
        first, seen = self.embed(tokens).split([1, kept.shape[1]], 1)
        every = self.mask_token.to(seen.dtype).expand(len(seen), len(self.positions), -1)
        every = every.scatter(1, kept[..., None].expand_as(seen), seen) + self.positions
        painted: Tensor = self.pixels(self.norm(self.blocks(torch.cat([first, every], 1))))
        return painted[:, 1:]


def _blocks(width: int, depth: int, heads: int) -> nn.Sequential:
    block = partial(EncoderBlock, heads, width, 4 * width, dropout=0.0, attention_dropout=0.0)
    return nn.Sequential(*(block() for _ in range(depth)))


def _initialise(network: nn.Module) -> None:
    """As MAE: Glorot's uniform weights, no biases, special tokens with a deviation of .02."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in network.named_parameters():
        if name.endswith("_token"):
            nn.init.normal_(parameter, std=0.02)


def positions(width: int, side: int) -> Tensor:
    """(side^2, width) fixed sine and cosine positions: half of them of the column, half of the row (MAE).

    The class token's are zero, so nothing is added to it.
    """
    rate = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * rate
    wave = torch.cat([angle.sin(), angle.cos()], 1)
    return torch.cat([wave.repeat(side, 1), wave.repeat_interleave(side, 0)], 1).float()
