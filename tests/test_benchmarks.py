"""Every benchmark still runs, in its smallest form; what it measures then is not looked at."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pingouin
import pytest
from sklearn.linear_model import LinearRegression

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


def test_shares_of_the_features_are_those_of_pingouin_and_scikit_learn() -> None:
    functions = runpy.run_path(str(ROOT / "benchmarks/features.py"))
    rng = np.random.default_rng(0)
    people, by = np.repeat(np.arange(30), 4), rng.normal(size=(120, 3))
    feature = rng.normal(size=30)[people] + 0.5 * rng.normal(size=120) + by[:, 0]
    rated = pd.DataFrame({"person": people, "picture": np.tile(np.arange(4), 30), "value": feature})
    expected = pingouin.intraclass_corr(rated, "person", "picture", "value").iloc[0]["ICC"]
    assert functions["between"](feature[:, None], people) == pytest.approx(expected, abs=1e-6)
    plain = LinearRegression().fit(by, feature).score(by, feature)
    assert functions["explained"](feature[:, None], by) == pytest.approx(1 - (1 - plain) * 119 / 116)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs(name: str) -> None:
    command = [sys.executable, f"benchmarks/{name}", *SMALLEST[name].split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    if "one JSON object" in (ROOT / "benchmarks" / name).read_text():
        assert json.loads(done.stdout.splitlines()[-1])
