"""What a check says, and the wrapper that makes any function a check."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, ParamSpec

Verdict = Literal["ok", "warn", "FAIL", "skip"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: Verdict
    found: str
    mend: str = ""
    """What to do; empty where nothing needs to be done."""

    def __str__(self) -> str:
        return f"{self.verdict:<4}  {self.name:<16} {self.found}" + (f" -> {self.mend}" if self.mend else "")


class Result(NamedTuple):
    """What a check's function returns."""

    verdict: Verdict
    found: str
    mend: str = ""


def ok(found: str) -> Result:
    """Nothing to do."""
    return Result("ok", found)


def warn(found: str, mend: str) -> Result:
    """It works, but worse than it could."""
    return Result("warn", found, mend)


def fail(found: str, mend: str) -> Result:
    """A run would stop here."""
    return Result("FAIL", found, mend)


def skip(reason: str, mend: str = "") -> Result:
    """Cannot be asked here."""
    return Result("skip", reason, mend)


P = ParamSpec("P")


def check(name: str) -> Callable[[Callable[P, Result]], Callable[P, Finding]]:
    """Make a function a check called ``name``: an exception in it becomes a FAIL, never a traceback."""

    def decorate(function: Callable[P, Result]) -> Callable[P, Finding]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Finding:
            try:
                return Finding(name, *function(*args, **kwargs))
            except Exception as error:  # the patient may be ill in any way
                return Finding(name, "FAIL", first_line(error), "mend what it names, then ask again")

        return run

    return decorate


def first_line(error: BaseException) -> str:
    """``error`` in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def run(*command: str, timeout: float = 30, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program, with ``environment`` added, and keep its output as text.

    Raises:
        OSError: there is no such program.
        subprocess.TimeoutExpired: it did not end in time; it was killed.
    """
    # 'standard': Slurm's times in ISO 8601, whatever the user prefers to see.
    variables = {**os.environ, "SLURM_TIME_FORMAT": "standard", **environment}
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
    )


def gib(size: float) -> str:
    """A size in bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
