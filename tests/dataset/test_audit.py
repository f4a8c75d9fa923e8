"""The picture doctor: every kind of fault and of bad file is named, with its reason and its remedy; nothing is written."""

import dataclasses
import io
import json

import labelled
import numpy as np
import pytest
from PIL import Image, ImageDraw

from dreambooth_ext.cli import BAD_INPUT, DONE, FAILED, run
from dreambooth_ext.dataset import pictures
from dreambooth_ext.dataset.audit import audit
from dreambooth_ext.dataset.audit_page import page
from dreambooth_ext.dataset.choices import Choice, orders, read_choices, write_choices
from dreambooth_ext.dataset.duplicates import groups, near_duplicates, thumbnail
from dreambooth_ext.dataset.prepare import prepare
from dreambooth_ext.errors import PictureError
from dreambooth_ext.playground import subject, world

SIDE = labelled.SIDE


@pytest.fixture(scope="module")
def good():
    return [labelled.scene(seed) for seed in range(4)]


def found_in(folder, name, **wishes):
    report = audit(folder, resolution=wishes.pop("resolution", SIDE), **wishes)
    return next(picture for picture in report.pictures if picture.name == name)


def checks(picture):
    return {verdict.check: verdict for verdict in picture.verdicts}


@pytest.mark.parametrize(("check", "spoil", "advice", "fix"), [
    ("blur", labelled.defocused, "drop", "sharper copy"), ("noise", labelled.noised, "fix", "sharper copy"),
    ("blockiness", labelled.compressed, "fix", "sharper copy"), ("letterbox", labelled.letterboxed, "fix", "crop"),
    ("overlay", labelled.signed, "fix", "crop"), ("dark", lambda image, rng: image.point(lambda v: v // 6), "fix", "brighten"),
    ("bright", lambda image, rng: image.point(lambda v: 235 + v // 13), "fix", "darken"),
])
def test_a_fault_is_told_with_its_number_reason_place_and_remedy(good, tmp_path, check, spoil, advice, fix):
    spoil(good[1], np.random.default_rng(3)).save(tmp_path / "a.png")
    verdict = checks(found_in(tmp_path, "a.png", resolution=SIDE - 96 if check == "overlay" else SIDE))[check]
    assert verdict.advice == advice and verdict.fix.kind == fix and verdict.reason
    assert verdict.value < verdict.threshold if check == "dark" else verdict.value > verdict.threshold
    left, top, right, bottom = verdict.box
    assert 0 <= left < right <= SIDE and 0 <= top < bottom <= SIDE


def test_a_crop_leaves_the_writing_out(good, tmp_path):
    image = good[1].copy()
    band = Image.new("L", image.size)
    band.paste(labelled._writing("(c) Jane Doe 2021", 26, 300), (30, SIDE - 40))
    image.paste((255, 255, 255), (0, 0), band)
    image.save(tmp_path / "a.png")
    verdict = checks(found_in(tmp_path, "a.png"))["overlay"]
    left, top, right, bottom = verdict.fix.box
    assert (left, top, right) == (0, 0, SIDE) and SIDE - 60 < bottom <= SIDE - 30
    assert "overlay" not in checks(_saved(image.crop(verdict.fix.box), tmp_path / "cut.png"))


def _saved(image, path):
    image.save(path)
    return found_in(path.parent, path.name)


@pytest.mark.parametrize(("side", "advice"), [(SIDE, "keep"), (SIDE - 40, "fix"), (SIDE // 3, "drop")])
def test_size_is_judged_by_the_resolution(good, tmp_path, side, advice):
    good[0].resize((side, side)).save(tmp_path / "a.png")
    verdict = checks(found_in(tmp_path, "a.png")).get("size")
    assert (verdict.advice if verdict else "keep") == advice


def test_what_a_file_is_like_is_told_without_blame(good, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    good[0].save(tmp_path / "turned.jpg", exif=exif, quality=95)
    good[1].convert("CMYK").save(tmp_path / "print.tif")
    good[2].save(tmp_path / "moving.png", save_all=True, append_images=[good[3]])
    Image.fromarray(np.asarray(good[3].convert("L"), np.uint16) * 256).save(tmp_path / "deep.png")
    seen = {picture.name: checks(picture) for picture in audit(tmp_path, resolution=SIDE).pictures}
    assert {"rotation"} <= seen["turned.jpg"].keys() and {"mode"} <= seen["print.tif"].keys()
    assert {"animation"} <= seen["moving.png"].keys() and {"mode"} <= seen["deep.png"].keys()
    assert all(verdict.advice == "keep" for each in seen.values() for name, verdict in each.items()
               if name in ("rotation", "mode", "animation"))


def test_transparency_and_its_fringe(good, tmp_path):
    for name, fringed in (("clean.png", False), ("fringed.png", True)):
        labelled.cut_out(good[1], np.random.default_rng(5), fringed=fringed).save(tmp_path / name)
    assert "fringe" not in checks(found_in(tmp_path, "clean.png")) and "transparency" in checks(found_in(tmp_path, "clean.png"))
    assert checks(found_in(tmp_path, "fringed.png"))["fringe"].fix.kind == "flatten"
    opened = [np.asarray(pictures.open_picture(tmp_path / name), float) for name in ("clean.png", "fringed.png")]
    assert np.abs(opened[0] - opened[1]).mean() < 1.5  # flattened, they are the same picture


def test_copies_are_grouped_and_the_best_is_kept(good, tmp_path):
    good[0].save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    good[0].resize((200, 200)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "c.png")
    good[1].save(tmp_path / "d.png")
    report = audit(tmp_path, resolution=64)
    assert report.together.duplicates == (("a.png", "b.png", "c.png"),)
    by_name = {picture.name: checks(picture) for picture in report.pictures}
    assert "duplicate" in by_name["b.png"] and "near duplicate" in by_name["c.png"] and not by_name["d.png"]
    assert "a.png" in by_name["c.png"]["near duplicate"].reason and by_name["c.png"]["near duplicate"].other == "a.png"
    assert page(report, tmp_path).count('alt="a.png"') == 2  # shown beside each of its copies


def test_many_pictures_are_compared_without_shifts_and_that_is_said(good, monkeypatch):
    from dreambooth_ext.dataset import duplicates

    monkeypatch.setattr(duplicates, "SHIFTED_UP_TO", 3)
    found, compared = near_duplicates([thumbnail(image) for image in (*good, good[2])])
    assert groups(found, 5) == [[2, 4]] and "shifts are not tried" in compared


def test_the_backgrounds_and_the_framing_are_counted(tmp_path):
    grounds = {"black": "plain black", "white": "plain white", "pink": "plain colour"}
    for name in grounds:
        rng = np.random.default_rng(1)
        scene = world.scene_of(rng, "star", "red", name if name != "black" else "green", "small")
        ground = (8, 8, 8) if name == "black" else scene.background_rgb
        mask = world.coverage(scene.shape, scene.centre, scene.radius, 0)
        Image.fromarray(world.paint(mask, scene.colour_rgb, ground)).save(tmp_path / f"{name}.png")
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
    together = audit(tmp_path, resolution=64).together
    assert together.backgrounds == {"plain black": 1, "plain white": 1, "plain colour": 1, "scene": 4}
    assert together.framings["far"] + together.framings["half"] >= 3 and sum(together.aspects.values()) == 7


def test_the_guide_advises_differently_on_a_subject_and_a_style(tmp_path):
    subject.draw_pictures(tmp_path, 8)
    advice = {kind: " ".join(audit(tmp_path, kind=kind, resolution=64).together.advice) for kind in ("subject", "style")}
    assert "surroundings" in advice["subject"] and "varied backgrounds" in advice["style"]


def test_the_playgrounds_pictures_are_not_blamed_for_being_small(tmp_path):
    subject.draw_pictures(tmp_path, 8)
    report = audit(tmp_path, resolution=64)
    assert [line for line in report.lines() if line.startswith("subject_")] == []


def test_a_subject_that_the_frame_cuts(tmp_path):
    image = Image.new("RGB", (400, 300), (200, 220, 240))
    ImageDraw.Draw(image).ellipse([-60, 80, 80, 220], fill=(160, 30, 30))
    image.save(tmp_path / "a.png")
    assert "left" in checks(found_in(tmp_path, "a.png", resolution=256))["cut off"].reason


def whole_png():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


BAD = {
    "empty.png": b"", "text.jpg": b"hello", "cut.png": whole_png()[:5000], "no decoder.heic": b"\0\0\0\x18ftypheic" + b"\0" * 40,
    'quotes "and" \'marks\'.png': b"x", "smile \U0001f600.png": b"x", "new\nline.png": b"x", "<b>bold.png": b"x",
}


def test_every_bad_file_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, data in BAD.items():
        (folder / name).write_bytes(data)
    (folder / "good.png").write_bytes(whole_png())
    (tmp_path / "secret.png").write_bytes(whole_png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    Image.new("RGB", (300, 300)).save(folder / "bomb.png")
    (folder / "folder.png").mkdir()
    monkeypatch.setattr(pictures, "LARGEST_PIXELS", 80_000)
    before = sorted(path.name for path in folder.iterdir())
    report = audit(folder, resolution=64)
    reasons = dict(report.unreadable)
    assert [picture.name for picture in report.pictures] == ["good.png"]
    assert set(reasons) == {*BAD, "link.png", "bomb.png", "folder.png"} and "pixels" in reasons["bomb.png"]
    assert "link" in reasons["link.png"] and all(reasons.values())
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("image", [
    Image.new("RGB", (1, 1)), Image.new("RGB", (3, 900), "red"), Image.new("L", (900, 5)), Image.new("RGBA", (40, 40)),
    Image.new("P", (20, 20)), Image.new("RGB", (64, 64), "white"), Image.new("LA", (90, 30), (200, 90)), Image.new("1", (70, 70)),
], ids=lambda image: f"{image.mode} {image.size}")
def test_odd_pictures_are_looked_at_like_any_other(image, tmp_path):
    image.save(tmp_path / "a.png")
    report = audit(tmp_path, resolution=64)
    assert len(report.pictures) == 1 and not report.unreadable
    json.dumps(report.to_dict(), allow_nan=False)


def test_many_files(tmp_path):
    for number in range(3000):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    (tmp_path / "good.png").write_bytes(whole_png())
    report = audit(tmp_path, resolution=64)
    assert len(report.unreadable) == 3000 and len(report.pictures) == 1 and "3000 cannot be opened" in report.summary


def test_no_folder_and_no_pictures(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(PictureError):
            audit(folder)


def test_choices_are_remembered_until_the_picture_changes(good, tmp_path):
    folder, file = tmp_path / "in", tmp_path / "choices.json"
    folder.mkdir()
    for number in range(3):
        good[number].save(folder / f"{number}.png")
    report = audit(folder, resolution=64)
    write_choices(file, report, {})
    values = json.loads(file.read_text())
    values["pictures"]["1.png"].update(choice="drop")
    values["pictures"]["2.png"].update(choice="fix", box=[0, 0, 100, 100])
    file.write_text(json.dumps(values))
    chosen = read_choices(file)
    assert orders(chosen, folder) == ({"1.png"}, {"2.png": (0, 0, 100, 100)})
    good[3].save(folder / "2.png")
    assert orders(chosen, folder) == ({"1.png"}, {})  # it is another picture now
    again = audit(folder, resolution=64, choices=chosen)
    assert [picture.choice for picture in again.pictures] == ["keep", "drop", None]
    write_choices(file, again, chosen)
    assert read_choices(file)["1.png"].choice == "drop" and read_choices(file)["2.png"].box is None
    prepared = prepare(folder, tmp_path / "out", resolution=64, leave_out={"1.png"}, overrides={"0.png": (10, 20, 210, 120)})
    assert [picture.source.name for picture in prepared] == ["0.png", "2.png"]
    left, top, right, bottom = prepared[0].box
    assert (top, bottom) == (20, 120) and right - left == 100 and left >= 10 and right <= 210


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pictures": 3}', '{"pictures": {"a": 3}}',
                                  '{"pictures": {"a": {"choice": "x"}}}',
                                  '{"pictures": {"a": {"choice": "fix", "box": [1, 2, 3]}}}',
                                  '{"pictures": {"a": {"choice": "fix", "box": [9, 9, 3, 3]}}}', "[" * 100_000])
def test_choices_that_cannot_be_read_are_refused(tmp_path, text):
    (tmp_path / "choices.json").write_text(text)
    with pytest.raises(PictureError, match=r"choices.json"):
        read_choices(tmp_path / "choices.json")
    assert Choice("keep") == Choice("keep", "", None)


def test_the_commands(good, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    good[0].save(folder / "good.png")
    labelled.defocused(good[1], np.random.default_rng(0)).save(folder / "<script>alert('x')</script>.png".replace("/", "_"))
    (folder / "bad\x1b[31m.png").write_bytes(b"x")
    page, file = tmp_path / "page.html", tmp_path / "choices.json"
    assert run(["audit", str(folder), "--resolution", "384", "--html", str(page), "--choices", str(file)]) == DONE
    said = capsys.readouterr().out
    assert "blurred" in said and "\x1b" not in said and "cannot be used" in said
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "data:image/jpeg;base64," in text and "http" not in text
    assert run(["audit", str(folder), "--resolution", "384", "--json"]) == DONE
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["version"] == 1 and len(last["pictures"]) == 2 and last["unreadable"][0][0] == "bad\x1b[31m.png"
    assert run(["prepare", str(folder), "--out", str(tmp_path / "all"), "--resolution", "128"]) == FAILED  # the bad file
    said = capsys.readouterr()
    assert "bad?[31m.png: cannot be used" in said.out and "Prepared 2 pictures" in said.out and "The others" in said.err
    assert len(list((tmp_path / "all").glob("*.png"))) == 2
    (folder / "bad\x1b[31m.png").unlink()
    assert run(["prepare", str(folder), "--out", str(tmp_path / "out"), "--resolution", "128", "--choices", str(file)]) == DONE
    assert "Prepared 1 picture in" in capsys.readouterr().out and len(list((tmp_path / "out").glob("*.png"))) == 1


def test_prepare_keeps_its_hands_off_folders_that_are_not_its_own(good, tmp_path, capsys):
    for name in ("in", "other"):
        (tmp_path / name).mkdir()
        good[0].save(tmp_path / name / "a.png")
    for out in ("in", "other"):
        assert run(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / out)]) == BAD_INPUT
        assert (tmp_path / out / "a.png").is_file() and "--out" in capsys.readouterr().err
    assert run(["audit", str(tmp_path / "in"), "--html", str(tmp_path / "in" / "a.png")]) == BAD_INPUT


def test_a_folder_of_copies_is_compared_as_fast_as_one_of_each(good, monkeypatch):
    """Copies by the thousand, or the frames of a video: a million pairs, of which a few are looked at closely."""
    from dreambooth_ext.dataset import duplicates
    from dreambooth_ext.dataset.collection import duplicates as groups_of
    from dreambooth_ext.dataset.collection import trace
    from dreambooth_ext.progress import SILENT

    looked_at = []
    monkeypatch.setattr(duplicates, "_aligned", lambda *given, real=duplicates._aligned: looked_at.append(1) or real(*given))
    monkeypatch.setattr(duplicates, "SHIFTED_UP_TO", 3)
    traces = [trace(image, str(number), 1.0, resolution=64, with_directions=False) for number, image in enumerate(good)]
    frames = [dataclasses.replace(traces[0], sha256=f"frame {number}") for number in range(600)]
    found, _, _ = groups_of([*traces * 500, *frames], SILENT)
    assert sorted(len(group) for group in found) == [500, 500, 500, 1100] and len(looked_at) < 2000
