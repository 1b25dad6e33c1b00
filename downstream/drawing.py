"""Predictions drawn on a face or beside it.

What is predicted is light blue, or in the colours of the three axes; what is true, where it is known, is white on the
face and black beside it. Nothing depends on telling red from green. What lies on a face is drawn enlarged and shrunk
again, so that it is smooth, and in the measure of the face: ``zoom`` is the number of the picture's pixels to a pixel
of the crop in which the face stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TRUE, PREDICTED = (255, 255, 255), (20, 190, 235)
AXES = ((235, 80, 55), (60, 190, 110), (255, 215, 70))
"""To the head's left, up, ahead."""
PAPER, INK, GREY, RULE = (255, 255, 255), (30, 30, 30), (110, 110, 110), (205, 205, 205)
SHADE = (20, 20, 20)
"""Around what is bright, so that it is seen on a bright picture too."""
TEXT, LINE, MARGIN = 13, 20, 12
FINE, WINDOW = 4, 4096
"""By so much is enlarged, but to no more than so many pixels a side."""

_Floats = NDArray[np.floating]
_Box = tuple[float, float, float, float]
_At = Callable[[_Floats], list[tuple[float, float]]]


# --- on the face ---------------------------------------------------------------------------------------------


def mark_points(
    picture: Image.Image, predicted: _Floats, true: _Floats | None = None, zoom: float = 1.0
) -> None:
    """Draw (K, 2) points, in pixels of ``picture``, and a line from each true one to its prediction."""
    groups = [(predicted, PREDICTED)] if true is None else [(true, TRUE), (predicted, PREDICTED)]
    radius, rim = max(1.1, (1.9 if len(predicted) > 80 else 2.2) * zoom), max(0.5, 0.5 * zoom)
    with _fine(picture, np.concatenate([group for group, _ in groups]), radius + rim) as (canvas, at, fine):
        if true is not None:
            for ends in np.stack([true, predicted], axis=1)[np.isfinite(true).all(axis=1)]:
                canvas.line(at(ends), fill=TRUE, width=max(1, round(0.8 * zoom * fine)))
        for group, colour in groups:
            known = at(group[np.isfinite(group).all(axis=1)])
            for size, fill in ((radius + rim, SHADE), (radius, colour)):
                for x, y in known:
                    canvas.ellipse(_around(x, y, size * fine), fill=fill)


def mark_axes(
    picture: Image.Image,
    centre: _Floats,
    predicted: _Floats,
    true: _Floats | None = None,
    zoom: float = 1.0,
) -> None:
    """Draw lines from (2,) ``centre`` to (3, 2) ends of the head's axes; what points ahead is drawn last.

    The true ones are white and lie below.
    """
    layers = [(predicted, 9, (SHADE,) * 3), (predicted, 6, AXES)]
    if true is not None:
        layers = [(true, 15, (SHADE,) * 3), (true, 12, (TRUE,) * 3), *layers]
    everything = np.concatenate([centre[None], *(ends for ends, _, _ in layers)])
    with _fine(picture, everything, 16 * zoom) as (canvas, at, fine):
        for ends, width, colours in layers:
            thick = width * zoom * fine / 2
            for end, colour in zip(ends, colours, strict=True):
                start, stop = at(np.stack([centre, end]))
                canvas.line((start, stop), fill=colour, width=max(1, round(thick)))
                for x, y in (start, stop):
                    canvas.ellipse(_around(x, y, thick / 2), fill=colour)


