"""What the methods that compare two views of a picture have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.resnet import ResNet

from pretrain.methods.method import Method, Moment, rankme, spread


class Pairs(Method):
    """A method over two views, which are of one size."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, views: list[Tensor], moment: Moment) -> Tensor:
        """The () loss of the (2 * B, 3, s, s) views, or of two (B, 3, s, s)."""
        pair = joined(views)
        return self.loss(self.backbone(pair), pair, moment)

    @abstractmethod
    def loss(self, features: Tensor, views: Tensor, moment: Moment) -> Tensor:
        """The () loss, in at least 32 bits.

        Args:
            features: (2 * B, D) of the backbone for ``views``, with their gradient.
            views: (2 * B, 3, s, s), view-major.
            moment: Of this step.
        """

    def note(self, features: Tensor, embedding: Tensor) -> None:
        """Keep what :meth:`indicators` describes: of the first view (B, D) features, and the projector's output."""
        self._last = features.detach(), embedding.detach()

    @torch.no_grad()
    def indicators(self) -> dict[str, Tensor]:
        """Signs of health and collapse in the last batch of this rank, () tensors; none of fewer than three pictures.

        One picture has no spread, and the standardised embeddings of two differ in one direction whatever they are.

        embedding_std: Spread of the unit-length embeddings times the root of their length; 0 when they are all the
            same, which the batch norms of the backbone hide from its features.
        embedding_rank: RankMe of the standardised embeddings; 1 when they differ in one direction only, which a
            batch norm after the projector hides from their spread.
        feature_std, effective_rank: See :func:`pretrain.methods.method.spread`.
        """
        features, embedding = self._last
        if len(embedding) < 3:
            return {}
        embedding = embedding.float()
        standard = (embedding - embedding.mean(0)) / (embedding.std(0) + 1e-4)
        return spread(features) | {
            "embedding_std": spread(embedding)["feature_std"],
            "embedding_rank": rankme(standard),
        }


def joined(views: list[Tensor]) -> Tensor:
    """(2 * B, 3, s, s) of the two views, which may be crops of their own."""
    return views[0] if len(views) == 1 else torch.cat(views)


def precise(x: Tensor) -> Tensor:
    """``x``, in at least 32 bits: losses are computed outside autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """(N,) cosines of the rows of two (N, D), in at least 32 bits."""
    return F.cosine_similarity(precise(x), precise(y), dim=1)


def swapped(x: Tensor) -> Tensor:
    """(2 * B, D) view-major, with the two views exchanged."""
    return x.roll(len(x) // 2, 0)
