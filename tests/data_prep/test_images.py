from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.images import PictureError, decode_picture, difference_hashes, read_bytes

GRADIENT = np.linspace(0, 255, 40 * 30).reshape(30, 40).astype(np.uint8)
COLOUR = Image.fromarray(np.stack([GRADIENT, GRADIENT.T.reshape(30, 40), 255 - GRADIENT], axis=2))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    # The inverse of what a viewer does for each value of the tag (EXIF 2.3, 4.6.4, tag 0x0112).
    stored = {
        1: lambda i: i,
        2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda i: i.rotate(180),
        4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
        6: lambda i: i.rotate(90, expand=True),
        7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
        8: lambda i: i.rotate(270, expand=True),
    }[orientation](COLOUR)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_picture(encoded(stored, "PNG", exif=exif))
    assert image.size == COLOUR.size
    assert difference(image, COLOUR) == 0


def test_grey_cmyk_and_palette_become_rgb() -> None:
    assert (
        difference(decode_picture(encoded(COLOUR.convert("L"), "PNG")), COLOUR.convert("L").convert("RGB"))
        == 0
    )
    cmyk = decode_picture(encoded(COLOUR.convert("CMYK"), "JPEG", quality=100, subsampling=0))
    assert difference(cmyk, COLOUR) < 3
    flat = Image.new("RGB", (9, 9), (10, 200, 90))
    assert difference(decode_picture(encoded(flat.quantize(4), "PNG")), flat) == 0


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(GRADIENT.astype(np.uint16) * 257)
    image = decode_picture(encoded(deep, "PNG"))
    assert np.array_equal(np.asarray(image)[..., 1], GRADIENT)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    pixels = np.asarray(decode_picture(encoded(image.convert(mode), "PNG")))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] != 255).any()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"just a text", "not a picture"),
        (encoded(COLOUR, "JPEG")[:-300], "truncated"),
        (encoded(COLOUR, "PNG")[:-300], "damaged"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    ],
)
def test_a_bad_file_gives_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        decode_picture(data)


def test_difference_hash_survives_compression_and_size_but_not_another_picture(
    astronaut: Image.Image,
) -> None:
    small = decode_picture(encoded(astronaut.resize((200, 200)), "JPEG", quality=60))

    def distance(other: Image.Image) -> int:
        return (difference_hashes(astronaut)[0] ^ difference_hashes(other)[0]).bit_count()

    assert distance(small) <= 3
    assert distance(astronaut.rotate(90)) > 15


def test_a_transparent_value_of_sixteen_bits_shows_white() -> None:
    deep = Image.fromarray(np.full((4, 4), 1000, np.uint16))
    deep.putpixel((0, 0), 9)
    pixels = np.asarray(decode_picture(encoded(deep, "PNG", transparency=9)))
    assert pixels[0, 0, 0] == 255
    assert pixels[1:, :, 0].max() == 1000 >> 8


def test_what_libtiff_complains_about_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    cut = encoded(COLOUR.resize((256, 256)), "TIFF", compression="jpeg")[:-200]
    with pytest.raises(PictureError, match="damaged"):
        decode_picture(cut)
    assert capfd.readouterr().err == ""
    with pytest.raises(OSError, match=r"decoder error"), Image.open(BytesIO(cut)) as image:
        image.load()
    assert capfd.readouterr().err, "then there is nothing to be quiet about"


def test_a_file_that_grows_past_the_limit_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(100))
    monkeypatch.setattr("data_prep.images.MAX_BYTES", 99)
    with pytest.raises(PictureError, match="larger than 512 MiB"):
        read_bytes(tmp_path / "a.jpg")
    monkeypatch.setattr("data_prep.images._file_size", lambda *_: 50)
    with pytest.raises(PictureError, match="larger than 512 MiB"):
        read_bytes(tmp_path / "a.jpg")


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"x")
    before = os.stat(tmp_path / "b.jpg")
    monkeypatch.setattr("data_prep.images.os.stat", lambda _: before)
    with pytest.raises(PictureError, match="is a named pipe, not a file"):
        read_bytes(tmp_path / "a.jpg")
