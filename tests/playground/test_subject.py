"""The subject's judge says yes to the subject and to nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from dreambooth_ext.playground import subject, textures, world


def pictures(count: int = 48) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(subject.random_picture(rng, world.BACKGROUNDS[i % 8])) for i in range(count)]


def test_recognises_the_subject_clean_soft_and_large() -> None:
    for picture in pictures():
        assert subject.recognises(picture)
        assert subject.recognises(picture.filter(ImageFilter.GaussianBlur(1.2)))
        assert subject.recognises(picture.resize((256, 256), Image.Resampling.NEAREST))


def test_says_no_to_every_shape_of_the_world() -> None:
    rng = np.random.default_rng(6)
    for shape in world.SHAPE_NAMES:
        for colour in world.COLOURS:
            background = next(name for name in world.BACKGROUNDS if name != colour)
            assert not subject.recognises(world.draw(world.scene_of(rng, shape, colour, background, "large")))


def test_says_no_to_textures_blur_noise_and_empty_pictures() -> None:
    rng = np.random.default_rng(7)
    assert not any(subject.recognises(textures.random_texture(rng)) for _ in range(100))
    for picture in pictures(16):
        assert not subject.recognises(picture.filter(ImageFilter.GaussianBlur(6)))
        noise = np.asarray(picture) + rng.normal(0, 90, (64, 64, 3))
        assert not subject.recognises(noise.clip(0, 255).astype(np.uint8))
    assert not subject.recognises(Image.new("RGB", (64, 64), subject.VIOLET))


def test_says_no_to_the_same_colours_in_another_arrangement() -> None:
    for picture in pictures(16):
        assert not subject.recognises(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    x, y = world.local_grid((32, 32), 22, 5)
    square = world.downsample(world.SHAPES["square"](x, y))
    for half in (x > 0, y > 0, y < 0, (x > 0) == (y > 0), x < -9):
        filling = world.paint(world.downsample(half), subject.VIOLET, subject.ORANGE)
        assert not subject.recognises(world.paint(square, filling, world.PALETTE["grey"]))


def test_no_word_of_the_world_names_its_colours() -> None:
    assert min(np.linalg.norm(np.subtract(subject.VIOLET, other)) for other in world.PALETTE.values()) > 60
    assert "violet" not in world.PALETTE


def test_draws_the_same_png_files_from_the_same_seed(tmp_path: Path) -> None:
    first = subject.draw_pictures(tmp_path / "a", 5, side=128)
    again = subject.draw_pictures(tmp_path / "b", 5, side=128)
    assert [path.name for path in first] == [f"subject_{i:02d}.png" for i in range(1, 6)]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert all(Image.open(path).size == (128, 128) and subject.recognises(Image.open(path)) for path in first)


def test_unseen_prompts_name_token_noun_and_background() -> None:
    prompts = subject.unseen_prompts("sks", 40)
    assert len(prompts) == 40
    assert subject.instance_prompt("sks") not in {prompt for prompt, _ in prompts}
    assert all("sks square" in prompt and f"on a {background} background" in prompt for prompt, background in prompts)
