"""Checks of the run's folder and of a .beton."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path

from data_prep.beton import Beton, read_manifest
from data_prep.files import atomic_write
from slurm.doctor.findings import Finding, Result, check, fail, gib, ok, run, warn

NETWORK = (
    "nfs",
    "nfs4",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "cephfs",
    "wekafs",
    "panfs",
    "orangefs",
    "pvfs2",
    "cifs",
    "smb3",
)
MEMORY = ("tmpfs", "ramfs")
PER_PROCESS = 4 * 2**30
"""An allowance for what a process with a GPU needs beside the page cache, bytes."""
SAMPLES = 16
"""Pictures of a .beton that are decoded."""


def folder(path: Path, shared: bool) -> list[Finding]:
    """What a run asks of its folder ``path``, or of its nearest parent that exists.

    Args:
        path: The run's folder; nothing but a temporary is written.
        shared: Whether nodes other than this one have to see it.
    """
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=there) as name:
            probe = Path(name)
            checks = (rename(probe), flock(probe), file_clock(probe))
    except OSError as error:
        mend = "give another folder with --run, or make it writeable"
        return [Finding("run folder", "FAIL", f"{there}: {error.strerror}", mend)]
    return [file_system(there, shared), *checks, space(there)]


@check("run folder")
def file_system(path: Path, shared: bool, mounts: str | None = None) -> Result:
    """What kind of file system ``path`` is on. ``mounts``: the text of /proc/mounts."""
    kind, options = mount_of(path.resolve(), Path("/proc/mounts").read_text() if mounts is None else mounts)
    found = f"{path} is on {kind}"
    if kind in MEMORY:
        return warn(
            f"{found}: memory, gone with the machine", "give a folder on a disk with --run and output="
        )
    network = kind in NETWORK or kind.startswith("fuse.")
    lonely = [o for o in options if o in ("localflock", "nolock", "local_lock=all", "local_lock=flock")]
    if network and lonely:
        return warn(
            f"{found} with {lonely[0]}: locks hold within one node only",
            "start data_prep on one node at a time, or have it mounted with locks for all (Lustre: -o flock)",
        )
    if shared and not network:
        return warn(
            f"{found}: other nodes may not see it",
            "put code, data and runs on the cluster's shared file system",
        )
    return ok(found + (", shared with other nodes" if network else ""))


def mount_of(path: Path, mounts: str) -> tuple[str, list[str]]:
    """Type and options of the file system that holds ``path``, from the text of /proc/mounts."""
    kind, options, longest = "an unknown file system", "", -1
    for line in mounts.splitlines():
        _, point, this_kind, these_options, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        # Of two mounts at one point the later covers the earlier.
        if (point == "/" or path == Path(point) or Path(point) in path.parents) and len(point) >= longest:
            kind, options, longest = this_kind, these_options, len(point)
    return kind, options.split(",")


@check("rename, fsync")
def rename(probe: Path) -> Result:
    """A file is replaced as checkpoints are: temporary, fsync, rename, fsync of the folder."""
    path, start = probe / "file", time.perf_counter()
    for content in (b"old", b"new" * 2**18):
        with atomic_write(path) as file:
            file.write(content)
    if path.read_bytes() != content or os.listdir(probe) != ["file"]:
        return fail(
            "a replaced file was read back different",
            "give a folder on another file system with --run and output=",
        )
    took = (time.perf_counter() - start) / 2
    if took > 2:
        return warn(
            f"works, but takes {took:.1f} s a file",
            "use a faster file system, or a larger checkpoint.every_steps",
        )
    return ok(f"work, {took * 1e3:.0f} ms a file")


_TRY_LOCK = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "w"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("held")
else:
    print("free")
"""


@check("flock")
def flock(probe: Path) -> Result:
    """A file lock of this process keeps another process out, and only while it is held."""
    import fcntl

    mend = "have it mounted with locks (Lustre: -o flock, NFS: version 4), or run data_prep in one process at a time"
    path = probe / "lock"
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return fail(f"this file system has no file locks ({error.strerror})", mend)
        during = _other_process(path)
    after = _other_process(path)
    if (during, after) != ("held", "free"):
        return fail(f"while one process holds a lock another finds it {during}, afterwards {after}", mend)
    return ok("keeps a second process of this machine out")


