"""The picture room's own services: captions, tokens, class images planned, looked at and struck out."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_ext import file_lock, picture_room
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.dataset import contact_sheet
from dreambooth_ext.dataset.choices import read_choices
from dreambooth_ext.dataset.class_images import ensure
from dreambooth_ext.errors import ConfigError, HostError, NotWritable, PictureError
from dreambooth_ext.playground.base import playground_base_path
from dreambooth_ext.progress import Progress

CONCEPT = Concept(token="rxz", class_noun="dog")


class PretendHost:
    """Describes pictures by their size, and paints what it is asked for in one colour; counts both."""

    name = "pretend"

    def __init__(self, folder: Path) -> None:
        self.runs_dir, self.rendered, self.described = folder / "runs", [], []

    def captioners(self):
        return ["BLIP"]

    def caption(self, images, name):
        self.described += images
        return [f"a picture\nof {image.width} px" for image in images]

    def job(self, job_id, progress):
        return nullcontext()

    def batch_size(self, width, height):
        return 2

    def provenance(self):
        return {"host": self.name}

    def txt2img(self, base, request, progress):
        for seed in request.seeds:
            self.rendered.append((request.prompt, seed))
            yield Image.new("RGB", (request.width, request.height), (seed, 0, 0))


@pytest.fixture
def host(tmp_path):
    return PretendHost(tmp_path)


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "pictures"
    source.mkdir()
    for number in range(3):
        Image.new("RGB", (40 + number, 30), "red").save(source / f"{number}.png")
    return source


def test_captions_with_their_prompts_and_their_count_of_tokens(folder):
    (folder / "0.txt").write_text("a dog on a beach")
    (folder / "1.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "2.txt").write_text("dog " * 80)
    first, second, third = picture_room.captions(folder, CONCEPT)
    assert (first.text, first.prompt, first.tokens, first.cut) == ("a dog on a beach", "a rxz dog on a beach", 9, "")
    assert second.text is None and second.prompt == "rxz dog" and "UTF-8" in second.problem
    assert third.tokens == 84 and third.cut == " ".join(["dog"] * 7)  # rxz is two tokens
    assert picture_room.caption_told(CONCEPT, "dog") == ("rxz dog", "5 of CLIP's 77 tokens")


def test_a_caption_is_written_read_back_and_taken_away(folder):
    path = picture_room.write_caption(folder / "0.png", " ein Hund\n im Grünen ")
    assert path.read_text(encoding="utf-8") == "ein Hund im Grünen\n"
    assert picture_room.captions(folder, CONCEPT)[0].text == "ein Hund im Grünen"
    picture_room.write_caption(folder / "0.png", "")
    assert not path.exists()
    for text in ("x" * 70_000, "a\x1bb", "a\ud800"):
        with pytest.raises(PictureError):
            picture_room.write_caption(folder / "0.png", text)


def test_a_caption_in_utf_16_without_its_mark_is_told_and_not_read_as_noise(folder):
    (folder / "0.txt").write_bytes("a dog".encode("utf-16-le"))
    (folder / "1.txt").write_bytes("a dog".encode("utf-16"))
    first, second, _ = picture_room.captions(folder, CONCEPT)
    assert first.text is None and "UTF-8" in first.problem
    assert second.text == "a dog"


def test_a_caption_beside_a_picture_of_a_long_name(folder):
    """255 bytes are the most that a file system takes, and these letters have three each."""
    picture = (folder / "0.png").rename(folder / ("写" * 83 + ".png"))
    assert picture_room.write_caption(picture, "a dog").name == "写" * 83 + ".txt"


def test_a_caption_that_leads_elsewhere_is_neither_read_nor_written(folder, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (folder / "0.txt").symlink_to(secret)
    caption = picture_room.captions(folder, CONCEPT)[0]
    assert caption.text is None and "link" in caption.problem
    with pytest.raises(PictureError, match="link"):
        picture_room.write_caption(folder / "0.png", "x")
    assert secret.read_text() == "secret"


def test_a_caption_that_cannot_be_taken_away_is_told(folder, monkeypatch):
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(NotWritable, match="may not be written to"):
        picture_room.write_caption(folder / "0.png", "")


def test_choices_that_are_made_side_by_side_all_count(tmp_path):
    file = tmp_path / "choices.json"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: picture_room.choose(file, f"{number}.png", picture_room.Choice("drop")), range(40)))
    assert len(read_choices(file)) == 40


def test_a_host_describes_what_has_no_caption(folder, host):
    (folder / "1.txt").write_text("mine")
    (folder / "bad.png").write_bytes(b"x")
    done = picture_room.caption_with(folder, host, "BLIP")
    assert [path.name for path in done.written] == ["0.txt", "2.txt"] and (folder / "1.txt").read_text() == "mine"
    assert (folder / "0.txt").read_text() == "a picture of 40 px\n"
    assert done.refused[0][0] == "bad.png" and "2 captions written" in done.sentence and "bad.png" in done.sentence
    assert len(picture_room.caption_with(folder, host, "BLIP", overwrite=True).written) == 3
    with pytest.raises(HostError, match="BLIP"):
        picture_room.caption_with(folder, host, "CLIP")


def test_a_caption_that_is_typed_while_others_are_made_is_kept(folder, host, monkeypatch):
    """Or is written by another who asked for the same a moment before: this one has waited for the host."""
    def job(job_id, progress):
        (folder / "0.txt").write_text("mine")
        return nullcontext()

    def caption(images, name):
        (folder / "1.txt").write_text("mine, too")
        return [f"a picture of {image.width} px" for image in images]

    monkeypatch.setattr(host, "job", job)
    monkeypatch.setattr(host, "caption", caption)
    done = picture_room.caption_with(folder, host, "BLIP")
    assert [path.name for path in done.written] == ["2.txt"] and [path.name for path in done.kept] == ["0.png", "1.png"]
    assert [(folder / f"{number}.txt").read_text() for number in (0, 1)] == ["mine", "mine, too"]
    assert len(picture_room.caption_with(folder, host, "BLIP", overwrite=True).written) == 3


def test_who_asks_for_pictures_that_are_being_prepared_waits(folder, host, monkeypatch):
    """Otherwise prepared, they would take each other's pictures away."""
    monkeypatch.setattr(file_lock, "LOOK_AGAIN_S", 0.1)
    monkeypatch.setattr(host, "upscalers", list, raising=False)
    monkeypatch.setattr(host, "upscale", None, raising=False)
    order, waits, made = [], threading.Event(), {}

    def prepare(side):
        progress = Progress(lambda report: listen(side, report))
        made[side] = picture_room.prepare_folder(folder, host, resolution=side, progress=progress)

    def listen(side, report):
        if report.text.startswith("Waiting: the pictures of"):
            waits.set()
        elif report.total:
            order.append(side)
        if side == 64 and order == [64]:
            second.start()
            assert waits.wait(120)

    second = threading.Thread(target=lambda: (prepare(32), waits.set()))
    prepare(64)
    second.join(120)
    assert order == [64] * 3 + [32] * 3 and len(made[32].pictures) == 3
    assert sorted(made[32].folder.glob("*.png")) == sorted(each.path for each in made[32].pictures)


