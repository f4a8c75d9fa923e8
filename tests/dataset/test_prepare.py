"""Preparation: same input, same bytes; only what changed is done again; originals stay as they are."""

import hashlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from dreambooth_ext import recipe
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.dataset import prepare as module
from dreambooth_ext.dataset.buckets import bucket_for, bucket_sizes
from dreambooth_ext.dataset.captions import caption_of, captions_advice, prompt_for, token_advice, write_caption
from dreambooth_ext.dataset.crop import crop_box, without_letterbox
from dreambooth_ext.dataset.prepare import as_trained, prepare
from dreambooth_ext.dataset.resize import resize
from dreambooth_ext.errors import PictureError
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.words import as_webui_reads


def scene(path, size=(300, 200), at=(220, 100), radius=50):
    image = Image.new("RGB", size, (90, 120, 160))
    ImageDraw.Draw(image).ellipse([at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius], fill=(220, 60, 40))
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "pictures"
    source.mkdir()
    for number in range(3):
        scene(source / f"{number}.png", at=(60 + 90 * number, 100))
    return source


def test_same_input_same_bytes_and_originals_untouched(folder, tmp_path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    first, second = (prepare(folder, tmp_path / name, resolution=64) for name in ("a", "b"))
    assert [picture.sha256 for picture in first] == [picture.sha256 for picture in second]
    for picture in first:
        assert hashlib.sha256(picture.path.read_bytes()).hexdigest() == picture.sha256
        with Image.open(picture.path) as image:
            assert image.size == (64, 64) and image.mode == "RGB" and image.text["source"] == picture.source.name
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_only_what_changed_is_done_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare(folder, out, resolution=64)
    done = []
    monkeypatch.setattr(module, "_as_trained", lambda *a, real=module._as_trained: done.append(a[0].name) or real(*a))
    scene(folder / "1.png", at=(40, 40))
    (folder / "2.png").unlink()
    next(out.glob("*.png")).write_bytes(b"damaged")
    prepared = prepare(folder, out, resolution=64)
    assert "1.png" in done and len(done) <= 2
    assert {path.name for path in out.glob("*.png")} == {picture.path.name for picture in prepared}
    done.clear()
    prepare(folder, out, resolution=64)
    assert done == []
    prepare(folder, out, resolution=128)
    assert len(done) == 2


def test_a_run_that_goes_on_keeps_the_pictures_that_it_has_learnt_from(folder, tmp_path, monkeypatch):
    concept = Concept(instance_dir=str(folder), token="rxz", class_noun="ball")
    config, run = TrainConfig(output_name="rxz", concepts=(concept,)), RunFolder(tmp_path / "rxz")
    before = recipe.prepare(config, run, 64, Progress())
    monkeypatch.setattr(module, "detector", lambda: "OpenCV of another host")
    monkeypatch.setattr(module, "RECIPE", module.RECIPE + 1)
    monkeypatch.setattr(module, "crop_box", lambda image, width, height, how: (0, 0, 64, 64))
    assert recipe.prepare(config, run, 64, Progress(), None, True) == before
    scene(folder / "1.png", at=(40, 40))
    again = recipe.prepare(config, run, 64, Progress(), None, True)
    assert [now == then for now, then in zip(again, before, strict=True)] == [True, False, True]
    assert not {image.sha256 for image in recipe.prepare(config, run, 64, Progress())} & {image.sha256 for image in before}
    assert {image.width for image in recipe.prepare(config, run, 128, Progress(), None, True)} == {128}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1, "pictures": {"0.png": {"file": "../x"}}}', '{"version": 9}'])
