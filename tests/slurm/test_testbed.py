"""On a real Slurm: sbatch, srun, dependencies. Two nodes that share this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from configs import ConfigError
from slurm.__main__ import main
from slurm.submit import prepare
from slurm.testbed import Testbed

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SMALL = ["cluster.memory=1GB", "cluster.cpus_per_task=1", "cluster.gpus_per_node=2"]


def _seen(run: str = "run", rank: int = 0) -> dict[str, object]:
    seen: dict[str, object] = json.loads(Path(f"{run}/rank_{rank}.json").read_text())
    return seen


def _state(testbed: Testbed, job: str) -> str:
    return testbed.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}").strip()


def _wait(testbed: Testbed, job: str, states: set[str], seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while (state := _state(testbed, job)) not in states and time.monotonic() < deadline:
        time.sleep(0.5)
    return state


def test_two_nodes_with_two_processes_meet(
    on_testbed: Testbed, tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "pretrain", *tiny, *SMALL, "cluster.nodes=2", "gather=true", "--watch"]) == 0
    *lines, job = capfd.readouterr().out.splitlines()
    assert "line 2" in lines[2]
    seen = [_seen(rank=rank) for rank in range(4)]
    assert [s["sum"] for s in seen] == [6.0] * 4
    assert [s["LOCAL_RANK"] for s in seen] == ["0", "1", "0", "1"]
    assert all(s["CUDA_VISIBLE_DEVICES"] == "0,1" for s in seen), "Slurm gave each node two of its GPUs"
    assert _state(on_testbed, job) == "COMPLETED"


def test_dry_run_is_what_sbatch_gets(
    on_testbed: Testbed, tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["submit", "pretrain", *tiny, *SMALL, "cluster.setup=[export A='b c']", "lines=0"]
    assert main([*arguments, "--dry-run"]) == 0
    promised = capfd.readouterr().out.rstrip("\n")
    assert main([*arguments, "--watch"]) == 0
    job = capfd.readouterr().out.splitlines()[-1]
    assert Path(f"run/logs/001/{job}_submission.sh").read_text().rstrip("\n") == promised


def test_a_path_with_shell_characters_reaches_the_job(on_testbed: Testbed, tiny: list[str]) -> None:
    run = "my $(touch stolen) run; 'x'"
    assert main(["submit", "data_prep", *tiny, *SMALL, f'output="{run}"', "--watch"]) == 0
    assert _seen(run)["cwd"] == str(Path.cwd())
    assert not list(Path.cwd().rglob("stolen"))


def test_a_dead_process_ends_the_job(
    on_testbed: Testbed, tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["submit", "pretrain", *tiny, *SMALL, "gather=true", "kill_rank=1", "--watch"]
    assert main(arguments) == 1
    output = capfd.readouterr()
    assert "process" in output.err
    assert _state(on_testbed, output.out.splitlines()[-1]) == "FAILED"


def test_sbatch_refusal_is_one_line(on_testbed: Testbed, tiny: list[str]) -> None:
    with pytest.raises(ConfigError, match="sbatch refused the job") as caught:
        main(["submit", "data_prep", *tiny, *SMALL, "cluster.partition=nowhere"])
    assert "\n" not in str(caught.value)
    assert "invalid partition" in str(caught.value)


CHAIN = """
stages:
  - {name: photos, stage: data_prep, config: tiny.yaml, overrides: [output=photos, seconds=1]}
  - {name: swav, stage: pretrain, config: tiny.yaml, overrides: [output=swav], after: [photos]}
  - {name: end, stage: data_prep, config: tiny.yaml, overrides: [output=end], after: [swav]}
"""


def _queue(tiny: list[str], capfd: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
    """Queue the chain; the three job ids."""
    Path("chain.yaml").write_text(CHAIN)
    common = [f"{name}.{o}" for name in ("photos", "swav", "end") for o in (tiny[1], *SMALL)]
    assert main(["pipeline", "chain.yaml", *common, *overrides]) == 0
    return [line.split("job ")[1].split(",")[0] for line in capfd.readouterr().out.splitlines()]


def test_chain_waits_for_each_stage(
    on_testbed: Testbed, tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    photos, swav, end = _queue(tiny, capfd, "swav.data=photos/rank_0.json")
    assert _state(on_testbed, swav) == "PENDING"
    assert _wait(on_testbed, end, {"COMPLETED", "FAILED", "CANCELLED"}) == "COMPLETED"
    made = [Path(f"{run}/rank_0.json").stat().st_mtime for run in ("photos", "swav", "end")]
    assert made == sorted(made)
    assert _state(on_testbed, photos) == _state(on_testbed, swav) == "COMPLETED"


def test_a_failed_stage_removes_what_depends_on_it(
    on_testbed: Testbed, tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    photos, swav, end = _queue(tiny, capfd, "photos.fail=true")
    assert _wait(on_testbed, end, {"CANCELLED"}) == "CANCELLED"
    assert _state(on_testbed, photos) == "FAILED"
    assert _state(on_testbed, swav) == "CANCELLED"
    assert not Path("swav/rank_0.json").exists()


def test_a_preempted_job_starts_again_with_another_port(on_testbed: Testbed, tiny: list[str]) -> None:
    """The signal of a preemption: the job is requeued and runs to its end, from its own files."""
    submission = prepare("pretrain", tiny[0], [tiny[1], *SMALL, "lines=15", "seconds=1", "gather=true"])
    job = submission.send().note.job
    log = submission.run / f"logs/001/{job}_0_log.out"
    deadline = time.monotonic() + 60
    while not (log.exists() and "line 1" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.5)
    on_testbed.run("scancel", "--signal=USR2", job)
    assert _wait(on_testbed, job, {"PENDING"}) == "PENDING"
    assert _wait(on_testbed, job, {"COMPLETED", "FAILED"}, seconds=90) == "COMPLETED"
    assert log.read_text().count("line 0") == 2
    from slurm.job import port

    assert _seen()["MASTER_PORT"] == str(port(job, "1")) != str(port(job, "0"))
