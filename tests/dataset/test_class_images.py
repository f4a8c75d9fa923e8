"""Class images: only what is missing is rendered, only what the base made counts, stopping loses nothing."""

import dataclasses
import errno
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from dreambooth_ext import file_lock, files, recipe
from dreambooth_ext.config import Concept
from dreambooth_ext.dataset import class_images, pace
from dreambooth_ext.dataset.class_images import MANIFEST, class_image_count, ensure, plan
from dreambooth_ext.dataset.contact_sheet import named_among, strike_out
from dreambooth_ext.dataset.manifest import TrainingSet
from dreambooth_ext.errors import Cancelled, HostError, PictureError, StorageError
from dreambooth_ext.progress import Progress

CONCEPT = Concept(instance_dir="p", token="rxz", class_noun="dog", num_class_images=10)


class Renderer:
    """Counts what it is asked for; stops the work or breaks after so many pictures."""

    def __init__(self, progress=None, stop_after=None, break_after=None):
        self.seeds, self._progress, self._stop, self._break = [], progress, stop_after, break_after

    def __call__(self, base, request, progress):
        for seed in request.seeds:
            if len(self.seeds) == self._break:
                return
            self.seeds.append(seed)
            if len(self.seeds) == self._stop:
                progress.cancel()
            yield Image.new("RGB", (request.width, request.height), (seed % 256, 0, 0))


@pytest.fixture
def planned(tmp_path):
    def make(concept=CONCEPT, base="aaa", **changes):
        settings = {"pictures": 5, "steps": 100, "batch": 1, "accumulation": 1, "class_steps": 30, "guidance_scale": 7.0,
                    "resolution": 64, "seed": 3, "library": tmp_path / "library", **changes}
        return plan(concept, base, **settings)

    return make


@pytest.mark.parametrize(("given", "pictures", "consumed", "count"), [
    (None, 3, 10_000, 600), (None, 12, 10_000, 1000), (None, 12, 300, 300), (7, 12, 300, 7), (2500, 1, 1, 2500),
])
def test_how_many(given, pictures, consumed, count):
    assert class_image_count(given, pictures, consumed)[0] == count


def test_only_what_is_missing_is_rendered_in_whole_batches(planned):
    renderer = Renderer()
    images = ensure(planned(), Path("b"), renderer, {}, Progress(), batch=4)
    assert len(images) == 10 and renderer.seeds == list(range(3, 13))
    more = Renderer()
    grown = ensure(planned(dataclasses.replace(CONCEPT, num_class_images=13)), Path("b"), more, {}, Progress(), batch=4)
    assert more.seeds == [11, 12, 13, 14, 15] and len({image.sha256 for image in grown}) == 13
    assert grown[:10] == images
    assert planned().missing == 0 and "0 to render" in planned().sentence


@pytest.mark.parametrize("after", range(1, 10))
def test_stopped_at_any_picture_nothing_is_rendered_twice(planned, after):
    first, second = Renderer(stop_after=after), Renderer()
    with pytest.raises(Cancelled):
        ensure(planned(), Path("b"), first, {}, Progress(), batch=1)
    ensure(planned(), Path("b"), second, {}, Progress(), batch=1)
    assert first.seeds + second.seeds == list(range(3, 13))


def test_two_processes_that_want_the_same_class_render_no_picture_twice(planned, monkeypatch):
    monkeypatch.setattr(file_lock, "LOOK_AGAIN_S", 0.1)
    waits, heard, second, others = threading.Event(), [], Renderer(), []

    def listen(report):
        heard.append(report)
        if report.text.startswith("Waiting"):
            waits.set()

    class First(Renderer):
        def __call__(self, base, request, progress):
            for image in super().__call__(base, request, progress):
                if len(self.seeds) == 3:
                    also.start()
                    assert waits.wait(120)
                yield image

    plans = planned(), planned(dataclasses.replace(CONCEPT, num_class_images=12))  # both before anything is rendered
    also = threading.Thread(target=lambda: others.extend(ensure(plans[1], Path("b"), second, {}, Progress(listen), batch=1)))
    first = First()
    images = ensure(plans[0], Path("b"), first, {}, Progress(), batch=1)
    also.join(120)
    assert first.seeds == list(range(3, 13)) and second.seeds == [13, 14] and others[:10] == images and len(others) == 12
    assert f"Waiting: another process renders class images into {plans[0].prompts[0].folder}." in [each.text for each in heard]
    assert (heard[-1].done, heard[-1].total) == (2, 2)