def test_a_token_is_told_by_its_pieces():
    told = picture_room.token_told("rxz")
    assert "2 pieces" in told and '"rx"' in told and '"z"' in told
    assert "knows well" in picture_room.token_told("dog") and "1 piece" in picture_room.token_told("dog")


def test_what_the_base_draws_for_a_token_is_rendered_once(host, tmp_path):
    base = tmp_path / "base.ckpt"
    base.write_bytes(b"weights")
    first = picture_room.token_pictures(base, CONCEPT, host, Progress(), resolution=64, count=2)
    assert [(each.prompt, len(each.pictures)) for each in first] == [("rxz", 2), ("rxz dog", 2), ("dog", 2)]
    assert picture_room.token_pictures(base, CONCEPT, host, Progress(), resolution=64, count=2) == first
    assert len(host.rendered) == 6
    base.write_bytes(b"other weights")
    picture_room.token_pictures(base, CONCEPT, host, Progress(), resolution=64, count=2)
    assert len(host.rendered) == 12


def test_a_plan_says_what_is_there_what_is_missing_and_how_long_it_takes(folder, host, tmp_path):
    config = TrainConfig(base=str(playground_base_path()), runs_dir=str(tmp_path / "runs"), steps=12, class_steps=2,
                         concepts=(Concept(str(folder), "rxz", "dog"),))
    plan = picture_room.class_image_plans(config, host)[0]
    assert plan.sentence == ("200 x 3 pictures = 600 suggested, of which the run can use 12; 0 found that this checkpoint made; "
                             "12 to render.")
    images = ensure(plan, Path("b"), host.txt2img, host.provenance(), Progress())
    assert len(images) == 12
    for path in contact_sheet.strike_out([images[3].path, images[5].path]):
        assert path.is_file() and path.parent.name == "struck-out"
    again = picture_room.class_image_plans(config, host)[0]
    assert again.missing == 2 and "10 found that this checkpoint made; 2 to render, about 1 s." in again.sentence
    assert picture_room.plans_as_values([again])[0]["missing"] == 2
    with pytest.raises(ConfigError):
        picture_room.class_image_plans(TrainConfig(), host)


