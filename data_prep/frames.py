"""``python -m data_prep frames``: videos to pictures, a folder a video."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from configs import ConfigError
from data_prep.crop import encode
from data_prep.files import lock, publish, write_json

ABOUT = """\
Unpack the frames of videos: OUT/VIDEO/00001.jpg is the first frame of VIDEO. A video's folder appears when all its
frames are in it, each decoded again and found whole, so the same command goes on where it stopped. A video in a
sub-folder of VIDEOS gets the same sub-folder of OUT.

examples:
  python -m data_prep frames /data/disfa/Videos_LeftCamera /data/disfa/frames
  python -m data_prep frames clip.mp4 frames --every 25
"""
SUFFIXES = (".avi", ".mp4", ".m4v", ".mov", ".mkv", ".mpg", ".mpeg", ".wmv", ".webm")
NOTE = "frames.json"
Format = Literal["jpg", "png"]


class Settings(pydantic.BaseModel):
    """What is taken of a video, and how it is stored."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    every: int
    """Frames 1, 1 + every, 1 + 2 every, ... are taken."""
    format: Format
    quality: int
    """Of a JPEG, without chroma subsampling."""
    short: bool
    """Take a video that has other frames than its header says."""


class Note(pydantic.BaseModel):
    """``frames.json`` in a video's folder: what it was made from, and what is in it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    video: str
    bytes: int
    mtime_ns: int
    settings: Settings
    frames: int
    """Of the video."""
    announced: int
    """Frames that its header says."""
    pictures: int


class VideoError(Exception):
    """A video that cannot be unpacked. The message starts with its path."""


def find_videos(place: Path) -> dict[str, Path]:
    """The videos of a folder in any depth, or the one file: name below the folder, without ending -> path.

    Raises:
        ConfigError: there is none, or two would have one name.
    """
    if not place.exists():
        raise ConfigError(f"{place}: no such file or folder; check the path")
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    base = place if place.is_dir() else place.parent
    videos: dict[str, Path] = {}
    for path in files:
        below = path.relative_to(base)
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in below.parts):
            name = below.with_suffix("").as_posix()
            if name in videos:
                raise ConfigError(f"{path}: {videos[name].name} would get the same folder; rename one")
            videos[name] = path
    if not videos:
        raise ConfigError(f"{place}: no video ({' '.join(SUFFIXES)}) is there; check the path")
    return videos


def unpack(
    video: Path, folder: Path, settings: Settings, tick: Callable[[int], object] = lambda _: None
) -> Note:
    """Make ``folder`` from ``video``, unless it stands; ``tick`` is told of so many frames more.

    Raises:
        ConfigError: the folder was made from something else, or in another way.
        VideoError: the video cannot be read, or has other frames than its header says.
    """
    with lock(folder.with_name(f".{folder.name}.lock"), wait=True):
        if note := _standing(video, folder, settings):
            tick(note.frames)
            return note
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        temporary.mkdir()
        try:
            note = _write(video, temporary, settings, tick)
            write_json(temporary / NOTE, note.model_dump())
            publish(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return note


def announced_frames(video: Path) -> int:
    """Frames that the video's header says; raises VideoError where it is no video."""
    return int(_open(video).get(_cv2().CAP_PROP_FRAME_COUNT))


