"""Predictions drawn on a face or beside it: what is true in green, where it is known, what is predicted in orange."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TRUE, PREDICTED = (0, 158, 115), (230, 97, 1)
"""Told apart by those who cannot tell red from green, too."""
PAPER, INK, RULE = (255, 255, 255), (40, 40, 40), (205, 205, 205)
LINE, MARGIN = 20, 10
_Floats = NDArray[np.floating]


def points(picture: Image.Image, predicted: _Floats, true: _Floats | None = None) -> Image.Image:
    """(K, 2) points in pixels; of those that are not known nothing is drawn."""
    drawn = picture.convert("RGB")
    canvas = ImageDraw.Draw(drawn)
    radius = max(1.2, picture.width / 170)
    for group, colour in ((true, TRUE), (predicted, PREDICTED)):
        for x, y in [] if group is None else group[np.isfinite(group).all(axis=1)]:
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return drawn


def axes(
    picture: Image.Image, centre: tuple[float, float], predicted: _Floats, true: _Floats | None = None
) -> Image.Image:
    """(3, 2) directions of the head's left, up and ahead; the last is drawn the thickest."""
    drawn = picture.convert("RGB")
    canvas = ImageDraw.Draw(drawn)
    length = 0.3 * picture.width
    for group, colour in ((true, TRUE), (predicted, PREDICTED)):
        for (x, y), width in zip([] if group is None else length * group, (2, 2, 5), strict=False):
            canvas.line((*centre, centre[0] + x, centre[1] + y), fill=colour, width=width)
    return drawn


def bars(
    picture: Image.Image, names: Sequence[str], predicted: _Floats, true: _Floats | None, highest: float
) -> Image.Image:
    """A bar for each of K values from 0 to ``highest``, with a stroke at the true one."""
    font = ImageFont.load_default(13)
    left = MARGIN + max(int(font.getlength(name)) for name in names) + 8
    long = 150
    sheet, canvas, x0 = _beside(picture, left + long + 46, LINE * len(names) + 2 * MARGIN)
    for i, name in enumerate(names):
        y = MARGIN + LINE * i
        canvas.text((x0 + MARGIN, y + 2), name, fill=INK, font=font)
        start = x0 + left
        canvas.rectangle((start, y + 4, start + long, y + LINE - 5), fill=(240, 240, 240))
        value = float(np.clip(predicted[i], 0, highest)) / highest
        canvas.rectangle((start, y + 4, start + long * value, y + LINE - 5), fill=PREDICTED)
        canvas.text((start + long + 6, y + 2), f"{predicted[i]:.2f}", fill=INK, font=font)
        if true is not None and np.isfinite(true[i]):
            at = start + long * float(true[i]) / highest
            canvas.line((at, y + 1, at, y + LINE - 2), fill=TRUE, width=3)
    return sheet


def plane(picture: Image.Image, predicted: _Floats, true: _Floats | None, caption: str = "") -> Image.Image:
    """Valence (to the right) and arousal (up), each from -1 to 1."""
    font = ImageFont.load_default(13)
    side = 170
    sheet, canvas, x0 = _beside(picture, side + 90, side + 80)
    left, top = x0 + 45, 30
    canvas.rectangle((left, top, left + side, top + side), outline=RULE)
    canvas.line((left, top + side / 2, left + side, top + side / 2), fill=RULE)
    canvas.line((left + side / 2, top, left + side / 2, top + side), fill=RULE)
    canvas.text((left + side / 2, top - 4), "arousal", fill=INK, font=font, anchor="ms")
    canvas.text((left + side / 2, top + side + 16), "valence", fill=INK, font=font, anchor="ms")
    said = f"{predicted[0]:+.2f}, {predicted[1]:+.2f}" + (f", {caption}" if caption else "")
    canvas.text((left + side / 2, top + side + 38), said, fill=INK, font=font, anchor="ms")
    for point, colour in ((true, TRUE), (predicted, PREDICTED)):
        if point is not None and np.isfinite(point).all():
            x, y = left + side * (point[0] + 1) / 2, top + side * (1 - point[1]) / 2
            canvas.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour, outline=PAPER)
    return sheet


def _beside(picture: Image.Image, width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A sheet with the picture on the left, room of ``width`` beside it, and where that begins."""
    sheet = Image.new("RGB", (picture.width + width, max(picture.height, height)), PAPER)
    sheet.paste(picture, (0, 0))
    return sheet, ImageDraw.Draw(sheet), picture.width
