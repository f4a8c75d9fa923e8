"""What the tab says, without a browser: every state of a job, escaping, sentences."""

import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from dreambooth_ext import picture_room
from dreambooth_ext.dataset.class_images import ensure
from dreambooth_ext.errors import Cancelled, ConfigError, Diverged, StorageError
from dreambooth_ext.jobs import Job
from dreambooth_ext.lookups import Lookups
from dreambooth_ext.picture_room import Drawn
from dreambooth_ext.playground.base import playground_base_path
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.service import Work
from dreambooth_ext.ui import choose_panel, class_panel, fields, runs_panel, tab, train_panel, watch_panel
from dreambooth_ext.ui import sentences as of_form
from dreambooth_ext.ui.errands import Errands
from dreambooth_ext.ui.run_cards import following, proposal, run_list
from dreambooth_ext.ui.sentences import Sentences
from dreambooth_ext.words import counted, duration

NASTY = '<script>alert("1")</script>'


def run_job(service, work, name="rex"):
    job = service.jobs.start(Job(name, work))
    assert job.done.wait(120)
    return job


def patient():
    """Waits for what the page would ask for again."""
    return watch_panel.Watcher(patience_s=120)


def test_nothing_is_running(service):
    assert 'data-state="idle"' in watch_panel.status_html(service)


@pytest.mark.parametrize(("error", "state", "told"), [
    (None, "finished", "Finished"),
    (Cancelled(), "cancelled", "Stopped by the WebUI&#x27;s Interrupt"),
    (Diverged("training at 1e-2", "the loss became NaN", "Lower the learning rate."), "failed", "Lower the learning rate."),
    (ZeroDivisionError(NASTY), "failed", "ZeroDivisionError: &lt;script&gt;"),
])
def test_each_end_of_a_job_is_told(service, error, state, told):
    def work(progress):
        progress.start("training", 10)
        progress.report(4, 10, loss=0.125, steps_per_s=2.0)
        if error:
            raise error

    run_job(service, work)
    shown = watch_panel.status_html(service)
    assert f'data-state="{state}"' in shown and told in shown and "<script" not in shown
    assert (" at step 4 of 10" in shown) == (state != "finished")


def test_a_token_that_was_drawn_is_no_published_model(service, tmp_path):
    """Its job gives pictures: the page went on asking for news, and got none until the next run."""
    drawn = Drawn("rxz", (tmp_path / "0.png",))
    run_job(service, lambda progress: [drawn], "token check")
    assert "token check: finished" in watch_panel.status_html(service) and "Finished." in watch_panel.status_html(service)
    assert watch_panel.refresh(service, {}, watch_panel.Watcher())[0] == watch_panel.status_html(service)


def test_hours_of_training_are_discarded_only_after_a_question_about_that_very_run(service, values):
    go_on = threading.Event()
    run = RunFolder(service.host.runs_dir / "rex")
    first, second = (Job(name, Work(run, lambda progress: go_on.wait(120) and progress.check())) for name in ("rex", "max"))
    try:
        service.jobs.start(first)
        assert wait_until(lambda: first.state == "running")
        _, asked, told, job_id = watch_panel._ask_to_discard(service)
        assert asked["visible"] and "rex is deleted, with all that it has learnt" in told and not first.progress.cancelled
        go_on.set()
        assert first.done.wait(120)
        go_on.clear()
        service.jobs.start(second)
        assert wait_until(lambda: second.state == "running")
        watch_panel._stop(service, job_id, discard=True)
        assert not second.progress.cancelled  # nobody was asked about this one
        watch_panel._stop(service, second.id, discard=True)
        assert second.progress.cancelled
    finally:
        go_on.set()
    assert second.done.wait(120) and wait_until(lambda: not service.jobs.running)
    assert "Nothing is running." in watch_panel._ask_to_discard(service)[0]


def test_stop_means_the_run_that_the_page_shows(service):
    go_on = [threading.Event(), threading.Event()]
    first, second = (Job(name, lambda progress, go=go: go.wait(120) and progress.check())
                     for name, go in zip(("rex", NASTY), go_on, strict=True))
    try:
        for job in (first, second):
            service.jobs.start(job)
        assert wait_until(lambda: first.state == "running")
        go_on[0].set()
        assert wait_until(lambda: second.state == "running")
        told = watch_panel._stop(service, first.id)
        assert "Nothing was stopped: what this page showed has ended, and &lt;script&gt;" in told and "<script" not in told
        assert not second.progress.cancelled
        watch_panel._stop(service, second.id)
        assert second.progress.cancelled
    finally:
        for go in go_on:
            go.set()
    assert second.done.wait(120) and "Nothing is running." in watch_panel._stop(service, second.id)


def test_stop_in_choose_means_the_comparison_that_the_page_shows(service):
    go_on = [threading.Event(), threading.Event()]

    def compared(progress, go):
        progress.start("comparing", 4)
        return go.wait(120) and progress.check()

    first, second = (Job(name, lambda progress, go=go: compared(progress, go))
                     for name, go in zip(("rex", "max"), go_on, strict=True))
    try:
        for job in (first, second):
            service.jobs.start(job)
        assert wait_until(lambda: first.last.phase == "comparing")
        told = choose_panel._stop(service, first.id, "max")[0]
        assert "Nothing was stopped: rex is being compared, and max is chosen. Choose rex to stop it." in told
        assert not first.progress.cancelled
        go_on[0].set()
        assert wait_until(lambda: second.last.phase == "comparing")
        told = choose_panel._stop(service, first.id, "max")[0]
        assert "Nothing was stopped: what this page showed has ended, and max is being compared since." in told
        assert not second.progress.cancelled
        assert "Stopping" in choose_panel._stop(service, second.id, "max")[0] and second.progress.cancelled
    finally:
        for go in go_on:
            go.set()
    assert second.done.wait(120) and "No comparison is running." in choose_panel._stop(service, second.id, "max")[0]


