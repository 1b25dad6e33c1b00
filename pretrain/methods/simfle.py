"""SimFLE: two views are compared, and an autoencoder sees what the backbone chooses of a third (Moon and Park 2023,
arXiv 2303.07648).

The text (``variant: paper``) and the released code (``variant: official``) differ. What the code computes is
followed; none of it is here.

==================  ==========================================  ===========================================
                    official                                    paper
==================  ==========================================  ===========================================
reconstruction L_r  of pixels normalised by patch; no gradient  of the normalised picture's pixels; reaches
                    reaches the mask                            it by ``facemae.straight_through`` (ours)
distillation L_d    T^2 sum KL(mean || each), mean detached     sum KL(each || mean), all gradients (eq. 5)
grouping L_g        ``facemae.official_grouping_loss``          ``facemae.grouping_loss`` (eq. 2 as means)
its first weights   all channels alike                          groups apart (ours)
tau of BYOL         .99                                         BYOL's own; the text gives none
==================  ==========================================  ===========================================

In both, what the mask is made of stops at the backbone's feature map: L_r and L_g train the channel grouping at most,
and the branches meet in L_d alone. ``connection: direct`` lets them into the backbone and has no L_d (table 3b).

Ours, and against the printed costs (tables 3 and 4; ``pretrain.flops`` counts ours): MoCo as the global branch must
be symmetric, for the distillation takes the features of both views. That is 20.0 G multiply-adds a picture; 11.8 are
printed, one pass of the query and one of the key. ``masking: random`` leaves out the whole picture's pass through the
backbone: 18.8 G, where 20.1 are printed.

Ours in both: the two views pass the backbone and the heads in one batch, so that batch norm sees them together, where
the code passes one after the other. As in the code the whole picture is seen in training mode too: the running
statistics are those of views and pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from configs import ConfigError
from pretrain.backbones import feature_dim, feature_map
from pretrain.methods import facemae
from pretrain.methods.byol import BYOLConfig
from pretrain.methods.facemae import FaceMAEConfig
from pretrain.methods.layers import mlp
from pretrain.methods.method import Method, MethodConfig, Moment, Setting
from pretrain.methods.moco import MoCoConfig
from pretrain.methods.pairs import Pairs, precise
from pretrain.methods.simclr import SimCLRConfig
from pretrain.methods.simsiam import SimSiamConfig
from pretrain.views import CropConfig, uniforms

GlobalConfig = Annotated[BYOLConfig | SimSiamConfig | MoCoConfig | SimCLRConfig, Field(discriminator="name")]


class SimFLEConfig(MethodConfig):
    """Defaults are those of the paper (section 4.1), as the released code reads it."""

    name: Literal["simfle"]
    variant: Literal["official", "paper"] = Field(
        "official", description="what the released code computes, or what the text says"
    )
    gfl: GlobalConfig = Field(
        BYOLConfig(),
        description="the global branch, a method over two views: BYOL unless named; where official, tau stays at .99 "
        "unless given; MoCo must be symmetric (ours, and against its printed cost)",
    )
    facemae: FaceMAEConfig | None = Field(
        FaceMAEConfig(), description="the fine-grained branch; null: the global branch alone (table 3a)"
    )
    masking: Literal["semantic", "random"] = Field(
        "semantic",
        description="random: no channel groups (table 3c), and no pass of the whole picture through the backbone",
    )
    connection: Literal["distillation", "direct"] = Field(
        "distillation", description="direct: the mask's gradient reaches the backbone (table 3b)"
    )
    hidden_dim: int = Field(4096, ge=2, description="width of the distillation heads")
    projection_dim: int = Field(256, ge=2, description="length of what is distilled")
    temperature: float = Field(4, gt=0, description="t of the distillation")
    alpha: float = Field(0.3, ge=0, description="weight of the distillation")
    beta: float = Field(0.03, ge=0, description="weight of the channel grouping")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_global_branch(cls, tree: Any) -> Any:
        """Its name and, where official, the released tau, one by one: giving the one must not lose the other."""
        gfl = tree.get("gfl", {}) if isinstance(tree, dict) else None
        if not isinstance(gfl, dict):
            return tree
        gfl = {"name": "byol", **gfl}
        if gfl["name"] == "byol" and tree.get("variant", "official") == "official":
            gfl = {"momentum": 0.99, "momentum_schedule": "constant", **gfl}
        return {**tree, "gfl": gfl}

    @model_validator(mode="after")
    def _consistent(self) -> SimFLEConfig:
        if self.connection == "direct" and (self.variant, self.masking) != ("paper", "semantic"):
            raise ValueError(
                "connection: direct needs a mask that has a gradient; write variant: paper and masking: semantic"
            )
        if isinstance(self.gfl, MoCoConfig) and not self.gfl.symmetric:
            raise ValueError(
                "gfl.symmetric: SimFLE compares both views with each other; write symmetric: true"
            )
        return self

    def build(self, setting: Setting) -> SimFLE:
        """SimFLE around ``setting.backbone``."""
        setting.require_two_views("SimFLE", further=True)
        crops = setting.views.crops
        views = [crop for crop in crops if not crop.plain]
        if len(views) > 1 and not isinstance(self.gfl, BYOLConfig):
            raise ConfigError(
                f"views.crops: with {self.gfl.name} SimFLE compares two views; take out the further crops that are "
                "not plain"
            )
        if self.facemae:
            _check_picture(self.facemae, setting)
        elif len(views) < len(crops):
            raise ConfigError(
                "views.crops: without method.facemae nothing looks at the plain crop; take it out"
            )
        pair = setting.views.model_copy(update={"crops": crops[:1]})
        try:
            branch = self.gfl.build(replace(setting, views=pair))
        except ConfigError as error:  # it does not know where in the file it stands
            raise ConfigError(str(error).replace("method.", "method.gfl.", 1)) from None
        return SimFLE(branch, self, crops)


def _check_picture(sizes: FaceMAEConfig, setting: Setting) -> None:
    """Refuse views without the picture that is reconstructed, and patches and groups that do not divide it."""
    plain = [crop for crop in setting.views.crops if crop.plain]
    if len(plain) != 1 or plain[0].count != 1:
        raise ConfigError(
            "views.crops: SimFLE reconstructs one whole picture a sample; add {count: 1, size: 112, plain: true}"
        )
    size, channels = plain[0].size, feature_dim(setting.backbone)
    if size % sizes.patch:
        raise ConfigError(
            f"method.facemae.patch: {sizes.patch} does not divide the plain crop's {size} pixels"
        )
    if channels % sizes.groups:
        raise ConfigError(
            f"method.facemae.groups: {sizes.groups} does not divide the backbone's {channels} channels"
        )
    patches = (size // sizes.patch) ** 2
    if not sizes.kept(patches):
        raise ConfigError(
            f"method.facemae.masked: {sizes.masked} leaves none of the {patches} patches; lower it"
        )


class Reconstruction(NamedTuple):
    """For figures."""

    kept: Tensor  # (N, P) bool, row by row
    pictures: Tensor  # (N, 3, s, s) normalised; masked patches are painted, kept ones are the picture's


class SimFLE(Method):
    """A global branch, which owns the backbone, and FaceMAE beside it."""

    def __init__(self, gfl: Pairs, config: SimFLEConfig, crops: tuple[CropConfig, ...]) -> None:
        super().__init__()
        self.gfl, self.config = gfl, config
        self.backbone = gfl.backbone  # under two names in what is kept, and trained once
        self._plain = [crop.plain for crop in crops]
        self.grouping: facemae.Grouping | None = None
        self._last_scores: Tensor | None = None  # of semantic masks
        self.global_head: nn.Sequential | None = None
        sizes = config.facemae
        if sizes is None:
            return
        channels = feature_dim(gfl.backbone)
        if config.masking == "semantic" and config.variant == "official":
            self.grouping = facemae.alike(channels)
        elif config.masking == "semantic":
            self.grouping = facemae.apart(channels, sizes.groups)
        self._size = next(crop.size for crop in crops if crop.plain)
        side = self._size // sizes.patch
        self._patches, self._kept = side**2, sizes.kept(side**2)
        self.encoder, self.decoder = facemae.Encoder(sizes, side), facemae.Decoder(sizes, side)
        if config.connection == "distillation":
            widths = (config.hidden_dim, config.projection_dim)
            self.global_head = mlp(channels, *widths)
            self.fine_head = mlp(sizes.encoder_width, *widths)

    def forward(self, views: list[Tensor], moment: Moment) -> Tensor:
        """The () loss: equation 6."""
        large, *small = (group for group, plain in zip(views, self._plain, strict=True) if not plain)
        features = torch.cat([self.backbone(group) for group in (large, *small)])
        parts = {"similarity": self.gfl.loss(features, large, moment)}
        if self.config.facemae:
            pictures = views[self._plain.index(True)]
            parts |= self._fine_grained(self.config.facemae, features[: len(large)], pictures, moment)
        self._parts = {name: part.detach() for name, part in parts.items()}
        weights = {"distillation": self.config.alpha, "grouping": self.config.beta}
        return torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()

    def _fine_grained(
        self, sizes: FaceMAEConfig, features: Tensor, pictures: Tensor, moment: Moment
    ) -> dict[str, Tensor]:
        """The losses of FaceMAE for (B, 3, s, s) pictures, and with the (2 * B, D) features of their views."""
        official = self.config.variant == "official"
        scores, maps = self._scores(sizes, pictures, moment)
        kept = facemae.highest(scores.detach(), self._kept)
        self._last_scores = None if maps is None else scores.detach()
        patches = facemae.patchify(pictures, sizes.patch)
        visible = facemae.take(patches, kept)
        if maps is not None and not official:
            visible = visible * facemae.straight_through(scores).gather(1, kept)[..., None]
        tokens = self.encoder(visible, kept)
        predicted = precise(self.decoder(tokens, kept))
        logits = None
        if self.global_head:
            fine = self.fine_head(tokens[:, 1:].mean(1))
            logits = precise(torch.stack([fine, *self.global_head(features).chunk(2)]))
        with torch.autocast(pictures.device.type, enabled=False):
            if official:
                mean, deviation = facemae.statistics(patches)
                patches = (patches - mean) / deviation
            parts = {"reconstruction": facemae.reconstruction_loss(predicted, patches, kept)}
            if logits is not None:
                distil = official_distillation if official else distillation
                parts["distillation"] = distil(logits, self.config.temperature)
            if maps is not None:
                loss = facemae.official_grouping_loss if official else facemae.grouping_loss
                parts["grouping"] = loss(facemae.channel_cosines(precise(maps)), sizes.groups)
        return parts

    def _scores(self, sizes: FaceMAEConfig, pictures: Tensor, moment: Moment) -> tuple[Tensor, Tensor | None]:
        """(B, P) scores of the patches, and the (B, C, h, w) grouped channels they come from, if any.

        The group of a picture, or its random scores, are a function of seed, step and row.
        """
        drawn = self._random(pictures, moment)
        if self.grouping is None:
            return drawn, None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.connection == "direct"):
            features = feature_map(self.backbone, pictures)
        maps = self.grouping(features)
        chosen = (drawn[:, 0] * sizes.groups).long()
        return facemae.patch_scores(precise(maps), sizes.groups, chosen, self._size, sizes.patch), maps

    def _random(self, pictures: Tensor, moment: Moment) -> Tensor:
        """(B, P) numbers in [0, 1), a function of seed, step and row."""
        drawn = uniforms(moment.seed, moment.step, _STREAM, moment.rows, self._patches)
        return torch.from_numpy(drawn).to(pictures.device, non_blocking=True)

    @torch.no_grad()
    def reconstruct(self, pictures: Tensor, moment: Moment, *, at_random: bool = False) -> Reconstruction:
        """What is kept of (N, 3, s, s) normalised pictures, and what the autoencoder makes of that.

        Call ``eval()`` before it. The groups are drawn as in training: a picture that is given several times, with
        other rows in ``moment``, is masked by other groups; ``at_random``: by none.
        """
        sizes = self.config.facemae
        assert sizes, "there is no FaceMAE in this run"
        scores = self._random(pictures, moment) if at_random else self._scores(sizes, pictures, moment)[0]
        kept = facemae.highest(scores, self._kept)
        patches = facemae.patchify(pictures, sizes.patch)
        painted = precise(self.decoder(self.encoder(facemae.take(patches, kept), kept), kept))
        if self.config.variant == "official":
            mean, deviation = facemae.statistics(patches)
            painted = painted * deviation + mean
        hidden = facemae.masked(kept, self._patches)
        whole = torch.where(hidden[..., None], painted, patches)
        return Reconstruction(~hidden, facemae.unpatchify(whole, sizes.patch))

    def compile_networks(self) -> None:
        """Those of the global branch, and our own."""
        self.gfl.compile_networks()
        for network in self.children():
            if network is not self.gfl and network is not self.backbone:
                network.compile(dynamic=False)

    def after_step(self, moment: Moment) -> None:
        """The global branch's networks follow."""
        self.gfl.after_step(moment)

    def unscheduled(self) -> list[nn.Parameter]:
        """Those of the global branch."""
        return self.gfl.unscheduled()

    def indicators(self) -> dict[str, Tensor]:
        """Those of the global branch, and the parts of the loss without their weights.

        mask_ties: Where the mask is semantic, share of the pictures whose scores do not tell the last patch that is
            kept from the first that is masked, so that position does (:func:`pretrain.methods.facemae.tied`).
        """
        found = self.gfl.indicators() | self._parts
        if self._last_scores is not None:
            found["mask_ties"] = facemae.tied(self._last_scores, self._kept).float().mean()
        return found


_STREAM = 3 << 20  # of the drawn groups and random masks; views count from 0


def distillation(logits: Tensor, temperature: float) -> Tensor:
    """() equation 5: KL of each of the (3, B, D) representations from their mean, added, mean over the batch.

    The text stops no gradient at the mean, and neither does this.
    """
    mean = F.log_softmax(logits.mean(0) / temperature, 1).expand_as(logits)
    each = F.log_softmax(logits / temperature, 2)
    return F.kl_div(mean, each, reduction="sum", log_target=True) / logits.shape[1]


def official_distillation(logits: Tensor, temperature: float) -> Tensor:
    """() as released: KL of the mean, a target without gradient, from each of the (3, B, D) logits, added, times T^2;
    mean over the batch.
    """
    mean = F.log_softmax(logits.detach().mean(0) / temperature, 1).expand_as(logits)
    each = F.log_softmax(logits / temperature, 2)
    return temperature**2 * F.kl_div(each, mean, reduction="sum", log_target=True) / logits.shape[1]
