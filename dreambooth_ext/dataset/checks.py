"""The checks of one picture. Each looks at a `Subject` and yields what it has to say."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageCms

from . import quality
from .background import CUT_FROM, Layout, layout
from .crop import Box, crop_box, largest_beside, without_letterbox
from .fringe import HALO_AT_MOST, halo
from .overlay import SUSPECT_FROM, writing
from .pictures import Original
from .verdict import Fix, Verdict

DARK_BELOW, BRIGHT_ABOVE = 60.0, 205.0  # levels that nine tenths of the picture are below, or above
BLOCKS_SEEN_UP_TO = 2.0  # times the resolution: of larger pictures, resizing takes the blocks away
SHOWN = 0.35  # of a side: how much of a picture a crop shows that is to show a fault of the whole


@dataclass(frozen=True)
class Subject:
    """What checks are given: the picture as it is, and as sRGB; derived planes are made once."""

    original: Original
    image: Image.Image
    resolution: int

    @cached_property
    def inner(self) -> Box:
        return without_letterbox(self.image)

    @cached_property
    def cut(self) -> Image.Image:
        """Without letterbox: bars are sharp, dark and free of noise, and say nothing of the picture."""
        return self.image.crop(self.inner) if self.inner != (0, 0, *self.image.size) else self.image

    @cached_property
    def luma(self) -> np.ndarray:
        return quality.luma(self.cut, self.resolution)

    @cached_property
    def layout(self) -> Layout:
        return layout(self.cut)

    @property
    def shown(self) -> Box:
        """The middle of the subject, as large as is needed to see how sharp it is."""
        left, top, right, bottom = self.layout.box
        x, y = (left + right) / 2 + self.inner[0], (top + bottom) / 2 + self.inner[1]
        side = max(1.0, min(self.image.size) * SHOWN)
        left, top = (min(max(0, round(centre - side / 2)), length - round(side))
                     for centre, length in ((x, self.image.width), (y, self.image.height)))
        return max(0, left), max(0, top), max(0, left) + round(side), max(0, top) + round(side)


def size(subject: Subject) -> Iterator[Verdict]:
    shorter, wanted = min(subject.cut.size), subject.resolution
    if shorter < wanted:
        hopeless = 2 * shorter < wanted
        yield Verdict("size", shorter, wanted, f"its shorter side has {shorter} pixels, and training is at {wanted}"
                      + ("; so much enlarged it will teach the model blur" if hopeless else "; enlarge it with an upscaler first"),
                      "drop" if hopeless else "fix", None, Fix("upscale", factor=round(wanted / shorter, 2)))


def blur(subject: Subject) -> Iterator[Verdict]:
    value = quality.blur(subject.luma)
    if value > quality.BLUR_AT_MOST:
        yield Verdict("blur", value, quality.BLUR_AT_MOST,
                      "it is blurred: out of focus, moved, or enlarged from a smaller picture; a model learns blur as well",
                      "drop", subject.shown, Fix("sharper copy"))


def blockiness(subject: Subject) -> Iterator[Verdict]:
    if min(subject.cut.size) > BLOCKS_SEEN_UP_TO * subject.resolution:
        return
    value = quality.blockiness(np.asarray(subject.cut.convert("L"), np.float32))
    if value > quality.BLOCKINESS_AT_MOST:
        yield Verdict("blockiness", value, quality.BLOCKINESS_AT_MOST,
                      "it shows the 8 x 8 blocks of strong JPEG compression; look for a copy of higher quality",
                      "fix", subject.shown, Fix("sharper copy"))


def noise(subject: Subject) -> Iterator[Verdict]:
    value = quality.noise(subject.luma)
    if value > quality.NOISE_AT_MOST:
        yield Verdict("noise", value, quality.NOISE_AT_MOST, "it is grainy, at the size that training sees; denoise it first, "
                      "or take one made in more light", "fix", subject.shown, Fix("sharper copy"))


def exposure(subject: Subject) -> Iterator[Verdict]:
    plane = np.asarray(Image.fromarray(subject.luma).resize(subject.layout.subject.shape[::-1], Image.Resampling.BOX))
    low, high = quality.exposure(plane, subject.layout.subject)
    if high < DARK_BELOW:
        yield Verdict("dark", high, DARK_BELOW, "it is underexposed: nine tenths of it are nearly black", "fix",
                      _moved(subject.layout.box, subject.inner), Fix("brighten"))
    elif low > BRIGHT_ABOVE:
        yield Verdict("bright", low, BRIGHT_ABOVE, "it is overexposed: nine tenths of it are nearly white", "fix",
                      _moved(subject.layout.box, subject.inner), Fix("darken"))


def letterbox(subject: Subject) -> Iterator[Verdict]:
    (left, top, right, bottom), (width, height) = subject.inner, subject.image.size
    share = 1 - (right - left) * (bottom - top) / (width * height)
    if share > 0:
        yield Verdict("letterbox", share, 0.0, f"{share:.0%} of it are plain bars at its edges; preparation takes them off",
                      "fix", (0, 0, width, height), Fix("crop", subject.inner))


def overlay(subject: Subject) -> Iterator[Verdict]:
    found = writing(subject.cut)
    if found.score < SUSPECT_FROM:
        return
    box = _moved(found.box, subject.inner)
    part = largest_beside(box, subject.inner)
    if part is not None and min(part[2] - part[0], part[3] - part[1]) < 0.75 * subject.resolution:
        part = None
    yield Verdict("overlay", found.score, SUSPECT_FROM, "there seems to be writing on it, a watermark or a caption, "
                  "which the model would learn to write", "fix" if part else "drop", box, Fix("crop", part) if part else None)


def transparency(subject: Subject) -> Iterator[Verdict]:
    if not subject.original.has_alpha:
        return
    rgba = subject.original.image.convert("RGBA")
    alpha = rgba.getchannel("A")
    clear = 1 - float(np.asarray(alpha.resize((64, 64), Image.Resampling.BOX)).mean()) / 255
    if clear == 0:
        return
    value = halo(rgba)
    if value > HALO_AT_MOST:
        yield Verdict("fringe", value, HALO_AT_MOST, "its cut-out edge has a fringe of the colour it was cut from; "
                      "preparation gives the edge the subject's own colour", "fix", _edge(alpha), Fix("flatten"))
    yield Verdict("transparency", clear, 0.0, f"{clear:.0%} of it are transparent and become white", "keep", None, Fix("flatten"))


def _edge(alpha: Image.Image) -> Box:
    """A place where the half-transparent edge is."""
    half = np.asarray(alpha.resize((32, 32), Image.Resampling.BOX), np.float32)
    row, column = divmod(int(np.abs(half - 127).argmin()), 32)
    width, height = alpha.size
    side = max(8, min(width, height) // 6)
    x, y = (column + 0.5) / 32 * width, (row + 0.5) / 32 * height
    left, top = (max(0, round(min(centre - side / 2, length - side))) for centre, length in ((x, width), (y, height)))
    return left, top, min(width, left + side), min(height, top + side)


def file(subject: Subject) -> Iterator[Verdict]:
    """What preparation sets right by itself, told so that no one wonders."""
    original = subject.original
    if original.rotated:
        yield Verdict("rotation", 1, 0, "its camera says that it lies on its side; preparation turns it upright", "keep")
    name = _profile_name(original.profile)
    if name and "srgb" not in name.lower():
        yield Verdict("profile", 1, 0, f"its colours are of the profile {name}; preparation turns them into sRGB", "keep")
    if original.mode not in ("RGB", "RGBA", "L", "LA", "P", "PA", "1"):
        yield Verdict("mode", 1, 0, f"its pixels are {original.mode}; preparation makes them RGB in eight bits", "keep")
    if original.frames > 1:
        yield Verdict("animation", original.frames, 1, f"it has {original.frames} frames, of which the first is used", "keep")


def _profile_name(profile: bytes) -> str:
    if not profile:
        return ""
    try:
        return " ".join(ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).split())[:60]
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "that cannot be read"


def cut_off(subject: Subject) -> Iterator[Verdict]:
    """Told on a plain ground only: elsewhere pixels do not say where the subject ends. Cut at the bottom is a half-body."""
    touched = {side: share for side, share in subject.layout.touched.items() if share >= CUT_FROM and side != "bottom"}
    if touched and subject.layout.framing != "close":
        square = crop_box(subject.cut, 1, 1)
        yield Verdict("cut off", max(touched.values()), CUT_FROM, f"the frame cuts the subject at the {' and the '.join(touched)}; "
                      "limbs that end at the frame are learnt so: crop it closer, or leave it out", "keep",
                      _moved(subject.layout.box, subject.inner), Fix("crop", _moved(square, subject.inner)))


def _moved(box: Box, by: Box) -> Box:
    return box[0] + by[0], box[1] + by[1], box[2] + by[0], box[3] + by[1]


CHECKS: tuple[Callable[[Subject], Iterator[Verdict]], ...] = (
    size, blur, noise, blockiness, exposure, letterbox, overlay, transparency, file, cut_off,
)


def verdicts_on(subject: Subject) -> tuple[Verdict, ...]:
    """All that the checks say, in their order."""
    return tuple(verdict for check in CHECKS for verdict in check(subject))