def test_a_run_that_is_called_as_another_job_is_not_what_that_job_works_on(service, values):
    """While captions are written, and afterwards, the page showed the curve of a run called captions."""
    for name in ("captions", class_panel.TOKEN_CHECK):
        config = service.settings({**values, "output_name": name})
        run = RunFolder.for_config(config)
        run.create(config)
        for step in (1, 2):
            run.append_metrics({"step": step, "loss": 0.5})
        during = []
        job = Job(name, lambda progress, during=during: during.append(watch_panel.refresh(service, {}, patient())), name)
        service.jobs.start(job)
        assert job.done.wait(120)
        assert "svg" not in str(during[0][1]) and "svg" not in str(watch_panel.refresh(service, {}, patient())[1])
        assert watch_panel.run_of(service, job) is None
        of_run = service._use(run, lambda progress: [])
        assert of_run.done.wait(120) and watch_panel.run_of(service, of_run).path == run.path
        assert "svg" in watch_panel.refresh(service, {}, patient())[1]


def test_a_run_that_is_called_as_the_token_check_is_none(service, values):
    config = service.settings({**values, "output_name": class_panel.TOKEN_CHECK})
    run = RunFolder.for_config(config)
    run.create(config)
    assert service._use(run, lambda progress: []).done.wait(120)
    assert class_panel.TOKEN_NEEDS in form_of(service).drawn.drawn_html()


def test_a_click_on_a_picture_of_the_run_before_publishes_nothing_of_the_chosen_one(service, monkeypatch):
    published = []
    monkeypatch.setattr(choose_panel, "_publish", lambda service, name, snapshot: published.append((name, snapshot)) or ["", ""])
    told = choose_panel._publish_cell(service, "max", "rex/step-000002")[0]
    assert "Nothing is published: the picture is of rex, and max is chosen by now." in told and not published
    choose_panel._publish_cell(service, "rex", "rex/step-000002")
    choose_panel._publish_cell(service, "", "")
    assert published == [("rex", "step-000002"), ("", "")]


def wait_until(true):
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
    return True


def test_a_running_job_and_those_that_wait(service):
    begun, go_on = threading.Event(), threading.Event()

    def work(progress):
        progress.start("training", 10)
        progress.report(4, 10, loss=0.125, seconds_left=75)
        begun.set()
        go_on.wait(120)

    first, second = service.jobs.start(Job("rex", work)), service.jobs.start(Job(NASTY, lambda progress: None))
    assert begun.wait(120)
    shown = watch_panel.status_html(service)
    assert "rex: step 4 of 10" in shown and "loss 0.1250" in shown and "1 min 15 s left" in shown
    assert "Waiting: &lt;script&gt;" in shown and "<script" not in shown
    service.stop(first.id, "this tab")
    assert "Stopping, as asked by this tab" in watch_panel.status_html(service)
    go_on.set()
    assert second.done.wait(120)


def test_only_what_has_changed_is_sent(service, values):
    config = service.settings(values)
    run = RunFolder.for_config(config)
    run.create(config)

    def work(progress):
        progress.log("bf16 is in effect")
        for step in range(1, 4):
            run.append_metrics({"step": step, "loss": 1 / step})

    run_job(service, work)
    first = watch_panel.refresh(service, {}, patient())
    assert "<svg" in first[1] and "bf16 is in effect" in first[3]
    again = watch_panel.refresh(service, first[-1], patient())
    assert all(not isinstance(part, str) for part in again[1:4])
    run.append_metrics({"step": 4, "loss": 0.1})
    assert "step 4" in watch_panel.refresh(service, first[-1], patient())[1]


def test_a_finished_run_tells_the_script_what_to_hand_over(service, values, tmp_path):
    config = service.settings(values)
    RunFolder.for_config(config).create(config)
    run_job(service, lambda progress: [tmp_path / "models" / "rex.ckpt"])
    shown = watch_panel.status_html(service)
    assert 'data-published="rex.ckpt"' in shown and 'data-prompt="rxz dog"' in shown and 'data-select="yes"' in shown


def test_brackets_are_told_and_handed_over_as_letters(service, values, tmp_path):
    """In txt2img they are weights of the prompt; the run has learnt them as they stand."""
    form, values = form_of(service), {**values, "token": "(rxz)", "instance_prompt": "[name] [class], (big) [filewords]"}
    told = told_at_last(form, values)[2]
    assert "&quot;(rxz)&quot; has brackets" in told and "The instance prompt has brackets" in told
    assert "brackets" not in told_at_last(form, {**values, "token": "rxz", "instance_prompt": "[name] [class], [filewords]"})[2]
    assert "It has brackets" in form.review.captions._count("a [red] ball", values)
    config = service.settings(values)
    RunFolder.for_config(config).create(config)
    run_job(service, lambda progress: [tmp_path / "models" / "rex.ckpt"])
    assert r'data-prompt="\(rxz\) dog, \(big\)"' in watch_panel.status_html(service)


