"""The code a job runs: a copy made when it is submitted, so that later edits cannot reach a queued job."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from data_prep.files import publish

ROOMS = ("configs", "data_prep", "pretrain", "downstream", "slurm")


def snapshot(root: Path, code: Path) -> Path:
    """Copy the rooms' files below ``root`` to :func:`destination`; a copy that is there already is kept.

    Args:
        root: The project's root, a git checkout or an unpacked archive.
        code: The run directory's ``code`` folder. One run may hold several versions, one for each edit
            between its submissions.
    """
    target = destination(root, code)
    if target.is_dir():
        return target
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    for name in _files(root):
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, temporary / name)
    publish(temporary, target)
    return target


def destination(root: Path, code: Path) -> Path:
    """The absolute path ``code/HASH``; HASH is 12 hexadecimal digits of names and contents."""
    digest = hashlib.sha256()
    for name in _files(root):
        digest.update(f"{name}\0".encode() + hashlib.sha256((root / name).read_bytes()).digest())
    return (code / digest.hexdigest()[:12]).absolute()


def _files(root: Path) -> list[str]:
    """The rooms' files as sorted relative paths: what git tracks or would track, else whatever is there."""
    rooms = [room for room in ROOMS if (root / room).is_dir()]
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", *rooms],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]
    else:
        found = (path for room in rooms for path in (root / room).rglob("*") if path.is_file())
        names = [str(path.relative_to(root)) for path in found if "__pycache__" not in path.parts]
    return sorted(names)
