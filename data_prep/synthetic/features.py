"""Procedural features: lips, mouth, eyes, brows, beard, roots of the hair, and the face they add up to.

As in :mod:`data_prep.synthetic.paint`, every function is called for one pixel: `p` is a record of
:data:`data_prep.synthetic.look.LOOK`, (x, y, z) a rest position, (u, v) the same point of the deformed head.
"""

from __future__ import annotations

import numpy as np

from data_prep.synthetic.kernels import kernel
from data_prep.synthetic.paint import F, bump, complexion, dim, ear, mix, step, texel, wrinkles

# mypy: disable-error-code="no-untyped-def"


@kernel
def lips(colour, tiles, p, x, y):
    """The red of the lips, between a cupid's bow and a rounded lower edge."""
    ax = abs(x)
    t = ax / F(2.62)
    if t >= 1 or y > -5.8 or y < -8.2:
        return
    upper = (
        F(-6.9)
        + F(0.62) * (F(1) - t ** F(1.7))
        + F(0.10) * bump(ax - F(0.5), F(0.45))
        - F(0.06) * bump(ax, F(0.4))
    )
    lower = F(-6.9) - F(0.86) * (F(1) - t * t) ** F(0.75)
    inside = step(upper + F(0.07), upper - F(0.07), y) * step(lower - F(0.09), lower + F(0.09), y)
    strength = F(0.78) + F(0.2) * p.makeup
    mix(colour, p.lips, inside * strength)
    shade = F(1) - F(0.22) * inside * step(F(-7.0), F(-6.5), y)
    shade *= F(1) + F(0.06) * inside * texel(tiles[2], y * F(8), x * F(30))
    corner = bump(ax - F(2.6), F(0.35)) * bump(y + F(6.9), F(0.3))
    shade *= F(1) - F(0.5) * corner
    dim(colour, shade, shade, shade)


@kernel
def mouth(colour, p, u, v):
    """What shows between the lips: dark when they almost touch, else teeth, tongue and the dark of the mouth."""
    au = abs(u)
    gap = p.mouth[1]
    opened = step(F(0.06), F(0.35), gap)
    colour[0], colour[1], colour[2] = F(0.05), F(0.014), F(0.013)
    teeth = step(p.mouth[0] - F(0.06), p.mouth[0] + F(0.06), v - F(0.05) * au * au / F(4)) * step(
        F(2.35), F(2.0), au
    )
    between = F(1) - F(0.22) * step(F(0.25), F(0.7), gap) * bump(
        au - F(0.43) * np.floor(au / F(0.43) + F(0.5)), F(0.07)
    )
    ivory = (F(0.36) + F(0.38) * p.skin[1]) * between * (F(1) - F(0.25) * au / F(2))
    white = teeth * opened
    colour[0] += (ivory - colour[0]) * white
    colour[1] += (ivory * F(0.92) - colour[1]) * white
    colour[2] += (ivory * F(0.80) - colour[2]) * white
    tongue = (
        opened
        * (F(1) - white)
        * step(F(0.7), F(1.6), gap)
        * bump(au, F(1.7))
        * bump(v + F(7.3) + F(0.75) * gap, F(0.9))
    )
    colour[0] += F(0.11) * tongue
    colour[1] += F(0.03) * tongue
    colour[2] += F(0.028) * tongue