def test_everything_from_outside_is_escaped(service, values, tmp_path):
    from PIL import Image

    config = service.settings({**values, "token": NASTY, "preview_prompts": [NASTY]})
    run = RunFolder.for_config(config)
    run.create(config)
    run.previews_dir.mkdir()
    Image.new("RGB", (8, 8)).save(run.previews_dir / "step-000010-0.png")
    run_job(service, lambda progress: progress.log(NASTY))
    parts = watch_panel.refresh(service, {}, patient())
    pages = [part for part in parts[:4] if isinstance(part, str)]
    pages += [choose_panel.grid_html(service, "rex"), runs_panel.runs_html(service)]
    assert "&lt;script&gt;" in "".join(pages) and "<script" not in "".join(pages)


def test_a_preview_is_enlarged_of_the_run_that_the_page_showed_though_another_has_begun_since(service, values):
    for name, colour in (("rex", "red"), ("max", "blue")):
        run = RunFolder.for_config(config := service.settings({**values, "output_name": name}))
        run.create(config)
        run.previews_dir.mkdir()
        Image.new("RGB", (8, 8), colour).save(run.previews_dir / "step-000000-0.png")
    run_job(service, lambda progress: None, "rex")
    shown = watch_panel.refresh(service, {}, patient())[2]
    picture, named = (re.search(f'{name}="([^"]*)"', shown)[1] for name in ("src", "data-file"))
    run_job(service, lambda progress: None, "max")
    assert picture in watch_panel._enlarged(service, named)
    assert watch_panel._enlarged(service, "") == watch_panel._enlarged(service, "gone/step-000000-0.png") == ""


def form_of(service):
    import gradio as gr

    from dreambooth_ext.ui.sentences import Sentences

    with gr.Blocks():
        return train_panel.build(service, Sentences(service))


def told_at_last(form, values):
    """What the form says once nothing is being found out any more."""
    for _ in range(2400):
        told = train_panel.told_of(form, values)
        if not any("dreambooth-pending" in part for part in told):
            return told
        time.sleep(0.05)
    raise AssertionError(told)


def test_sentences_of_a_half_filled_form(service, values):
    form, values = form_of(service), {**values, "base": str(playground_base_path())}
    told = train_panel.told_of(form, {"base": "", "instance_dir": "", "token": "", "class_noun": "", "output_name": ""})
    assert "5 to 75 pictures" in told[1] and not any(told[4:9])  # what is still empty is no mistake yet
    assert "Still needed: base model, pictures, token, class, name." in told[9]
    told = told_at_last(form, {**values, "with_prior_preservation": True, "steps": 0, "resolution": 64})
    assert "3 pictures: 0 good, 2 near duplicate, 1 too dark" in told[1]
    assert "&quot;rxz dog&quot; against &quot;dog&quot;" in told[2]
    assert "<b>Steps:</b> 0 is less than 1" in told[7] and "To be put right: Steps." in told[9]
    told = told_at_last(form, {**values, "instance_dir": "/nowhere"})
    assert "no such folder" in told[1] and "To be put right: Pictures." in told[9]
    told = told_at_last(form, {**values, "steps": 1, "resolution": 64})
    assert "Ready." in told[9] and "1 step: 0.333 for each of 3 pictures" in told[3] and "LoRA" not in told[3]
    assert "A LoRA of rank 4: a small .safetensors file" in told_at_last(form, {**values, "lora_rank": 4})[3]


def test_a_picture_that_cannot_be_read_stands_between_the_form_and_a_run(service, values):
    values = {**values, "base": str(playground_base_path())}
    broken = Path(values["instance_dir"]) / "broken.jpg"
    broken.write_bytes(b"no picture")
    told = told_at_last(form_of(service), {**values, "steps": 1, "resolution": 64})
    assert "broken.jpg cannot be used" in told[1] and "To be put right: Pictures." in told[9]
    assert any("broken.jpg" in fault for fault in service.faults({**values, "steps": 1, "resolution": 64}))  # so it would end
    form = form_of(service)
    while "pending" in (grid := form.review.grid_html(values)):
        time.sleep(0.05)
    assert 'data-name="broken.jpg" aria-pressed="false"' in grid
    assert 'data-name="broken.jpg" aria-pressed="true"' in form.review._toggled("broken.jpg", values)
    told = told_at_last(form, {**values, "steps": 1, "resolution": 64})
    assert "broken.jpg" not in told[1] and "Ready." in told[9] and not service.faults({**values, "steps": 1, "resolution": 64})
    broken.write_bytes(b"another file")  # nobody has looked at this one
    assert any("broken.jpg" in fault for fault in service.faults({**values, "steps": 1, "resolution": 64}))
    broken.unlink()
    told = told_at_last(form_of(service), {**values, "steps": 1, "resolution": 64, "base": "gone.ckpt"})
    assert "To be put right: Base model." in told[9]


def test_quotes_about_a_path_are_no_part_of_it():
    """Windows' "Copy as path" puts them there."""
    quoted = {'"C:\\pictures of rex"': "C:\\pictures of rex", " '/home/me/rex' ": "/home/me/rex", '"': '"', "it's": "it's"}
    for text, path in quoted.items():
        assert fields.values_of(["instance_dir", "base"], [text, text]) == {"instance_dir": path, "base": path}
    assert fields.values_of(["instance_prompt"], ['"rxz"']) == {"instance_prompt": '"rxz"'}


