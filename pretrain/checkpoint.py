"""Checkpoints that are whole or absent: ``checkpoints/step_00001234.pt``.

The newest good one is found by listing, so nothing else has to be kept in step with the files.
"""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from configs import Config
from data_prep.files import atomic_write

State = dict[str, Any]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"step_(\d{8})\.pt")


class CheckpointConfig(Config):
    """When to save and what to keep."""

    every_steps: int = Field(1000, ge=1, description="steps between checkpoints; the last step always saves")
    keep: int = Field(
        2, ge=2, description="newest checkpoints kept; at least 2, as the last may be unreadable"
    )
    keep_every_steps: int = Field(
        0, ge=0, description="also keep each multiple of this step for good; 0 = none"
    )


def save(folder: Path, step: int, state: State, config: CheckpointConfig) -> Path:
    """Write ``state`` as the checkpoint of ``step``, then remove what ``config`` does not keep."""
    path = _path(folder, step)
    with atomic_write(path) as file:
        torch.save(state, file)
    for old_step, old in _listing(folder)[config.keep :]:
        if not config.keep_every_steps or old_step % config.keep_every_steps:
            old.unlink()
    return path


def newest(folder: Path) -> tuple[int, State] | None:
    """Step and state of the newest readable checkpoint; unreadable ones are set aside with a warning."""
    for step, path in _listing(folder):
        try:
            return step, load(folder, step)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            aside = path.with_suffix(".unreadable")
            path.rename(aside)
            _log.warning("%s cannot be read (%s); set aside as %s", path, error, aside.name)
    return None


def load(folder: Path, step: int) -> State:
    """The state that was saved at ``step``, on the CPU; nothing in the file is executed."""
    state: State = torch.load(_path(folder, step), map_location="cpu", weights_only=True)
    return state


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def _listing(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in ``folder``, newest first."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.pt")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)