def test_who_waits_for_another_process_can_be_stopped(planned):
    wanted, renderer = planned(), Renderer()
    progress = Progress(lambda report: progress.cancel() if report.text.startswith("Waiting") else None)
    with file_lock.alone(wanted.prompts[0].folder / class_images.LOCK, Progress(), ""), pytest.raises(Cancelled):
        ensure(wanted, Path("b"), renderer, {}, progress)
    assert renderer.seeds == [] and len(ensure(wanted, Path("b"), renderer, {}, Progress())) == 10


def test_a_killed_process_keeps_nobody_waiting(planned):
    wanted = planned()
    holds = ("import sys, time; from pathlib import Path; from dreambooth_ext import file_lock; "
             "stream = Path(sys.argv[1]).open('a+b'); file_lock.take(stream.fileno()); print('held', flush=True); time.sleep(60)")
    lock = wanted.prompts[0].folder / class_images.LOCK
    lock.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", holds, str(lock)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n" and file_lock.is_held(lock)
        other.kill()
    assert len(ensure(wanted, Path("b"), Renderer(), {}, Progress())) == 10


def test_where_the_file_system_has_no_locks_nobody_waits(planned, monkeypatch):
    def none(handle, shared=False):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(file_lock, "lock", none)
    assert len(ensure(planned(), Path("b"), Renderer(), {}, Progress())) == 10


class InBatches(Renderer):
    """A real one: a picture's last bit depends on the batch that it is rendered in."""

    def __call__(self, base, request, progress):
        mark = (request.seeds[0] * 31 + len(request.seeds)) % 256
        for seed, _ in zip(request.seeds, super().__call__(base, request, progress), strict=False):
            yield Image.new("RGB", (request.width, request.height), (seed % 256, mark, 0))


@pytest.mark.parametrize("after", range(1, 11))
def test_a_batch_that_was_cut_gives_the_same_pictures_afterwards(planned, tmp_path, after):
    whole = ensure(planned(library=tmp_path / "whole"), Path("b"), InBatches(), {}, Progress(), batch=4)
    cut = InBatches(break_after=after)
    try:
        ensure(planned(), Path("b"), cut, {}, Progress(), batch=4)
    except HostError:
        assert planned().found == after
    after_all = ensure(planned(), Path("b"), InBatches(), {}, Progress(), batch=4)
    assert [image.sha256 for image in after_all] == [image.sha256 for image in whole]


def test_a_picture_recorded_but_not_written_is_rendered_with_its_own_seed(planned):
    images = ensure(planned(), Path("b"), Renderer(), {}, Progress())
    images[-1].path.unlink()
    renderer = Renderer()
    ensure(planned(), Path("b"), renderer, {}, Progress(), batch=1)
    assert renderer.seeds == [12]


def test_a_picture_that_was_struck_out_is_not_rendered_again(planned):
    images = ensure(planned(), Path("b"), Renderer(), {}, Progress())
    images[2].path.unlink()
    renderer = Renderer()
    more = ensure(planned(), Path("b"), renderer, {}, Progress(), batch=1)
    assert renderer.seeds == [13] and len(more) == 10


@pytest.mark.parametrize("change", [{"base": "bbb"}, {"class_steps": 20}, {"guidance_scale": 5.0}, {"resolution": 128},
                                    {"prediction_type": "v_prediction"}])
def test_another_base_or_setting_has_its_own_pictures(planned, change):
    ensure(planned(), Path("b"), Renderer(), {}, Progress())
    assert planned(**change).missing == 10 and planned().missing == 0


def test_a_library_of_an_older_version_is_still_found(planned):
    """Its manifests know no prediction type."""
    ensure(planned(), Path("b"), Renderer(), {}, Progress())
    folder = planned().prompts[0].folder
    assert folder.name == "dog-64px-385e0446f82a"
    assert "prediction_type" not in json.loads((folder / MANIFEST).read_text().splitlines()[0])["request"]