def test_a_name_that_is_taken_is_not_ready(service, values):
    form, values = form_of(service), {**values, "base": str(playground_base_path()), "resolution": 64}
    assert "Ready." in told_at_last(form, values)[9]
    foreign = service.host.models_dir / "rex.ckpt"
    foreign.write_bytes(b"somebody's")
    told = told_at_last(form, values)[9]
    assert "Name: rex.ckpt is in the models folder already" in told and "dreambooth-warning" in told
    foreign.unlink()
    go_on = threading.Event()
    try:
        for name in ("rex", "max"):
            service.jobs.start(Job(name, lambda progress: go_on.wait(120)))
        assert wait_until(lambda: service.jobs.running)
        assert "rex is being worked on." in told_at_last(form, values)[9]
        assert "max waits until rex is done." in told_at_last(form, {**values, "output_name": "max"})[9]
    finally:
        go_on.set()
    assert wait_until(lambda: not service.jobs.running)
    RunFolder(service.host.runs_dir / "rex").create(service.settings(values))
    told = told_at_last(form, values)[9]
    assert "Name: a run named rex is there already. Choose another name" in told and "Ready." not in told
    assert "dreambooth-warning" not in told  # that is how it is after a run from this page
    with pytest.raises(ConfigError, match="a run named rex is there already"):
        service.start(values)


def test_the_memory_that_is_free_is_that_of_the_moment(service, values, monkeypatch):
    from dreambooth_ext.training import memory

    form, free = form_of(service), [64 * 2**30]
    monkeypatch.setattr(memory, "free_bytes", lambda device: free[0])
    values = {**values, "base": str(playground_base_path()), "resolution": 64, "memory_profile": "low"}
    assert "64.0 GiB are free" in told_at_last(form, values)[8]
    free[0] = 2**20  # another program has taken it
    told = told_at_last(form, values)[8]
    assert "1 MiB are free. Choose a leaner profile: ultra." in told and "dreambooth-warning" in told
    told = told_at_last(form, {**values, "memory_profile": "ultra"})[8]
    assert "leaner" not in told and "Close what else uses the card" in told
    go_on = threading.Event()
    try:
        service.jobs.start(Job("another", lambda progress: go_on.wait(120)))
        assert wait_until(lambda: service.jobs.running)
        told = told_at_last(form, values)[8]
        assert "Memory: low needs about" in told and "free" not in told  # what this run takes will be free again
    finally:
        go_on.set()


def test_class_images_are_struck_out_though_they_must_be_looked_for_once_more(service, values, tmp_path, monkeypatch):
    (tmp_path / "models" / "playground.safetensors").symlink_to(playground_base_path())
    values = {**values, "base": "playground.safetensors", "num_class_images": 4, "with_prior_preservation": True}
    form, (plan,) = form_of(service), picture_room.class_image_plans(service.settings(values), service.host)
    ensure(plan, Path("b"), lambda base, request, progress: (Image.new("RGB", (64, 64), (seed % 255, 0, 9))
                                                             for seed in request.seeds), {}, Progress())

    def found():
        plan, = picture_room.class_image_plans(service.settings(values), service.host)
        return [path.name for path in plan.prompts[0].found]

    assert wait_until(lambda: form.drawn.sheet_html(values).count("dreambooth-strike") == 4)
    first, second, third, last = found()
    for name, changed in ((first, {"steps": 7}), (second, {}), (third, {})):  # a field was changed; one click after the other
        values = {**values, **changed}
        form.drawn._strike(name, values)
    assert found() == [last]
    monkeypatch.setattr(class_panel, "STRIKE_WAITS_S", 0)
    assert f"{last} is not struck out" in form.drawn._strike(last, {**values, "steps": 8}) and found() == [last]


def test_class_images_that_a_run_renders_are_counted_as_they_come(service, values, tmp_path, monkeypatch):
    (tmp_path / "models" / "playground.safetensors").symlink_to(playground_base_path())
    values = {**values, "base": "playground.safetensors", "num_class_images": 3, "with_prior_preservation": True}
    monkeypatch.setattr(of_form, "COUNTED_AGAIN_S", 0.2)
    form = form_of(service)

    def told(text):
        for _ in range(6000):
            said = form.sentences.concept(values)
            if text in said:
                return True
            time.sleep(0.02)
        raise AssertionError(said)

    assert told("0 found that this checkpoint made; 3 to render")
    plan, = picture_room.class_image_plans(service.settings(values), service.host)
    seen = [threading.Event() for _ in range(3)]

    def first(count):
        return replace(plan, prompts=(replace(plan.prompts[0], wanted=count),))

    def drawn(base, request, progress):
        return (Image.new("RGB", (64, 64), (seed % 255, 0, 9)) for seed in request.seeds)

    def work(progress):
        progress.start("class images", 3)
        for count, event in enumerate(seen[:2], 1):
            ensure(first(count), Path("b"), drawn, {}, Progress())
            assert event.wait(120)
        ensure(first(3), Path("b"), drawn, {}, Progress())
        progress.start("training", 5)
        assert seen[2].wait(120)

    job = service.jobs.start(Job("rex", Work(RunFolder(tmp_path / "runs" / "rex"), work)))
    try:
        for number, event in enumerate(seen):
            assert told(f"{number + 1} found that this checkpoint made; {2 - number} to render")
            event.set()
    finally:
        for event in seen:
            event.set()
        assert job.done.wait(120)


