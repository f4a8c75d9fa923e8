"""Which part of a picture to keep."""

from __future__ import annotations

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
ANALYSIS_PX = 96  # the longer side at which saliency is measured
LETTERBOX_LEVELS = 6.0  # standard deviation below which a border row is flat
LETTERBOX_MOST = 0.35  # of a side, on either end
FRAMED_COLOURS = 40  # of 4096, that a picture has at least
CENTRE_PULL = 0.15  # how much the middle counts by itself, against what is seen there


def crop_box(image: Image.Image, width: int, height: int, mode: str = "smart") -> Box:
    """The largest box of the aspect ratio width : height; "smart" puts it where most of the subject is."""
    aspect = width / height
    box_width, box_height = image.width, image.height
    if box_width / box_height > aspect:
        box_width = max(1, round(box_height * aspect))
    else:
        box_height = max(1, round(box_width / aspect))
    room_x, room_y = image.width - box_width, image.height - box_height
    left, top = room_x // 2, room_y // 2
    if mode == "smart" and (room_x or room_y):
        weights = saliency(image)
        left = _best_offset(weights.sum(axis=0), image.width, box_width) if room_x else 0
        top = _best_offset(weights.sum(axis=1), image.height, box_height) if room_y else 0
    return left, top, left + box_width, top + box_height


def saliency(image: Image.Image) -> np.ndarray:
    """How much each place draws the eye, (h, w) float, sum 1: colours unlike the border's, and edges."""
    scale = ANALYSIS_PX / max(image.size)
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX, reducing_gap=4.0), np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    # Distance to the nearest of a few border colours: a background of two parts is still background.
    samples = border[:: max(1, len(border) // 24)]
    unlike = np.linalg.norm(pixels[:, :, None] - samples[None, None], axis=3).min(axis=2)
    grey = pixels.mean(axis=2)
    edges = np.hypot(*np.gradient(grey))
    weights = unlike / (unlike.max() + 1e-6) + 0.5 * edges / (edges.max() + 1e-6)
    y, x = (np.linspace(-1, 1, count) for count in weights.shape)
    weights = weights**2 + CENTRE_PULL * np.exp(-2 * (y[:, None] ** 2 + x[None] ** 2)) * weights.mean()
    total = weights.sum()
    return weights / total if total > 0 else np.full_like(weights, 1 / weights.size)  # a plain picture has no subject


def without_letterbox(image: Image.Image) -> Box:
    """The picture without flat bars of one colour on opposite sides; the whole picture if there are none."""
    pixels = np.asarray(image.convert("RGB"))
    top, bottom = _bars(pixels)
    left, right = _bars(pixels.transpose(1, 0, 2))
    if top and left and not _rich(pixels[top : len(pixels) - bottom, left : pixels.shape[1] - right]):
        return 0, 0, *image.size
    return left, top, image.width - right, image.height - bottom


def _bars(pixels: np.ndarray) -> tuple[int, int]:
    """Rows of flat bar at the start and at the end; both or none, since a plain background touches often one end only."""
    if any(pixels[end].std(axis=0).max() >= LETTERBOX_LEVELS for end in (0, -1)):
        return 0, 0  # as in nearly all pictures, and a hundred times as fast to see
    pixels = pixels.astype(np.float32)
    flat = (pixels.std(axis=1).max(axis=1) < LETTERBOX_LEVELS) & _near(pixels.mean(axis=1), pixels[0].mean(axis=0))
    most = int(len(pixels) * LETTERBOX_MOST)
    start = int(np.argmin(flat)) if not flat.all() else 0
    end = int(np.argmin(flat[::-1])) if not flat.all() else 0
    alike = min(start, end) >= 0.5 * max(start, end) and min(start, end) >= 2
    # A dark picture hardly differs from black bars on one side of it: the other side counts for it.
    ends = (_sharp(pixels, start), _sharp(pixels[::-1], end)) if alike else (0.0, 0.0)
    sharp = min(ends) > 0.3 and sum(ends) > 1.2
    return (start, end) if sharp and max(start, end) <= most else (0, 0)


def _sharp(pixels: np.ndarray, edge: int) -> float:
    """The share of the side along which a bar ends at once: much of it, as the plain background around a subject does not."""
    change = np.abs(pixels[min(edge + 1, len(pixels) - 1)] - pixels[max(edge - 2, 0)]).max(axis=1)
    return float((change > 4 * LETTERBOX_LEVELS).mean())


def _rich(pixels: np.ndarray) -> bool:
    """Bars on all four sides are a frame if there is a picture in it; around a plain shape they are its background."""
    colours = (pixels[:: max(1, len(pixels) // 128), :: max(1, pixels.shape[1] // 128)] / 16).astype(np.int64)
    return len(np.unique(colours @ np.array([256, 16, 1]))) > FRAMED_COLOURS


def _near(colours: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.linalg.norm(colours - colour, axis=1) < 2 * LETTERBOX_LEVELS


def _best_offset(profile: np.ndarray, length: int, window: int) -> int:
    """Where a window catches most of `profile`; the middle of all places that do so."""
    places = np.arange(0, length - window + 1)
    edges = np.concatenate([[0.0], np.cumsum(profile)])
    ticks = np.linspace(0, length, len(edges))
    caught = np.interp(places + window, ticks, edges) - np.interp(places, ticks, edges)
    best = places[caught >= caught.max() - 1e-3]
    return int(best[len(best) // 2])
