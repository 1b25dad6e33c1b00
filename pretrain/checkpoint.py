"""Checkpoints that are whole or absent: ``checkpoints/step_00001234.pt``.

The newest good one is found by listing, so nothing else has to be kept in step with the files. A file is what
``torch.save`` writes, followed by its SHA-256: torch itself reads a flipped bit in a weight without a word.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch.utils._pytree import tree_map_only

from configs import Config
from data_prep.files import atomic_write

State = dict[str, Any]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"step_(\d{8})\.pt")
_DIGEST = hashlib.sha256().digest_size


class CheckpointConfig(Config):
    """When to save and what to keep."""

    every_steps: int = Field(1000, ge=1, description="steps between checkpoints; the last step always saves")
    keep: int = Field(
        2, ge=2, description="newest checkpoints kept; at least 2, as the last may be unreadable"
    )
    keep_every_steps: int = Field(
        0, ge=0, description="also keep each multiple of this step for good; 0 = none"
    )
    on_error: Literal["stop", "continue"] = Field(
        "stop", description="when a checkpoint cannot be written, say because the disk is full"
    )


class CheckpointError(OSError):
    """A checkpoint could not be written; those before it are whole."""


class Writer:
    """Writes checkpoints behind the run's back: a copy in memory at once, the file in a thread.

    At most one is under way; the next waits for it.
    """

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self._folder, self._config = folder, config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[Path] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait for the last file; its failure does not hide an error of the body."""
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()

    def write(self, step: int, state: State) -> None:
        """Start to write the checkpoint of ``step``."""
        self.wait()
        self._under_way = self._thread.submit(save, self._folder, step, _copied(state), self._config)

    def wait(self) -> None:
        """Until the file is on disk.

        Raises:
            CheckpointError: if it could not be written and ``on_error`` is ``stop``.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        try:
            under_way.result()
        except OSError as error:
            kept = _listing(self._folder)
            message = (
                f"{self._folder}: the checkpoint could not be written ({error.strerror or error}); "
                f"the newest whole one is {kept[0][1].name if kept else 'none'}; make room"
            )
            if self._config.on_error == "stop":
                raise CheckpointError(f"{message}, then start the same command again") from error
            _log.warning("%s; training goes on", message)


def _copied(state: State) -> State:
    """The same tree with all tensors copied to the host, so that training may go on changing its own."""
    copied: State = tree_map_only(torch.Tensor, lambda x: x.detach().to("cpu", copy=True), state)
    return copied


def save(folder: Path, step: int, state: State, config: CheckpointConfig) -> Path:
    """Write ``state`` as the checkpoint of ``step``, then remove what ``config`` does not keep."""
    path = _path(folder, step)
    # In memory first: torch.save turns a full disk into a riddle about positions in a zip file.
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_write(path) as file:
        file.write(content.getbuffer())
        file.write(hashlib.sha256(content.getbuffer()).digest())
    for old_step, old in _listing(folder)[config.keep :]:
        if not config.keep_every_steps or old_step % config.keep_every_steps:
            old.unlink()
    return path


def newest(folder: Path) -> tuple[int, State] | None:
    """Step and state of the newest whole checkpoint; damaged ones are set aside with a warning.

    For the main rank at the start of a run: it also removes what a killed process left half-written.
    """
    for temporary in folder.glob(".step_*.tmp"):
        temporary.unlink()
    for step, path in _listing(folder):
        try:
            return step, load(folder, step)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            aside = path.with_suffix(".unreadable")
            path.rename(aside)
            _log.warning("%s is damaged (%s); set aside as %s", path, error, aside.name)
    return None


def steps(folder: Path) -> list[int]:
    """Of which there are checkpoints, ascending."""
    return [step for step, _ in reversed(_listing(folder))]


def load(folder: Path, step: int) -> State:
    """The state that was saved at ``step``, on the CPU; nothing in the file is executed.

    Raises:
        ValueError: if the file is not what was written.
    """
    whole = _path(folder, step).read_bytes()
    content, digest = whole[:-_DIGEST], whole[-_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its SHA-256 is not the one at its end")
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def _listing(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in ``folder``, newest first."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.pt")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)
