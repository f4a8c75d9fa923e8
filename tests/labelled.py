"""Pictures whose faults are known because they were made on purpose; shared by the audit's tests and its benchmark.

Sources are real photographs and scenes of the playground's world, all at SIDE pixels. The halves have no source in common:
one photographed subject each, and every other scene.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dreambooth_ext.dataset import quality
from dreambooth_ext.dataset.crop import without_letterbox
from dreambooth_ext.dataset.duplicates import near_duplicates, thumbnail
from dreambooth_ext.dataset.fringe import cleaned, halo
from dreambooth_ext.dataset.overlay import SUSPECT_FROM, writing
from dreambooth_ext.playground import textures, world

SIDE = 384  # pixels of a picture's sides, and the resolution that it is judged for
HALVES = 2


@dataclass(frozen=True)
class Labelled:
    """A picture, whether it has the fault, and a name to find it by."""

    image: Image.Image
    faulty: bool
    name: str


def photographs(folder: Path | None, half: int, side: int = SIDE) -> list[Image.Image]:
    """The photographs of one of the two subjects, upright squares; none without a folder."""
    if folder is None:
        return []
    subject = sorted(path for path in folder.iterdir() if path.is_dir())[half]
    found = []
    for path in sorted(subject.glob("*.jpg")):
        with Image.open(path) as image:
            image.draft("RGB", (2 * side, 2 * side))
            found.append(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
    return found


def scene(seed: int, side: int = SIDE) -> Image.Image:
    """One to three shapes on a plain, shaded or patterned ground, with the slight grain of a camera."""
    rng = np.random.default_rng(seed)
    picture = _ground(rng, side)
    for _ in range(rng.integers(1, 4)):
        centre, radius, angle = world.place(rng, world.SIZES[rng.integers(3)])
        scale = side / world.SIDE
        mask = world.coverage(world.SHAPE_NAMES[rng.integers(8)], (centre[0] * scale, centre[1] * scale), radius * scale, angle,
                              side)
        colour = np.array(world.jittered(rng, world.COLOURS[rng.integers(8)]), np.float32)
        shade = np.linspace(0.75, 1.1, side, dtype=np.float32)[:, None, None]  # lit from below, so that no shape is one value
        picture = world.paint(mask, (colour * shade).clip(0, 255), picture)
    grain = rng.normal(0, 1.5, (side, side, 1))
    return Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8))


def _ground(rng: np.random.Generator, side: int) -> np.ndarray:
    kind = rng.integers(3)
    first, second = (np.array(world.jittered(rng, world.BACKGROUNDS[rng.integers(8)]), np.float32) for _ in range(2))
    if kind == 0:
        return np.broadcast_to(first, (side, side, 3)).astype(np.uint8)
    if kind == 1:
        ramp = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
        return (first * ramp + second * (1 - ramp) + np.zeros((side, side, 3), np.float32)).astype(np.uint8)
    scale = side / world.SIDE
    grid = world.local_grid((float(rng.uniform(0, side)), float(rng.uniform(0, side))), float(rng.uniform(14, 40)) * scale,
                            float(rng.uniform(0, 360)), side)
    return world.paint(world.downsample(textures._pattern(rng, *grid)), 0.5 * first + 0.5 * second, first)


def sources(folder: Path | None, half: int, scenes: int = 8) -> list[Image.Image]:
    """What one half is made from."""
    return photographs(folder, half) + [scene(seed * HALVES + half) for seed in range(scenes)]


# Each maker takes a faultless picture and a random generator, and returns it with the fault.
Maker = Callable[[Image.Image, np.random.Generator], Image.Image]


def defocused(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(2.2, 5))))


def shaken(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Moved in a straight line, in any direction, while the shutter was open."""
    length, angle = float(rng.uniform(10, 24)), float(rng.uniform(0, np.pi))
    values = np.asarray(image, np.float32)
    padded = np.pad(values, ((16, 16), (16, 16), (0, 0)), mode="edge")
    taken = []
    for place in np.linspace(-length / 2, length / 2, 2 * int(length)):
        x, y = round(float(place * np.cos(angle))) + 16, round(float(place * np.sin(angle))) + 16
        taken.append(padded[y : y + values.shape[0], x : x + values.shape[1]])
    return Image.fromarray(np.mean(taken, axis=0).astype(np.uint8))