@kernel
def eye(colour, p, x, y, u, v):
    """Lids, lashes and eyeball. Returns how much of the pixel is eyeball (wet, so that it shines)."""
    side = 1 if x > 0 else 0
    t = (abs(x) - F(3.15)) / F(1.52)
    if abs(t) > 1.45:
        return F(0)
    s = min(abs(t), F(1))
    skew = F(0.05) * t
    upper = F(0.53) * (F(1) - s ** F(2.3)) * (F(1) - F(0.10) * t) + skew
    lower = -F(0.46) * (F(1) - s * s) * (F(1) + F(0.12) * t) + skew
    within = F(1) if abs(t) < 1 else F(0)
    crease = bump(y - upper - F(0.42) + F(0.1) * t * t, F(0.17)) * step(F(1.35), F(0.7), abs(t))
    shade = F(1) - F(0.42) * crease
    lid = (
        step(upper, upper + F(0.12), y)
        * step(upper + F(0.75), upper + F(0.3), y)
        * step(F(1.4), F(0.9), abs(t))
    )
    mix(colour, p.eyeshadow, lid * p.makeup * F(0.55))
    below = bump(y - lower + F(0.1), F(0.12)) * within
    shade *= F(1) - F(0.18) * below
    dim(colour, shade, shade, shade)
    inside = within * step(upper + F(0.05), upper - F(0.05), y) * step(lower - F(0.05), lower + F(0.05), y)
    if inside > 0:
        dx, dy = u - p.eyes[2 * side], v - p.eyes[2 * side + 1]
        r = np.sqrt(dx * dx + dy * dy)
        edge = F(1) - F(0.28) * step(F(0.45), F(1.0), s)
        white = (F(0.40) + F(0.42) * p.skin[1]) * edge
        shadow = F(0.5) + F(0.5) * step(F(0.0), F(0.42), upper - y)
        ball_r, ball_g, ball_b = white, white * F(0.93), white * F(0.90)
        iris = step(F(0.63), F(0.56), r)
        ring = F(1) - F(0.6) * step(F(0.42), F(0.6), r)
        glow = ring * (F(0.8) + F(0.5) * step(F(0.1), -F(0.4), dy))
        pupil = step(F(0.28), F(0.21), r)
        ball_r += (p.iris[0] * glow - ball_r) * iris
        ball_g += (p.iris[1] * glow - ball_g) * iris
        ball_b += (p.iris[2] * glow - ball_b) * iris
        dark = F(1) - F(0.95) * pupil
        spark = bump(dx - F(0.18), F(0.16)) * bump(dy - F(0.2), F(0.16)) * F(0.9)
        colour[0] += (ball_r * dark * shadow + spark - colour[0]) * inside
        colour[1] += (ball_g * dark * shadow + spark - colour[1]) * inside
        colour[2] += (ball_b * dark * shadow + spark - colour[2]) * inside
    thick = F(0.07) + F(0.09) * p.lashes
    wing = F(0.10) * p.lashes * max(t, F(0))
    lash = bump(y - upper - F(0.03) - wing * F(0.4), thick + wing) * step(F(1.12), F(0.98), abs(t))
    lash += F(0.35) * (F(0.4) + p.lashes) * bump(y - lower + F(0.02), F(0.06)) * within
    lash = min(lash, F(1)) * (F(0.62) + F(0.33) * p.lashes)
    dim(colour, F(1) - lash, F(1) - lash, F(1) - lash)
    return inside * (F(1) - lash)


@kernel
def brow(colour, tiles, p, x, y):
    """An eyebrow: an arch that tapers outwards, made of strands."""
    ax = abs(x)
    t = (ax - F(1.15)) / F(4.0)
    if t < -0.1 or t > 1.1:
        return
    arch = (
        F(1.95)
        + p.brow_arch * F(0.75) * np.sin(F(np.pi) * min(max(t, F(0)), F(1)) ** F(1.25))
        - F(0.15) * max(t, F(0)) ** 2
    )
    half = (
        p.brow_thickness * (F(0.40) - F(0.26) * t * t) * step(F(-0.1), F(0.08), t) * step(F(1.08), F(0.75), t)
    )
    strand = texel(tiles[2], y * F(10) + ax * F(8), ax * F(34) - y * F(22) + p.grain)
    away = abs(y - arch) - half
    cover = step(F(0.16), -F(0.14), away + F(0.05) * strand)
    cover *= p.brow_density * min(max(F(0.82) + F(0.22) * strand, F(0)), F(1))
    mix(colour, p.brow, cover)


