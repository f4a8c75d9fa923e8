"""Golden pixels: what preparation makes of a drawn picture, kept as PNG; and what of a picture's way into training is promised.

The golden files were made by this code at recipe 4 and looked at. To make them anew, after RECIPE was raised on purpose:
`python tests/dataset/test_preparation_golden.py`.
"""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dreambooth_ext.dataset import prepare as module
from dreambooth_ext.dataset.prepare import as_trained, prepare
from dreambooth_ext.errors import Cancelled, PictureError
from dreambooth_ext.progress import Progress
from dreambooth_ext.words import printable

GOLDEN = Path(__file__).parent / "golden"
RESOLUTION = 64


def picture(width=200, height=120):
    """Detail, a subject off the middle, by arithmetic alone: the same on every machine."""
    y, x = np.mgrid[:height, :width]
    waves = 127 + 60 * np.sin(x / 5) * np.cos(y / 7)
    ground = np.stack([waves * 0.4, waves * 0.6, waves], axis=2)
    near = np.hypot(x - 0.68 * width, y - height / 2)[:, :, None]
    colour = np.where(near < 0.3 * height, np.array([230.0, 90, 40]), ground)
    return Image.fromarray((colour + 0.5).astype(np.uint8))


def sources():
    """Name, picture, how it is saved and how it is prepared."""
    exif = Image.Exif()
    exif[0x0112] = 8
    barred = Image.new("RGB", (200, 160), "black")
    barred.paste(picture(), (0, 20))
    cut_out = picture()
    y, x = np.mgrid[:120, :200]
    cut_out.putalpha(Image.fromarray((255 * np.clip((40 - np.hypot(x - 136, y - 60)) / 4, 0, 1)).astype(np.uint8)))
    deep = Image.fromarray(np.asarray(picture().convert("L"), np.uint16) * 257)
    return [
        ("smart", picture(), {}, {}), ("center", picture(), {}, {"crop": "center"}),
        ("buckets", picture(), {}, {"crop": "buckets", "resolution": 192}), ("upright", picture(), {"exif": exif}, {}),
        ("letterbox", barred, {}, {}), ("alpha", cut_out, {}, {"flatten_on": "#2060ff"}),
        ("enlarged", picture(50, 30), {}, {}), ("sixteen_bit", deep, {}, {}), ("palette", picture().quantize(16, dither=0), {}, {}),
        ("box", picture(), {}, {"box": (20, 10, 90, 110)}),
    ]


def made(folder, image, saved, asked):
    path = folder / "picture.png"
    image.save(path, **saved)
    return as_trained(path, **{"resolution": RESOLUTION, **asked})[0]


@pytest.mark.parametrize(("name", "image", "saved", "asked"), sources(), ids=[each[0] for each in sources()])
def test_golden_pixels(name, image, saved, asked, tmp_path, monkeypatch):
    monkeypatch.setattr("dreambooth_ext.dataset.crop.faces", lambda image: [])
    with Image.open(GOLDEN / f"{name}.png") as golden:
        expected = np.asarray(golden.convert("RGB"), int)
    found = np.asarray(made(tmp_path, image, saved, asked), int)
    # Pillow's own rounding may move a value by one between versions; a wrong crop, gamma or filter moves many by more.
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    return source


def test_the_png_names_its_source_by_name_and_hash(folder, tmp_path):
    from dreambooth_ext.dataset.manifest import sha256_of

    for name in ("a.png", "b.png"):
        picture().save(folder / name)
    first, second = prepare(folder, tmp_path / "out", resolution=RESOLUTION)
    assert first.path != second.path  # the same picture twice is two pictures, each with its own name in it
    for each in (first, second):
        assert sha256_of(each.path) == each.sha256
        with Image.open(each.path) as image:
            assert image.text["source"] == each.source.name and image.text["source_sha256"] == sha256_of(each.source)


def test_small_pictures_are_enlarged_by_the_upscaler_before_the_resize(folder, tmp_path):
    asked = []

    def upscale(image, name, factor):
        asked.append((image.size, name, round(factor, 3)))
        return Image.new("RGB", (image.width * 4, image.height * 4), (10, 200, 30))

    picture(50, 30).save(folder / "small.png")
    picture().save(folder / "large.png")
    ways = {"upscaler": "ESRGAN_4x", "upscale": upscale}
    large, small = prepare(folder, tmp_path / "out", resolution=RESOLUTION, **ways)
    assert asked == [((30, 30), "ESRGAN_4x", 2.133)] and large.source.name == "large.png"
    with Image.open(small.path) as image:
        assert image.size == (64, 64) and np.abs(np.asarray(image, int) - (10, 200, 30)).max() <= 1
    plain = prepare(folder, tmp_path / "out", resolution=RESOLUTION)
    assert plain[1].sha256 != small.sha256 and len(asked) == 1


