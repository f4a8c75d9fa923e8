"""Every kind of file that people keep in a folder of pictures is opened rightly, or named with its reason."""

import io
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from dreambooth_ext.dataset import pictures
from dreambooth_ext.dataset.audit import audit
from dreambooth_ext.dataset.pictures import (
    list_pictures,
    open_original,
    open_picture,
    open_with_size,
    reason_against,
    require_pictures,
)
from dreambooth_ext.errors import PictureError

RED = (200, 30, 40)


def near(image, colour, tolerance=3):
    return np.abs(np.asarray(image, int)[8, 8] - colour).max() <= tolerance


def test_upright_by_exif(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    image.paste(RED, (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    upright = open_picture(tmp_path / "a.png")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 2)) == RED and upright.getpixel((10, 30)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(tmp_path, orientation):
    """Every Pillow turns it as it loads it; old ones keep the tag nevertheless, new ones tell the size as it will be."""
    image = Image.new("RGB", (40, 20), "white")
    image.paste(RED, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tif"):
        image.save(tmp_path / name, exif=exif)
    wanted, size = open_with_size(tmp_path / "a.png")
    turned, told = open_with_size(tmp_path / "a.tif")
    assert told == size == turned.size == wanted.size and turned.tobytes() == wanted.tobytes()
    assert open_original(tmp_path / "a.tif").rotated == (orientation > 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "CMYK", "I;16", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((16, 16), 32768, np.uint16))
    else:
        image = Image.new("RGB", (16, 16), "grey").convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    image.save(path)
    opened = open_picture(path)
    assert opened.mode == "RGB"
    if mode not in ("1", "P"):  # these have no such grey
        assert near(opened, (128, 128, 128))


def test_alpha_is_flattened_on_the_chosen_colour(tmp_path):
    Image.new("RGBA", (16, 16), (*RED, 0)).save(tmp_path / "a.png")
    assert near(open_picture(tmp_path / "a.png"), (255, 255, 255), 0)
    assert near(open_picture(tmp_path / "a.png", flatten_on=(0, 0, 0)), (0, 0, 0), 0)


def test_a_colour_profile_is_applied(tmp_path):
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    Image.new("RGB", (16, 16), RED).save(tmp_path / "a.png", icc_profile=swapped.tobytes())
    assert open_picture(tmp_path / "a.png").mode == "RGB"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    Image.new("RGB", (16, 16), RED).save(tmp_path / "b.png", icc_profile=srgb.tobytes())
    assert near(open_picture(tmp_path / "b.png"), RED)


def test_a_damaged_colour_profile_says_nothing(tmp_path):
    Image.new("RGB", (16, 16), RED).save(tmp_path / "a.png", icc_profile=b"no profile" * 50)
    assert near(open_picture(tmp_path / "a.png"), RED, 0)


@pytest.mark.parametrize(("values", "level"), [
    (np.full((16, 16), 2**29, np.int32), 128), (np.full((16, 16), 0.5, np.float32), 128),
])
def test_scientific_numbers_become_eight_bits(tmp_path, values, level):
    values[0] = 2 * values.max()
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert near(open_picture(tmp_path / "a.tif"), (level,) * 3, 0)
    values = values.astype(np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "b.tif")
    assert reason_against(tmp_path / "b.tif") == "it is damaged or cut off"


def test_the_first_page_of_a_tiff(tmp_path):
    Image.new("RGB", (16, 16), RED).save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("RGB", (9, 9), "white")])
    assert near(open_picture(tmp_path / "a.tif"), RED, 0)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert near(open_picture(tmp_path / "a.gif"), (255, 0, 0))


def whole_png():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "data"), [
    ("empty.png", b""), ("text.png", b"hello"), ("cut.png", whole_png()[:500]),
    ("no decoder.heic", b"\0\0\0\x18ftypheic" + b"\0" * 40),
    ("html.jpg", b"<html></html>"), ('quotes "and" \'marks\'.png', b"x"), ("smile \U0001f600.png", b"x"), ("new\nline.png", b"x"),
])
def test_what_cannot_be_used_is_named_with_its_reason(tmp_path, name, data):
    (tmp_path / "good.png").write_bytes(whole_png())
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PictureError) as caught:
        require_pictures(tmp_path)
    assert name in str(caught.value) and "good.png" not in caught.value.why and caught.value.instead


