"""The judge knows what was drawn, bears a decoder's softness, and says no to what cannot be read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dreambooth_ext.playground import judge, subject, textures, world

Change = Callable[[Image.Image], Image.Image]


@pytest.fixture(scope="module")
def drawn() -> list[tuple[world.Scene, Image.Image]]:
    rng = np.random.default_rng(5)
    triples = world.combinations(holdout=False) + world.combinations(holdout=True)
    scenes = [world.random_scene(rng, triples) for _ in range(240)]
    return [(scene, Image.fromarray(world.draw(scene))) for scene in scenes]


def shares_right(drawn: list[tuple[world.Scene, Image.Image]], change: Change) -> dict[str, float]:
    verdicts = [(scene, judge.judge(change(image))) for scene, image in drawn]
    parts = ("background", "colour", "shape")
    return {part: float(np.mean([getattr(v, part) == getattr(s, part) for s, v in verdicts])) for part in parts}


def blurred(radius: float) -> Change:
    return lambda image: image.filter(ImageFilter.GaussianBlur(radius))


def noisy(levels: float) -> Change:
    rng = np.random.default_rng(0)
    return lambda image: Image.fromarray(
        (np.asarray(image) + rng.normal(0, levels, (64, 64, 3))).clip(0, 255).astype(np.uint8)
    )


def enlarged(image: Image.Image) -> Image.Image:
    return image.resize((256, 256), Image.Resampling.NEAREST)


@pytest.mark.parametrize(
    "change",
    [lambda image: image, blurred(0.7), blurred(1.2), noisy(8), enlarged],
    ids=["clean", "soft", "softer", "grain", "large"],
)
def test_reads_what_was_drawn(drawn: list[tuple[world.Scene, Image.Image]], change: Change) -> None:
    assert min(shares_right(drawn, change).values()) >= 0.99


@pytest.mark.parametrize(
    "change", [blurred(3), blurred(6), noisy(60), noisy(120)], ids=["blur 3", "blur 6", "noise 60", "noise 120"]
)
def test_names_no_shape_in_blur_and_noise(drawn: list[tuple[world.Scene, Image.Image]], change: Change) -> None:
    assert all(judge.judge(change(image)).shape is None for _, image in drawn[:80])


def test_names_nothing_in_pure_noise() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        verdict = judge.judge(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        assert verdict.background is verdict.colour is verdict.shape is None


@pytest.mark.parametrize("name", world.BACKGROUNDS)
def test_an_empty_picture_has_a_background_and_nothing_else(name: str) -> None:
    verdict = judge.judge(Image.new("RGB", (64, 64), world.PALETTE[name]))
    assert (verdict.background, verdict.colour, verdict.shape) == (name, None, None)


def test_a_colour_that_is_not_in_the_palette_has_no_name() -> None:
    assert judge.judge(Image.new("RGB", (64, 64), subject.VIOLET)).background is None


def test_the_subject_is_no_shape_of_the_world() -> None:
    rng = np.random.default_rng(2)
    for background in world.BACKGROUNDS:
        verdict = judge.judge(subject.random_picture(rng, background))
        assert verdict.background == background and verdict.shape is None


def test_textures_are_hardly_ever_taken_for_shapes() -> None:
    rng = np.random.default_rng(3)
    named = [judge.judge(textures.field(rng)).shape for _ in range(60)]
    assert sum(name is not None for name in named) <= 2