def test_without_any_checkpoint_it_says_how_to_get_one(service, values):
    form = form_of(service)
    assert "Choose the checkpoint" in train_panel.told_of(form, {**values, "base": ""})[0]
    (service.host.models_dir / "base.ckpt").unlink()
    told = train_panel.told_of(form, {**values, "base": ""})[0]
    assert "The folder models has no checkpoint yet" in told and "playground --into models" in told
    assert str(service.host.models_dir) not in told


def test_pressing_train_with_an_empty_form_names_every_field(service):
    form = form_of(service)
    answer = train_panel._start(form, {"base": "", "instance_dir": "", "token": "", "class_noun": "", "output_name": ""})
    assert "5 things have to be put right" in answer[4]
    assert all(f'data-option="{name}"' in answer[4] for name in ("base", "instance_dir", "token", "class_noun", "output_name"))
    assert answer[:4] == ["", "", "", ""]  # what the form's check writes too, and may write later
    assert service.jobs.all() == []


def test_settings_of_a_run_are_taken_over(service, values):
    config = service.settings({**values, "learning_rate": 1e-5, "steps": 77})
    RunFolder.for_config(config).create(config)
    form = form_of(service)
    filled = dict(zip(form.widgets, runs_panel._clone(service, form, "rex"), strict=False))
    assert (filled["learning_rate"], filled["steps"], filled["token"]) == ("1e-05", "77", "rxz")
    assert filled["output_name"] == "rex-2" and filled["base"] == "base.ckpt"


def test_settings_that_a_run_is_given_are_those_that_the_form_shows(service, values):
    """To the last digit; but for the run's own copy of what was chosen of its pictures, which Review would write into."""
    config = service.settings({**values, "learning_rate": 1.23456789e-6, "adam_beta2": 0.99})
    run = RunFolder.for_config(config)
    concept = replace(config.concepts[0], choices=str(run.choices_path(0)))
    run.create(replace(config, concepts=(concept, replace(concept, token="sks"))))
    form = form_of(service)
    *shown, said = runs_panel._clone(service, form, "rex")
    again = fields.values_of(list(form.widgets), shown)
    assert (again["learning_rate"], again["adam_beta2"], again["choices"]) == (1.23456789e-6, 0.99, "")
    assert "the first of these 2" in said


def test_a_part_that_was_drawn_outlasts_that_its_picture_is_left_out(service, values, monkeypatch):
    review, sentences = form_of(service).review, Sentences(service)
    review._sentences = sentences
    while "pending" in (grid := review.grid_html(values)):
        time.sleep(0.01)
    assert "part chosen" not in grid
    monkeypatch.setattr(review, "_pictures", None)  # what is chosen waits for no picture that is being drawn
    monkeypatch.setattr(review, "grid_html", lambda values: "")
    monkeypatch.setattr(review, "_detail_html", lambda name, values: "")

    def chosen():
        found = sentences.choices_of(values).get("0.png")
        return (found.choice, found.box) if found else None

    review._cut("0.png", "1, 2, 33, 44", values)
    assert chosen() == ("fix", (1, 2, 33, 44))
    for act, then in ((lambda: review._toggled("0.png", values), "drop"), (lambda: review._toggled("0.png", values), "fix"),
                      (lambda: review._chosen("0.png", "keep", "1, 2, 33, 44", values), "keep")):
        act()
        assert chosen() == (then, (1, 2, 33, 44))
    picture = next(picture for picture in review._audit(values).pictures if picture.name == "0.png")
    assert "part chosen" not in review._card(picture, None, sentences.choices_of(values)["0.png"])  # the whole is trained
    review._toggled("0.png", values)
    review._toggled("0.png", values)
    assert chosen() is None


def test_without_a_named_folder_no_other_one_is_worked_on(service, tmp_path, monkeypatch):
    """An empty path would be the folder that the WebUI was started in."""
    monkeypatch.chdir(tmp_path / "pictures")
    Image.new("RGB", (8, 8)).save("a.png")
    form = form_of(service)
    nothing = {"instance_dir": ""}
    for told in (form.review.captions._saved("a.png", "a text", nothing)[0], form.review._again("a.png", nothing),
                 form.review.captions._describe("BLIP", nothing), form.review._toggled("a.png", nothing)):
        assert "no folder is named" in told
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["a.png"] and service.jobs.all() == []


def test_what_is_being_drawn_or_captioned_is_not_begun_twice(service, values, tmp_path):
    go_on = threading.Event()
    service.jobs.start(Job("first", lambda progress: go_on.wait(120)))
    form = form_of(service)
    try:
        for _ in range(2):
            assert "The base draws the token" in form.drawn._check({**values, "resolution": 64})
        told = [form.review.captions._describe("BLIP", values) for _ in range(2)]
        assert "writes the captions" in told[0] and "running or waiting already" in told[1]
        assert [job.name for job in service.jobs.all()] == ["first", "token check", "captions"]
        for job in service.jobs.all()[1:]:
            service.stop(job.id, "a test")
    finally:
        go_on.set()


