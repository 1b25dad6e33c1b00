"""SwAV: swapped assignments between views (Caron et al., NeurIPS 2020, arXiv 2006.09882)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from configs import ConfigError
from pretrain.backbones import feature_dim
from pretrain.distributed import all_reduce, world_size
from pretrain.methods.method import Method, MethodConfig, Moment, Setting, spread

ASSIGNED = 2  # the first two views, at the highest resolution, get assignments


class SwAVConfig(MethodConfig):
    """The method. Defaults are those of Bulat et al. (supplement 1.1), which follow SwAV."""

    name: Literal["swav"] = "swav"
    prototypes: int = Field(3000, ge=2, description="K")
    projection_dim: int = Field(128, ge=2, description="length of the embedding")
    hidden_dim: int = Field(2048, ge=2, description="width of the projector's hidden layer")
    temperature: float = Field(0.1, gt=0, description="of the prediction's softmax")
    epsilon: float = Field(0.05, ge=0.003, description="entropy of the assignments")
    sinkhorn_iterations: int = Field(3, ge=1)
    freeze_prototypes_epochs: float = Field(
        1.0, ge=0, description="prototypes stay fixed so long; SwAV's 313 steps are one ImageNet epoch"
    )
    queue_length: int = Field(
        0, ge=0, description="embeddings kept over all ranks for small batches; 0 = none"
    )
    queue_start_epoch: int = Field(15, ge=0, description="the queue is filled and used from this epoch on")

    def build(self, setting: Setting) -> Method:
        """SwAV around ``setting.backbone``."""
        return SwAV(setting.backbone, self, setting.place.world)


class SwAV(Method):
    """Backbone, projector, prototypes and loss.

    Args:
        backbone: Maps images to (N, D) features.
        config: The method's settings.
        world: Number of ranks; the queue is divided among them.
    """

    def __init__(self, backbone: ResNet, config: SwAVConfig, world: int = 1) -> None:
        super().__init__()
        if config.queue_length % world:
            raise ConfigError(
                f"method.queue_length: {config.queue_length} is not a multiple of the {world} ranks"
            )
        dim = feature_dim(backbone)
        self.config = config
        self.backbone = backbone
        self.projector = nn.Sequential(
            nn.Linear(dim, config.hidden_dim),
            nn.BatchNorm1d(config.hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(config.hidden_dim, config.projection_dim),
        )
        self.prototypes = nn.Linear(config.projection_dim, config.prototypes, bias=False)
        # Not a buffer: every rank has its own part, which DDP must not broadcast. Newest rows first.
        self.queue = torch.zeros(ASSIGNED, config.queue_length // world, config.projection_dim)
        self._queued = 0  # rows of it that are filled; kept on the host, where asking costs no wait

    def forward(self, views: list[Tensor], moment: Moment) -> Tensor:
        """The loss of one batch, equation 2 of the paper averaged over the pairs of views, of which the first two
        are assigned; ln K where nothing is learnt.
        """
        self.normalise_prototypes()
        features = torch.cat([self.backbone(group) for group in views])
        projected = self.projector(features)
        embedding = F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)))
        batch = len(views[0]) // ASSIGNED
        # Cosines are divided by epsilon before exp(): eight bits of mantissa are too few.
        with torch.autocast(embedding.device.type, enabled=False):
            scores = F.linear(embedding, self.prototypes.weight)  # of every view with every prototype
            embedding, scores = (x.unflatten(0, (-1, batch)) for x in (embedding, scores))
            codes = self.assign(embedding.detach()[:ASSIGNED], scores.detach()[:ASSIGNED], moment.epoch)
            loss = swapped_loss(scores, codes, self.config.temperature)
            self._last = scores.detach(), codes, features.detach()[:batch]
            return loss

    @torch.no_grad()
    def normalise_prototypes(self) -> None:
        """Put every prototype on the unit sphere, as the reference does before each step."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight))

    @torch.no_grad()
    def assign(self, embedding: Tensor, scores: Tensor, epoch: float) -> Tensor:
        """Codes (2, B, K) of the assigned views; the queue, once full, takes part in the balancing."""
        batch = scores.shape[1]
        if self.queue.shape[1] and epoch >= self.config.queue_start_epoch:
            length = self.queue.shape[1]
            self.queue = self.queue.to(embedding)
            if self._queued == length:
                scores = torch.cat([F.linear(self.queue, self.prototypes.weight), scores], 1)
            self.queue = torch.cat([embedding, self.queue], 1)[:, :length]
            self._queued = min(length, self._queued + batch)
        codes = sinkhorn(scores, self.config.epsilon, self.config.sinkhorn_iterations)
        return codes[:, -batch:]

    def after_backward(self, moment: Moment) -> None:
        """Drop the prototypes' gradient while they are frozen, so that no momentum builds up either."""
        if moment.epoch < self.config.freeze_prototypes_epochs:
            self.prototypes.weight.grad = None

    def rank_state(self) -> dict[str, Tensor]:
        """What differs between ranks: the queue, (2, length / world, dim), to be joined along axis 1."""
        # To the device: until it is used it lies where it was made, and NCCL gathers nothing from there.
        return {"queue": self.queue.to(self.prototypes.weight.device)} if self.config.queue_length else {}

    def load_rank_state(self, state: dict[str, Tensor], rank: int, world: int) -> None:
        """Take this rank's part of the joined :meth:`rank_state` of any number of ranks."""
        if "queue" in state:
            self.queue = state["queue"].chunk(world, 1)[rank].to(self.prototypes.weight.device)
            self._queued = int(self.queue[0].any(1).sum())

    @property
    def loss_without_learning(self) -> float:
        """Ln K: the loss of a network whose predictions are uniform."""
        return math.log(self.config.prototypes)

    @torch.no_grad()
    def indicators(self) -> dict[str, Tensor]:
        """Signs of health and collapse in the last batch of this rank, () tensors.

        prototype_usage: Perplexity of the nearest prototype, as a share of what the batch could use; 1 is
            healthy, 1 / K is collapse.
        duplicate_prototypes: Share of the prototypes with a cosine above 0.99 to an earlier one.
        code_entropy: Mean entropy of the assignments as a share of ln K; 1 says nothing.
        feature_std, effective_rank: See :func:`pretrain.methods.method.spread`.
        """
        scores, codes, features = self._last
        nearest = torch.bincount(scores[:ASSIGNED].flatten(0, 1).argmax(1), minlength=self.config.prototypes)
        perplexity = torch.exp(torch.special.entr(nearest / nearest.sum()).sum())
        usable = min(self.config.prototypes, ASSIGNED * scores.shape[1])
        weight = F.normalize(self.prototypes.weight)
        copies = torch.triu(weight @ weight.T > 0.99, diagonal=1).any(0)
        entropy = torch.special.entr(codes).sum(2).mean() / math.log(self.config.prototypes)
        return {
            "prototype_usage": perplexity / usable,
            "duplicate_prototypes": copies.float().mean(),
            "code_entropy": entropy,
        } | spread(features)