def test_pictures_of_other_origin_are_told_and_used_only_on_purpose(planned, tmp_path):
    own = dataclasses.replace(CONCEPT, class_dir=str(tmp_path / "own"))
    ensure(planned(own), Path("b"), Renderer(), {}, Progress())
    Image.new("RGB", (90, 70), "blue").save(tmp_path / "own" / "stock photo.png")
    left_out = planned(own)
    assert [path.name for path in left_out.foreign] == ["stock photo.png"] and "prior" in left_out.sentence
    assert len(ensure(left_out, Path("b"), Renderer(), {}, Progress())) == 10
    used = ensure(planned(own, foreign="use"), Path("b"), Renderer(), {}, Progress())
    assert len(used) == 11 and all((image.width, image.height) == (64, 64) for image in used)
    with Image.open(used[-1].path) as image:
        assert image.size == (64, 64)


def test_pictures_of_other_origin_are_of_the_size_of_each_run(planned, tmp_path):
    (tmp_path / "own").mkdir()
    Image.new("RGB", (300, 200), "white").save(tmp_path / "own" / "a.png")
    own = dataclasses.replace(CONCEPT, class_dir=str(tmp_path / "own"), num_class_images=1)
    for side in (64, 128, 64):
        (used,) = ensure(planned(own, foreign="use", resolution=side), Path("b"), Renderer(), {}, Progress())
        with Image.open(used.path) as image:
            assert image.size == (used.width, used.height) == (side, side)


def test_pictures_of_other_origin_are_upright_and_flattened_at_whatever_size(planned, tmp_path):
    (tmp_path / "own").mkdir()
    picture, exif = Image.new("RGB", (64, 64), "white"), Image.Exif()
    picture.paste("black", (0, 0, 64, 16))
    exif[0x0112] = 3  # by half a turn
    picture.save(tmp_path / "own" / "turned.png", exif=exif)
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "own" / "clear.png")
    picture.save(tmp_path / "own" / "plain.png")
    own = dataclasses.replace(CONCEPT, class_dir=str(tmp_path / "own"), num_class_images=3)
    clear, plain, turned = ensure(planned(own, foreign="use"), Path("b"), Renderer(), {}, Progress())
    assert Image.open(clear.path).convert("RGB").getextrema() == ((255, 255),) * 3
    assert Image.open(turned.path).convert("RGB").getpixel((30, 60)) == (0, 0, 0)
    assert plain.path == tmp_path / "own" / "plain.png"  # what needs nothing done is used where it is


def test_pictures_of_other_origin_stand_in_once_and_not_for_each_prompt(planned, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 9, 9)).save(folder / f"{number}.png")
    own = dataclasses.replace(CONCEPT, class_prompt="dog | dog outdoors", class_dir=str(folder))
    wished, renderer, progress, seen = planned(own, foreign="use"), Renderer(), Progress(), []
    progress.listen(lambda report: seen.append((report.done, report.total)))
    assert wished.missing == 7 and len(ensure(wished, Path("b"), renderer, {}, progress)) == 10
    assert len(renderer.seeds) == 7 and seen[-1] == (7, 7)


def test_a_picture_that_someone_changed_does_not_count(planned):
    images = ensure(planned(), Path("b"), Renderer(), {}, Progress())
    Image.new("RGB", (64, 64), "white").save(images[0].path)
    assert len(planned().foreign) == 1 and planned().missing == 1


def test_a_run_that_goes_on_keeps_the_class_images_it_began_with(planned, tmp_path):
    """Another run of the same class, with another seed, has put more of them beside those meanwhile, and they come first."""
    concept, manifest = dataclasses.replace(CONCEPT, num_class_images=3), tmp_path / "manifest.json"
    began = ensure(planned(concept, seed=1000), Path("b"), Renderer(), {}, Progress(), began=manifest)
    TrainingSet((), tuple(began)).write(manifest)
    ensure(planned(dataclasses.replace(CONCEPT, num_class_images=6), seed=1), Path("b"), Renderer(), {}, Progress())
    assert ensure(planned(concept, seed=1000), Path("b"), Renderer(), {}, Progress(), began=manifest) == began
    more = dataclasses.replace(CONCEPT, num_class_images=4)  # as many as were asked for since
    assert len(ensure(planned(more, seed=1000), Path("b"), Renderer(), {}, Progress(), began=manifest)) == 4
    strike_out([began[1].path])
    told, progress = [], Progress()
    progress.listen(lambda report: told.append(report.text))
    others = ensure(planned(concept, seed=1000), Path("b"), Renderer(), {}, progress, began=manifest)
    assert len(others) == 3 and began[1] not in others and any("goes on with others" in text for text in told)


