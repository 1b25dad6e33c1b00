"""A real .beton of 96 pictures with smooth random content."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.beton import write_beton


@pytest.fixture(scope="session")
def beton_path(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(96):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92, subsampling=0)
        jpegs.append(buffer.getvalue())
    path = tmp_path_factory.mktemp("beton") / "set.beton"
    write_beton(path, jpegs, np.arange(96), -np.ones(96, np.int64))
    return path
