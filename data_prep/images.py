"""Reads a picture file as what a person sees: upright 8-bit RGB, whatever the file holds."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.stage import timed


class PictureError(Exception):
    """A file that is no usable picture. The message is the reason, without the path."""


def read_picture(path: str | Path, sha256: str) -> Image.Image:
    """The picture in ``path``, see :func:`decode_picture`, if the file is still the one that was listed.

    Raises:
        PictureError: as :func:`read_bytes` and :func:`decode_picture`, or another hash.
    """
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise PictureError("the file has changed since it was listed")
    return decode_picture(data)


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes; PictureError if there are none to be had."""
    try:
        with timed("read"):
            return Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror}") from None


def decode_picture(data: bytes) -> Image.Image:
    """A picture file as upright RGB, decoded to its last row.

    EXIF orientation is applied; grey, CMYK, palette and 16-bit pictures become 8-bit RGB; what is transparent
    shows white. Colour profiles are not applied.

    Raises:
        PictureError: empty, not a picture, or truncated.
    """
    if not data:
        raise PictureError("empty file")
    try:
        with timed("decode"), Image.open(io.BytesIO(data)) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise PictureError("not a picture in any known format") from None
    # Pillow reports damage with whatever its parsers run into.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise PictureError(f"damaged: {_without_numbers(str(error))}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB. Pillow's own conversion clips 16-bit grey at 255 and drops transparency."""
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise PictureError("floating-point pixels have no fixed white; save the picture with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


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


def _without_numbers(message: str) -> str:
    """'image file is truncated (12 bytes not processed)' -> one reason, so that a histogram can count it."""
    return message.partition(" (")[0] or "unreadable"
