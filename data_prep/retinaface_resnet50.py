"""RetinaFace with ResNet-50: the package retina-face's own PyTorch network, with our shape of outputs."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from retinaface.model.retinaface_pth_model import RetinaFace as PackageNetwork
from torch import Tensor, nn

from configs import ConfigError
from data_prep.anchors import Anchors

_NOT_WEIGHTS = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
)


class ResNet50RetinaFace(nn.Module):
    """(N, 3, H, W) RGB 0..255 -> offsets, scores and points an anchor, for any height and width."""

    # As in retinaface/RetinaFace.py, detect_faces.
    anchors = Anchors(
        strides=(32, 16, 8),
        first=(7.5, 7.5, 7.5),
        sides=((512, 256), (128, 64), (32, 16)),
        inclusive=True,
    )

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def from_file(cls, path: Path) -> ResNet50RetinaFace:
        """Build the network with the state dict in ``path``; nothing in the file is executed.

        Raises:
            ConfigError: the file is not a state dict of this network.
        """
        network = PackageNetwork()
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        # torch reports wrong files with whatever its parsers run into; its messages run over many lines.
        except _NOT_WEIGHTS as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"{path}: no weights of retina-face's ResNet-50 ({reason.rstrip('.:')}); give the package's "
                f"retinaface.pth in detect.weights, or remove the file to have it downloaded again"
            ) from None
        return cls(network)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns offsets (N, A, 4), scores (N, A), points (N, A, 10)."""
        maps = self.network(images.permute(0, 2, 3, 1).float())
        # Of a cell's scores the first two are those of the background.
        scores = [scores[..., 2:] for scores in maps[0::3]]
        return _flat(maps[1::3], 4), _flat(scores, 1).squeeze(-1), _flat(maps[2::3], 10)


def _flat(maps: list[Tensor], values: int) -> Tensor:
    """(N, H, W, 2 * values) a level -> (N, A, values)."""
    return torch.cat([level.reshape(len(level), -1, values) for level in maps], dim=1)
