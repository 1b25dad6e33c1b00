"""Light: from the buffer of what is seen to linear colours."""

from __future__ import annotations

import numpy as np

from data_prep.synthetic.features import face
from data_prep.synthetic.kernels import kernel
from data_prep.synthetic.paint import F, bump, cloth, complexion, dim, step, texel

# mypy: disable-error-code="no-untyped-def"

SKIN, HAIR, BODY, FRAME, LENS, HAT, MASK = range(7)
# Display values of tone[i] = (i / 4095) ** 2: a look-up costs a tenth of a power.
DISPLAY = (255 * np.linspace(0, 1, 4096) ** (2 / 2.2)).astype(np.float32)


@kernel
def shadowed(nearest, i, j, depth, direction, scale):
    """How much of the key light is blocked (0..1): a march through the depth buffer towards the light."""
    height, width = nearest.shape
    blocked = F(0)
    # Every pixel starts at another distance: the steps do not show as bands.
    distance = F(0.42) + F(0.2) * F((i * 7 + j * 13 + (i * j) % 11) % 8) / F(8)
    for _ in range(11):
        x = int(i + direction[0] * distance * scale + F(0.5))
        y = int(j - direction[1] * distance * scale + F(0.5))
        if x < 0 or y < 0 or x >= width or y >= height:
            break
        near = nearest[y, x]
        if near > 0:
            over = depth - direction[2] * distance - F(1) / near
            if over > 0.12 + 0.05 * distance and over < 2.0 + distance:
                blocked = max(blocked, step(F(0.1), F(0.5), over) * (F(1) - distance / F(16)))
        distance *= F(1.36)
    return blocked


@kernel
def cast_shadows(nearest, direction, scale, lit):
    """Fill `lit` (H, W), ones at first, with the share of the key light at each seen pixel, .14 in full shadow.

    `scale` is in pixels a centimetre. Large pictures are searched at every other pixel: shadows are blurred anyway.
    """
    height, width = nearest.shape
    stride = 2 if scale > 5 else 1
    for j in range(0, height, stride):
        for i in range(0, width, stride):
            if nearest[j, i] > 0:
                light = F(1) - F(0.86) * shadowed(nearest, i, j, F(1) / nearest[j, i], direction, scale)
                lit[j : j + stride, i : i + stride] = light


@kernel
def collar(p, x, y, z):
    """Signed distance above the neckline, cm: above it the body is bare skin."""
    back = step(F(2.0), F(-3.0), z)
    line = F(-16.3) - p.neck_depth * np.exp(-((x / p.neck_width) ** 2)) * (F(1) - back) + F(1.6) * back
    return y - line


@kernel
def clothed(colour, tiles, p, x, y, z):
    """The shoulders: skin above the neckline, a collar, cloth with a fold where the arms begin; returns the gloss."""
    above = collar(p, x, y, z)
    if above > 0:
        complexion(colour, tiles, p, x, y, F(-1))
        return p.gloss
    cloth(colour, tiles, p, x, y)
    shade = F(1) - F(0.45) * bump(abs(x) - F(14.6) - F(0.03) * y, F(0.9)) * step(F(-22), F(-28), y)
    if p.collar > 0 and above > -1.1:
        shade = F(1) - F(0.5) * bump(above + F(1.05), F(0.25))
        for c in range(3):
            colour[c] = p.cloth2[c]
    dim(colour, shade, shade, shade)
    return F(0.02)


@kernel
def strands(colour, tiles, p, x, y, z):
    """Hair: strands within clumps, darker on the inner shells."""
    strand = texel(tiles[2], y * F(24) + p.grain, x * F(8) + p.grain)
    clump = texel(tiles[2], y * F(10), x * F(1.9) + F(50))
    shade = (F(0.9) + F(0.22) * strand + F(0.16) * clump) * min(F(1.05) + F(0.25) * z, F(1))
    for c in range(3):
        colour[c] = p.hair[c] * max(shade, F(0.1))


@kernel
def albedo(kind, colour, tiles, p, x, y, z, u, v):
    """Colour of one pixel by material; returns how wet and how glossy it is."""
    wet, gloss = F(0), F(0.02)
    if kind == SKIN:
        wet, gloss = face(colour, tiles, p, x, y, z, u, v), p.gloss
    elif kind == BODY:
        gloss = clothed(colour, tiles, p, x, y, z)
    elif kind == HAIR:
        strands(colour, tiles, p, x, y, z)
    elif kind == LENS:
        colour[:] = F(0.012) + F(0.03) * step(F(-2.0), F(2.0), y)
        gloss = F(0.6)
    elif kind == FRAME:
        colour[:] = p.frame
        gloss = F(0.35)
    elif kind == HAT:
        band = bump(y - F(6.9), F(0.6))
        weave = F(1) + F(0.06) * texel(tiles[0], y * F(9), x * F(9))
        for c in range(3):
            colour[c] = (p.cloth2[c] * (F(1) - band) + p.cloth[c] * band) * weave
    else:  # a surgical mask with folds
        fold = F(1) - F(0.14) * bump(y + F(5.5) - F(1.4) * np.floor((y + F(6.2)) / F(1.4)), F(0.18))
        colour[0], colour[1], colour[2] = F(0.45) * fold, F(0.60) * fold, F(0.68) * fold
    return wet, gloss