def enlarged(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Made of a picture of a quarter to a sixth of its size."""
    factor = float(rng.uniform(4, 6))
    small = image.resize((round(image.width / factor), round(image.height / factor)), Image.Resampling.LANCZOS)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def noised(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    values = np.asarray(image, np.float32)
    return Image.fromarray((values + rng.normal(0, rng.uniform(18, 32), values.shape)).clip(0, 255).astype(np.uint8))


def compressed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Through a JPEG of low quality, and then perhaps cut, so that its grid is no longer at the corner."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(10, 25)))
    with Image.open(buffer) as squeezed:
        cut = int(rng.integers(0, 8))
        return squeezed.convert("RGB").crop((cut, cut, image.width, image.height))


def letterboxed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    level = int((0, 0, 255, 96)[rng.integers(4)])
    bar = int(image.height * rng.uniform(0.04, 0.2))
    inner = image.crop((0, bar, image.width, image.height - bar))
    framed = Image.new("RGB", image.size, (level, level, level))
    framed.paste(inner, (0, bar))
    return framed if rng.random() < 0.6 else framed.transpose(Image.Transpose.ROTATE_90)


def signed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """With a line of writing at any place, more or less transparent; black or white, whichever can be read there."""
    text = ("(c) Jane Doe 2021", "www.example.com", "SAMPLE PREVIEW", "PhotoStock 48213", "@some_artist")[rng.integers(5)]
    height = int(image.height * rng.uniform(0.05, 0.1))
    mask = _writing(text, height, int(image.width * 0.92))
    at = (int(rng.integers(4, image.width - mask.width - 3)), int(rng.integers(4, image.height - mask.height - 3)))
    below = np.asarray(image.convert("L").crop((*at, at[0] + mask.width, at[1] + mask.height)), np.float32)
    level = 255 if below.mean() < 127 else 0
    opacity = float(rng.uniform(0.55, 1.0))
    written = image.copy()
    written.paste((level, level, level), at, mask.point(lambda value: int(value * opacity)))
    return written


def _writing(text: str, height: int, widest: int) -> Image.Image:
    """Coverage of a line of text, `height` px from the tallest to the lowest, in the letters that Pillow brings."""
    font = ImageFont.load_default()
    small = Image.new("L", (16 * len(text) + 16, 40), 0)
    ImageDraw.Draw(small).text((2, 2), text, fill=255, font=font)
    small = small.crop(small.getbbox())
    width = min(widest, round(small.width * height / small.height))
    return small.resize((width, round(small.height * width / small.width)), Image.Resampling.BICUBIC)


FAULTS: dict[str, tuple[Maker, ...]] = {
    "blur": (defocused, shaken, enlarged),
    "noise": (noised,),
    "blockiness": (compressed,),
    "letterbox": (letterboxed,),
    "overlay": (signed,),
}


def labelled(check: str, images: Iterable[Image.Image], seed: int) -> Iterator[Labelled]:
    """Each picture as it is and mirrored, both faultless, and with the fault, made in each of the ways there are."""
    rng = np.random.default_rng([seed, *check.encode()])
    for number, image in enumerate(images):
        yield Labelled(image, False, f"{number}")
        yield Labelled(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), False, f"{number} mirrored")
        for maker in FAULTS[check]:
            for _ in range(2 if len(FAULTS[check]) == 1 else 1):
                yield Labelled(maker(image, rng), True, f"{number} {maker.__name__}")


def cut_out(image: Image.Image, rng: np.random.Generator, *, fringed: bool) -> Image.Image:
    """A soft-edged part of the picture on transparency; with the fringe of a ground it was cut from, or without."""
    side = image.width
    mask = Image.new("L", (2 * side, 2 * side), 0)
    points = [(side + side * r * np.cos(a), side + side * r * np.sin(a))
              for a, r in zip(np.linspace(0, 2 * np.pi, 24, endpoint=False), rng.uniform(0.5, 0.9, 24), strict=True)]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    alpha = mask.resize((side, side), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.7, 2))))
    cut = image.copy()
    if fringed:
        ground = ((255, 255, 255), (0, 0, 0), (30, 180, 60))[rng.integers(3)]
        cut = Image.composite(image, Image.new("RGB", image.size, ground), alpha)
    cut.putalpha(alpha)
    return cut


def twins(image: Image.Image, rng: np.random.Generator, way: str) -> tuple[Image.Image, Image.Image]:
    """A picture, and it again: shifted by up to 12 % of its side, cut by up to as much, mirrored, compressed or resized."""
    if way == "mirrored":
        return image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if way == "resized":
        factor = float(rng.uniform(0.3, 0.8))
        return image, image.resize((int(image.width * factor), int(image.height * factor)), Image.Resampling.BICUBIC)
    if way == "compressed":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(25, 60)))
        return image, Image.open(buffer).convert("RGB")
    most = int(image.width * 0.107)  # 12 % of what is left
    left, top = (int(rng.integers(0, most + 1)) for _ in range(2))
    width, height = image.width - most, image.height - most
    part = image.crop((left, top, left + width, top + height))
    if way == "cut":
        return image, part
    return part, image.crop((most - left, top, most - left + width, top + height))


TWINS = ("shifted", "cut", "mirrored", "compressed", "resized")


@dataclass(frozen=True)
class Score:
    """How often a check was right: `precision` of what it found, `recall` of what there was."""

    precision: float
    recall: float
    found: int
    faulty: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[bool, bool]]) -> Score:
        """From (faulty, found) pairs."""
        known = list(pairs)
        right = sum(faulty and found for faulty, found in known)
        found, faulty = sum(found for _, found in known), sum(faulty for faulty, _ in known)
        return cls(right / found if found else 1.0, right / faulty if faulty else 1.0, found, faulty)


# By check: what is measured, above which number it is a fault, and the least precision and recall.
MEASURED: dict[str, tuple[Callable[[Image.Image], float], float, float]] = {
    "blur": (lambda image: quality.blur(quality.luma(image, SIDE)), quality.BLUR_AT_MOST, 0.95),
    "noise": (lambda image: quality.noise(quality.luma(image, SIDE)), quality.NOISE_AT_MOST, 0.95),
    "blockiness": (lambda image: quality.blockiness(np.asarray(image.convert("L"), np.float32)), quality.BLOCKINESS_AT_MOST, 0.85),
    "letterbox": (lambda image: float(without_letterbox(image) != (0, 0, *image.size)), 0.5, 0.95),
    "overlay": (lambda image: writing(image).score, SUSPECT_FROM, 0.85),
}


def fringe_values(images: Iterable[Image.Image], seed: int) -> Iterator[tuple[bool, float, float]]:
    """(whether it has a fringe, the halo measured, the halo left when it is cleaned) of cut-outs of each picture."""
    rng = np.random.default_rng(seed)
    for image in images:
        for fringed in (False, True):
            cut = cut_out(image, rng, fringed=fringed)
            yield fringed, halo(cut), halo(cleaned(cut)) if fringed else 0.0


def duplicate_pairs(images: Sequence[Image.Image], seed: int) -> list[tuple[bool, bool]]:
    """(whether they are the same, whether they are found to be), of every picture with some of its twins and all others."""
    pairs = []
    for index, image in enumerate(images):
        for way in TWINS[index % 2 :: 2]:
            two = twins(image, np.random.default_rng([index, seed]), way)
            pairs.append((True, bool(near_duplicates([thumbnail(each) for each in two])[0])))
    found = {(pair.first, pair.second) for pair in near_duplicates([thumbnail(each) for each in images])[0]}
    return pairs + [(False, (first, second) in found) for second in range(len(images)) for first in range(second)]