def test_a_library_that_was_moved_with_the_runs_has_the_class_images_that_a_run_began_with(planned, tmp_path):
    concept, manifest = dataclasses.replace(CONCEPT, num_class_images=3), tmp_path / "manifest.json"
    began = ensure(planned(concept, seed=1000), Path("b"), Renderer(), {}, Progress())
    TrainingSet((), tuple(began)).write(manifest)
    ensure(planned(concept, seed=1), Path("b"), Renderer(), {}, Progress())
    ensure(planned(dataclasses.replace(CONCEPT, num_class_images=6), seed=1), Path("b"), Renderer(), {}, Progress())
    (tmp_path / "library").rename(tmp_path / "elsewhere")
    renderer = Renderer()
    now = ensure(planned(concept, seed=1000, library=tmp_path / "elsewhere"), Path("b"), renderer, {}, Progress(), began=manifest)
    assert [each.sha256 for each in now] == [each.sha256 for each in began] and not renderer.seeds
    assert all(each.path.is_relative_to(tmp_path / "elsewhere") for each in now)


@pytest.mark.parametrize("name", [MANIFEST, "manifest.json"])
@pytest.mark.parametrize("for_how_long", [3, 10**6])
def test_a_manifest_that_cannot_be_read_for_the_moment_is_not_taken_for_none(planned, tmp_path, monkeypatch, name, for_how_long):
    """Else all would be rendered anew, or a run would go on with other class images than it began with."""
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    concept, manifest = dataclasses.replace(CONCEPT, num_class_images=3), tmp_path / "manifest.json"
    began = ensure(planned(concept, seed=1000), Path("b"), Renderer(), {}, Progress())
    TrainingSet((), tuple(began)).write(manifest)
    ensure(planned(dataclasses.replace(CONCEPT, num_class_images=6), seed=1), Path("b"), Renderer(), {}, Progress())
    read, refused = Path.read_text, []

    def read_text(path, *args, **kwargs):
        if path.name == name and len(refused) < for_how_long:
            refused.append(path)
            raise PermissionError(errno.EACCES, "in use")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    renderer = Renderer()
    if for_how_long == 3:
        assert ensure(planned(concept, seed=1000), Path("b"), renderer, {}, Progress(), began=manifest) == began
    else:
        with pytest.raises(StorageError, match="in use"):
            ensure(planned(concept, seed=1000), Path("b"), renderer, {}, Progress(), began=manifest)
    assert refused and not renderer.seeds


def test_only_a_run_that_goes_on_is_asked_what_it_began_with(planned, tmp_path, monkeypatch):
    concept, run = dataclasses.replace(CONCEPT, num_class_images=3), SimpleNamespace(dataset_dir=tmp_path)
    checked = SimpleNamespace(config=SimpleNamespace(class_batch_size=4, base="b"), resolution=64)
    host = SimpleNamespace(name="", txt2img=Renderer(), provenance=dict)
    monkeypatch.setattr(recipe, "class_image_plans", lambda *_: [planned(concept, seed=1000)])
    began = recipe.class_images(checked, "aaa", host, Progress())
    TrainingSet((), tuple(began)).write(tmp_path / "manifest.json")
    ensure(planned(dataclasses.replace(CONCEPT, num_class_images=6), seed=1), Path("b"), Renderer(), {}, Progress())
    assert recipe.class_images(checked, "aaa", host, Progress(), goes_on=run) == began
    assert recipe.class_images(checked, "aaa", host, Progress()) != began


def test_a_trained_model_never_stands_in_for_the_base(planned):
    ensure(planned(), Path("trained"), Renderer(), {}, Progress())
    rows = [json.loads(line) for line in (planned().prompts[0].folder / MANIFEST).read_text().splitlines()]
    assert {row["request"]["base_sha256"] for row in rows} == {"aaa"}
    assert planned(base="sha of another").found == 0


def test_how_long_the_rest_takes_is_told(planned):
    heard = []
    ensure(planned(), Path("b"), Renderer(), {}, Progress(heard.append))
    left = [report.figures["seconds_left"] for report in heard if report.total == 10]
    assert len(left) == 10 and left[-1] == 0 and all(seconds > 0 for seconds in left[:-1])