def _standing(video: Path, folder: Path, settings: Settings) -> Note | None:
    if not folder.exists():
        return None
    mend = "remove it, or give another OUT"
    if not (folder / NOTE).exists():
        raise ConfigError(f"{folder}: is there already and not from this command; {mend}")
    note = Note.model_validate_json((folder / NOTE).read_bytes())
    if note.settings.model_copy(update={"short": settings.short}) != settings:
        raise ConfigError(f"{folder}: made with {note.settings}, now {settings}; {mend}")
    stat = video.stat()
    if (note.bytes, note.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
        raise ConfigError(f"{folder}: {video} has changed since; {mend}")
    if len([name for name in os.listdir(folder) if name.endswith(note.settings.format)]) != note.pictures:
        raise ConfigError(f"{folder}: not all of its {note.pictures} pictures are there; {mend}")
    return note


def _write(video: Path, folder: Path, settings: Settings, tick: Callable[[int], object]) -> Note:
    stat = video.stat()
    announced, frames, pictures = announced_frames(video), 0, 0
    for frames, pixels in _frames(video, settings.every):
        if pixels is not None:
            _save(pixels, folder / f"{frames:05d}.{settings.format}", settings)
            pictures += 1
        tick(1)
    if not pictures or (frames != announced and not settings.short):
        # Where a decoder skips damage, all later frames get other numbers: then labels by frame are wrong.
        raise VideoError(
            f"{video}: {frames} frames can be decoded, its header says {announced}; get a whole copy, or add "
            "--short if that is how it is"
        )
    return Note(
        video=video.name,
        bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        settings=settings,
        frames=frames,
        announced=announced,
        pictures=pictures,
    )


def _frames(video: Path, every: int) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
    """Each frame's number, from 1, and of every n-th its (H, W, 3) RGB pixels."""
    capture, number = _open(video), 0
    while capture.grab():
        number += 1
        if (number - 1) % every:
            yield number, None
            continue
        good, pixels = capture.retrieve()
        if not good:
            raise VideoError(f"{video}: frame {number} cannot be decoded; get a whole copy")
        yield number, np.ascontiguousarray(pixels[..., ::-1])


def _open(video: Path) -> Any:
    cv2 = _cv2()
    # By name: without a backend OpenCV takes digits in a name for the pattern of a sequence of pictures.
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise VideoError(f"{video}: no video that OpenCV can read")
    return capture


def _cv2() -> Any:
    import cv2  # here: no other command needs it

    return cv2


def _save(pixels: NDArray[np.uint8], path: Path, settings: Settings) -> None:
    image = Image.fromarray(pixels)
    data = encode(image, settings.quality) if settings.format == "jpg" else _png(image)
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _png(image: Image.Image) -> bytes:
    """A PNG that was decoded again and found equal."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with Image.open(buffer) as again:
        if not np.array_equal(np.asarray(again), np.asarray(image)):
            raise OSError(f"a frame of {image.size} decodes differently; check Pillow's PNG codec")
    return buffer.getvalue()


def unpack_all(videos: dict[str, Path], out: Path, settings: Settings, workers: int) -> list[Note]:
    """Unpack every video; those that can be are, whatever the others do.

    Raises:
        ConfigError: some could not be unpacked; the message has the reason of the first.
    """
    notes, faults = [], []
    total = sum(_announced_or_none(video) for video in videos.values())
    stop = threading.Event()

    def tick(frames: int) -> None:
        if stop.is_set():
            raise VideoError("stopped")
        bar.update(frames)

    # Threads: OpenCV and Pillow let go of the interpreter while they decode and encode.
    with tqdm(total=total, desc="frames", unit="frame") as bar, ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(unpack, video, out / name, settings, tick) for name, video in videos.items()]
        try:
            for job in jobs:
                try:
                    notes.append(job.result())
                except (VideoError, ConfigError) as error:
                    faults.append(str(error))
        except BaseException:  # a full disk, Ctrl-C: not after hours of other videos
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if faults:
        raise ConfigError(
            f"{faults[0]} (videos with a fault: {len(faults)}; so far {len(notes)} of {len(videos)} videos are "
            "unpacked)"
        )
    return notes


def _announced_or_none(video: Path) -> int:
    try:
        return max(0, announced_frames(video))
    except VideoError:
        return 0


def main(argv: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep frames",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="a folder of videos, or one video")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th frame [1]")
    parser.add_argument(
        "--format", choices=("jpg", "png"), default="jpg", help="png is lossless, and large [jpg]"
    )
    parser.add_argument("--quality", type=int, default=95, help="of a JPEG, 1 to 100 [95]")
    parser.add_argument("--short", action="store_true", help="take videos with other frames than announced")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="videos at a time")
    args = parser.parse_args(argv)
    if args.every < 1 or args.workers < 1 or not 1 <= args.quality <= 100:
        parser.error("--every and --workers are from 1, --quality is 1 to 100")
    settings = Settings(every=args.every, format=args.format, quality=args.quality, short=args.short)
    notes = unpack_all(find_videos(args.videos), args.out, settings, args.workers)
    print(f"{args.out}: {sum(note.pictures for note in notes):,} pictures of {len(notes)} videos")