def mark_faces(picture: Image.Image, boxes: Sequence[_Box]) -> None:
    """Draw the boxes and, where there are several, their numbers from 1, beside the faces if there is room."""
    size = max(TEXT, round(max(picture.size) / 80))
    font = ImageFont.load_default(size)
    canvas = ImageDraw.Draw(picture)
    thick = max(1, round(max(picture.size) / 1200))
    for x0, y0, x1, y1 in boxes:
        canvas.rectangle((x0 - thick, y0 - thick, x1 + thick, y1 + thick), outline=SHADE, width=thick)
        canvas.rectangle((x0, y0, x1, y1), outline=TRUE, width=thick)
    taken = list(boxes)
    for number, box in enumerate(boxes if len(boxes) > 1 else (), 1):
        text = str(number)
        wide, high = font.getlength(text) + 0.7 * size, 1.35 * size
        place = _free_place(box, (wide, high), picture.size, taken)
        taken.append(place)
        canvas.rectangle(place, fill=SHADE)
        canvas.text(
            ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2), text, fill=PAPER, font=font, anchor="mm"
        )


def _free_place(
    box: _Box, size: tuple[float, float], picture: tuple[int, int], taken: Sequence[_Box]
) -> _Box:
    """Where beside ``box`` a label of that size covers least of what is taken: above, below, left, right."""
    (x0, y0, x1, y1), (wide, high), gap = box, size, 0.25 * size[1]
    corners = [(x, y) for y in (y0 - high - gap, y1 + gap) for x in (x0, x1 - wide, (x0 + x1 - wide) / 2)]
    corners += [(x, y) for x in (x0 - wide - gap, x1 + gap) for y in (y0, y1 - high)]
    inside = [(min(max(x, 0), picture[0] - wide), min(max(y, 0), picture[1] - high)) for x, y in corners]
    places = [(x, y, x + wide, y + high) for x, y in inside]
    return min(places, key=lambda place: sum(_shared(place, other) for other in taken))


def _shared(a: _Box, b: _Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)