def test_the_answer_to_an_opened_page_leaves_what_was_typed_meanwhile(service):
    """It may be slow, and comes after the first field was filled; another checkpoint that was loaded since is taken over."""
    form = form_of(service)
    places, raw = list(form.widgets), [widget.value for widget in form.widgets.values()]
    answer = dict(zip(places, tab._opened(form, fields.values_of(places, raw)), strict=False))
    assert form.widgets["base"].value == "base.ckpt" and answer["base"]["choices"]
    assert not any("value" in update for update in answer.values())
    raw[places.index("base")] = "former.ckpt"
    assert dict(zip(places, tab._opened(form, fields.values_of(places, raw)), strict=False))["base"]["value"] == "base.ckpt"


def test_missing_libraries_are_named_at_the_top(service, monkeypatch):
    from dreambooth_ext import needs

    monkeypatch.setattr(needs, "installed", {"huggingface_hub": "0.30"}.get)
    page = tab.build(service)
    top = next(block for block in page.blocks.values() if getattr(block, "elem_id", "") == "dreambooth_missing")
    assert "diffusers" in top.value and "pip install" in top.value


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (95, "1 min 35 s"), (4000, "1 h 06 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_one_thing_and_several():
    assert [counted(number, "picture") for number in (0, 1, 2)] == ["0 pictures", "1 picture", "2 pictures"]


def test_a_page_of_ten_thousand_points_stays_small(service, values):
    config = service.settings(values)
    run = RunFolder.for_config(config)
    run.create(config)
    with run.metrics_path.open("w") as stream:
        stream.writelines(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(1, 10_001))
    run_job(service, lambda progress: None)
    first = watch_panel.refresh(service, {}, patient())
    assert "<svg" in first[1] and len(first[1]) < 40_000


def presets_of(service):
    form = form_of(service)
    return form, form.presets


def test_a_preset_is_saved_and_applied(service, values):
    form, panel = presets_of(service)
    names = list(form.widgets)
    _, said = panel._saved("mine", {**values, "learning_rate": 1e-5})
    assert "Saved as mine" in said
    filled = dict(zip(names, panel._applied(names, "mine"), strict=False))
    assert filled["learning_rate"] == "1e-05" and not isinstance(filled["output_name"], str)
    assert "there is no preset named other" in panel._applied(names, "other")[-1]
    assert "fault" in panel._saved("a/b", values)[-1]


def test_settings_of_another_trainer_are_taken_and_the_rest_is_listed(service, tmp_path):
    import json

    form, panel = presets_of(service)
    names = list(form.widgets)
    path = tmp_path / "db_config.json"
    path.write_text(json.dumps({"model_name": "old", "learning_rate": 2e-6, "attention": "xformers", "concepts_list": [
        {"instance_data_dir": "pics", "instance_token": "rxz", "class_token": "dog"}]}))
    filled = dict(zip([*names, "said"], panel._read(names, str(path)), strict=True))
    assert (filled["learning_rate"], filled["token"], filled["output_name"]) == ("2e-06", "rxz", "old")
    assert "attention: it has no counterpart here" in filled["said"]


def test_a_page_learns_nothing_of_folders_that_imported_settings_name(service, tmp_path):
    _, panel = presets_of(service)
    (tmp_path / "private" / "10_rxz dog").mkdir(parents=True)
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"pretrained_model_name_or_path": "b", "train_data_dir": str(tmp_path / "private")}))
    folder, token, _ = panel._read(["instance_dir", "token"], str(path))
    assert folder == str(tmp_path / "private") and "rxz" not in repr(token)


def test_a_runs_report_and_its_failure_explained(service, values):
    config = service.settings(values)
    RunFolder.for_config(config).create(config)
    for make, name in ((runs_panel._report, "rex-report.html"), (runs_panel._explanation, "rex-failure.zip")):
        update, said = make(service, "rex")
        assert update["value"].endswith(name) and name in said
    assert "no such run" in runs_panel._report(service, "nothing")[1]


def test_a_model_that_was_trained_here_is_not_trained_further_by_accident(service, values, tmp_path):
    config = service.settings(values)
    run = RunFolder.for_config(config)
    run.create(config)
    made = tmp_path / "models" / "rex.ckpt"
    made.write_bytes(b"x")
    service.host.select(made)
    assert train_panel.checkpoint_titles(service)[1] == "rex.ckpt"
    run.write_state(replace(run.state(), published=(str(made),)))
    assert train_panel.checkpoint_titles(service) == (["base.ckpt", "rex.ckpt"], "base.ckpt")
    told = told_at_last(form_of(service), {**values, "base": "rex.ckpt"})[0]
    assert "trained here from base.ckpt" in told
    of_snapshot = made.with_name("rex-step20.ckpt")
    of_snapshot.write_bytes(b"x")
    service.host.select(of_snapshot)
    assert train_panel.checkpoint_titles(service)[1] == "base.ckpt"


def test_who_has_stopped_a_run_is_told_where_it_goes_on(service, values):
    config = service.settings(values)
    run = RunFolder.for_config(config)
    run.create(config)
    begun = threading.Event()

    def work(progress):
        begun.set()
        while not progress.cancelled:
            time.sleep(0.01)
        run.write_state(replace(run.state(), state="interrupted"))
        progress.check()

    job = service._train(run, work)
    assert begun.wait(120) and service.stop(job.id, "this tab") and job.done.wait(120)
    shown = watch_panel.status_html(service)
    assert "what was finished is kept; Resume, in Runs, goes on with it." in shown
    run_job(service, lambda progress: progress.start("comparing", 3) or progress.cancel() or progress.check())
    assert "what was finished is kept." in watch_panel.status_html(service)
    assert "Resume" not in watch_panel.status_html(service)  # it was no training