def test_the_time_that_the_model_takes_to_load_is_no_pace(planned, monkeypatch):
    """100 s for the model, then 1 s a picture; a few that were lacking tell nothing where more were rendered before."""
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])

    class Slow(Renderer):
        def __call__(self, base, request, progress):
            now[0] += 0.0 if self.seeds else 100.0
            for image in super().__call__(base, request, progress):
                now[0] += 1.0
                yield image

    def seconds(count):
        concept = dataclasses.replace(CONCEPT, num_class_images=count)
        ensure(planned(concept, host="here"), Path("b"), Slow(), {"host": "here"}, Progress(), batch=4)
        return planned(dataclasses.replace(CONCEPT, num_class_images=1000), host="here").seconds

    assert seconds(2) == pytest.approx(51)  # nothing better is known
    assert seconds(12) == pytest.approx(1)
    assert seconds(14) == pytest.approx(1)


def test_a_host_that_returns_too_few_is_told(planned):
    with pytest.raises(HostError, match="only 2"):
        ensure(planned(), Path("b"), Renderer(break_after=2), {}, Progress(), batch=4)
    assert planned().found == 2


def test_several_prompts_share_the_count(planned, tmp_path):
    concept = dataclasses.replace(CONCEPT, class_prompt="a dog|a puppy|a hound", class_dir=str(tmp_path / "own"))
    images = ensure(planned(concept), Path("b"), Renderer(), {}, Progress())
    prompts = [image.prompt for image in images]
    assert [prompts.count(text) for text in concept.class_texts] == [4, 3, 3]
    assert planned(concept).missing == 0 and not planned(concept).foreign


def test_the_manifest_survives_a_line_cut_off(planned):
    ensure(planned(), Path("b"), Renderer(), {}, Progress())
    manifest = planned().prompts[0].folder / MANIFEST
    manifest.write_text(manifest.read_text()[:-40])
    assert planned().found == 9


def test_pictures_of_other_origin_that_cannot_be_opened_are_named_and_left_out(planned, tmp_path):
    own = dataclasses.replace(CONCEPT, class_dir=str(tmp_path / "own"))
    ensure(planned(own), Path("b"), Renderer(), {}, Progress())
    Image.new("RGB", (90, 70), "blue").save(tmp_path / "own" / "photo.png")
    (tmp_path / "own" / "bad.png").write_bytes(b"x")
    used = planned(own, foreign="use")
    assert "bad.png: it is no picture" in used.sentence and [path.name for path in used.foreign] == ["photo.png"]
    assert len(ensure(used, Path("b"), Renderer(), {}, Progress())) == 11


def test_more_than_two_thousand_are_firmly_advised_against(planned):
    assert "never helped" in planned(dataclasses.replace(CONCEPT, num_class_images=2001)).sentence
    assert "never helped" not in planned(dataclasses.replace(CONCEPT, num_class_images=2000)).sentence


def test_the_plan_in_one_sentence(planned, monkeypatch):
    """As the design has it: what is suggested, what this checkpoint made before, what is left and how long it takes."""
    concept = dataclasses.replace(CONCEPT, num_class_images=None)
    monkeypatch.setattr("os.fsync", lambda handle: None)  # 1280 of them take their time, and no power is cut here
    ensure(planned(dataclasses.replace(CONCEPT, num_class_images=640)), Path("b"), Renderer(), {"host": "here"}, Progress())
    pace.note(planned().library, "here", pace.work_of(30, 64, 64), 2.34)
    told = planned(concept, pictures=12, steps=2000, host="here")
    assert told.sentence == ("200 x 12 pictures = 2400 suggested, capped at 1000; 640 found that this checkpoint made; "
                             "360 to render, about 14 min.")
    assert "about" not in planned(concept, pictures=12, steps=2000, host="another").sentence


def test_a_seed_that_several_prompts_have_names_no_picture(planned):
    concept = dataclasses.replace(CONCEPT, class_prompt="dog | dog outdoors", num_class_images=4)
    ensure(planned(concept), Path("b"), Renderer(), {}, Progress())
    first, second = planned(concept).prompts
    with pytest.raises(PictureError, match="3: pictures of several prompts"):
        named_among([first, second], ["3"])
    assert named_among([first, first], ["3"]) == [first.found[0]]  # two concepts of one class
    assert named_among([first, second], [second.found[0].name]) == [second.found[0]]
