"""numba.njit for this package, with a cache on disk that notices every change.

Numba recompiles a cached function when its own file changes, not when a function that it calls from another file
does. So the cache lies in a folder named after the content of all files with kernels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

FOLDER = Path(__file__).parent
SOURCES = ("features.py", "kernels.py", "look.py", "model.py", "paint.py", "raster.py", "shade.py")
DIGEST = hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in SOURCES)).hexdigest()[:12]
CACHE = FOLDER / "__pycache__" / f"kernels-{DIGEST}"


def kernel(function: Function) -> Function:
    """Compile with IEEE arithmetic in the written order.

    Not with fastmath: it gained nothing here, and a process that compiled a kernel drew other last bits than one
    that loaded it from the cache.
    """
    settings: Any = numba.config
    before, settings.CACHE_DIR = settings.CACHE_DIR, str(CACHE)  # read while decorating, nowhere else
    try:
        compiled: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    finally:
        settings.CACHE_DIR = before
    return cast(Function, compiled)
