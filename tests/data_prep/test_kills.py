"""Killed, interrupted, out of space, damaged: the same command ends with what an undisturbed run makes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from data_prep.synthetic import portrait
from data_prep.synthetic.config import SyntheticConfig

PICTURES, SHARD = 56, 8
KILLS = 20
STAGES = ("images", "faces", "crops")

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """56 rendered portraits and two files that are none: eight shards."""
    folder = tmp_path_factory.mktemp("kills") / "pictures"
    folder.mkdir()
    for i in range(PICTURES):
        Image.fromarray(portrait(5, i, SyntheticConfig()).image).save(folder / f"{i:02d}.jpg", quality=90)
    (folder / "03.txt").write_text("no picture")
    (folder / "41.txt").touch()
    return folder


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run."""
    output = tmp_path_factory.mktemp("whole") / "set"
    process = start(pictures, output)
    assert process.wait(300) == 0, errors(process)
    return output


def start(
    pictures: Path, output: Path, *more: str, stage: str = "all", **options: Any
) -> subprocess.Popen[str]:
    """The command, at the head of a process group of its own."""
    words = [sys.executable, "-m", "data_prep", stage, str(pictures), f"output={output}"]
    words += [f"shard_size={SHARD}", "workers=2", "detect.size=256", *more]
    return subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def errors(process: subprocess.Popen[str]) -> str:
    """What a person sees of it at the end, without the bars."""
    assert process.stderr is not None
    lines = re.split(r"[\r\n]+", process.stderr.read())
    return "\n".join(line for line in lines if line.strip() and not re.match(r"\w+: +\d+%", line))


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


TIMES = {"seconds", "timings", "throughput"}