def test_a_stop_that_comes_too_late_is_said_to(service):
    run_job(service, lambda progress: progress.cancel())
    shown = watch_panel.status_html(service)
    assert "finished" in shown and "The stop came too late" in shown


def test_a_discarded_run_is_not_said_to_be_kept(service, values):
    config = service.settings(values)
    run = RunFolder.for_config(config)
    run.create(config)
    begun = threading.Event()

    def work(progress):
        progress.start("training", 10)
        progress.report(1, 10, loss=0.5, seconds_left=75)
        begun.set()
        while True:
            progress.check()
            time.sleep(0.01)

    job = service._train(run, work)
    assert begun.wait(120) and service.stop(job.id, "this tab", discard=True) and job.done.wait(120)
    shown = watch_panel.status_html(service)
    assert "its run is deleted, as asked" in shown and "kept" not in shown and "left" not in shown and "loss 0.5" in shown
    assert not run.path.exists()


def test_which_checkpoint_is_trained_when_the_webui_has_another_one_loaded(service, monkeypatch):
    from dreambooth_ext.host import Checkpoint
    from dreambooth_ext.ui.sentences import Sentences

    folder = service.host.models_dir
    listed = [Checkpoint(folder / "base.ckpt", "base.ckpt [1]"), Checkpoint(folder / "other.ckpt", "other.ckpt [2]", loaded=True)]
    sentences = Sentences(service)
    assert sentences._of_loaded("base.ckpt", {}) == ""  # without a WebUI nothing is loaded
    monkeypatch.setattr(service.host, "checkpoints", lambda: listed)
    monkeypatch.setattr(service.host, "name", "a WebUI")
    told = sentences._of_loaded("base.ckpt [1]", {"auto_select": True})
    assert "has other.ckpt loaded" in told and "chosen here is trained, and renders the class images" in told
    assert "afterwards the new model is selected" in told
    for values in ({"auto_select": False}, {"auto_select": True, "lora_rank": 4}):
        assert "afterwards the loaded one is back" in sentences._of_loaded("base.ckpt [1]", values)
    assert "Loaded now." in sentences._of_loaded("other.ckpt [2]", {})


def test_settings_of_the_webui_by_which_the_new_model_looks_unlike_its_previews_are_told(service, monkeypatch):
    from dreambooth_ext.host import OwnPictures
    from dreambooth_ext.playground.base import playground_base_path
    from dreambooth_ext.ui.sentences import Sentences

    sentences, base = Sentences(service), str(playground_base_path())

    def told(own, **more):
        monkeypatch.setattr(service.host, "own_pictures", lambda: own)
        while "Looking at the checkpoint" in sentences.model({"base": base, **more}):
            time.sleep(0.01)
        return sentences.model({"base": base, **more})

    usual = told(OwnPictures())
    assert usual and "settings" not in usual and "CLIP skip" not in usual
    unlike = told(OwnPictures(vae="bright.vae.pt"))
    assert "name the VAE bright.vae.pt: in txt2img" in unlike and "Name that file here too (VAE in Advanced)" in unlike
    assert told(OwnPictures(vae="bright.vae.pt"), vae="/some/bright.vae.pt") == usual  # it becomes the model's own
    assert "name the text encoder clip_l.safetensors: in txt2img" in told(OwnPictures(text_encoder="clip_l.safetensors"))
    assert "CLIP skip is 2, this trains with 1: set both alike" in told(OwnPictures(clip_skip=2))
    assert told(OwnPictures(clip_skip=2), clip_skip=2) == usual
    assert "CLIP skip is 1, this trains with 2" in told(OwnPictures(), clip_skip=2)


def test_the_tab_is_drawn_without_looking_at_runs(service, values, monkeypatch):
    """The WebUI's start would wait for all of them; the page asks for them once it is there."""
    config = service.settings(values)
    RunFolder.for_config(config).create(config)
    for name in ("run_folders", "run", "snapshots"):
        monkeypatch.setattr(service, name, lambda *more: pytest.fail("a run was read"))
    shown = {block.elem_id: block.value for block in tab.build(service).blocks.values() if getattr(block, "elem_id", None)
             in ("dreambooth_runs", "dreambooth_choose_grid")}
    assert len(shown) == 2 and all("Looking at the runs" in value for value in shown.values())


def test_refreshing_chooses_the_newest_run_where_none_is_chosen_that_is_there(service, values):
    config = service.settings(values)
    RunFolder.for_config(config).create(config)
    for gone in (None, "", "former"):
        assert run_list(service, gone)["value"] == "rex"
    assert "value" not in run_list(service, "rex")  # by now the page may have another one


def test_a_run_that_has_come_since_is_chosen_unless_a_person_has_chosen_another_one(service, values):
    def create(name, started_s):
        config = service.settings({**values, "output_name": name})
        run = RunFolder.for_config(config)
        run.create(config)
        run.write_state(replace(run.state(), started_s=started_s))

    create("first", 1.0)
    listed, name, newest = following(service, None, None)
    assert (listed["value"], name, newest) == ("first", "first", "first")
    create("second", 2.0)
    listed, name, newest = following(service, "first", newest)
    assert (listed["value"], name, newest) == ("second", "second", "second")
    assert "value" not in following(service, "second", newest)[0]
    create("third", 3.0)
    listed, name, newest = following(service, "first", newest)  # a click on its card
    assert "value" not in listed and (name, newest) == ("first", "second")
    assert following(service, "third", newest)[1:] == ("third", "third")


