"""Pictures outside of the world's grammar, for the autoencoder only: it must also carry what nobody has named yet."""

from __future__ import annotations

import numpy as np

from . import world


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Any RGB colour; vivid corners of the cube are as likely as the rest."""
    rgb = rng.integers(0, 256, 3)
    return np.where(rgb > 127, 255, 0) if rng.random() < 0.4 else rgb


def _pattern(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A two-valued pattern over local coordinates: stripes, a checker, quadrants, a pinwheel or rings."""
    kind, pitch = rng.choice(5, p=(0.2, 0.2, 0.3, 0.15, 0.15)), rng.uniform(0.4, 1.0)
    if kind == 0:
        return np.floor(x / pitch) % 2 == 0
    if kind == 1:
        return (np.floor(x / pitch) + np.floor(y / pitch)) % 2 == 0
    if kind == 2:
        return (x > 0) ^ (y > 0)
    if kind == 3:
        return np.floor(np.arctan2(y, x) / (np.pi / 4)) % 2 == 0
    return np.floor(np.hypot(x, y) / pitch) % 2 == 0


def patterned_shape(rng: np.random.Generator) -> np.ndarray:
    """One of the world's shapes filled with a two-colour pattern, on any background."""
    centre, radius, angle = world.place(rng, world.SIZES[rng.integers(1, 3)])
    grid = world.local_grid(centre, radius, angle)
    shape = "square" if rng.random() < 0.3 else world.SHAPE_NAMES[rng.integers(8)]
    mask = world.downsample(world.SHAPES[shape](*grid))
    filling = world.paint(world.downsample(_pattern(rng, *grid)), _colour(rng), _colour(rng))
    return world.paint(mask, filling, _colour(rng))


def field(rng: np.random.Generator) -> np.ndarray:
    """A pattern, or a gradient, over the whole picture."""
    grid = world.local_grid((rng.uniform(0, 64), rng.uniform(0, 64)), rng.uniform(14, 40), rng.uniform(0, 360))
    if rng.random() < 0.7:
        return world.paint(world.downsample(_pattern(rng, *grid)), _colour(rng), _colour(rng))
    ramp = grid[0][:: world.SUPERSAMPLE, :: world.SUPERSAMPLE]
    return world.paint((ramp - ramp.min()) / np.ptp(ramp), _colour(rng), _colour(rng))


def crowd(rng: np.random.Generator) -> np.ndarray:
    """Two to four shapes of any colour, over each other."""
    picture: np.ndarray = _colour(rng)
    for _ in range(rng.integers(2, 5)):
        centre, radius, angle = world.place(rng, world.SIZES[rng.integers(3)])
        shape = world.SHAPE_NAMES[rng.integers(8)]
        picture = world.paint(world.coverage(shape, centre, radius, angle), _colour(rng), picture)
    return picture


def random_texture(rng: np.random.Generator) -> np.ndarray:
    """Any of the above, uint8 (64, 64, 3)."""
    return (patterned_shape, field, crowd)[rng.choice(3, p=(0.6, 0.15, 0.25))](rng)
