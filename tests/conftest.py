"""For all tests."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from data_prep.fetch import cache_folder
from data_prep.files import publish, sha256_file

# The networks here are so small that a second thread costs more than it gives, and 'make test' runs two tests at a
# time. Before anything imports torch; commands that the tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whatever runs in the background of a script inherits that Ctrl-C is ignored, and so would the commands that tests
# start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays in one process, for its fixtures; so do all that share the one Slurm of this machine."""
    for item in items:
        folder = Path(item.path).parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder == "slurm" else str(item.path)))


DLIB = "libdlib19.1", "19.24+dfsg-1"
DLIB_SHA256 = "f03f46681d43701914ddd38eee42f1d34dc1d12e2f125bd1e3b562f23572b4da"


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
