"""The smart crop keeps the subject: on drawn scenes, on the photographs, and faces where there is something to find them with."""

from concurrent.futures import ThreadPoolExecutor

import known_boxes
import numpy as np
import pytest
from PIL import Image

from dreambooth_ext.dataset import crop, faces
from dreambooth_ext.dataset.crop import crop_box, without_letterbox

LEAST = 0.95


def told(rates, name):
    print(f"{name}: subject kept in {rates['smart']:.1%} of smart crops, in {rates['center']:.1%} of centre crops")
    return rates


def test_the_subject_of_drawn_scenes_is_kept():
    rates = told(known_boxes.rates(list(known_boxes.drawn(100))), "drawn")
    assert rates["smart"] >= LEAST and rates["smart"] > rates["center"]


def test_the_subject_of_photographs_is_kept(photos):
    rates = told(known_boxes.rates(list(known_boxes.photographed(photos))[::3]), "photographs")
    assert rates["smart"] >= LEAST and rates["smart"] > rates["center"]


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (100, 100), (8, 40), (1, 9)])
def test_a_plain_picture_is_cut_in_the_middle(size):
    image = Image.new("RGB", size, "grey")
    assert crop_box(image, 64, 64) == crop_box(image, 64, 64, "center")


def test_a_window_moves_as_little_as_faces_need(monkeypatch):
    image = Image.new("RGB", (300, 100), "grey")
    for found, left in (([], 100), ([(120, 40, 130, 50)], 100), ([(20, 40, 40, 60)], 10), ([(270, 40, 290, 60)], 200),
                        ([(10, 10, 30, 30), (200, 10, 260, 70)], 160), ([(280, 0, 300, 20)], 200)):
        monkeypatch.setattr(crop, "faces", lambda image, found=found: found)
        assert crop_box(image, 64, 64) == (left, 0, left + 100, 100), found


@pytest.fixture
def astronaut():
    """A public-domain photograph of a person (NASA) that scikit-image brings along."""
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(data.astronaut())


def test_a_face_is_found_and_kept(astronaut):
    if not faces.detector():
        assert faces.faces(astronaut) == []  # the newest set has no OpenCV: there are no faces then, and no error
        return
    left, top, right, bottom = faces.faces(astronaut)[0]
    assert left < 225 < right and top < 115 < bottom and len(faces.faces(astronaut)) == 1
    wide = Image.new("RGB", (1024, 512), "white")
    rng = np.random.default_rng(0)
    wide.paste(Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)), (20, 100))  # draws the eye more
    wide.paste(astronaut.crop((130, 20, 330, 220)), (800, 40))
    box = crop_box(wide, 64, 64)
    assert box[0] <= 800 + 225 - 130 - 50 and box[2] >= 800 + 225 - 130 + 50


def test_threads_find_each_the_faces_of_their_own_picture(astronaut):
    """A job prepares while a page shows how pictures will be cut: OpenCV's cascade is not for two at once."""
    if not faces.detector():
        return
    pictures = [astronaut, astronaut.resize((700, 900)), astronaut.crop((100, 0, 400, 300)), Image.new("RGB", (640, 480))]
    alone = [faces.faces(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(faces.faces, pictures * 15)) == alone * 15


def test_no_face_is_seen_where_there_is_none(photos):
    for path in sorted(photos.rglob("*.jpg")):
        with Image.open(path) as image:
            assert faces.faces(image.convert("RGB")) == [], path.name


@pytest.mark.parametrize("break_it", ["no module", "import", "no file"])
def test_a_host_without_a_working_opencv_has_no_faces(monkeypatch, break_it):
    def refuse(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    faces._probed.cache_clear()
    if break_it == "no module":
        monkeypatch.setattr(faces, "find_spec", lambda name: None)
    elif break_it == "import":
        monkeypatch.setattr(faces, "find_spec", lambda name: "there")
        monkeypatch.setattr(faces, "import_module", refuse)
    else:
        monkeypatch.setattr(faces, "CASCADE", "nothing.xml")
    try:
        assert faces.detector() == "" and faces.faces(Image.new("RGB", (64, 64))) == []
    finally:
        faces._probed.cache_clear()


def test_bars_around_a_photograph_do_not_move_the_crop(photos):
    with Image.open(photos / "bear_plushie" / "00.jpg") as image:
        photo = image.convert("RGB").resize((300, 300)).crop((0, 40, 300, 190))
    framed = Image.new("RGB", (300, 210), "black")
    framed.paste(photo, (0, 30))
    assert without_letterbox(framed) == (0, 30, 300, 180)
