"""Every benchmark still runs, in its smallest form; what it measures then is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALLEST = {
    "detector.py": "--pictures 1 --side 128 --rounds 1",
    "duplicates.py": "--portraits 4 --rows 2000",
    "letterbox.py": "--pictures 1",
    "loader_memory.py": "--rows 2000",
    "preparation.py": "--pictures 8 --distinct 4",
    "scaling.py": "",
    "step.py": "--rounds 1 --steps 1 --batch 4",
    "synthetic.py": "--pictures 8",
}
LEFT_OUT = {
    "features.py",  # measures a backbone that somebody has trained
    "loader.py",  # takes minutes with any number of pictures: numba compiles FFCV's pipeline of eight views
}


def test_no_benchmark_is_forgotten() -> None:
    assert {path.name for path in (ROOT / "benchmarks").glob("*.py")} == {*SMALLEST, *LEFT_OUT}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs(name: str) -> None:
    command = [sys.executable, f"benchmarks/{name}", *SMALLEST[name].split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    if "one JSON object" in (ROOT / "benchmarks" / name).read_text():
        assert json.loads(done.stdout.splitlines()[-1])