@contextmanager
def _fine(
    picture: Image.Image, where: _Floats, reach: float
) -> Iterator[tuple[ImageDraw.ImageDraw, _At, float]]:
    """A canvas over what is ``reach`` about the points ``where``, enlarged; at the end it is laid on the picture.

    Yields the canvas, what leads from points of the picture to points on it, and by how much it is enlarged.
    """
    known = where[np.isfinite(where).all(axis=1)].reshape(-1, 2)
    if not len(known):
        known = np.zeros((1, 2))
    low = np.maximum(np.floor(known.min(axis=0) - reach), 0)
    high = np.minimum(np.ceil(known.max(axis=0) + reach), picture.size)
    if (high <= low).any():  # all of it lies beside the picture
        low, high = np.zeros(2), np.ones(2)
    sides = [int(side) for side in high - low]
    fine = max(1, min(FINE, WINDOW // max(sides)))
    window = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    layer = picture.crop(window).resize((fine * sides[0], fine * sides[1]), Image.Resampling.NEAREST)

    def at(points: _Floats) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in (points - low) * fine - 0.5]

    yield ImageDraw.Draw(layer), at, float(fine)
    picture.paste(layer.resize((sides[0], sides[1]), Image.Resampling.BOX), window[:2])


def _around(x: float, y: float, radius: float) -> _Box:
    return x - radius, y - radius, x + radius, y + radius


# --- beside it -----------------------------------------------------------------------------------------------


def bars(
    picture: Image.Image, names: Sequence[str], predicted: _Floats, true: _Floats | None, highest: float
) -> Image.Image:
    """A bar for each of K values from 0 to ``highest``, with a stroke at the true one."""
    font = ImageFont.load_default(TEXT)
    left = MARGIN + max(math.ceil(font.getlength(name)) for name in names) + 8
    long = 150
    sheet, canvas, x0, y0 = _beside(picture, left + long + 50, LINE * len(names))
    for i, name in enumerate(names):
        start, middle = x0 + left, y0 + LINE * i + LINE / 2
        canvas.text((start - 8, middle), name, fill=INK, font=font, anchor="rm")
        canvas.rectangle((start, middle - 5, start + long, middle + 5), fill=(238, 238, 238))
        value = float(np.clip(predicted[i], 0, highest)) / highest
        if value > 0:
            canvas.rectangle((start, middle - 5, start + long * value, middle + 5), fill=PREDICTED)
        canvas.text((start + long + 8, middle), f"{predicted[i]:.2f}", fill=INK, font=font, anchor="lm")
        if true is not None and np.isfinite(true[i]):
            at = start + long * float(true[i]) / highest
            canvas.rectangle((at - 1, middle - 8, at + 1, middle + 8), fill=INK)
    return sheet


def plane(picture: Image.Image, predicted: _Floats, true: _Floats | None, caption: str = "") -> Image.Image:
    """Valence (to the right) and arousal (up), each from -1 to 1; a line leads from the true to the predicted."""
    font = ImageFont.load_default(TEXT)
    side = 150
    sheet, canvas, x0, y0 = _beside(picture, side + 90, side + 4 * LINE)
    left, top = x0 + 45, y0 + LINE
    middle, bottom = left + side / 2, top + side
    canvas.rectangle((left, top, left + side, bottom), outline=RULE)
    canvas.line((left, top + side / 2, left + side, top + side / 2), fill=RULE)
    canvas.line((middle, top, middle, bottom), fill=RULE)
    canvas.text((middle, top - 6), "arousal +1", fill=GREY, font=font, anchor="ms")
    canvas.text((middle, bottom + 6), "-1", fill=GREY, font=font, anchor="mt")
    canvas.text((left - 6, top + side / 2), "-1", fill=GREY, font=font, anchor="rm")
    canvas.text((left + side + 6, top + side / 2), "+1", fill=GREY, font=font, anchor="lm")
    canvas.text((left + side, bottom + 6), "valence", fill=GREY, font=font, anchor="rt")
    said = f"{predicted[0]:+.2f}, {predicted[1]:+.2f}"
    canvas.text((middle, bottom + 1.5 * LINE), said, fill=INK, font=font, anchor="mt")
    canvas.text((middle, bottom + 2.4 * LINE), caption, fill=INK, font=font, anchor="mt")
    shown = [(point, colour) for point, colour in ((true, INK), (predicted, PREDICTED)) if point is not None]
    places = [
        (left + side * (float(point[0]) + 1) / 2, top + side * (1 - float(point[1])) / 2)
        for point, _ in shown
        if np.isfinite(point).all()
    ]
    if len(places) == 2:
        canvas.line((*places[0], *places[1]), fill=GREY, width=2)
    for (x, y), (_, colour) in zip(places, shown[-len(places) :], strict=True):
        canvas.ellipse(_around(x, y, 6), fill=PAPER)
        canvas.ellipse(_around(x, y, 5), fill=colour)
    return sheet


def _beside(
    picture: Image.Image, width: int, height: int
) -> tuple[Image.Image, ImageDraw.ImageDraw, int, int]:
    """A sheet with the picture on the left, room for (width, height) beside it, and where that begins."""
    high = max(picture.height, height + 2 * MARGIN)
    sheet = Image.new("RGB", (picture.width + width, high), PAPER)
    sheet.paste(picture, (0, 0))
    return sheet, ImageDraw.Draw(sheet), picture.width, (high - height) // 2


def sheet(tiles: Iterable[tuple[str, Image.Image]], widest: int = 1600) -> Image.Image:
    """Pictures in rows, a text above each."""
    font = ImageFont.load_default(TEXT)
    shown = list(tiles)
    wide = max(tile.width for _, tile in shown) + MARGIN
    high = max(tile.height for _, tile in shown) + LINE + MARGIN
    columns = max(1, min(len(shown), (widest - MARGIN) // wide))
    page = Image.new("RGB", (columns * wide + MARGIN, -(-len(shown) // columns) * high + MARGIN), PAPER)
    canvas = ImageDraw.Draw(page)
    for i, (text, tile) in enumerate(shown):
        x, y = MARGIN + i % columns * wide, MARGIN + i // columns * high
        canvas.text((x, y + LINE / 2), text, fill=INK, font=font, anchor="lm")
        page.paste(tile, (x, y + LINE))
    return page