def test_a_damaged_index_is_made_anew(folder, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prepared.json").write_text(text)
    assert len(prepare(folder, tmp_path / "out", resolution=64)) == 3


@pytest.mark.parametrize("at", [(60, 100), (150, 100), (240, 100)])
def test_the_smart_crop_keeps_the_subject(tmp_path, at):
    with Image.open(scene(tmp_path / "a.png", at=at)) as image:
        left, top, right, bottom = crop_box(image, 64, 64)
    assert left <= at[0] - 50 and right >= at[0] + 50 and (right - left, bottom - top) == (200, 200)


TARGETS = st.sampled_from([(64, 64), (64, 128), (192, 64)])


@given(st.integers(8, 400), st.integers(8, 400), TARGETS, st.sampled_from(["smart", "center"]))
def test_any_crop_lies_inside_and_has_the_ratio(width, height, target, mode):
    left, top, right, bottom = crop_box(Image.new("RGB", (width, height), "grey"), *target, mode)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert right - left == width or bottom - top == height


def test_letterbox_bars_are_taken_off_and_plain_backgrounds_are_not(tmp_path):
    random = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    framed = Image.new("RGB", (160, 180), "black")
    framed.paste(Image.fromarray(random), (0, 30))
    assert without_letterbox(framed) == (0, 30, 160, 150)
    with Image.open(scene(tmp_path / "a.png")) as plain:
        assert without_letterbox(plain) == (0, 0, 300, 200)


def test_resizing_works_on_light_not_on_display_values():
    checker = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = np.asarray(resize(Image.fromarray(np.stack([checker.astype(np.uint8)] * 3, axis=2)), 8, 8))
    assert abs(int(small.mean()) - 188) <= 2  # half the light is 188 in sRGB, not 127


@given(st.integers(20, 4000), st.integers(20, 4000), st.sampled_from([256, 512, 768]))
def test_every_picture_has_a_bucket_no_larger_than_the_square(width, height, resolution):
    size = bucket_for(width, height, resolution)
    assert size in bucket_sizes(resolution) and size[0] * size[1] <= resolution**2 and not (size[0] % 64 or size[1] % 64)


CONCEPT = Concept(token="rxz", class_noun="dog")


@pytest.mark.parametrize(("concept", "caption", "prompt"), [
    (CONCEPT, None, "rxz dog"), (CONCEPT, "", "rxz dog"), (CONCEPT, "a dog on a beach", "a rxz dog on a beach"),
    (CONCEPT, "on a beach", "rxz dog, on a beach"), (CONCEPT, "my rxz dog", "my rxz dog"),
    (Concept(instance_prompt="photo of rxz dog, [filewords]"), "at night", "photo of rxz dog, at night"),
])
def test_prompts(concept, caption, prompt):
    assert prompt_for(concept, caption) == prompt


@pytest.mark.parametrize("name", ["IMG.TXT", "IMG.Txt", "IMG.txt"])
def test_the_ending_of_a_caption_may_be_in_capitals_on_every_system(tmp_path, name):
    """As a camera's pictures are, and as Windows takes it."""
    Image.new("RGB", (64, 64)).save(tmp_path / "IMG.JPG")
    (tmp_path / name).write_text("a dog on a sofa")
    assert caption_of(tmp_path / "IMG.JPG") == "a dog on a sofa"
    (tmp_path / "base.ckpt").write_bytes(b"x")
    config = TrainConfig(base=str(tmp_path / "base.ckpt"), use_captions=True, concepts=(Concept(instance_dir=str(tmp_path)),))
    assert f"0/{name}" in recipe.inputs_of(config)  # a resume sees that it has changed
    write_caption(tmp_path / "IMG.JPG", "a dog")
    assert caption_of(tmp_path / "IMG.JPG") == "a dog" and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_in_the_encodings_that_editors_write(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("ein Hund \n im Grünen\n".encode(encoding))
    assert caption_of(tmp_path / "a.png") == "ein Hund im Grünen"


def test_a_caption_that_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xd8\xff\xe0\x00")
    with pytest.raises(PictureError, match="UTF-8"):
        caption_of(tmp_path / "a.png")


def test_advice_on_tokens():
    assert "knows well" in token_advice("dog", lambda text: [("dog</w>", 1929)])
    assert "pieces" in token_advice("xqzwvk", lambda text: [(c, 300) for c in text])
    assert token_advice("sks", lambda text: [("sks</w>", 48136)]) == ""
    for token in ("(rxz)", "[rxz]"):
        assert f'"{token}" has brackets' in token_advice(token, lambda text: [("x</w>", 48136)])


@pytest.mark.parametrize("prompt", ["a (rxz:1.2) dog", "[rxz] dog", "rxz_\\(dog\\)", "rxz) dog", "rxz dog"])
def test_a_prompt_is_written_so_that_txt2img_reads_what_was_trained(prompt):
    """A backslash before a bracket, or before another one, makes it a letter: prompt_parser.py of the WebUI."""
    written = as_webui_reads(prompt)
    assert not re.search(r"[()\[\]]", re.sub(r"\\.", "", written))
    assert re.sub(r"\\(.)", r"\1", written) == prompt and (written == prompt) is (prompt == "rxz dog")


def test_advice_on_captions_with_brackets(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a dog")
    assert captions_advice(tmp_path) == ""
    (tmp_path / "b.txt").write_text("a (dog:1.2)")
    assert captions_advice(tmp_path).startswith("The caption b.txt has brackets")
    (tmp_path / "a.txt").write_text("a [dog]")
    assert captions_advice(tmp_path).startswith("The caption a.txt (and 1 other) has brackets")


def test_all_pictures_that_are_bad_are_named_at_once(folder, tmp_path):
    (folder / "0.png").write_bytes(b"x")
    (folder / "9.png").mkdir()
    with pytest.raises(PictureError) as caught:
        prepare(folder, tmp_path / "out", resolution=64)
    assert "0.png" in caught.value.why and "9.png" in caught.value.why and "1.png" not in caught.value.why
    assert len(prepare(folder, tmp_path / "out", resolution=64, leave_out={"0.png", "9.png"})) == 2


def test_a_box_outside_the_picture_is_refused(folder, tmp_path):
    with pytest.raises(PictureError, match=r"1\.png"):
        prepare(folder, tmp_path / "out", resolution=64, overrides={"1.png": (900, 900, 950, 950)})


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_part_that_was_kept_is_told_in_pixels_of_the_original(tmp_path, orientation):
    """Although a JPEG much larger than needed is read at a fraction of its size."""
    image = Image.effect_noise((1600, 1000), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "large.jpg", exif=exif)
    cut, box = as_trained(tmp_path / "large.jpg", resolution=64, crop="center")
    assert cut.size == (64, 64)
    assert box == ((300, 0, 1300, 1000) if orientation == 1 else (0, 300, 1000, 1300))
