"""What a result was made with: versions, code state, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch", "torchvision", "ffcv", "submitit", "numpy", "numba", "pillow", "retina-face", "pyyaml", "pydantic",
    "pyarrow", "scikit-learn", "torchmetrics", "opencv-contrib-python-headless",
)  # fmt: skip


def record() -> dict[str, Any]:
    """Versions, command line, git commit and uncommitted diff, host, cores and GPUs, ready for JSON."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_diff": _git("diff", "HEAD"),
        "host": socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": _gpus(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")  # only asked where something has imported it: the import takes seconds
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
