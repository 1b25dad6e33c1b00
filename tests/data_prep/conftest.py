from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from io import BytesIO

import pytest
import skimage.data
from PIL import Image

from data_prep.fetch import Wheel, read_member

INSIGHTFACE = Wheel("insightface", "2.1", "dcd58ee79d99d689572477315f3149353afd65a36dc575f597cbb217a7bde399")


@pytest.fixture(scope="session")
def t1() -> bytes:
    """A JPEG of 1280 x 886 with six faces, from the insightface wheel."""
    return read_member(INSIGHTFACE, "insightface/data/images/t1.jpg")


@pytest.fixture(scope="session")
def t1_image(t1: bytes) -> Image.Image:
    return Image.open(BytesIO(t1)).convert("RGB")


@pytest.fixture(scope="session")
def astronaut() -> Image.Image:
    """512 x 512, one face."""
    return Image.fromarray(skimage.data.astronaut())


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``python -m data_prep`` with arguments."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "data_prep", *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=300)

    return run