def test_a_plan_counts_no_pictures_that_are_left_out(folder, host, tmp_path):
    config = TrainConfig(base=str(playground_base_path()), runs_dir=str(host.runs_dir),
                         concepts=(Concept(str(folder), "rxz", "dog"),))
    picture_room.choose(picture_room.choices_file(host.runs_dir, folder), "0.png", picture_room.Choice("drop"))
    plan, = picture_room.class_image_plans(config, host)
    assert plan.sentence.startswith("200 x 2 pictures = 400 suggested, of which the run can use 200;")


@pytest.fixture
def rendered(folder, host, tmp_path):
    config = TrainConfig(base=str(playground_base_path()), runs_dir=str(tmp_path / "runs"), steps=8, class_steps=2,
                         concepts=(Concept(str(folder), "rxz", "dog", class_prompt="a dog|a puppy"),))

    def plan():
        return picture_room.class_image_plans(config, host)[0]

    ensure(plan(), Path("b"), host.txt2img, host.provenance(), Progress())
    return plan


def test_what_is_struck_out_is_replaced_by_another_seed_even_the_last_one(rendered, host):
    before = [path for prompt in rendered().prompts for path in prompt.found]
    bad = [rendered().prompts[0].found[-1], rendered().prompts[1].found[0]]
    gone = picture_room.strike_out(bad)
    host.rendered.clear()
    images = ensure(rendered(), Path("b"), host.txt2img, host.provenance(), Progress(), batch=1)
    assert host.rendered == [("a dog", 4), ("a puppy", 4)] and len(images) == 8
    assert not {path.name for path in bad} & {image.path.name for image in images}
    for path in gone:  # one that a person has put back is used again
        path.rename(path.parent.parent / path.name)
    assert {path for prompt in rendered().prompts for path in prompt.found} >= set(before)


def test_only_what_was_rendered_here_is_struck_out(rendered, folder):
    with pytest.raises(PictureError, match=r"0\.png"):
        picture_room.strike_out([folder / "0.png"])
    assert (folder / "0.png").is_file()


def test_the_contact_sheet_shows_every_picture_with_the_name_to_strike_it_out_by(rendered):
    plan = rendered()
    found = [path for prompt in plan.prompts for path in prompt.found]
    text = contact_sheet.page(plan)
    assert all(path.name in text for path in found) and text.count("data:image/jpeg;base64,") == 8 and "<script" not in text
    of_one = replace(plan, prompts=plan.prompts[:1])
    assert picture_room.named([of_one], ["1", found[0].name, found[1].name]) == [found[1], found[0]]
    with pytest.raises(PictureError, match="nothing such"):
        picture_room.named([plan], ["nothing such"])


def test_the_commands(folder, tmp_path, capsys):
    import json

    from dreambooth_ext.cli import BAD_INPUT, DONE, run

    settings = ["--base", str(playground_base_path()), "--instance-dir", str(folder), "--token", "rxz", "--class-noun", "square",
                "--steps", "2", "--class-steps", "1", "--resolution", "64", "--runs-dir", str(tmp_path / "runs"),
                "--models-dir", str(tmp_path / "models"), "--device", "cpu"]
    (tmp_path / "models").mkdir()
    without_token = [*settings[:4], *settings[6:]]
    assert "--token" not in without_token and run(["class-images", *without_token, "--plan"]) == DONE
    assert "of which the run can use 2; 0 found that this checkpoint made; 2 to render." in capsys.readouterr().out
    page = tmp_path / "sheet.html"
    assert run(["class-images", *settings, "--sheet", str(page), "--json"]) == DONE
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["plans"][0]["prompts"][0]["found"]
    assert len(found) == 2 and all(name in page.read_text() for name in found)
    assert run(["class-images", *without_token, "--strike-out", found[0], "--json"]) == DONE
    after = json.loads(capsys.readouterr().out.splitlines()[-1])["plans"][0]["prompts"][0]["found"]
    assert len(after) == 2 and found[0] not in after
    assert run(["class-images", *settings, "--strike-out", "nothing such", "--plan"]) == BAD_INPUT
    assert run(["class-images", *settings, "--sheet", str(folder / "0.png"), "--plan"]) == BAD_INPUT
    of_token = ["--resolution", "64", "--runs-dir", str(tmp_path / "runs"), "--count", "1"]
    assert run(["token", *settings[:2], *settings[4:8], *of_token]) == DONE
    assert "2 pieces" in (said := capsys.readouterr().out) and said.count(".png") == 3
    assert run(["captions", str(folder), "--token", "rxz", "--class-noun", "dog", "--set", "0.png", "a", "dog"]) == DONE
    assert "0.png (6 of 77 tokens): a rxz dog" in (said := capsys.readouterr().out) and "1 of 3 pictures" in said
    assert run(["captions", str(folder), "--set", "none.png", "x"]) == BAD_INPUT
