"""Submission to this machine, for real, and the sbatch text."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import ConfigError
from slurm import cluster
from slurm.__main__ import main
from slurm.submit import prepare

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "configs/cluster"


def _seen(rank: int = 0) -> dict[str, object]:
    seen: dict[str, object] = json.loads(Path(f"run/rank_{rank}.json").read_text())
    return seen


def test_local_job_is_followed_to_its_end(tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "data_prep", *tiny, "--local", "--watch"]) == 0
    *lines, last = capfd.readouterr().out.splitlines()
    assert [line.partition("] ")[2] for line in lines] == ["line 0", "line 1", "line 2", "bar 2"]
    assert all(re.match(r"\[data_prep 0:\d\d\] ", line) for line in lines)
    assert Path(f"run/logs/001/{last}_0_log.out").exists()


def test_job_runs_the_snapshot_and_the_resolved_config(tiny: list[str]) -> None:
    assert main(["submit", "data_prep", *tiny, "lines=1", "--local", "--watch"]) == 0
    seen, here = _seen(), Path.cwd()
    assert seen["cwd"] == str(here), "paths in configs start where the user submitted"
    assert Path(str(seen["configs"])).is_relative_to(here / "run/code")
    assert seen["argv"] == [str(here / "run/logs/001/config.json")]
    assert json.loads(Path("run/logs/001/config.json").read_text()) == {"output": "run", "lines": 1}


def test_threads_and_gpus_of_a_local_job(tiny: list[str]) -> None:
    assert main(["submit", "data_prep", *tiny, "cluster.cpus_per_task=3", "--local", "--watch"]) == 0
    assert (_seen()["OMP_NUM_THREADS"], _seen()["CUDA_VISIBLE_DEVICES"]) == ("3", "")
    assert main(["submit", "data_prep", *tiny, "--local", "--watch"]) == 0
    assert _seen()["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))


def test_two_local_processes_meet(tiny: list[str]) -> None:
    arguments = ["submit", "pretrain", *tiny, "cluster.tasks_per_node=2", "gather=true", "--local", "--watch"]
    assert main(arguments) == 0
    assert [_seen(rank)["sum"] for rank in range(2)] == [1.0, 1.0]
    assert _seen(0)["MASTER_PORT"] == _seen(1)["MASTER_PORT"]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("fail=true", "ValueError: the picture is upside down"),
        ("kill_rank=0", "process 0 ended without a result"),
        ("refuse=true", "error: data: nothing in it"),
    ],
)
def test_failure_is_the_exit_code_and_says_why(
    tiny: list[str], capfd: pytest.CaptureFixture[str], override: str, reason: str
) -> None:
    assert main(["submit", "data_prep", *tiny, override, "--local", "--watch"]) == 1
    message = capfd.readouterr().err
    assert reason in message
    assert "run/logs/001/" in message


def test_failure_of_another_process_is_found(tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["submit", "pretrain", *tiny, "cluster.tasks_per_node=2", "kill_rank=1", "--local", "--watch"]
    assert main(arguments) == 1
    assert "process 1 ended without a result" in capfd.readouterr().err


def _command(*arguments: str) -> list[str]:
    """The command line in a process of its own, with the tiny stage in its table."""
    program = (
        "import sys, configs.cli; from slurm import stages; from slurm.__main__ import main;"
        "stages.STAGES['data_prep'] = stages.Stage('tiny_stage', 'tiny_stage:TinyConfig');"
        "configs.cli.run(main)"
    )
    return [sys.executable, "-c", program, *arguments]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}


def test_submitting_returns_before_the_job_ends_and_prints_the_id_last(tiny: list[str]) -> None:
    command = _command("submit", "data_prep", *tiny, "lines=300", "seconds=1", "--local")
    job = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True).stdout
    pid = int(job.splitlines()[-1])
    assert Path(f"/proc/{pid}").exists(), "it outlives its submission"
    os.kill(pid, 2)


def test_a_stopped_watcher_takes_its_local_job_along(tiny: list[str]) -> None:
    command = _command("submit", "data_prep", *tiny, "lines=100", "seconds=1", "--local", "--watch")
    watcher = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    assert "line 0" in watcher.stdout.readline()
    job = int(next(Path("run/logs/001").glob("*_0_log.out")).name.split("_")[0])
    watcher.send_signal(signal.SIGINT)
    watcher.communicate(timeout=20)
    assert watcher.returncode == 130
    deadline = time.monotonic() + 20
    while Path(f"/proc/{job}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{job}").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=absent.beton"], "data: absent.beton: no such file"),
        (["linse=3"], "linse: unknown key; did you mean 'lines'"),
        (["cluster.nodes=2"], "local executor has one node"),
        (["cluster.gpus_per_node=9"], "9 asked for, there are 0"),
        (["--after", "12"], "local jobs start at once"),
    ],
)
def test_mistakes_are_refused_before_anything_is_queued(
    tiny: list[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        main(["submit", "data_prep", *tiny, "--local", *arguments])
    assert not Path("run").exists()


def test_no_sbatch_is_said_before_anything_is_written(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="there is no sbatch here"):
        main(["submit", "data_prep", *tiny, "--cluster", str(CLUSTERS / "dgx.yaml")])
    assert not Path("run").exists()


def test_a_dry_run_needs_no_data(tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "data_prep", *tiny, "data=absent.beton", "--local", "--dry-run"]) == 0
    command = capfd.readouterr().out.splitlines()[-1]
    assert f"OMP_NUM_THREADS={len(os.sched_getaffinity(0))}" in command
    assert not Path("run").exists()


def test_a_batch_that_the_processes_cannot_share_is_refused(tiny: list[str]) -> None:
    with pytest.raises(ConfigError, match="100 cannot be shared by 64 processes; give 64"):
        prepare("pretrain", tiny[0], ["batch_size=100"], cluster=str(CLUSTERS / "dgx.yaml"))


def test_debug_runs_in_this_process(tiny: list[str]) -> None:
    assert main(["submit", "data_prep", *tiny, "--local", "--debug"]) == 0
    assert Path(str(_seen()["configs"])).is_relative_to(ROOT / "configs")


def test_bad_usage_is_code_2(tiny: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["submit", "cook", *tiny])
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["submit", "data_prep", *tiny, "--local", "--quick"])
    assert stop.value.code == 2


@pytest.mark.parametrize("name", ["dgx", "university"])
def test_sbatch_text_is_the_golden_one(tiny: list[str], capfd: pytest.CaptureFixture[str], name: str) -> None:
    """After a wanted change: FACEREP_GOLDEN=write python -m pytest tests/slurm -k golden."""
    assert (
        main(
            [
                "submit",
                "pretrain",
                tiny[0],
                "--cluster",
                f"{CLUSTERS}/{name}.yaml",
                "--after",
                "7",
                "--dry-run",
            ]
        )
        == 0
    )
    text = capfd.readouterr().out.replace(sys.executable, "PYTHON").replace(str(Path.cwd()), "/home/me")
    text = re.sub(r"code/[0-9a-f]{12}", "code/HASH", text)
    golden = Path(__file__).parent / "golden" / f"{name}.sh"
    if os.environ.get("FACEREP_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()
    assert not Path("run").exists(), "a dry run writes nothing"


def test_spaces_and_shell_characters_stay_what_they_are(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "my $(touch stolen) runs; 'x'"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "tiny.yaml").write_text("output: a b\n")
    text = prepare("data_prep", "tiny.yaml", cluster=str(CLUSTERS / "dgx.yaml")).text()
    text = re.sub(r"^( *)(srun|env)\b", r"\1printf '%s\\n' \2", text, flags=re.MULTILINE)
    printed = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout
    words = printed.splitlines()
    assert f"{folder}/a b/logs/001/%j_%t_log.out" in words
    begin, end = words.index("begin"), words.index("end")
    assert words[begin + 1] == words[end + 1] == f"{folder}/a b/logs/001"
    assert not (folder / "stolen").exists()


def test_no_value_of_a_config_becomes_a_command(tiny: list[str], tmp_path: Path) -> None:
    evil = "x'; touch stolen; $(touch stolen) `touch stolen`"
    fields = [f"cluster.{name}={json.dumps(evil)}" for name in ("partition", "account", "constraint")]
    fields += [f"cluster.{name}=[{json.dumps(evil)}]" for name in ("container", "srun_args")]
    fields += [f"cluster.environment={{A: {json.dumps(evil)}}}"]
    for value in fields:
        text = prepare("data_prep", tiny[0], [value], cluster=str(CLUSTERS / "dgx.yaml")).text()
        text = re.sub(r"^( *)(srun|env)\b", r"\1: \2", text, flags=re.MULTILINE)
        subprocess.run(["bash", "-c", text], check=True)
        assert evil in "".join(shlex.split(text, comments=False)), value
    assert not (tmp_path / "stolen").exists()
    with pytest.raises(ConfigError, match="partition"):
        prepare(
            "data_prep", tiny[0], ['cluster.partition="a\\ntouch stolen"'], cluster=str(CLUSTERS / "dgx.yaml")
        )


def test_slurm_is_used_only_where_it_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def scontrol(text: str, code: int) -> None:
        for name, body in {"sbatch": "", "scontrol": f"echo '{text}'; exit {code}"}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    scontrol("", 1)
    assert not cluster.slurm_answers(), "installed, but no cluster"
    scontrol("Slurmctld(primary) at a is UP", 0)
    assert cluster.slurm_answers()
    scontrol("Slurmctld(primary) at a is DOWN", 1)
    with pytest.raises(ConfigError, match="is DOWN; try again later, or add --local"):
        cluster.slurm_answers()
