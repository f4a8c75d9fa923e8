"""How often each check is right, on pictures whose faults were made on purpose: thresholds are set on one half of them
(photographs of one subject, every other drawn scene) and judged on the other."""

from __future__ import annotations

from pathlib import Path

import labelled
import numpy as np
import pytest

from dreambooth_ext.dataset.duplicates import ALIKE_FROM
from dreambooth_ext.dataset.fringe import HALO_AT_MOST, cleaned
from dreambooth_ext.dataset.overlay import directions, shared_mark
from dreambooth_ext.dataset.pictures import FLATTEN_ON

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def halves():
    """Two lists of faultless pictures. Without the photographs, drawn ones alone are judged."""
    folder = REPOSITORY.parent / "shared" / "data" / "photos"
    if not folder.is_dir():
        print(f"the real photographs are not at {folder}: drawn pictures only")
    return [labelled.sources(folder if folder.is_dir() else None, half, scenes=5) for half in range(labelled.HALVES)]


@pytest.mark.parametrize("check", labelled.MEASURED)
def test_a_check_is_right(check, halves):
    measure, threshold, least = labelled.MEASURED[check]
    values = [[(each.faulty, measure(each.image), each.name) for each in labelled.labelled(check, half, number)]
              for number, half in enumerate(halves)]
    for number, half in enumerate(values):
        score = labelled.Score.of((faulty, value > threshold) for faulty, value, _ in half)
        wrong = [(name, round(value, 3)) for faulty, value, name in half if faulty != (value > threshold)]
        print(f"{check}, half {number}: precision {score.precision:.2f}, recall {score.recall:.2f}; wrong: {wrong}")
        assert score.precision >= least and score.recall >= least, wrong


def test_the_fringe_of_a_cut_out_is_found_and_cleaned(halves):
    for number, half in enumerate(halves):
        values = list(labelled.fringe_values(half, number))
        score = labelled.Score.of((fringed, value > HALO_AT_MOST) for fringed, value, _ in values)
        assert score.precision >= 0.95 and score.recall >= 0.95, score
        assert max(after for _, _, after in values) < HALO_AT_MOST


def test_cleaning_brings_an_edge_back_to_what_it_was(halves):
    for number, image in enumerate(halves[1][:3]):
        seeds = [np.random.default_rng(number) for _ in range(2)]
        true, fringed = (labelled.cut_out(image, rng, fringed=each) for rng, each in zip(seeds, (False, True), strict=True))
        edge = np.asarray(true.getchannel("A"), np.int64)
        edge = (edge > 64) & (edge < 250)
        before, after = (np.abs(np.asarray(each.convert("RGB"), float) - np.asarray(true.convert("RGB"), float))[edge].mean()
                         for each in (fringed, cleaned(fringed)))
        assert after < 0.7 * before, (before, after)
    assert FLATTEN_ON == (255, 255, 255)


def test_duplicates_are_found_and_unlike_pictures_are_not(halves):
    for number, half in enumerate(halves):
        score = labelled.Score.of(labelled.duplicate_pairs(half, number))
        assert score.precision >= 0.95 and score.recall >= 0.95, score
    assert 0.8 < ALIKE_FROM < 1


def test_a_mark_that_pictures_share_is_found_at_its_place(halves):
    images = [image for half in halves for image in half]
    assert shared_mark([directions(image) for image in images]) is None
    rng = np.random.default_rng(0)
    for count in (3, 5, 8):
        chosen = [images[index] for index in rng.permutation(len(images))[:count]]
        mark = shared_mark([directions(_marked(image)) for image in chosen])
        assert mark is not None and len(mark.pictures) >= 0.8 * count
        left, top, right, bottom = mark.place
        assert left > 0.6 and top > 0.6 and right <= 1 and bottom <= 1


def _marked(image):
    from PIL import Image, ImageDraw

    mask = Image.new("L", image.size)
    pen, side = ImageDraw.Draw(mask), image.width
    pen.ellipse([0.78 * side, 0.78 * side, 0.94 * side, 0.94 * side], outline=180, width=6)
    pen.line([0.8 * side, 0.92 * side, 0.92 * side, 0.8 * side], fill=180, width=6)
    marked = image.copy()
    marked.paste((255, 255, 255), (0, 0), mask)
    return marked


@pytest.mark.parametrize("folder", ["backpack_dog", "bear_plushie"])
def test_good_photographs_are_called_good(photos: Path, folder):
    from dreambooth_ext.dataset.audit import audit

    found = audit(photos / folder)
    assert [picture.name for picture in found.pictures if picture.advice != "keep"] == []
    assert found.together.duplicates == () and found.together.marked == ()
