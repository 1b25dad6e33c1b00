from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.images import PictureError, decode_picture, difference_hashes

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