def _other_process(path: Path) -> str:
    done = run(sys.executable, "-S", "-c", _TRY_LOCK, str(path))
    return done.stdout.strip() or (done.stderr.strip().splitlines() or ["silent"])[-1]


@check("file clock")
def file_clock(probe: Path, most: float = 2) -> Result:
    """The file server's clock against this machine's."""
    path, before = probe / "clock", time.time()
    with open(path, "w") as file:
        file.write("now")
        file.flush()
        os.fsync(file.fileno())
    return _skew(path.stat().st_mtime, before, time.time(), "the file server's", most)


def _skew(theirs: float, before: float, after: float, whose: str, most: float) -> Result:
    """A clock that was read between ``before`` and ``after``, judged."""
    # A file's time is that of the last tick, some milliseconds ago.
    off = theirs - after if theirs > after else min(0.0, theirs - before)
    if abs(off) <= most:
        return ok(f"{whose} is within {most:.0f} s of this machine's")
    ahead = "ahead of" if off > 0 else "behind"
    return warn(
        f"{whose} is {abs(off):.0f} s {ahead} this machine's: ages of files and logs mislead",
        "administrator: run chronyd or ntpd on both",
    )


@check("free space")
def space(path: Path, least: int = 2 * 2**30, wanted: int = 20 * 2**30) -> Result:
    """Bytes and files that may still be written; quotas are not seen by every file system."""
    status = os.statvfs(path)
    free, inodes = status.f_bavail * status.f_frsize, status.f_favail
    counted = f", {inodes:,} files" if status.f_files else ""
    found = f"{gib(free)}{counted} free"
    mend = "make room, or give a folder elsewhere with --run and output=; see also: quota -s, lfs quota -h"
    few = bool(status.f_files) and inodes < 10_000
    if free < least or (few and inodes < 100):
        return fail(found, mend)
    return warn(found, mend) if free < wanted or few else ok(found)


# --- the data ------------------------------------------------------------------------------------------------


@check("beton")
def beton(path: Path) -> Result:
    """The file is whole, agrees with its manifest, and some of its pictures decode. Its hash is not computed."""
    rows = Beton(path)
    manifest = read_manifest(path)
    again = "copy the file and its .json again, or write both with 'python -m data_prep write CONFIG'"
    if len(rows) != manifest.count:
        return fail(f"{path} has {len(rows)} rows, its manifest says {manifest.count}", again)
    shape = (manifest.image_size, manifest.image_size, 3)
    for i in range(0, len(rows), max(1, len(rows) // SAMPLES)):
        try:
            found = rows.image(i).shape
        except OSError as error:
            return fail(f"{path}: row {i} does not decode ({error})", again)
        if found != shape:
            return fail(f"{path}: row {i} is {found}, its manifest says {shape}", again)
    return ok(f"{path} is whole: {len(rows):,} pictures, {gib(path.stat().st_size)}")


@check("page cache")
def page_cache(size: int, memory: int, processes: int, whose: str) -> Result:
    """Whether the whole .beton stays in memory beside the processes of a node.

    Args:
        size: Of the .beton, bytes.
        memory: Of the node, or the share of it that the job asks for, bytes.
        processes: On the node.
        whose: Where ``memory`` was read, for the message.
    """
    room = memory - processes * PER_PROCESS
    there = f"{gib(memory)} of {whose}, {gib(PER_PROCESS)} a process set aside"
    if size <= room:
        return ok(f"{gib(size)} of pictures fit in the {there}")
    return warn(
        f"{gib(size)} of pictures do not stay in the {there}: decoding will wait for the file system",
        "ask for more memory, copy the .beton to the nodes' NVMe (docs/cluster.md), or use fewer of them (data.rows)",
    )


def memory_here() -> int:
    """Bytes that programs and their files could have on this machine now."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