def swapped_loss(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between the codes of each assigned view and the predictions of all other views.

    Args:
        scores: (V, B, K) cosines.
        codes: (A, B, K) soft assignments of the first A views, rows summing to 1.
        temperature: Of the prediction.
    """
    log_p = F.log_softmax(scores / temperature, dim=2)
    pairs = -torch.einsum("abk,vbk->av", codes, log_p) / scores.shape[1]
    others = ~torch.eye(len(codes), len(scores), dtype=torch.bool, device=scores.device)
    return pairs[others].mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Balanced soft assignments (equation 3 and algorithm in the appendix of the paper), over all ranks.

    Args:
        scores: (A, B, K) cosines of this rank; the A problems share their collectives.
        epsilon: Strength of the entropy term, from 0.003.
        iterations: Rounds of row and column normalisation.

    Returns:
        (A, B, K) codes, each row summing to 1 and each prototype used equally over all ranks' samples.
    """
    # In float32 a prototype far from every sample is exp(-1.1 / 0.01) = 0 to all of them, and 0 / 0 after its turn.
    q = torch.exp(scores.double() / epsilon)
    samples = scores.shape[1] * world_size()
    for _ in range(iterations):
        q = q / all_reduce(q.sum(1))[:, None] / scores.shape[2]
        q = q / q.sum(2, keepdim=True) / samples
    return (q * samples).to(scores.dtype)
