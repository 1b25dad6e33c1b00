from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm import stages
from slurm.stages import Stage
from slurm.testbed import PACKAGES, Testbed, missing_programs

HERE = Path(__file__).parent


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """CONFIG and overrides of tests/slurm/tiny_stage.py, which stands in for data_prep and pretrain.

    The test's folder becomes the working directory, and ``run`` below it the run directory.
    """
    monkeypatch.syspath_prepend(str(HERE))
    schema = "tiny_stage:TinyConfig"
    one, many = (
        Stage(
            "tiny_stage",
            schema,
            finished=("tiny_stage:finished",),
            inputs=("data",),
            distributed=distributed,
            shared=not distributed,
        )
        for distributed in (False, True)
    )
    monkeypatch.setitem(stages.STAGES, "data_prep", one)
    monkeypatch.setitem(stages.STAGES, "pretrain", many)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("output: run\n")
    return ["tiny.yaml", f"cluster.environment={{PYTHONPATH: '{HERE}'}}"]


@pytest.fixture(scope="session")
def slurm_programs() -> None:
    """Skips where a testbed cannot be started."""
    if missing := missing_programs():
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install {PACKAGES}")
    if os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip("the Slurm testbed needs root on Linux: its GPUs are device nodes")


@pytest.fixture(scope="session")
def testbed(slurm_programs: None) -> Iterator[Testbed]:
    """A real Slurm of two nodes."""
    # Not pytest's folder: a Unix socket's name ends at 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    testbed = Testbed(folder, nodes=2, requeue_s=5)  # 120 s in life
    testbed.start()
    yield testbed
    testbed.stop()
    shutil.rmtree(folder)


@pytest.fixture
def on_testbed(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> Testbed:
    """The testbed is the cluster that sbatch talks to."""
    monkeypatch.setenv("SLURM_CONF", str(testbed.conf))
    return testbed
