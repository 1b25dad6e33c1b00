"""What corpora keep in MATLAB 5 files, read without trust in it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_mat(path: Path, *names: str) -> dict[str, Any]:
    """The variables ``names`` of a .mat, as many as it has.

    Raises:
        ValueError: it is missing or damaged. The message is the reason, without the path.
    """
    from scipy.io import loadmat  # here: a run that finds every shard done needs none

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    try:
        content: dict[str, Any] = loadmat(io.BytesIO(data), variable_names=names)
    except Exception as error:  # the parser stumbles over damage with whatever comes first
        raise ValueError(f"damaged, or no MATLAB 5 file: {error or repr(error)}") from None
    return content


def numbers(
    content: dict[str, Any], name: str, shape: tuple[int, ...], gaps: bool = False
) -> NDArray[np.float64]:
    """One variable of :func:`read_mat`: numbers of the ``shape``, in which -1 stands for any length.

    All of them are finite, unless there may be ``gaps``.

    Raises:
        ValueError: it is missing, has another shape or holds something else. The message is the reason.
    """
    if name not in content:
        raise ValueError(f"{name} is missing")
    value = np.asarray(content[name])
    if len(value.shape) != len(shape) or any(
        n not in (-1, m) for n, m in zip(shape, value.shape, strict=True)
    ):
        wanted = str(shape).replace("-1", "N")
        raise ValueError(f"{name} has the shape {value.shape} instead of {wanted}")
    if value.dtype.kind not in "fiub" or not (gaps or np.isfinite(value).all()):
        raise ValueError(f"{name} holds something else than numbers")
    return value.astype(np.float64)