@kernel
def reflect(out, colour, kind, wet, gloss, nx, ny, nz, sun, occlusion, lamp):
    """Light that a point of this colour and normal sends to the camera, into out[0..2].

    Key light (wrapped around, most in red, where it reaches under the skin), sky and ground, a rim, a highlight.
    """
    d = lamp.direction
    facing = nx * d[0] + ny * d[1] + nz * d[2]
    up = F(0.5) + F(0.5) * ny
    soft = F(1) if kind in (SKIN, BODY) else F(0.4)
    half = np.sqrt(d[0] * d[0] + d[1] * d[1] + (d[2] + F(1)) ** 2)
    shine = max((nx * d[0] + ny * d[1] + nz * (d[2] + F(1))) / half, F(0))
    power = shine**8
    spec = gloss * power * power * F(0.45) + wet * F(0.25) * power**4
    if kind == HAIR:
        spec = F(0.05) * power * (F(0.5) + colour[0])
    r = lamp.rim_direction
    rim = max(nx * r[0] + ny * r[1] + nz * r[2], F(0))
    rim = rim * rim * (F(1) - max(nz, F(0)))
    for k in range(3):
        wrap = (F(0.34) - F(0.10) * k) * soft
        diffuse = max((facing + wrap) / (F(1) + wrap), F(0)) * sun
        ambient = (lamp.above[k] * up + lamp.below[k] * (F(1) - up)) * occlusion
        light = lamp.key[k] * diffuse + ambient + lamp.rim[k] * rim
        out[k] = colour[k] * light + lamp.key[k] * spec * sun


@kernel
def shade(ids, weights, nearest, around, lit, triangles, kinds, rest, live, normals, look, light, tiles, out):
    """Write the linear colours of all seen pixels into `out` (H, W, 3).

    `ids`, `weights`, `nearest` come from the rasteriser; `around` is `nearest` averaged over about a
    centimetre (what lies deeper than its surroundings gets less light) and `lit` the softened result of
    :func:`cast_shadows`. `rest` and `live` (V, 3) are rest and deformed head coordinates (for hair: strand,
    length, ends), `normals` (V, 3) in view coordinates.
    """
    p = look[0]
    lamp = light[0]
    colour = np.zeros(3, np.float32)
    for j in range(ids.shape[0]):
        for i in range(ids.shape[1]):
            t = ids[j, i]
            if t < 0:
                continue
            a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
            wa, wb = weights[j, i, 0], weights[j, i, 1]
            wc = F(1) - wa - wb
            x = wa * rest[a, 0] + wb * rest[b, 0] + wc * rest[c, 0]
            y = wa * rest[a, 1] + wb * rest[b, 1] + wc * rest[c, 1]
            z = wa * rest[a, 2] + wb * rest[b, 2] + wc * rest[c, 2]
            u = wa * live[a, 0] + wb * live[b, 0] + wc * live[c, 0]
            v = wa * live[a, 1] + wb * live[b, 1] + wc * live[c, 1]
            nx = wa * normals[a, 0] + wb * normals[b, 0] + wc * normals[c, 0]
            ny = wa * normals[a, 1] + wb * normals[b, 1] + wc * normals[c, 1]
            nz = wa * normals[a, 2] + wb * normals[b, 2] + wc * normals[c, 2]
            length = F(1) / np.sqrt(nx * nx + ny * ny + nz * nz + F(1e-9))
            kind = kinds[t]
            if kind == HAIR and nz < 0:  # the inner side of a curtain of hair
                length = -length
            wet, gloss = albedo(kind, colour, tiles, p, x, y, z, u, v)
            depth = F(1) / nearest[j, i]
            behind = (around[j, i] - nearest[j, i]) * depth * depth
            occlusion = F(1) - min(max(behind * F(0.42), F(0)), F(0.62))
            reflect(out[j, i], colour, kind, wet, gloss, nx * length, ny * length, nz * length,
                    lit[j, i], occlusion, lamp)  # fmt: skip


@kernel
def develop(linear, ids, gain, picture, alpha):
    """Composite a linear layer over `picture` (H, W, 3) float32 display values with soft edges `alpha` (H, W)."""
    for j in range(ids.shape[0]):
        for i in range(ids.shape[1]):
            a = alpha[j, i]
            if a <= 0:
                continue
            for k in range(3):
                value = max(linear[j, i, k] * gain, F(0))
                tone = value * (F(1) + value * F(0.06)) / (F(1) + value * F(0.62))
                shown = DISPLAY[int(F(4095) * np.sqrt(min(tone * F(1.22), F(1))))]
                picture[j, i, k] += (shown - picture[j, i, k]) * a