def test_a_name_that_is_no_text_is_told_so(tmp_path):
    """As of a file that was packed on a Windows of another language; a system that takes no such names has none."""
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"), "wb") as stream:
        stream.write(whole_png())
    with pytest.raises(PictureError, match=r"caf\?.png: its name is no text") as caught:
        require_pictures(tmp_path)
    str(caught.value).encode()  # can be printed, and sent to a page


def test_a_folder_that_cannot_be_looked_at_is_told_so(tmp_path):
    with pytest.raises(PictureError, match=r"it cannot be looked at .File name too long"):
        list_pictures(tmp_path / ("x" * 300))


@pytest.mark.parametrize(("made", "why", "instead"), [
    ({}, "it holds no pictures$", "PNG, JPEG or WebP"),
    ({"set.ZIP": b"PK", "a": None}, r"but set\.ZIP, which is packed", "Unpack it"),
    ({"notes.txt": b"x", "inner/a.png": b"x"}, "but the folder inner in it does", "Give that folder"),
    ({".hidden.zip": b"PK", "inner/a.txt": b"x"}, "it holds no pictures$", "PNG, JPEG or WebP"),
])
def test_what_a_folder_without_pictures_holds_instead_is_told(tmp_path, made, why, instead):
    for name, data in made.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).mkdir() if data is None else (tmp_path / name).write_bytes(data)
    for ask in (require_pictures, audit):
        with pytest.raises(PictureError) as caught:
            ask(tmp_path)
        assert re.search(why, caught.value.why) and instead in caught.value.instead


def test_a_folder_whose_pictures_are_all_left_out_is_told_so(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(PictureError, match="all its pictures are left out"):
        require_pictures(tmp_path, {"a.png"})


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_PIXELS", 500)
    (tmp_path / "a.png").write_bytes(whole_png())
    assert "pixels" in reason_against(tmp_path / "a.png")


def test_a_link_to_elsewhere_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(whole_png())
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "secret.png")
    assert "link" in reason_against(tmp_path / "in" / "a.png")


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(whole_png())

    def refuse(*arguments, **named):
        raise PermissionError(13, "denied")

    monkeypatch.setattr(pictures.Image, "open", refuse)
    assert "may not be read" in reason_against(tmp_path / "a.png")


def test_only_pictures_in_natural_order(tmp_path):
    for name in ("img10.png", "img2.png", "img2.txt", ".hidden.png", "Thumbs.db", "IMG1.PNG"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    assert [path.name for path in list_pictures(tmp_path)] == ["IMG1.PNG", "img2.png", "img10.png"]


NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=12)


@given(st.lists(NAMES, unique=True))
def test_the_order_is_total_for_any_names(names):
    from pathlib import Path

    paths = [Path(name) for name in names]
    backwards = list(reversed(paths))
    assert sorted(paths, key=pictures._natural) == sorted(backwards, key=pictures._natural)


@given(st.binary(max_size=400), st.integers(0, 400))
def test_no_bytes_crash_the_reader(tmp_path_factory, noise, place):
    data = whole_png()
    path = tmp_path_factory.mktemp("f") / "a.png"
    path.write_bytes(data[:place] + noise + data[place + len(noise):])
    reason = reason_against(path)
    assert reason is None or isinstance(reason, str)


def test_a_jpeg_is_decoded_small_but_never_below_the_bound(tmp_path):
    Image.new("RGB", (1600, 1200), RED).save(tmp_path / "a.jpg")
    small = open_picture(tmp_path / "a.jpg", at_least=(256, 256))
    assert min(small.size) >= 256 and small.width < 1600
    assert os.stat(tmp_path / "a.jpg").st_size
