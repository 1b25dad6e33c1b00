"""Files that are either whole or absent: atomic writes, hashes, and the claim and commit of a shard."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pydantic

from configs import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)
_HOST = socket.gethostname()


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary beside ``path``; on success it replaces ``path``, on an error it is removed.

    The data is on disk (fsync of the file, then of its folder) before the name appears, so a reader sees the
    old file or the new one, and a power cut leaves no empty file under the final name. Text is UTF-8. An OSError
    of a full disk names ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Host and process id keep two writers of one path from sharing a temporary.
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    except OSError as error:
        if error.errno and not error.filename:  # a failed write does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path, stem: str = "") -> None:
    """Remove what killed processes have left of ``folder``'s files that begin with ``stem``.

    Only for one that holds these files against other processes.
    """
    for stale in folder.glob(f".{stem}*.tmp"):
        stale.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished ``temporary`` to ``path`` and make the new name itself durable."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def lock(path: Path, wait: bool) -> Iterator[bool]:
    """Hold ``path`` against other processes; yields False if another one has it and not ``wait``.

    The file tells the id of the process that held it last.

    A lock of the operating system, not a marker file: it ends with the process, so that a killed one leaves
    nothing behind that somebody would have to clear. On a file system without locks everybody holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except BlockingIOError:
            mine = False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning("%s: this file system has no locks; see to it that nobody else writes there", path)
            mine = True
        if mine:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield mine


# Lustre mounted without -o flock, NFS without its lock service.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def write_json(path: str | Path, tree: Any) -> None:
    """Write ``tree`` as indented JSON, atomically. NaN is refused: it is not JSON."""
    with atomic_write(path, "w") as file:
        json.dump(tree, file, indent=1, allow_nan=False)
        file.write("\n")


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- shards --------------------------------------------------------------------------------------------------


class Commit(pydantic.BaseModel):
    """The mark that a shard is whole: a small JSON beside its table, written last."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    stage: str
    version: int
    """Of the stage's algorithm."""
    settings: dict[str, Any]
    """The configuration fields that alter the table, as they were."""
    inputs: str
    """Hash of what the shard was made from."""
    rows: int
    failed: int
    """Rows whose column ``error`` is not empty."""
    errors: dict[str, int]
    """How often each error occurs."""
    sha256: str
    """Of the table's bytes."""
    seconds: float
    timings: dict[str, float] = {}
    """Seconds by what they were spent on (:func:`data_prep.stage.timed`); the rest of ``seconds`` has no name."""


def digest(tree: Any) -> str:
    """16 hexadecimal digits of a JSON-like tree; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def shard_paths(folder: Path, number: int) -> tuple[Path, Path]:
    """The table and the commit mark of shard ``number``."""
    return folder / f"{number:05d}.parquet", folder / f"{number:05d}.json"


def read_commit(folder: Path, number: int) -> Commit | None:
    """The commit mark of a shard, or None while the shard has none; ConfigError if it is damaged."""
    path = shard_paths(folder, number)[1]
    if not path.exists():
        return None
    try:
        return Commit.model_validate_json(path.read_bytes())
    except pydantic.ValidationError:
        raise ConfigError(f"{path}: damaged; remove it, and its stage makes this shard again") from None


def claim(folder: Path, number: int, wait: bool) -> AbstractContextManager[bool]:
    """Hold shard ``number`` against other processes; see :func:`lock`."""
    return lock(_lock_path(folder, number), wait)


def last_holder(folder: Path, number: int) -> int | None:
    """The id of the process that claimed shard ``number`` last."""
    path = _lock_path(folder, number)
    text = path.read_text() if path.exists() else ""
    return int(text) if text.isdecimal() else None


def _lock_path(folder: Path, number: int) -> Path:
    return folder / f".{number:05d}.lock"


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet table atomically, after reading it back and finding it equal."""
    import pyarrow.parquet as pq  # here: a run that finds all its shards done never loads pyarrow

    with atomic_write(path) as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        if not pq.read_table(file.name, partitioning=None).equals(table):
            raise OSError(f"{path}: read back different from what was written; check the disk")


def commit(folder: Path, number: int, table: pa.Table, **mark: Any) -> Commit:
    """Write the table of a shard, then its mark. ``mark`` holds the other fields."""
    table_path, mark_path = shard_paths(folder, number)
    remove_temporaries(folder, f"{table_path.stem}.")
    return _write_shard(table_path, mark_path, table, mark)


def _write_shard(table_path: Path, mark_path: Path, table: pa.Table, mark: dict[str, Any]) -> Commit:
    write_table(table_path, table)
    errors = Counter(error for error in table["error"].to_pylist() if error)
    done = Commit(
        rows=len(table), failed=errors.total(), errors=errors, sha256=sha256_file(table_path), **mark
    )
    write_json(mark_path, done.model_dump())
    return done


def replace(folder: Path, number: int, table: pa.Table, **mark: Any) -> Commit:
    """As :func:`commit`, in the place of a shard that cannot be made again: killed at any moment, either the old one
    is whole or :func:`end_replacing` brings the new one to its place.
    """
    done = _write_shard(*_next_paths(folder, number), table, mark)
    end_replacing(folder, number)
    return done


def end_replacing(folder: Path, number: int) -> None:
    """Bring to its end a :func:`replace` that was killed; nothing if there was none."""
    next_table, next_mark = _next_paths(folder, number)
    table_path, mark_path = shard_paths(folder, number)
    remove_temporaries(folder, f".{number:05d}.next.")
    if not next_mark.exists():  # it is not whole
        next_table.unlink(missing_ok=True)
        return
    if next_table.exists():
        publish(next_table, table_path)
    publish(next_mark, mark_path)


def _next_paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f".{number:05d}.next.parquet", folder / f".{number:05d}.next.json"
