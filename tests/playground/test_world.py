"""The world is drawn the same from the same seed, captioned truthfully, and keeps its held-out combinations apart."""

from __future__ import annotations

import numpy as np
import pytest

from dreambooth_ext.playground import textures, world


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_seed_names_a_picture_and_its_caption() -> None:
    def one(seed: int) -> tuple[np.ndarray, str]:
        generator = rng(seed)
        scene = world.random_scene(generator, world.combinations(holdout=False))
        return world.draw(scene), world.random_caption(generator, scene.words)

    first, again, other = one(3), one(3), one(4)
    assert np.array_equal(first[0], again[0]) and first[1] == again[1]
    assert not np.array_equal(first[0], other[0])
    assert first[0].shape == (world.SIDE, world.SIDE, 3) and first[0].dtype == np.uint8


def test_textures_repeat_too() -> None:
    assert np.array_equal(textures.random_texture(rng(9)), textures.random_texture(rng(9)))


def test_the_world_is_as_large_as_promised() -> None:
    assert len(world.SHAPES) >= 8 and len(world.COLOURS) >= 8 and len(world.BACKGROUNDS) >= 8
    assert 3 <= len(set(world.COLOURS) & set(world.BACKGROUNDS)) <= 5


def test_palette_colours_are_well_apart() -> None:
    values = np.array(list(world.PALETTE.values()), float)
    distance = np.linalg.norm(values[:, None] - values[None], axis=2)
    assert distance[~np.eye(len(values), dtype=bool)].min() > 80


@pytest.mark.parametrize(
    ("words", "caption"),
    [
        (("star",), "a star"),
        (("star", "orange"), "an orange star"),
        (("moon", None, "sky"), "a moon on a sky background"),
        (("heart", "red", None, "plain"), "a red heart"),
        (("star", "red", "blue", "small"), "a small red star on a blue background"),
    ],
)
def test_captions(words: tuple[str, ...], caption: str) -> None:
    assert world.caption_of(*words) == caption


def test_captions_drop_parts_and_never_lie() -> None:
    generator = rng(1)
    scene = world.scene_of(generator, "star", "red", "blue", "small")
    captions = {world.random_caption(generator, scene.words) for _ in range(400)}
    assert len(captions) == 8
    assert {"a star", "a small red star on a blue background"} <= captions
    true_words = {"a", "small", "red", "star", "on", "blue", "background"}
    assert all("star" in caption and set(caption.split()) <= true_words for caption in captions)


def test_about_15_percent_of_the_combinations_are_held_out_and_each_pair_is_still_seen() -> None:
    kept, held = world.combinations(holdout=False), world.combinations(holdout=True)
    assert not set(kept) & set(held)
    assert 0.12 <= len(held) / (len(kept) + len(held)) <= 0.18
    assert {(s, c) for s, c, _ in held} <= {(s, c) for s, c, _ in kept}
    assert {(s, b) for s, _, b in held} <= {(s, b) for s, _, b in kept}
    assert {(c, b) for _, c, b in held} <= {(c, b) for _, c, b in kept}


def test_training_scenes_are_never_held_out() -> None:
    generator, kept = rng(2), world.combinations(holdout=False)
    for _ in range(500):
        scene = world.random_scene(generator, kept)
        assert not world.held_out(scene.shape, scene.colour, scene.background)
        assert scene.colour != scene.background


def test_shapes_keep_off_the_border() -> None:
    generator, every = rng(6), world.combinations(holdout=False)
    for _ in range(60):
        scene = world.random_scene(generator, every)
        mask = world.coverage(scene.shape, scene.centre, scene.radius, scene.angle)
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert border.max() == 0 and mask.max() == 1
