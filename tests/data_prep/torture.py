"""A folder of what a crawl may contain. Every kind of input says what is to become of it.

Each kind is a small function under :func:`accept` or :func:`reject`. It returns the bytes of a file, or, with
``entry=True``, makes something at a path. A rejected one gives the beginning of its reason.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from data_prep.synthetic import portrait
from data_prep.synthetic.config import SyntheticConfig

UNKNOWN = "not a picture in any known format"
DAMAGED = "damaged: "
HEADER = "damaged: its header cannot be read"
PIXELS = "more than 134 million pixels"
FACES = SyntheticConfig(yaw=10, pitch=5, roll=5, expression=0.3, occlusion=0, face=(0.5, 0.6))


class Dice:
    """What the generators draw from: a seeded generator, and portraits whose face is found."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.portraits = [Image.fromarray(portrait(seed, i, FACES).image) for i in range(8)]
        self._encoded: dict[tuple[Any, ...], bytes] = {}

    def face(self) -> Image.Image:
        """256 x 256 RGB."""
        return self.portraits[self.rng.integers(len(self.portraits))].copy()

    def encoded(self, kind: str, mode: str = "RGB", **options: Any) -> bytes:
        """A portrait as a file."""
        which = int(self.rng.integers(len(self.portraits)))
        key = (which, kind, mode, *sorted(options.items()))
        if key not in self._encoded:
            self._encoded[key] = encode(self.portraits[which].convert(mode), kind, **options)
        return self._encoded[key]

    def noise(self, length: int) -> bytes:
        return self.rng.bytes(length)

    def cut(self, data: bytes) -> bytes:
        """Without its end: at least a twentieth of it."""
        return data[: self.rng.integers(16, len(data) * 19 // 20)]

    def among(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]


@dataclass(frozen=True)
class Kind:
    name: str
    make: Callable[..., Any]
    reason: str | None
    """Beginning of the reason; None: accepted."""
    face: bool
    """Is there a face that is found?"""
    suffixes: tuple[str, ...]
    count: int
    entry: bool


@dataclass
class Folder:
    """A torture folder as it was made."""

    root: Path
    reasons: dict[bytes, str] = field(default_factory=dict)
    """Rejected: path below the root -> beginning of the reason."""
    faces: dict[bytes, bool] = field(default_factory=dict)
    """Accepted: path below the root -> is there a face that is found?"""


KINDS: list[Kind] = []


def accept(*suffixes: str, face: bool = True, count: int = 5, entry: bool = False) -> Callable[..., Any]:
    return _register(None, face, suffixes or (".jpg",), count, entry)


def reject(reason: str, *suffixes: str, count: int = 5, entry: bool = False) -> Callable[..., Any]:
    return _register(reason, False, suffixes or (".jpg",), count, entry)


def _register(
    reason: str | None, face: bool, suffixes: tuple[str, ...], count: int, entry: bool
) -> Callable[..., Any]:
    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        KINDS.append(Kind(make.__name__, make, reason, face, suffixes, count, entry))
        return make

    return register


def build(root: Path, seed: int, good: int, share: float = 1.0) -> Folder:
    """Fill ``root`` with ``good`` plain pictures and ``share`` of the kinds' counts, at least one of each."""
    folder = Folder(root)
    dice = Dice(seed)
    for i in range(good):
        name = b"%d/good_%04d.jpg" % (i % 7, i)
        _write(folder, name, dice.encoded("JPEG", quality=int(dice.among(70, 85, 95))))
        folder.faces[name] = True
    for kind in KINDS:
        for i in range(max(1, round(kind.count * share))):
            suffix = kind.suffixes[i % len(kind.suffixes)]
            name = f"{kind.name}/{kind.name}_{i:03d}{suffix}".encode()
            if kind.entry:
                (root / kind.name).mkdir(exist_ok=True)
                for made, reason, face in kind.make(dice, root, name):
                    _note(folder, made, reason, face)
            else:
                _write(folder, name, kind.make(dice))
                _note(folder, name, kind.reason, kind.face)
    return folder


def _note(folder: Folder, name: bytes, reason: str | None, face: bool) -> None:
    if reason is None:
        folder.faces[name] = face
    else:
        folder.reasons[name] = reason


def _write(folder: Folder, name: bytes, data: bytes) -> None:
    path = os.path.join(os.fsencode(folder.root), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- cut short -----------------------------------------------------------------------------------------------


@reject(DAMAGED, ".jpg", ".jpeg", count=60)
def truncated_jpeg(dice: Dice) -> bytes:
    return dice.cut(dice.encoded("JPEG", quality=90, progressive=bool(dice.rng.integers(2))))


@reject(DAMAGED, ".png", count=60)
def truncated_png(dice: Dice) -> bytes:
    return dice.cut(dice.encoded("PNG", dice.among("RGB", "RGBA", "L", "P")))


@reject(DAMAGED, ".gif", count=40)
def truncated_gif(dice: Dice) -> bytes:
    return dice.cut(dice.encoded("GIF"))


@reject(DAMAGED, ".webp", count=40)
def truncated_webp(dice: Dice) -> bytes:
    return dice.cut(dice.encoded("WEBP", lossless=bool(dice.rng.integers(2))))


@reject(DAMAGED, ".tif", ".tiff", count=60)
def truncated_tiff(dice: Dice) -> bytes:
    return dice.cut(dice.encoded("TIFF", compression=dice.among(None, "tiff_lzw", "tiff_deflate", "jpeg")))


@reject(DAMAGED, ".bmp", count=40)
def truncated_bmp(dice: Dice) -> bytes:
    return dice.cut(dice.encoded("BMP", dice.among("RGB", "L", "P")))


@reject(DAMAGED, ".ppm", count=20)
def truncated_ppm(dice: Dice) -> bytes:
    return dice.cut(dice.encoded("PPM", dice.among("RGB", "L")))


@reject(DAMAGED, ".png")
def png_without_its_end(dice: Dice) -> bytes:
    return dice.encoded("PNG")[: -int(dice.rng.integers(5, 13))]


@reject(UNKNOWN, ".jpg", ".png")
def signature_cut(dice: Dice) -> bytes:
    return dice.encoded(dice.among("JPEG", "PNG", "TIFF"))[: int(dice.rng.integers(1, 3))]


@accept(".gif")
def animation_cut_after_its_first_frame(dice: Dice) -> bytes:
    return _animated(dice, "GIF")[:-60]


# --- flipped bytes -------------------------------------------------------------------------------------------


@reject(DAMAGED, ".png", count=60)
def png_pixels_flipped(dice: Dice) -> bytes:
    """The decoder may show something all the same; the checksum tells."""
    data = bytearray(dice.encoded("PNG"))
    start = data.index(b"IDAT") + 4
    data[dice.rng.integers(start, len(data) - 16)] ^= int(dice.rng.integers(1, 256))
    return bytes(data)


@reject(DAMAGED, ".png", count=20)
def png_header_flipped(dice: Dice) -> bytes:
    data = bytearray(dice.encoded("PNG"))
    data[dice.rng.integers(8, 33)] ^= int(dice.rng.integers(1, 256))
    return bytes(data)


@accept(".jpg", face=False, count=60)
def jpeg_pixels_flipped(dice: Dice) -> bytes:
    """Nothing in a JPEG tells that its coefficients are not those that were written; libjpeg goes on."""
    data = bytearray(dice.encoded("JPEG", quality=90))
    start = data.index(b"\xff\xda") + 14
    for _ in range(dice.rng.integers(1, 4)):
        at = int(dice.rng.integers(start, len(data) - 4))
        if 0xFF not in data[at - 1 : at + 2]:  # no marker is hit, and none is made
            data[at] = int((data[at] + dice.rng.integers(1, 255)) % 255)
    return bytes(data)


@reject(DAMAGED, ".jpg", count=20)
def jpeg_without_quantisation(dice: Dice) -> bytes:
    return dice.encoded("JPEG").replace(b"\xff\xdb\x00\x43", b"\xff\xed\x00\x43")


@reject(DAMAGED, ".jpg")
def jpeg_of_no_height(dice: Dice) -> bytes:
    return _resized_jpeg(dice, 256, 0)


@reject(DAMAGED, ".jpg")
def jpeg_of_twelve_bits(dice: Dice) -> bytes:
    data = bytearray(dice.encoded("JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


@accept(".bmp", ".ppm", face=False, count=10)
def raw_pixels_flipped(dice: Dice) -> bytes:
    data = bytearray(dice.encoded(dice.among("BMP", "PPM")))
    data[dice.rng.integers(len(data) // 2, len(data))] ^= 255
    return bytes(data)


@reject(UNKNOWN, ".jpg", count=10)
def signature_flipped(dice: Dice) -> bytes:
    data = bytearray(dice.encoded(dice.among("JPEG", "PNG", "GIF", "BMP", "WEBP")))
    data[0] ^= 0x10
    return bytes(data)


# --- no pictures ---------------------------------------------------------------------------------------------


@reject("empty file", ".jpg", ".png", ".gif", count=20)
def empty(dice: Dice) -> bytes:
    return b""


@reject(UNKNOWN, ".jpg", ".png")
def whitespace(dice: Dice) -> bytes:
    return b" \r\n\t" * int(dice.rng.integers(1, 500))


@reject(UNKNOWN, ".jpg")
def zeros(dice: Dice) -> bytes:
    return bytes(int(dice.rng.integers(1, 100_000)))


@reject(UNKNOWN, ".jpg", ".bin", count=30)
def random_bytes(dice: Dice) -> bytes:
    return b"\x01" + dice.noise(int(dice.rng.integers(1, 20_000)))


@reject(UNKNOWN, ".jpg", ".jpeg", ".png", count=30)
def text_called_a_picture(dice: Dice) -> bytes:
    return dice.among(
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b'{"stat": "fail", "code": 1, "message": "Photo not found"}',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"subDirectory_filePath,face_x,face_y\n1/a.jpg,1,2\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
        b"#!/bin/sh\nexit 1\n",
    )


@reject(UNKNOWN, ".jpg", ".png", count=30)
def another_kind_of_file(dice: Dice) -> bytes:
    return dice.among(
        b"\x00\x00\x00\x20ftypisom" + dice.noise(3000),
        b"\x00\x00\x00\x18ftypheic" + dice.noise(3000),
        b"\x1f\x8b\x08" + dice.noise(500),
        b"\x7fELF" + dice.noise(500),
        b"SQLite format 3\0" + dice.noise(500),
        b"ID3\x03" + dice.noise(500),
        b"8BPS\0\1" + bytes(6) + dice.noise(500),
        _zip(dice),
    )


def _zip(dice: Dice) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("face.jpg", dice.encoded("JPEG"))
    return buffer.getvalue()


@reject(UNKNOWN, ".eps", ".pdf", ".jpg", count=50)
def picture_of_a_format_that_is_not_opened(dice: Dice) -> bytes:
    """Pillow would open them all, an EPS by running Ghostscript."""
    kind = dice.among("EPS", "PDF", "ICO", "ICNS", "TGA", "PCX", "SGI", "DDS", "JPEG2000")
    return dice.encoded(kind)


@reject(UNKNOWN, ".jpg")
def jpeg_after_something_else(dice: Dice) -> bytes:
    return b"\n" + dice.encoded("JPEG")


# --- sizes ---------------------------------------------------------------------------------------------------


@accept(".jpg", face=False)
def one_pixel(dice: Dice) -> bytes:
    return encode(dice.face().resize((1, 1)), dice.among("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"))


@accept(".jpg", ".png", face=False, count=6)
def thirty_thousand_pixels_long(dice: Dice) -> bytes:
    size = dice.among((30_000, 1), (1, 30_000), (30_000, 200), (200, 30_000))
    return encode(dice.face().resize(size, Image.Resampling.NEAREST), dice.among("JPEG", "PNG"))


def _png(width: int, height: int, rows: bytes, colour: int = 2, bits: int = 8, **chunks: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    parts = (b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")
    first, *rest = (chunk(name, data) for name, data in parts)
    return b"\x89PNG\r\n\x1a\n" + first + extra + b"".join(rest)


def _plain_rows(bytes_a_row: int, height: int) -> bytes:
    """Compressed rows of zeros, made without holding them."""
    pack = zlib.compressobj(1)
    block = bytes((1 + bytes_a_row) * 100)
    return b"".join(pack.compress(block) for _ in range(height // 100)) + pack.flush()


def _resized_jpeg(dice: Dice, width: int, height: int) -> bytes:
    data = bytearray(dice.encoded("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@reject(PIXELS, ".png", count=10)
def png_that_says_it_is_huge(dice: Dice) -> bytes:
    return _png(
        *dice.among((30_000, 30_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)), zlib.compress(bytes(9))
    )


@reject(PIXELS, ".png", count=1)
def png_that_is_huge(dice: Dice) -> bytes:
    """112 MB of zeros in 0.5 MB: 30,000 x 30,000 pixels of one bit."""
    return _png(30_000, 30_000, _plain_rows(3750, 30_000), colour=0, bits=1)


@reject(PIXELS, ".jpg", count=10)
def jpeg_that_says_it_is_huge(dice: Dice) -> bytes:
    return _resized_jpeg(dice, *dice.among((65_500, 65_500), (30_000, 30_000), (65_500, 2_500)))


@reject(PIXELS, ".gif")
def gif_that_says_it_is_huge(dice: Dice) -> bytes:
    data = dice.encoded("GIF")
    return data[:6] + struct.pack("<HH", 65_535, 65_535) + data[10:]


@reject(PIXELS, ".bmp")
def bmp_that_says_it_is_huge(dice: Dice) -> bytes:
    data = dice.encoded("BMP")
    return data[:18] + struct.pack("<ii", 30_000, 30_000) + data[26:]


@reject(PIXELS, ".ppm")
def ppm_that_says_it_is_huge(dice: Dice) -> bytes:
    return b"P6 30000 30000 255\n" + dice.noise(100)


@reject(PIXELS, ".tif")
def tiff_that_says_it_is_huge(dice: Dice) -> bytes:
    data = dice.encoded("TIFF")
    for tag in (256, 257):
        data = data.replace(struct.pack("<HHII", tag, 4, 1, 256), struct.pack("<HHII", tag, 4, 1, 30_000))
    return data


@reject(PIXELS, ".webp")
def webp_that_says_it_is_huge(dice: Dice) -> bytes:
    data = _animated(dice, "WEBP")
    side = (16_383).to_bytes(3, "little")
    at = data.index(b"VP8X") + 12
    return data[:at] + side + side + data[at + 6 :]


@accept(".png", face=False, count=1)
def just_below_the_limit_and_turned(dice: Dice) -> bytes:
    """400 MB of pixels, all of them held twice while they are turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return _png(11_500, 11_500, _plain_rows(3 * 11_500, 11_500), eXIf=exif.tobytes()[6:])


@accept(".png", face=False, count=1)
def just_below_the_limit_and_transparent(dice: Dice) -> bytes:
    return _png(11_500, 11_500, _plain_rows(4 * 11_500, 11_500), colour=6)


@reject("damaged", ".png")
def png_of_no_width(dice: Dice) -> bytes:
    return _png(0, 9, zlib.compress(bytes(9)))


@reject(DAMAGED, ".ppm")
def ppm_of_no_width(dice: Dice) -> bytes:
    return b"P6 0 0 255\n" + dice.noise(100)


@reject("larger than 512 MiB", count=2, entry=True)
def large_file(dice: Dice, root: Path, name: bytes) -> Made:
    with open(_at(root, name), "wb") as file:
        file.write(dice.encoded("JPEG"))
        file.truncate(10 << 30)  # nothing but a hole
    yield name, "larger than 512 MiB", False


# --- pixels --------------------------------------------------------------------------------------------------


@accept(".jpg", count=20)
def cmyk_jpeg(dice: Dice) -> bytes:
    """Inverted and with Adobe's marker, as Photoshop saves them."""
    return dice.encoded("JPEG", "CMYK", quality=90)


@accept(".tif")
def cmyk_tiff(dice: Dice) -> bytes:
    return dice.encoded("TIFF", "CMYK")


@accept(".jpg", ".png", count=10)
def grey(dice: Dice) -> bytes:
    return dice.encoded(dice.among("JPEG", "PNG", "BMP", "TIFF", "WEBP"), "L")


@accept(".png", ".tif", count=20)
def sixteen_bits_grey(dice: Dice) -> bytes:
    deep = np.asarray(dice.face().convert("L")).astype(np.uint16) * 257
    return _opencv(dice.among(".png", ".tiff"), deep)


@accept(".tif")
def sixteen_bits_big_endian(dice: Dice) -> bytes:
    deep = Image.fromarray(np.asarray(dice.face().convert("L")).astype(">u2") * 257)
    return encode(deep, "TIFF")


@accept(".pgm")
def sixteen_bits_pgm(dice: Dice) -> bytes:
    deep = np.asarray(dice.face().convert("L")).astype(">u2") * 257
    return b"P5 256 256 65535\n" + deep.tobytes()


@accept(".png", ".tif", count=20)
def sixteen_bits_colour(dice: Dice) -> bytes:
    deep = np.asarray(dice.face()).astype(np.uint16) * 257
    return _opencv(dice.among(".png", ".tiff"), deep[..., ::-1])


def _opencv(suffix: str, pixels: np.ndarray) -> bytes:
    """Written by somebody else than Pillow, which does not write them all."""
    return cv2.imencode(suffix, pixels)[1].tobytes()


@accept(".png", ".gif", count=10)
def palette(dice: Dice) -> bytes:
    return encode(
        dice.face().quantize(256, Image.Quantize.FASTOCTREE), dice.among("PNG", "GIF", "BMP", "TIFF")
    )


@accept(".png", ".gif", count=20)
def palette_with_transparency(dice: Dice) -> bytes:
    few = dice.face().quantize(200, Image.Quantize.FASTOCTREE)
    if dice.rng.integers(2):
        return encode(few, "GIF", transparency=3)
    return encode(few, "PNG", transparency=bytes([0, 128, *[255] * 198]))


@accept(".png", ".webp", count=10)
def transparent(dice: Dice) -> bytes:
    image = dice.face()
    image.putalpha(Image.radial_gradient("L").point(lambda value: min(255, 2 * (255 - value))))
    return encode(image, dice.among("PNG", "WEBP", "TIFF"))


@accept(".png", ".tif")
def grey_and_alpha(dice: Dice) -> bytes:
    return dice.encoded(dice.among("PNG", "TIFF"), "LA")


@accept(".tif")
def grey_and_premultiplied_alpha(dice: Dice) -> bytes:
    data = dice.encoded("TIFF", "LA")
    extra = struct.pack("<HHI", 338, 3, 1)  # ExtraSamples: 2, plain alpha -> 1, premultiplied
    assert extra + b"\x02\0" in data
    return data.replace(extra + b"\x02\0", extra + b"\x01\0")


@accept(".png", ".tif", face=False)
def one_bit(dice: Dice) -> bytes:
    return dice.encoded(dice.among("PNG", "TIFF", "PPM", "BMP"), "1")


@accept(".tif", count=10)
def unusual_tiff(dice: Dice) -> bytes:
    mode, compression = dice.among(
        ("YCbCr", "jpeg"), ("YCbCr", None), ("RGB", "tiff_lzw"), ("RGB", "packbits"), ("LAB", None)
    )
    return dice.encoded("TIFF", mode, compression=compression) if mode != "LAB" else _lab(dice)


def _lab(dice: Dice) -> bytes:
    from PIL import ImageCms

    transform = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    image = ImageCms.applyTransform(dice.face(), transform)
    assert image is not None
    return encode(image, "TIFF")


@reject("floating-point pixels have no fixed white", ".tif", count=10)
def floating_point(dice: Dice) -> bytes:
    return dice.encoded("TIFF", "F")


@reject("32-bit pixels have no fixed white", ".tif")
def thirty_two_bits(dice: Dice) -> bytes:
    return dice.encoded("TIFF", "I")


# --- several pictures in a file ------------------------------------------------------------------------------


def _animated(dice: Dice, kind: str) -> bytes:
    """The face first, then plain colours."""
    frames = [Image.new("RGB", (256, 256), colour) for colour in ("red", "blue")]
    return encode(dice.face(), kind, save_all=True, append_images=frames)


@accept(".gif", ".webp", ".png", count=20)
def animation(dice: Dice) -> bytes:
    return _animated(dice, dice.among("GIF", "WEBP", "PNG"))


@accept(".tif", ".jpg")
def several_pages(dice: Dice) -> bytes:
    return _animated(dice, dice.among("TIFF", "MPO"))


# --- metadata ------------------------------------------------------------------------------------------------

_STORED = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.rotate(180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.rotate(90, expand=True),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.rotate(270, expand=True),
}


@accept(".jpg", ".png", count=40)
def turned(dice: Dice) -> bytes:
    """Stored turned or mirrored; seen without its orientation, most of these faces are not found."""
    orientation = int(dice.rng.integers(1, 9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = _STORED[orientation](dice.face())
    return encode(stored, dice.among("JPEG", "PNG", "WEBP", "TIFF"), exif=exif)


@accept(".jpg", count=10)
def orientation_that_does_not_exist(dice: Dice) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = int(dice.among(0, 9, 255, 65_535))
    return encode(dice.face(), "JPEG", exif=exif)


@accept(".jpg", ".png", count=40)
def broken_exif(dice: Dice) -> bytes:
    entry = struct.pack("<HHII", 0x0112, 3, 1, 1)
    exif = dice.among(
        b"",
        b"II*\0",
        b"II*\0\x08\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + entry,
        b"II*\0\x08\0\0\0\x01\0" + entry + b"\x08\0\0\0",  # the next directory is this one
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + bytes(4),  # it holds itself
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 2, 2**31, 8) + bytes(4),
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 99, 1, 1) + bytes(4),
        b"MM\0*" + dice.noise(500),
        dice.noise(60_000),
    )
    return dice.encoded(dice.among("JPEG", "PNG", "WEBP"), exif=b"Exif\0\0" + exif)


@accept(".jpg", ".png", count=10)
def broken_colour_profile(dice: Dice) -> bytes:
    profile = dice.noise(int(dice.among(1, 128, 60_000, 500_000)))
    return dice.encoded(dice.among("JPEG", "PNG", "WEBP"), icc_profile=profile)


@accept(".jpg", count=10)
def much_beside_the_picture(dice: Dice) -> bytes:
    data = dice.encoded("JPEG")
    return dice.among(
        data + dice.noise(100_000),
        data + dice.encoded("JPEG"),
        data + _zip(dice),
        data + b"<script>alert(1)</script>",
        data[:2] + (b"\xff\xfe\xff\xff" + bytes(65_533)) * 30 + data[2:],
        dice.encoded("PNG") + dice.noise(1000),
    )


@accept(".png", count=5)
def long_text_in_png(dice: Dice) -> bytes:
    return _with_chunk(dice, b"tEXt", b"Comment\0" + b"x" * 5_000_000)


@reject("damaged: Decompressed data too large", ".png", count=5)
def packed_text_bomb(dice: Dice) -> bytes:
    packed = zlib.compress(bytes(50_000_000))
    name, head = dice.among((b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"))
    return _with_chunk(dice, name, head + packed)


def _with_chunk(dice: Dice, name: bytes, data: bytes) -> bytes:
    picture = dice.encoded("PNG")
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return picture[:33] + chunk + picture[33:]


@accept(".tif")
def tiff_whose_pages_go_in_a_circle(dice: Dice) -> bytes:
    data = bytearray(dice.encoded("TIFF"))
    at = struct.unpack("<I", data[4:8])[0]
    end = at + 2 + 12 * struct.unpack("<H", data[at : at + 2])[0]
    data[end : end + 4] = struct.pack("<I", at)
    return bytes(data)


# --- names ---------------------------------------------------------------------------------------------------


@accept(".png", ".txt", ".jpg", "", ".JPG", ".jpg.exe", count=40)
def wrong_suffix(dice: Dice) -> bytes:
    return dice.encoded(dice.among("JPEG", "PNG", "WEBP", "GIF", "BMP"))


_NAMES = (
    b"line\nfeed", b"tab\there", b"carriage\rreturn", b"'single'", b'"double"', b"semi;colon & $HOME `id`",
    b"back\\slash", b"back\\xff", b"\xff", b"\xff\xfe\xfa", b"caf\xe9 in latin-1", b"half a \xf0\x9f\x98",
    b"-rf", b"--help", b"~", b"*", b"?[a]", b"100%", b"%ff", b"#1", b" leading", b"trailing ", b"a,b;c|d",
    b"\x1b[31mred\x1b[0m", b"bell\x07", b"\x7f", b"nul", b"<b>bold</b>", b"{{ 7 * 7 }}", b"image_id",
    "\u2028".encode(), "emoji \U0001f469\u200d\U0001f467".encode(), "\u202ereversed".encode(), "é".encode(),
    "e\u0301".encode(), "日本語".encode(), b"x" * 251, "é".encode() * 125, b"\xe9" * 251,
)  # fmt: skip


@accept(count=1, entry=True)
def odd_names(dice: Dice, root: Path, name: bytes) -> Made:
    """Of pictures, of files that are none, and of folders."""
    for odd in _NAMES:
        yield from _file(root, b"odd_names/" + odd + b".jpg", dice.encoded("JPEG"), None, True)
    for odd in _NAMES:
        yield from _file(root, b"odd_names/bad/" + odd + b".txt", b"text", UNKNOWN, False)
    for odd in _NAMES[:20]:
        yield from _file(root, b"odd_names/" + odd + b"/face.jpg", dice.encoded("JPEG"), None, True)


# --- what is no file -----------------------------------------------------------------------------------------

Made = Iterator[tuple[bytes, "str | None", bool]]


def _at(root: Path, name: bytes) -> bytes:
    return os.path.join(os.fsencode(root), name)


def _file(root: Path, name: bytes, data: bytes, reason: str | None, face: bool) -> Made:
    path = _at(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    yield name, reason, face


@reject("is a directory, not a file", count=5, entry=True)
def directory_called_a_picture(dice: Dice, root: Path, name: bytes) -> Made:
    """What is in it is found all the same."""
    os.mkdir(_at(root, name))
    yield name, "is a directory, not a file", False
    yield from _file(root, name + b"/face.jpg", dice.encoded("JPEG"), None, True)


@reject("is a named pipe, not a file", count=5, entry=True)
def named_pipe(dice: Dice, root: Path, name: bytes) -> Made:
    os.mkfifo(_at(root, name))
    yield name, "is a named pipe, not a file", False
    os.symlink(os.path.basename(name), _at(root, name + b".link"))
    yield name + b".link", "is a named pipe, not a file", False


@reject("is a socket, not a file", count=3, entry=True)
def listening_socket(dice: Dice, root: Path, name: bytes) -> Made:
    with socket.socket(socket.AF_UNIX) as here, tempfile.TemporaryDirectory() as short:
        here.bind(f"{short}/s")  # a socket's path is limited to 108 bytes
        os.rename(f"{short}/s", _at(root, name))
    yield name, "is a socket, not a file", False


@reject("is a device, not a file", count=3, entry=True)
def device(dice: Dice, root: Path, name: bytes) -> Made:
    """A link, for not everybody may make one."""
    os.symlink(dice.among("/dev/zero", "/dev/null", "/dev/random"), _at(root, name))
    yield name, "is a device, not a file", False


@reject("cannot be read", count=10, entry=True)
def link_that_leads_nowhere(dice: Dice, root: Path, name: bytes) -> Made:
    os.symlink(dice.among("gone.jpg", "/nowhere/at/all", "../" * 50 + "x"), _at(root, name))
    yield name, "cannot be read: a link that leads nowhere", False


@reject("cannot be read", count=3, entry=True)
def link_in_a_circle(dice: Dice, root: Path, name: bytes) -> Made:
    os.symlink(os.path.basename(name), _at(root, name))
    yield name, "cannot be read: Too many levels of symbolic links", False


@reject("is a link to a directory, which is not followed", "", ".jpg", count=4, entry=True)
def link_to_a_directory(dice: Dice, root: Path, name: bytes) -> Made:
    os.symlink(dice.among("..", ".", "/"), _at(root, name))
    yield name, "is a link to a directory, which is not followed", False


@reject("empty file", count=2, entry=True)
def link_into_proc(dice: Dice, root: Path, name: bytes) -> Made:
    """Reading /proc/kmsg would wait for ever."""
    os.symlink(dice.among("/proc/kmsg", "/proc/self/status"), _at(root, name))
    yield name, "empty file", False


@accept(count=5, entry=True)
def link_to_a_picture(dice: Dice, root: Path, name: bytes) -> Made:
    yield from _file(root, name, dice.encoded("JPEG"), None, True)
    os.symlink(os.path.basename(name), _at(root, name + b".link"))
    yield name + b".link", None, True
    os.link(_at(root, name), _at(root, name + b".hard"))
    yield name + b".hard", None, True


@reject("cannot be read: Permission denied", count=5, entry=True)
def unreadable(dice: Dice, root: Path, name: bytes) -> Made:
    """A file, and a folder that is reported instead of what is in it."""
    yield from _file(root, name, dice.encoded("JPEG"), "cannot be read: Permission denied", False)
    os.chmod(_at(root, name), 0)
    for _ in _file(root, name + b"_folder/face.jpg", dice.encoded("JPEG"), None, True):
        os.chmod(_at(root, name + b"_folder"), 0)
        yield name + b"_folder", "cannot be searched: Permission denied", False


@reject("cannot be searched: File name too long", count=1, entry=True)
def path_that_is_too_long(dice: Dice, root: Path, name: bytes) -> Made:
    """Made from inside, step by step, as archives can be unpacked."""
    here = os.open(root, os.O_RDONLY)
    relative, limit = b"deep", 4095 - len(os.fsencode(root)) - 1
    os.mkdir("deep", dir_fd=here)
    here = _step(here, b"deep")
    while len(relative) <= limit:
        os.mkdir(b"d" * 200, dir_fd=here)
        here = _step(here, b"d" * 200)
        relative += b"/" + b"d" * 200
    os.close(here)
    yield relative, "cannot be searched: File name too long", False


def _step(folder: int, name: bytes) -> int:
    inner = os.open(name, os.O_RDONLY, dir_fd=folder)
    os.close(folder)
    return inner


def make_readable(root: Path) -> None:
    """So that the folder can be removed by anybody."""
    for path in (root / "unreadable").iterdir():
        path.chmod(0o700)
