"""Procedural albedo: colours as functions of rest coordinates, so that paint follows the expression.

Every function is called for one pixel. `p` is a record of :data:`data_prep.synthetic.look.LOOK`, (x, y, z) a
rest position, (u, v) the same point of the deformed head; colours are linear.
"""

from __future__ import annotations

import numpy as np

from data_prep.synthetic.kernels import kernel
from data_prep.synthetic.look import TILE

# mypy: disable-error-code="no-untyped-def"

F = np.float32


@kernel
def step(low, high, value):
    """Hermite step from 0 at `low` to 1 at `high`; `low` may be the larger one."""
    t = (value - low) / (high - low)
    t = min(max(t, F(0)), F(1))
    return t * t * (F(3) - F(2) * t)


@kernel
def bump(value, width):
    """Smooth bell of half width `width` (zero beyond it)."""
    t = F(1) - (value / width) ** 2
    return t * t if t > 0 else F(0)


@kernel
def texel(tile, a, b):
    """Bilinear look-up of a tiling texture at (a, b) in texels."""
    fa, fb = np.floor(a), np.floor(b)
    i, j = int(fa) & (TILE - 1), int(fb) & (TILE - 1)
    k, m = (i + 1) & (TILE - 1), (j + 1) & (TILE - 1)
    s, t = F(a - fa), F(b - fb)
    top = tile[i, j] + (tile[i, m] - tile[i, j]) * t
    low = tile[k, j] + (tile[k, m] - tile[k, j]) * t
    return top + (low - top) * s


@kernel
def mix(colour, other, amount):
    """In place: colour towards other by amount."""
    for c in range(3):
        colour[c] += (other[c] - colour[c]) * amount


@kernel
def dim(colour, red, green, blue):
    """In place: multiply the colour by three factors."""
    colour[0] *= red
    colour[1] *= green
    colour[2] *= blue


@kernel
def complexion(colour, tiles, p, x, y, z):
    """Skin without features: blotches, redness of cheeks and nose, freckles, pores, shade around the eyes."""
    ax = abs(x)
    blotch = texel(tiles[1], y * F(6) + p.grain, x * F(6) + p.grain) * F(0.035)
    pore = texel(tiles[0], y * F(14) + p.grain, x * F(14)) * (F(0.02) + F(0.03) * p.age)
    tone = F(1) + blotch + pore
    for c in range(3):
        colour[c] = p.skin[c] * tone
    if z > 0 and y < 9 and y > -12:
        red = bump(ax - F(4.0), F(2.6)) * bump(y + F(3.2), F(2.8)) + F(0.9) * bump(ax, F(1.9)) * bump(
            y + F(3.9), F(1.5)
        )
        red = p.redness * (red + F(0.4) * blotch * F(10))
        dim(colour, F(1) + F(0.10) * red, F(1) - F(0.20) * red, F(1) - F(0.16) * red)
        ring = bump(ax - F(2.9), F(2.2)) * bump(y + F(0.7), F(1.5)) * (F(0.14) + F(0.2) * p.age)
        dim(colour, F(1) - ring, F(1) - F(1.2) * ring, F(1) - F(1.0) * ring)
        if p.freckles > 0:
            spot = texel(tiles[0], y * F(9) + p.grain, x * F(9) + F(77)) - F(1.3)
            amount = step(F(0), F(0.6), spot) * bump(y + F(2.4), F(3.6)) * p.freckles * F(0.45)
            dim(colour, F(1) - F(0.5) * amount, F(1) - F(0.75) * amount, F(1) - F(0.9) * amount)


@kernel
def ear(colour, x, y, z):
    """The hollow of the ear and the groove under its rim lie in the shade."""
    if abs(x) < 6.6 or abs(y + F(0.8)) > 3.2 or z > 1.4 or z < -3.2:
        return
    r = np.sqrt(((y + F(0.8)) / F(3.0)) ** 2 + ((z + F(0.9)) / F(1.6)) ** 2)
    shade = F(1) - F(0.5) * bump(r - F(0.15), F(0.38)) - F(0.22) * bump(r - F(0.60), F(0.13))
    dim(colour, shade * F(1.03), shade * F(0.93), shade * F(0.92))


@kernel
def wrinkles(p, x, y, z):
    """Factor on the colour for the lines that age and action units draw: forehead, frown, crow's feet, folds."""
    ax = abs(x)
    line = F(0)
    if z < 0:
        return F(1)
    if p.forehead_lines > 0.03 and y > 3 and y < 7:
        wave = F(0.12) * np.sin(ax * F(1.3)) - F(0.02) * ax * ax
        for k in range(3):
            line += bump(y - F(3.9) - F(0.95) * k - wave, F(0.16)) * min(p.forehead_lines, F(0.95)) * F(0.4)
        line *= step(F(5.2), F(3.0), ax)
    if p.frown_lines > 0.03 and ax < 2 and y > 0.4 and y < 4:
        line += (
            bump(ax - F(0.5) - F(0.06) * (y - F(2)), F(0.18))
            * bump(y - F(2.2), F(1.3))
            * p.frown_lines
            * F(0.8)
        )
    if p.crow_feet > 0.03 and ax > 4.6 and ax < 7 and y > -2 and y < 2:
        spread = (y - F(0.1)) / (ax - F(3.6))
        fan = (
            bump(spread - F(0.42), F(0.07))
            + bump(spread - F(0.05), F(0.07))
            + bump(spread + F(0.34), F(0.07))
        )
        line += fan * bump(ax - F(5.6), F(0.9)) * p.crow_feet * F(0.45)
    if p.folds > 0.03 and y < -3.4 and y > -8.6 and ax < 5:
        path = F(1.95) + F(0.42) * (-F(3.9) - y) - F(0.03) * (y + F(4)) ** 2
        line += (
            bump(ax - path, F(0.22))
            * step(F(-3.4), F(-4.3), y)
            * step(F(-8.4), F(-6.6), y)
            * p.folds
            * F(0.5)
        )
    return F(1) - min(line, F(0.75))


@kernel
def cloth(colour, tiles, p, x, y):
    """Clothes: plain, striped, checked or knitted."""
    s = p.pattern_scale
    second = F(0)
    if p.pattern == 1:
        second = step(F(-0.1), F(0.1), np.sin(y * s))
    elif p.pattern == 2:
        second = step(F(-0.1), F(0.1), np.sin(x * s))
    elif p.pattern == 3:
        second = F(0.5) * step(F(-0.1), F(0.1), np.sin(x * s)) + F(0.5) * step(F(-0.1), F(0.1), np.sin(y * s))
    elif p.pattern == 4:
        second = F(0.22) + F(0.22) * np.sin(x * F(6)) * np.sin(y * F(6))
    weave = (
        F(1)
        + F(0.05) * texel(tiles[0], y * F(9), x * F(9))
        + F(0.09) * texel(tiles[1], y * F(2.2) + p.grain, x * F(3))
    )
    for c in range(3):
        colour[c] = (p.cloth[c] + (p.cloth2[c] - p.cloth[c]) * second) * weave
