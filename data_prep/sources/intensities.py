"""Intensities of action units as coders write them down: a file a unit, a line ``FRAME,INTENSITY`` a frame."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

_LINE = re.compile(r"\s*(?P<frame>\d{1,9})\s*,\s*(?P<value>\d{1,2}(?:\.0*)?)\s*(?:,.*)?", re.ASCII)
_FRAME = re.compile(r"\s*(\d{1,9})\b", re.ASCII)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intensities:
    """One unit in one video."""

    file: str
    values: dict[int, int | None] = field(default_factory=dict)
    """Frame -> 0 to 5, or None where the coder could not tell."""
    errors: dict[int, str] = field(default_factory=dict)
    """Frame -> file, line and what is wrong with it."""


def read_intensities(path: Path, missing: int | None = None) -> Intensities:
    """The lines of ``path``; ``missing`` is what a coder writes who cannot tell. No file: no lines, and a warning.

    Of two lines for a frame neither counts. A first line that does not start with a digit is a header; later ones
    that name no frame cost a warning.
    """
    found = Intensities(path.name)
    if not path.is_file():
        _log.warning("%s: no such file; nobody knows this unit there", path)
        return found
    strays = []
    with open(path, encoding="utf-8-sig", errors="backslashreplace") as file:
        for number, line in enumerate(file, 1):
            place, text = f"{path.name}:{number}", line.strip()
            if not text or (number == 1 and not text[0].isdigit()):
                continue
            if frame := _FRAME.match(text):
                _add(found, int(frame[1]), text, place, missing)
            else:
                strays.append(f"{place}: names no frame: '{text[:80]}'")
    if strays:
        _log.warning("%s%s", strays[0], f" (and {len(strays) - 1} more lines)" if strays[1:] else "")
    return found


def _add(found: Intensities, frame: int, text: str, place: str, missing: int | None) -> None:
    match = _LINE.fullmatch(text)
    value = int(float(match["value"])) if match else -1
    if frame in found.values or frame in found.errors:
        found.errors.setdefault(frame, f"{place}: frame {frame} has a line before")
    elif value == missing:
        found.values[frame] = None
    elif 0 <= value <= 5:
        found.values[frame] = value
    else:
        found.errors[frame] = f"{place}: not FRAME,INTENSITY with 0 to 5: '{text[:80]}'"