def test_alpha_goes_on_the_chosen_colour(folder, tmp_path):
    Image.new("RGBA", (80, 80), (255, 0, 0, 0)).save(folder / "a.png")
    for colour, level in (("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#102030", (16, 32, 48))):
        prepared = prepare(folder, tmp_path / "out", resolution=RESOLUTION, flatten_on=colour)[0]
        with Image.open(prepared.path) as image:
            assert image.getpixel((5, 5)) == level


def test_a_wide_gamut_becomes_srgb(folder):
    """A profile whose red is greener than sRGB's: the same numbers are another colour, and are changed."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    data = bytearray(profile.tobytes())
    at = data.index(b"rXYZ", 128)
    offset = int.from_bytes(data[at + 4 : at + 8], "big")
    data[offset + 12 : offset + 16] = (int.from_bytes(data[offset + 12 : offset + 16], "big") + 9000).to_bytes(4, "big")
    picture().save(folder / "a.png", icc_profile=bytes(data))
    picture().save(folder / "b.png")
    wide, plain = (np.asarray(as_trained(folder / f"{name}.png", resolution=RESOLUTION, crop="center")[0], int) for name in "ab")
    assert np.abs(wide - plain)[:, :, 1].max() > 3


def test_never_less_than_twice_the_target_is_read_where_there_is_more(folder, monkeypatch):
    """Bars take most of the height, so that a quarter of the size would be too little of what is left."""
    barred = Image.new("RGB", (1200, 1200), "black")
    barred.paste(picture(1200, 420), (0, 390))
    barred.save(folder / "a.jpg", quality=95)
    seen = []
    monkeypatch.setattr(module, "resize", lambda image, *size, real=module.resize: seen.append(image.size) or real(image, *size))
    _, box = as_trained(folder / "a.jpg", resolution=100)
    assert min(seen[0]) >= 2 * 100 and box[3] - box[1] > 400


def test_stopped_in_the_middle_nothing_is_done_twice(folder, tmp_path, monkeypatch):
    for number in range(5):
        picture(100 + number).save(folder / f"{number}.png")
    progress, done = Progress(), []
    progress.listen(lambda report: progress.cancel() if report.done == 3 else None)
    with pytest.raises(Cancelled):
        prepare(folder, tmp_path / "out", resolution=RESOLUTION, progress=progress)
    monkeypatch.setattr(module, "_as_trained", lambda *given, real=module._as_trained: done.append(given[0].name) or real(*given))
    assert len(prepare(folder, tmp_path / "out", resolution=RESOLUTION)) == 5 and done == ["3.png", "4.png"]


def test_what_is_bad_is_named_and_the_rest_goes_on(folder, tmp_path):
    whole = io.BytesIO()
    picture().save(whole, "PNG")
    (tmp_path / "secret.png").write_bytes(whole.getvalue())
    bad = {"cut.png": whole.getvalue()[:900], "empty.png": b"", "page.jpg": b"<html>",
           "phone.heic": b"\0\0\0\x18ftypheic" + b"\0" * 40,
           "it's \"so\".png": b"x", "\U0001f600.png": b"x", "two\nlines.png": b"x"}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / os.fsdecode(b"not utf-8 \xff.png")).write_bytes(b"x")
    (folder / "folder.png").mkdir()
    (folder / "elsewhere.png").symlink_to(tmp_path / "secret.png")
    (folder / "device.png").symlink_to("/dev/zero")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")  # to read it would wait for ever
    picture().save(folder / "good.png")
    before = sorted(path.name for path in folder.iterdir())
    refused: dict[str, str] = {}
    prepared = prepare(folder, tmp_path / "out", resolution=RESOLUTION, refused=refused)
    assert [each.source.name for each in prepared] == ["good.png"]
    assert set(refused) == {*map(printable, before)} - {"good.png"} and all(refused.values()) and "HEIC" in refused["phone.heic"]
    assert sorted(path.name for path in folder.iterdir()) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([prepared[0].path.name, "prepared.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "secret.png"]
    with pytest.raises(PictureError, match=r"empty\.png"):
        prepare(folder, tmp_path / "out", resolution=RESOLUTION)
    json.loads((tmp_path / "out" / "prepared.json").read_text())


if __name__ == "__main__":
    import tempfile

    import dreambooth_ext.dataset.crop as crop_module

    crop_module.faces = lambda image: []
    for golden_name, *given in sources():
        with tempfile.TemporaryDirectory() as scratch:
            made(Path(scratch), *given).save(GOLDEN / f"{golden_name}.png")
    sys.exit(0)