def test_without_any_run_none_stays_chosen(service):
    listed, proposed, name, newest = proposal(service, "gone", "gone")
    assert (listed["choices"], listed["value"]) == ([], None) and (proposed, name, newest) == ("", "", None)


def test_who_is_asked_about_a_deletion_is_told_which_run_it_is(service):
    assert "rex: its snapshots" in runs_panel._asked_about("rex") and NASTY not in runs_panel._asked_about(NASTY)


def test_cards_that_were_there_do_not_become_empty_where_nothing_is_quick(service, values):
    config = service.settings(values)
    run = RunFolder.for_config(config)
    run.create(config)
    run.previews_dir.mkdir()
    Image.new("RGB", (64, 64), "red").save(run.previews_dir / "step-000000-0.png")
    assert "data:image" not in runs_panel.runs_html(service, patience_s=0.0)
    whole = runs_panel.runs_html(service, patience_s=60)
    assert "data:image" in whole and "dreambooth-pending" not in whole
    again = runs_panel.runs_html(service, patience_s=0.0)
    assert "data:image" in again and "dreambooth-pending" in again  # as it was, and asked for again


def test_cards_of_many_runs_come_at_once_and_their_pictures_and_sizes_as_they_are_found(service, values):
    for number in range(4):
        config = service.settings({**values, "output_name": f"rex-{number}"})
        run = RunFolder.for_config(config)
        run.create(config)
        run.previews_dir.mkdir()
        Image.effect_noise((1024, 1024), 50 + number).save(run.previews_dir / "step-000000-0.png")
    without = runs_panel.runs_html(service, patience_s=0.0)
    assert without.count("dreambooth-card-text") == without.count("dreambooth-pending") == 4 and "data:image" not in without
    asked = 0
    while "dreambooth-pending" in (found := runs_panel.runs_html(service, patience_s=1e-9)):  # time for one thing at a time
        asked += 1
        assert asked < 1000
    assert found.count("data:image") == 4 and asked >= 4


def test_what_takes_long_is_asked_for_until_it_is_there(service):
    go_on = threading.Event()

    def made(text):
        assert go_on.wait(120)
        if text == "wrong":
            raise StorageError("It is to be made", "the disk is full", "Make room.")
        return [text]

    with gr.Blocks():
        said, button = gr.HTML(), gr.Button()
        errands = Errands("doing", "poll", said, [])
        errands.on(button.click, "Making it", made, [], [said])
    for text, told in (("done", "done"), ("wrong", "the disk is full")):
        go_on.clear()
        answer = errands._begin(page := {}, 0, text)
        assert "Making it" in answer[errands._doing] and "dreambooth-pending" in answer[errands._doing] and said not in answer
        go_on.set()
        for _ in range(1200):
            if said in (answer := errands._answer(page)):
                break
        assert told in answer[said] and answer[errands._doing] == "" and errands._answer(page) == {errands._doing: ""}
    assert errands._answer({}) == {errands._doing: ""}


def test_a_late_answer_about_what_was_asked_before_does_not_take_the_place_of_what_is_asked_now():
    """Opening a second run went unanswered: the answer about the first one ended it."""
    asked, go_on = threading.Event(), threading.Event()

    def made(text):
        asked.set()
        assert go_on.wait(120)
        return [text]

    with gr.Blocks():
        said, button = gr.HTML(), gr.Button()
        errands = Errands("doing", "poll", said, [])
        errands.on(button.click, "Making it", made, [], [said])
    errands._lookups = Lookups(patience_s=120)
    page, answers = {}, {}
    first = threading.Thread(target=lambda: answers.update(first=errands._begin(page, 0, "first")))
    first.start()
    assert asked.wait(120)
    second = threading.Thread(target=lambda: answers.update(second=errands._begin(page, 0, "second")))
    second.start()
    while page["wish"][-1] != "second":
        time.sleep(0.01)
    go_on.set()
    first.join(), second.join()
    assert said not in answers["first"] and answers["first"][errands._doing] == gr.update()
    assert answers["second"] == {said: "second", errands._doing: ""} and page["wish"] is None


def test_every_answer_to_a_click_of_the_pages_script_is_told_to_it(service):
    """Else it waits half a minute before it clicks that button again."""
    script = "".join(path.read_text() for path in (Path(tab.__file__).parents[2] / "javascript").glob("*.js"))
    config = json.dumps(tab.build(service).get_config_file(), default=str)
    clicked = set(re.findall(r"(?:click|poll)\('(dreambooth_\w+)'\)", script)) | set(re.findall(r"dreambooth_\w+: '(\w+)'", script))
    clicked |= set(re.findall(r"sayThenClick\('\w+', [^)]*, '(\w+)'\)", script)) | {"dreambooth_runs_act"}
    told = set(re.findall(r"answered\('(\w+)'\)", config))
    of_txt2img = {"dreambooth_refresh_checkpoint", "dreambooth_apply_sample_settings"}
    assert len(clicked) > 15 and clicked - told == of_txt2img
