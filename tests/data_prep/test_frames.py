"""Videos to pictures, with videos as OpenCV writes and reads them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from configs import ConfigError
from data_prep.frames import NOTE, Settings, VideoError, find_videos, main, unpack, unpack_all

JPEG = Settings(every=1, format="jpg", quality=95, short=False)


def grey(number: int) -> int:
    """What the pixels of a frame are: each frame has a grey of its own."""
    return 10 + 12 * number % 240


def write(path: Path, count: int = 12, size: tuple[int, int] = (64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, size)
    assert writer.isOpened()
    for number in range(1, count + 1):
        # Left half red, so that a swap of red and blue shows.
        frame = np.full((size[1], size[0], 3), grey(number), np.uint8)
        frame[:, : size[0] // 2] = (0, 0, 250)
        writer.write(frame)
    writer.release()
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*.*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_every_frame_under_its_number(tmp_path: Path, kind: Any) -> None:
    video = write(tmp_path / "LeftVideoSN001_comp.avi")
    note = unpack(video, tmp_path / "out", JPEG.model_copy(update={"format": kind}))
    assert (note.frames, note.announced, note.pictures) == (12, 12, 12)
    names = sorted(path.name for path in (tmp_path / "out").glob(f"*.{kind}"))
    assert names == [f"{number:05d}.{kind}" for number in range(1, 13)]
    for number, name in enumerate(names, 1):
        pixels = np.asarray(Image.open(tmp_path / "out" / name)).astype(int)
        assert pixels.shape == (48, 64, 3)
        assert np.abs(pixels[:, 40:] - grey(number)).max() < 6
        assert np.abs(pixels[:, :24] - [250, 0, 0]).max() < 12


def test_a_png_holds_the_decoded_pixels(tmp_path: Path) -> None:
    video = write(tmp_path / "a.avi", count=2)
    unpack(video, tmp_path / "out", JPEG.model_copy(update={"format": "png"}))
    _, pixels = cv2.VideoCapture(str(video)).read()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/00001.png")), pixels[..., ::-1])


def test_every_fifth_keeps_its_number(tmp_path: Path) -> None:
    note = unpack(write(tmp_path / "a.avi"), tmp_path / "out", JPEG.model_copy(update={"every": 5}))
    assert (note.frames, note.pictures) == (12, 3)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.jpg")) == ["00001.jpg", "00006.jpg", "00011.jpg"]
    pixels = np.asarray(Image.open(tmp_path / "out/00011.jpg")).astype(int)
    assert np.abs(pixels[:, 40:] - grey(11)).max() < 6


def test_the_command_goes_on_where_it_was_stopped(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for name in ("day/a.avi", "b.avi", ".hidden.avi", "notes.txt"):
        write(tmp_path / "videos" / name) if name.endswith("avi") else (tmp_path / "videos" / name).touch()
    out = tmp_path / "out"
    # What a killed process leaves: some frames under a name of its own.
    (out / "day/.a.tmp").mkdir(parents=True)
    (out / "day/.a.tmp/00001.jpg").write_bytes(b"half")
    done = command("frames", tmp_path / "videos", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 24 pictures of 2 videos\n"
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == ["b", "day"]
    assert not list(out.rglob("*.tmp"))
    whole = contents(out / "b")
    (out / "day/a/frames.json").rename(out / "note")
    times = {path: path.stat().st_mtime_ns for path in (out / "b").iterdir()}
    with pytest.raises(ConfigError, match="day/a: is there already and not from this command"):
        main([str(tmp_path / "videos"), str(out)])
    (out / "note").rename(out / "day/a/frames.json")
    main([str(tmp_path / "videos"), str(out)])
    assert {path: path.stat().st_mtime_ns for path in (out / "b").iterdir()} == times
    assert contents(out / "b") == whole == contents(out / "day/a") | {NOTE: whole[NOTE]}


def test_another_way_or_another_video_is_refused(tmp_path: Path) -> None:
    video = write(tmp_path / "a.avi")
    unpack(video, tmp_path / "out", JPEG)
    with pytest.raises(ConfigError, match=r"out: made with .*every=1 .* now every=2"):
        unpack(video, tmp_path / "out", JPEG.model_copy(update={"every": 2}))
    unpack(video, tmp_path / "out", JPEG.model_copy(update={"short": True}))
    (tmp_path / "out/00003.jpg").unlink()
    with pytest.raises(ConfigError, match="not all of its 12 pictures are there"):
        unpack(video, tmp_path / "out", JPEG)
    (tmp_path / "out/00003.jpg").touch()
    os.utime(video, (1, 1))
    with pytest.raises(ConfigError, match=r"a\.avi has changed since"):
        unpack(video, tmp_path / "out", JPEG)


def test_a_cut_video_leaves_no_folder(tmp_path: Path) -> None:
    video = write(tmp_path / "cut.avi", size=(320, 240))
    data = video.read_bytes()
    video.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(VideoError, match=r"cut\.avi: \d frames can be decoded, its header says 12"):
        unpack(video, tmp_path / "out", JPEG)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.tmp").exists()
    note = unpack(video, tmp_path / "out", JPEG.model_copy(update={"short": True}))
    assert 0 < note.frames == note.pictures < note.announced == 12


def test_what_is_no_video_does_not_stop_the_others(tmp_path: Path) -> None:
    write(tmp_path / "in/good.avi")
    (tmp_path / "in/bad.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(
        ConfigError, match=r"bad\.mp4: no video that .*\(videos with a fault: 1; so far 1 of 2"
    ):
        unpack_all(find_videos(tmp_path / "in"), tmp_path / "out", JPEG, workers=2)
    assert json.loads((tmp_path / "out/good/frames.json").read_text())["pictures"] == 12
    assert not (tmp_path / "out/bad").exists()


def test_places_without_a_video(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        find_videos(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no video"):
        find_videos(tmp_path)
    (tmp_path / "a.avi").touch()
    (tmp_path / "a.MP4").touch()
    with pytest.raises(ConfigError, match=r"a\.\w+ would get the same folder; rename one"):
        find_videos(tmp_path)
    assert find_videos(tmp_path / "a.avi") == {"a": tmp_path / "a.avi"}


@pytest.mark.chaos
@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_of_a_video(tmp_path: Path, signal_sent: signal.Signals) -> None:
    write(tmp_path / "in/a.avi", count=1000)
    write(tmp_path / "in/b.avi", count=20)
    words = [sys.executable, "-m", "data_prep", "frames", tmp_path / "in", tmp_path / "out", "--workers", "1"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "out/.a.tmp/00050.jpg").exists():
        time.sleep(0.01)
    process.send_signal(signal_sent)
    process.wait(60)
    assert not (tmp_path / "out/a").exists()
    assert not (tmp_path / "out/b").exists(), "it was not its turn"
    assert (tmp_path / "out/.a.tmp").exists() == (signal_sent == signal.SIGKILL)
    main([str(tmp_path / "in"), str(tmp_path / "out")])
    assert len(list((tmp_path / "out/a").glob("*.jpg"))) == 1000
    assert len(list((tmp_path / "out/b").glob("*.jpg"))) == 20
    assert not (tmp_path / "out/.a.tmp").exists()
