"""The fringe of a picture with transparency: half-transparent edges that kept the colour of what they were cut from.

An edge of clean straight alpha has the object's own colour. One that was cut out of a ground of colour B without care has
C = a F + (1 - a) B (Porter and Duff 1984), and shows B again wherever it is put down.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

HALO_AT_MOST = 22.0  # levels
_REACH = 6  # pixels from an edge to the opaque part that tells its colour
_CLEAR, _OPAQUE = 0.04, 0.96
_LEAST_PIXELS = 48
_MEASURED_PX = 768  # longer side, at most
_TRUSTED = 64.0  # levels that an edge's own colour may differ from the opaque part's
_STRIP_ROWS = 256  # cleaned at a time, so that large pictures need little memory


def halo(image: Image.Image) -> float:
    """How many levels (RMS) an RGBA picture's edge colours are off because of the ground it was cut from; 0 if clean.

    Only what one ground explains counts, so that texture at the edge does not.
    """
    return _fitted(image)[0]


def _fitted(image: Image.Image) -> tuple[float, np.ndarray]:
    """The halo, and the colour of the ground that explains it."""
    small = image.convert("RGBA")
    small.thumbnail((_MEASURED_PX, _MEASURED_PX), Image.Resampling.BOX)
    colour, alpha = _split(small)
    own, known = _nearest_opaque(colour, alpha)
    edge = (alpha > _CLEAR) & (alpha < _OPAQUE) & known
    if edge.sum() < _LEAST_PIXELS:
        return 0.0, np.zeros(3, np.float32)
    clear = (1 - alpha[edge])[:, None]
    off = colour[edge] - own[edge]
    # Least squares for the ground B in  C - F = (1 - a) (B - F).
    ground = (clear * (off + clear * own[edge])).sum(axis=0) / (clear**2).sum()
    left = off - clear * (ground - own[edge])
    before, after = float((off**2).mean()), float((left**2).mean())
    # The ground's three numbers explain a little of anything; a fringe is explained nearly whole.
    share = max(0.0, 1 - after / before) if before > 0 else 0.0
    return float(np.sqrt(before)) * share, ground


def cleaned(image: Image.Image) -> Image.Image:
    """An RGBA picture without the ground's colour in its half-transparent edges; alpha is kept.

    Where little of the object is in a pixel, the colour of the opaque part beside it is taken. What has no opaque part near
    it, as smoke or glass, stays as it is.
    """
    ground = _fitted(image)[1].clip(0, 255)
    result = image.copy()
    for top in range(0, image.height, _STRIP_ROWS):
        first, after = max(0, top - _REACH), min(image.height, top + _STRIP_ROWS + _REACH)
        strip = image.crop((0, first, image.width, after))
        low, high = strip.getchannel("A").getextrema()
        if low == 255 or high == 0:
            continue
        colour, alpha = _split(strip)
        own, known = _nearest_opaque(colour, alpha)
        edge = (alpha < _OPAQUE) & (alpha > 0) & known
        share = np.maximum(alpha[edge], 0.05)[:, None]
        unmixed = (colour[edge] - (1 - share) * ground) / share
        # Rounding to whole levels grows as the share gets less, so the nearer opaque colour is trusted more.
        near, trust = own[edge], ((share - 0.15) / 0.35).clip(0, 1)
        colour[edge] = trust * unmixed.clip(near - _TRUSTED, near + _TRUSTED) + (1 - trust) * near
        clean = Image.fromarray((colour + 0.5).clip(0, 255).astype(np.uint8))
        clean.putalpha(strip.getchannel("A"))
        bottom = min(image.height, top + _STRIP_ROWS)
        result.paste(clean.crop((0, top - first, image.width, bottom - first)), (0, top))
    return result


def _split(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(image.convert("RGBA"), np.float32)
    return values[:, :, :3].copy(), values[:, :, 3] / 255


def _nearest_opaque(colour: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel the mean colour of the nearest opaque ones, and whether there are any within reach.

    Grown outwards a pixel at a time.
    """
    known = alpha >= _OPAQUE
    own = np.where(known[:, :, None], colour, 0)
    wanted = (alpha > 0) & ~known
    for _ in range(_REACH):
        if not (wanted & ~known).any():
            break
        weight = known.astype(np.float32)
        count = _around(weight)
        mean = _around(own) / np.maximum(count, 1)[:, :, None]
        grown = ~known & (count > 0)
        own[grown] = mean[grown]
        known = known | grown
    return own, known


def _around(values: np.ndarray) -> np.ndarray:
    """The sum over the 3 x 3 pixels around each."""
    padded = np.pad(values, ((1, 1), (1, 1)) + ((0, 0),) * (values.ndim - 2))
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