def everything(output: Path) -> dict[str, Any]:
    """What a run has made. Left out: how long it took, where it lies, and the locks."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        name = path.relative_to(output).as_posix()
        if path.suffix == ".json":
            tree = json.loads(path.read_text())
            found[name] = (
                {k: v for k, v in tree.items() if k not in TIMES} if isinstance(tree, dict) else tree
            )
        elif path.suffix == ".yaml":
            found[name] = re.sub(r"workers: \d+", "", path.read_text().replace(str(output), "OUTPUT"))
        elif path.suffix == ".html":
            found[name] = "kept face" in path.read_text("utf-8")
        elif path.suffix != ".lock":
            found[name] = path.read_bytes()
    return {name: value for name, value in found.items() if not name.endswith(".lock")}


def assert_same(output: Path, whole: Path) -> None:
    ours, theirs = everything(output), everything(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []


def finish(pictures: Path, output: Path, whole: Path) -> None:
    process = start(pictures, output)
    assert process.wait(300) == 0, errors(process)
    assert_same(output, whole)


# --- kill -9 -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_with_the_same_bytes(
    pictures: Path, whole: Path, tmp_path: Path
) -> None:
    """A moment is when so many more shards are done, and a little later, or soon after the start."""
    rng = np.random.default_rng(20)
    output = tmp_path / "set"
    victims = rng.permutation(np.repeat([kill_worker, kill_writer, kill_run, kill_group], [7, 4, 5, 4]))
    kills = 0
    while kills < KILLS:
        goal, delay = (
            done(output) + int(rng.integers(0, 6)),
            float(rng.choice([0, 0.03, 0.3, 2]) * rng.random()),
        )
        process = start(pictures, output)
        if victims[kills](process, output, goal, delay):
            print(f"{victims[kills].__name__} at {goal} + {delay:.2f} s: {done(output)} shards done")
            kills += 1
            leave_torn_files(output)
        else:  # it was done before its moment came: the next one begins anew
            assert process.wait(300) == 0, errors(process)
            assert_same(output, whole)
            shutil.rmtree(output)
    finish(pictures, output, whole)


def done(output: Path) -> int:
    """Shards, of all stages."""
    return sum(len(list((output / stage).glob("*.json"))) for stage in STAGES)


def wait_for(process: subprocess.Popen[str], moment: Callable[[], Any]) -> Any:
    """What ``moment`` gives, once it gives something; None if the process ends before."""
    while process.poll() is None:
        try:
            if found := moment():
                return found
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.002)
    return None


def comes(process: subprocess.Popen[str], output: Path, goal: int, delay: float) -> bool:
    """Wait for the moment; is the process still there then?"""
    wait_for(process, lambda: done(output) >= goal)
    time.sleep(delay)
    return process.poll() is None


def kill_worker(process: subprocess.Popen[str], output: Path, goal: int, delay: float) -> bool:
    """One of the workers. The command notices, says so, and the other worker does not stay."""
    if not comes(process, output, goal, delay) or not (found := wait_for(process, lambda: workers(process))):
        return False
    found[-1].kill()
    code = process.wait(60)
    said = errors(process)
    if code == 0:  # the stage ended before anybody could miss it
        return True
    assert code == 1, said
    assert re.search(
        r"error: .*stage '\w+': .* died \(killed by signal 9, .*run the same command again", said
    ), said
    assert "Traceback" not in said
    assert not psutil.wait_procs(found, timeout=20)[1]
    return True


def kill_writer(process: subprocess.Popen[str], output: Path, goal: int, delay: float) -> bool:
    """The command while it writes set.beton."""
    if not wait_for(process, lambda: list(output.glob(".set.beton.[!e]*.tmp"))):
        return False
    return kill_run(process, output, 0, delay / 20)


def kill_run(process: subprocess.Popen[str], output: Path, goal: int, delay: float) -> bool:
    """The command itself; its workers follow."""
    if not comes(process, output, goal, delay):
        return False
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    if process.wait() != -signal.SIGKILL:
        return False
    assert not psutil.wait_procs(children, timeout=20)[1], "workers must not outlive the command"
    return True


def kill_group(process: subprocess.Popen[str], output: Path, goal: int, delay: float) -> bool:
    """All of them at once."""
    if not comes(process, output, goal, delay):
        return False
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def leave_torn_files(output: Path) -> None:
    """As a kill in the middle of each write would, beside those of this one."""
    for stage in STAGES:
        for number in range(-(-(PICTURES + 2) // SHARD)):
            if (output / stage).exists() and not (output / stage / f"{number:05d}.json").exists():
                (output / stage / f".{number:05d}.parquet.elsewhere.1.tmp").write_bytes(b"PAR1 half a table")
                (output / stage / f".{number:05d}.json.elsewhere.1.tmp").write_bytes(b"{")
    if output.exists():
        (output / ".set.beton.elsewhere.1.tmp").write_bytes(b"half a set")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_killed_while_a_stage_ends_do_not_make_it_wait(
    pictures: Path, whole: Path, tmp_path: Path
) -> None:
    """An idle worker holds the lock of the queue that the others wait for."""
    output = tmp_path / "set"
    shutil.copytree(whole, output)
    shards = -(-(PICTURES + 2) // SHARD)
    for moment in range(12):
        shutil.rmtree(output / "crops")
        process = start(pictures, output, stage="crop")
        wait_for(process, lambda: len(list((output / "crops").glob("*.json"))) == shards)
        time.sleep(moment * 0.004)
        with suppress(psutil.NoSuchProcess):
            for worker in workers(process)[-1:]:
                worker.kill()
        assert process.wait(60) in (0, 1)
        again = start(pictures, output, stage="crop")
        assert again.wait(60) == 0, errors(again)


def test_a_killed_worker_is_named_with_its_shard_and_the_mend(
    pictures: Path, whole: Path, tmp_path: Path
) -> None:
    """A worker that is stopped holds its shard; when it is killed, that is the shard that is named."""
    output = tmp_path / "set"
    process = start(pictures, output, stage="list")
    held = wait_for(process, lambda: holders(output / "images", workers(process)))
    assert held
    number, worker = held
    worker.kill()
    assert process.wait(60) == 1
    said = errors(process)
    assert said.startswith(
        f"error: {output}/images/{number:05d}.parquet: stage 'list': the worker process"
    ), said
    assert "died (killed by signal 9, as the system does when memory runs out)" in said
    assert "run the same command again; with workers=1 it needs less memory" in said
    again = start(pictures, output, stage="list")
    assert again.wait(60) == 0, errors(again)
    for path in (output / "images").glob("*.parquet"):
        assert path.read_bytes() == (whole / "images" / path.name).read_bytes()


def holders(folder: Path, processes: list[psutil.Process]) -> tuple[int, psutil.Process] | None:
    """A shard and the stopped worker that is at it."""
    for process in processes:
        process.suspend()
        for path in folder.glob(".*.lock"):
            if path.read_text() == str(process.pid) and not (folder / f"{path.stem[1:]}.json").exists():
                return int(path.stem[1:]), process
        process.resume()
    return None


@pytest.mark.slow
def test_of_two_commands_at_once_one_is_killed(pictures: Path, whole: Path, tmp_path: Path) -> None:
    for goal in (3, 11, 19):
        output = tmp_path / f"{goal}" / "set"
        first, second = (start(pictures, output, "workers=1") for _ in range(2))
        kill_group(first, output, goal, 0.01)
        assert second.wait(300) == 0, errors(second)
        assert_same(output, whole)


# --- told to stop --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_told_to_stop_it_leaves_at_once_and_nothing_behind(
    number: signal.Signals, code: int, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "set"
    process = start(pictures, output, stage="list")
    children = wait_for(process, lambda: list((output / "images").glob(".*.lock")) and workers(process))
    for child in children:
        child.suspend()  # as if its shard took hours
    # Ctrl-C reaches the whole group, what ends a job the command alone.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    assert process.wait(60) == code
    if number == signal.SIGTERM:
        for child in children:
            child.resume()  # one that is stopped cannot follow the command
    assert not psutil.wait_procs(children, timeout=20)[1]
    said = errors(process)
    assert "Traceback" not in said
    assert ("interrupted" in said) == (number == signal.SIGINT)


# --- a full disk ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "limit", "name"),
    [
        ("list", 1000, r"images/0000\d\.parquet"),
        ("detect", 1000, r"faces/0000\d\.parquet"),
        ("crop", 20_000, r"crops/0000\d\.parquet"),
        ("write", 300_000, r"set\.beton"),
        ("report", 20_000, r"report/index\.html"),
    ],
)
def test_no_room_for_a_file_is_said_and_the_same_command_goes_on(
    stage: str, limit: int, name: str, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "set"
    shutil.copytree(whole, output)
    for later in {"list": STAGES, "detect": STAGES[1:], "crop": STAGES[2:]}.get(stage, ()):
        shutil.rmtree(output / later)
    for path in () if stage == "report" else output.glob("set.*"):
        path.unlink()
    shutil.rmtree(output / "report")
    words = ["prlimit", f"--fsize={limit}", sys.executable, "-m", "data_prep", stage, str(pictures)]
    words += [f"output={output}", f"shard_size={SHARD}", "workers=2", "detect.size=256"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(rf"error: .*File too large.*{name}", last), result.stderr
    assert "Traceback" not in result.stderr
    assert not list(output.rglob("*.tmp"))
    finish(pictures, output, whole)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_again_and_again(pictures: Path, whole: Path, disk: Path) -> None:
    need = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    size, stopped = 64 << 10, []
    while True:
        process = start(pictures, disk / "set")
        if process.wait(300) == 0:
            break
        said = errors(process)
        assert process.returncode == 1, said
        assert re.search(r"error: .*No space left on device", said), said
        assert "Traceback" not in said
        stopped.append(said)
        size *= 2
        assert size < 8 * need
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    assert len(stopped) >= 3
    assert_same(disk / "set", whole)


# --- damage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.parametrize(
    ("table", "stage"), [("images", "detect"), ("faces", "crop"), ("crops", "write"), ("images", "report")]
)
def test_a_damaged_table_is_noticed_by_the_stage_that_reads_it(
    damage: str, table: str, stage: str, whole: Path, pictures: Path, tmp_path: Path
) -> None:
    from configs import ConfigError
    from data_prep.__main__ import load_config
    from data_prep.pipeline import Pipeline

    output = tmp_path / "set"
    shutil.copytree(whole, output)
    path = output / table / "00002.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-100], "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    made = {"detect": "faces", "crop": "crops", "write": "set.json", "report": "report"}[stage]
    shutil.rmtree(output / made) if (output / made).is_dir() else (output / made).unlink()
    given = [f"output={output}", f"shard_size={SHARD}", "workers=1", "detect.size=256"]
    pipeline = Pipeline(load_config(str(pictures), given))
    with pytest.raises(
        (RuntimeError, OSError), match=rf"{table}/00002\.parquet: damaged.*remove 00002\.json"
    ):
        pipeline.run([stage])
    assert not (output / "set.json").exists() or stage != "write"

    (output / table / "00002.json").write_text("{")
    with pytest.raises(ConfigError, match=rf"{table}/00002\.json: damaged; remove it"):
        pipeline.run(["list", "detect", "crop", "write", "report"])
    (output / table / "00002.json").unlink()
    pipeline.run(["list", "detect", "crop", "write", "report"])
    assert path.read_bytes() == (whole / table / "00002.parquet").read_bytes()
