from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from data_prep.fetch import Wheel, cache_folder, read_member
from data_prep.files import publish, sha256_file

INSIGHTFACE = Wheel("insightface", "2.1", "dcd58ee79d99d689572477315f3149353afd65a36dc575f597cbb217a7bde399")

DLIB = "libdlib19.1", "19.24+dfsg-1"
DLIB_SHA256 = "f03f46681d43701914ddd38eee42f1d34dc1d12e2f125bd1e3b562f23572b4da"


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


@pytest.fixture(scope="session")
def dlib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of Debian 12's libdlib19.1: faces/ has 43 annotated faces in 9 pictures, johns/ 5 people."""
    package = cache_folder() / f"{'_'.join(DLIB)}_amd64.deb"
    if not package.exists():
        system = platform.freedesktop_os_release()
        if (system["ID"], system.get("VERSION_ID"), platform.machine()) != ("debian", "12", "x86_64"):
            pytest.skip(f"{package.name} is a package of Debian 12; copy it to {package.parent}")
        _download_package(package)
    assert sha256_file(package) == DLIB_SHA256, f"{package}: not the pinned bytes; remove it and retry"
    folder = tmp_path_factory.mktemp("dlib")
    # Not installed: Debian's images for containers leave documentation out.
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    return folder / "usr/share/doc/libdlib19.1/examples"


def _download_package(package: Path) -> None:
    package.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=package.parent, prefix=".fetch-") as folder:
        download = ["apt-get", "download", "-qq", "=".join(DLIB)]
        if subprocess.run(download, cwd=folder, capture_output=True).returncode:
            # A fresh machine has no lists of packages yet.
            assert os.getuid() == 0, f"{' '.join(download)} fails; run apt-get update as root"
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(download, cwd=folder, check=True)
        publish(Path(folder) / package.name, package)


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``python -m data_prep`` with arguments."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "data_prep", *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=300)

    return run
