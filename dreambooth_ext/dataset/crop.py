"""Which part of a picture to keep."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .faces import Box, faces

ANALYSIS_PX = 96  # the longer side at which saliency is measured
LETTERBOX_LEVELS = 6.0  # standard deviation below which a border row is flat
LETTERBOX_MOST = 0.35  # of a side, on either end
FRAMED_COLOURS = 40  # of 4096, that a picture has at least
_BORDER = 0.08  # of the shorter side: what is taken for the ground
_NOISE_LAB = 4.0  # variance in CIELAB that is no difference
_TAIL = 0.1  # of the weight at either end of an axis that is not the subject's
_AROUND_FACE = (0.5, 0.6, 0.5, 1.0)  # of a face's size, to its left, top, right and bottom: hair, shoulders


def crop_box(image: Image.Image, width: int, height: int, mode: str = "smart") -> Box:
    """The largest box of the aspect ratio width : height; "smart" puts it where the faces are, else where the subject is."""
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
        left = _offset(weights.sum(axis=0), image.width, box_width) if room_x else 0
        top = _offset(weights.sum(axis=1), image.height, box_height) if room_y else 0
        left, top = _with_faces(faces(image), (left, top), (box_width, box_height), image.size)
    return left, top, left + box_width, top + box_height


def saliency(image: Image.Image) -> np.ndarray:
    """How much each place draws the eye, (h, w) float, sum 1: by how unlike the picture's border its colour is.

    The distance (Mahalanobis, in CIELAB) to each of the four borders, without the farthest, so that a subject may touch one:
    the background map of Zhang et al. (2015), section 3.3. Its cube, so that what is half alike hardly counts.
    """
    scale = ANALYSIS_PX / max(image.size)
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    colours = _lab(np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX, reducing_gap=4.0), np.float64))
    deep = max(1, round(_BORDER * min(size)))
    borders = colours[:deep], colours[-deep:], colours[:, :deep], colours[:, -deep:]
    away = np.stack([_distance(colours, border) for border in borders])
    away /= np.maximum(away.max(axis=(1, 2), keepdims=True), 1.0)
    weights = away.sum(axis=0) - away.max(axis=0)
    weights = (weights - weights.min()) ** 3
    total = weights.sum()
    return weights / total if total > 0 else np.full_like(weights, 1 / weights.size)  # a plain picture has no subject


def _distance(colours: np.ndarray, border: np.ndarray) -> np.ndarray:
    """(h, w): how far each of the colours (h, w, 3) is from those of a border, in its own standard deviations."""
    ground = border.reshape(-1, 3)
    spread = np.cov(ground.T) + _NOISE_LAB * np.eye(3)
    off = colours - ground.mean(axis=0)
    return np.sqrt(np.einsum("hwi,ij,hwj->hw", off, np.linalg.inv(spread), off))


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of sRGB values 0 to 255, (..., 3)."""
    display = rgb / 255
    linear = np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ_OF_RGB.T
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


# Rows are divided by the white point.
_XYZ_OF_RGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) / [[0.9505], [1.0], [1.089]]


def without_letterbox(image: Image.Image) -> Box:
    """The picture without flat bars of one colour on opposite sides; the whole picture if there are none."""
    pixels = np.asarray(image.convert("RGB"))
    top, bottom = _bars(pixels)
    left, right = _bars(pixels.transpose(1, 0, 2))
    if top and left and not _rich(pixels[top : len(pixels) - bottom, left : pixels.shape[1] - right]):
        return 0, 0, *image.size
    return left, top, image.width - right, image.height - bottom


def largest_beside(box: Box, whole: Box) -> Box | None:
    """The largest part of `whole` above, below, left or right of a box in it; None if that is less than half of it."""
    left, top, right, bottom = whole
    parts = [(left, top, right, box[1]), (left, box[3], right, bottom), (left, top, box[0], bottom), (box[2], top, right, bottom)]
    part = max(parts, key=_area)
    return part if _area(part) >= 0.5 * _area(whole) else None


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


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


def _offset(profile: np.ndarray, length: int, window: int) -> int:
    """Where a window is to begin so that the middle of what is seen along an axis is in its middle, as far as there is room."""
    sums = np.concatenate([[0.0], np.cumsum(profile)])
    first, last = np.interp((_TAIL, 1 - _TAIL), sums / sums[-1], np.linspace(0, length, len(sums)))
    return round(min(max(0.0, (first + last - window) / 2), length - window))


def _with_faces(found: list[Box], at: tuple[int, int], window: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """A window's left and top, moved as little as is needed to have all faces in it; the largest, if they are too far apart."""
    if not found:
        return at
    left, top, right, bottom = (pick(values) for pick, values in zip((min, min, max, max), zip(*found, strict=True), strict=True))
    if right - left > window[0] or bottom - top > window[1]:
        left, top, right, bottom = max(found, key=lambda face: face[2] - face[0])
    side = right - left if len(found) == 1 else max(face[2] - face[0] for face in found)
    moved = []
    for axis, (low, high) in enumerate(((left, right), (top, bottom))):
        around = low - side * _AROUND_FACE[axis], high + side * _AROUND_FACE[axis + 2]
        low, high = around if around[1] - around[0] <= window[axis] else (low, high)
        start = min(max(at[axis], high - window[axis]), low)
        moved.append(round(min(max(0, start), size[axis] - window[axis])))
    return moved[0], moved[1]