@kernel
def facial_hair(colour, tiles, p, x, y, z):
    """Stubble, moustache, goatee and beard, by where each grows."""
    if p.stubble + p.moustache + p.goatee + p.beard <= 0 or y > 1.5 or z < -1:
        return
    ax = abs(x)
    blotch = texel(tiles[1], y * F(9), x * F(9) + p.grain) * F(0.18)
    cheek = F(-4.6) - F(1.3) * step(F(2.0), F(3.6), ax) + F(5.2) * step(F(4.6), F(7.0), ax)
    jaw = step(cheek + F(0.55), cheek - F(0.35), y + blotch)
    jaw *= step(F(-14.2), F(-12.6), y + blotch)
    lip_top = F(-6.9) + F(0.72) * (F(1) - min(ax / F(2.8), F(1)) ** 2)
    lip_low = F(-6.9) - F(0.95) * (F(1) - min(ax / F(2.7), F(1)) ** 2)
    around = F(1) - step(lip_low - F(0.08), lip_low + F(0.1), y) * step(
        lip_top + F(0.08), lip_top - F(0.1), y
    ) * step(F(2.9), F(2.6), ax)
    nose_clear = step(F(-4.75), F(-5.1), y + F(0.05) * ax)
    upper_lip = bump(ax, F(3.7)) * step(F(-4.9), F(-5.3), y) * step(F(-7.7), F(-6.9), y)
    upper_lip = min(upper_lip * F(1.8), F(1)) * step(F(3.3), F(2.6), ax)
    chin = step(F(2.6), F(1.8), ax) * step(F(-7.9), F(-8.3), y) * step(F(-13.0), F(-12.0), y)
    grow = max(max(p.beard * jaw, p.goatee * chin), p.moustache * upper_lip)
    grow = max(grow, p.beard * upper_lip) * around * nose_clear
    soft = p.stubble * max(jaw, upper_lip) * around * nose_clear
    if grow <= 0 and soft <= 0:
        return
    strand = texel(tiles[2], y * F(16), x * F(38) + z * F(24) + y * F(9) + p.grain)
    dots = texel(tiles[0], y * F(26), (x + z) * F(26))
    cover = min(max(grow * (F(0.93) + F(0.10) * strand), F(0)), F(0.97))
    cover = max(cover, min(max(soft * (F(0.42) + F(0.16) * dots), F(0)), F(0.8)))
    shade = F(1) + F(0.16) * strand
    for c in range(3):
        colour[c] += (p.hair[c] * shade - colour[c]) * cover


@kernel
def roots(colour, tiles, p, x, y, z):
    """The scalp under the hair: its colour fades in above the hairline, strand by strand."""
    if p.scalp <= 0 or (y < 1 and z > 4):  # no hairline is that low in front
        return
    angle = (np.arctan2(x, z) / F(2 * np.pi) + F(0.5)) * F(63)
    i = min(int(angle), 62)
    line = p.hairline[i] + (p.hairline[i + 1] - p.hairline[i]) * (angle - F(i))
    if y < line - 1:
        return
    strand = texel(tiles[2], y * F(5) + p.grain, angle * F(26))
    cover = step(F(-0.45), F(0.55), y - line + F(0.22) * strand) * p.scalp
    shade = F(0.85) + F(0.16) * strand
    for c in range(3):
        colour[c] += (p.hair[c] * shade - colour[c]) * cover


@kernel
def face(colour, tiles, p, x, y, z, u, v):
    """Albedo of the head at a rest point; returns the shine: (amount of wet eyeball)."""
    complexion(colour, tiles, p, x, y, z)
    if y < -6.87 and y > -6.93 and abs(x) < 2.68 and z > 4:
        mouth(colour, p, u, v)
        return F(0)
    ear(colour, x, y, z)
    wet = F(0)
    line = wrinkles(p, x, y, z)
    dim(colour, line, line * F(0.96), line * F(0.95))
    if z > 2:
        if y < -5:
            lips(colour, tiles, p, x, y)
        elif y < -4 and abs(x) < 1.4:
            hole = bump(abs(x) - F(0.62), F(0.40)) * bump(y + F(4.68) - F(0.12) * abs(x), F(0.24))
            dim(colour, F(1) - F(0.88) * hole, F(1) - F(0.93) * hole, F(1) - F(0.93) * hole)
        elif y < 1.7 and y > -1.2:
            wet = eye(colour, p, x, y, u, v)
        if y > 0.8 and y < 4:
            brow(colour, tiles, p, x, y)
    facial_hair(colour, tiles, p, x, y, z)
    roots(colour, tiles, p, x, y, z)
    return wet
