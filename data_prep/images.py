"""Reads a picture file as what a person sees: upright 8-bit RGB, whatever the file holds."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.names import text_to_name
from data_prep.stage import timed

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")
"""What is opened, by Pillow's names; whatever the file is called. Pillow knows some fifty more: vector formats that
it hands to Ghostscript, raw pixels without a signature, and parsers that hardly anybody tests."""
MAX_BYTES = 1 << 29
"""512 MiB: a file is held in memory as a whole."""
MAX_PIXELS = 1 << 27
"""134 million: more than the largest cameras give; decoding one takes a worker about 1 GB."""

# What is wrong with a file goes into its row, not to the terminal.
warnings.filterwarnings("ignore", module=r"PIL\.")

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class PictureError(Exception):
    """A file that is no usable picture. The message is the reason, without the path."""


def read_picture(path: str, sha256: str) -> Image.Image:
    """The picture at ``path``, as the image table spells it, if it is still the one that was listed.

    Raises:
        PictureError: as :func:`read_bytes` and :func:`decode_picture`, or another hash.
    """
    data = read_bytes(text_to_name(path))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise PictureError("the file has changed since it was listed")
    return decode_picture(data)


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes. Never waits for a pipe and never opens a device.

    Raises:
        PictureError: no file, not readable, or larger than ``MAX_BYTES``.
    """
    try:
        _file_size(os.stat(path), path)
        # Between the two calls a pipe may have taken its place: hence without waiting, and the second look.
        with (
            timed("read"),
            open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file,
        ):
            size = _file_size(os.fstat(file.fileno()), path)
            # Files of /proc say that they are empty, and some of them never end.
            data = file.read(MAX_BYTES + 1) if size else b""
    except OSError as error:
        nowhere = isinstance(error, FileNotFoundError) and os.path.islink(path)
        reason = "a link that leads nowhere" if nowhere else error.strerror
        raise PictureError(f"cannot be read: {reason}") from None
    if len(data) > MAX_BYTES:  # it has grown meanwhile
        raise PictureError(_TOO_MANY_BYTES)
    return data


_TOO_MANY_BYTES = f"larger than {MAX_BYTES >> 20} MiB"


def _file_size(status: os.stat_result, path: str | Path) -> int:
    """Bytes, if it is a file of a size that is read."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        if stat.S_ISDIR(status.st_mode) and os.path.islink(path):
            raise PictureError("is a link to a directory, which is not followed")
        raise PictureError(f"is {kind}, not a file")
    if status.st_size > MAX_BYTES:
        raise PictureError(_TOO_MANY_BYTES)
    return status.st_size


def decode_picture(data: bytes) -> Image.Image:
    """A picture file as upright RGB, decoded to its last row; of several pictures in a file, the first.

    The orientation in its metadata is applied, if it can be read; grey, CMYK, palette and 16-bit pictures become
    8-bit RGB; what is transparent shows white. Colour profiles are not applied.

    Raises:
        PictureError: empty, none of ``FORMATS``, damaged, of more than ``MAX_PIXELS``, or of pixels that have no
            place in 8 bits.
    """
    if not data:
        raise PictureError("empty file")
    try:
        with timed("decode"), _quiet(data), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(_TOO_MANY_PIXELS)
            if image.format == "PNG":
                _check_sums(data)
            image.load()
            # Garbage instead of metadata is no damage to the picture: it stays as it is.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except PictureError:
        raise
    except UnidentifiedImageError:
        known = _signature(data) is not None
        raise PictureError(_BROKEN_HEADER if known else "not a picture in any known format") from None
    except Image.DecompressionBombError:
        raise PictureError(_TOO_MANY_PIXELS) from None
    except MemoryError:
        raise PictureError("not enough memory to decode it; retry it with fewer workers") from None
    except Exception as error:  # Pillow reports damage with whatever its parsers run into
        raise PictureError(f"damaged: {_reason(error)}") from None


_BROKEN_HEADER = "damaged: its header cannot be read"
_TOO_MANY_PIXELS = f"more than {MAX_PIXELS // 10**6} million pixels"


def _signature(data: bytes) -> str | None:
    """The format whose signature ``data`` begins with."""
    Image.init()
    for name in FORMATS:
        accept = Image.OPEN[name][1]
        if accept is not None and accept(data[:16]) is True:
            return name
    return None


def _check_sums(data: bytes) -> None:
    """Every part of a PNG carries a checksum, which Pillow does not look at while it decodes."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()


_stderr = threading.Lock()


@contextlib.contextmanager
def _quiet(data: bytes) -> Iterator[None]:
    """Keep libtiff quiet: it writes its complaints to the terminal, past Python."""
    if data[:2] not in (b"II", b"MM"):
        yield
        return
    with _stderr, open(os.devnull, "wb") as nothing:
        kept = os.dup(2)
        try:
            os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB. Pillow's own conversion clips 16-bit grey at 255 and drops transparency."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = {"F": "floating-point", "I": "32-bit"}[image.mode]
        raise PictureError(f"{kind} pixels have no fixed white; save the picture with 8 or 16 bits")
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        eight = (deep >> 8).clip(0, 255).astype(np.uint8)
        if "transparency" in image.info:
            eight[deep == image.info["transparency"]] = 255
        image = Image.fromarray(eight)
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = image if image.mode == "RGBA" else image.convert("RGBA")  # a copy may be half a gigabyte
        upon = Image.new("RGB", image.size, "white")
        upon.paste(image, mask=image.getchannel("A"))
        return upon
    return image if image.mode == "RGB" else image.convert("RGB")


def difference_hashes(image: Image.Image) -> tuple[int, int]:
    """Two 64-bit dHashes: is each of 8x8 cells brighter than the one to its right, and than the one below?

    Near-duplicates differ in few bits of both. The first alone, the usual dHash, does not tell millions of faces
    apart that all lie at the same place of their crop (docs/data.md has the figures).
    """
    grey = image.convert("L")
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX))
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX))
    return _as_number(across[:, :-1] > across[:, 1:]), _as_number(down[:-1] > down[1:])


def _as_number(bits: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _reason(error: Exception) -> str:
    """'image file is truncated (12 bytes not processed)' -> one reason, so that a histogram can count it."""
    message = " ".join(str(error).partition(" (")[0].split())[:120]
    if isinstance(error, (OSError, ValueError, SyntaxError)):
        return message or "unreadable"
    return f"{type(error).__name__} {message}".rstrip()
