"""Choose and Runs in a real headless browser, over a real run of a small base: nothing is played."""

import json
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from browsing import (
    CHROMIUM,
    LIMIT_MS,
    QUESTIONS,
    answered,
    choose,
    open_page,
    ready,
    screenshot,
    to_tab,
    unfold,
    wait_for,
)
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

from dreambooth_ext import desktop, presets, recipe  # noqa: E402
from dreambooth_ext.config import Concept, TrainConfig  # noqa: E402
from dreambooth_ext.files import write_json  # noqa: E402
from dreambooth_ext.hosts.standalone import StandaloneHost  # noqa: E402
from dreambooth_ext.jobs import JOBS, Job  # noqa: E402
from dreambooth_ext.progress import Progress  # noqa: E402
from dreambooth_ext.run_folder import RunFolder, RunState  # noqa: E402
from dreambooth_ext.service import Service  # noqa: E402
from dreambooth_ext.ui import app, runs_panel  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, folder): the tab alone, over the runs rex and back (finished, snapshots at 2 and 4), half (interrupted),
    lost (failed). Tests change none but what is theirs alone: they may come in any order, and each by itself."""
    from dreambooth_ext.models.family import SD1
    from dreambooth_ext.models.specimen import Size, specimen

    folder = tmp_path_factory.mktemp("served")
    for name in ("pictures", "models"):
        (folder / name).mkdir()
    draws = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draws.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "pictures" / f"{number}.png")
    base = specimen(SD1, size=Size((32, 64, 64, 64), (1, 1, 1, 0), 1, (32,), (2,), (32, 32, 32, 32))).write(
        folder / "models" / "base.safetensors", torch.float16)
    config = TrainConfig(
        base=str(base), output_name="rex", models_dir=str(folder / "models"), runs_dir=str(folder / "runs"), steps=4,
        snapshot_every=2, resolution=64, preview_steps=2, with_prior_preservation=False, learning_rate=1e-3,
        publish_format="safetensors", concepts=(Concept(instance_dir=str(folder / "pictures"), token="rxz", class_noun="dog"),))
    host = StandaloneHost(folder / "models", folder / "runs")
    recipe.train(config, host, Progress())
    shutil.copytree(folder / "runs" / "rex", folder / "runs" / "back")
    write_json(folder / "runs" / "back" / "config.json", replace(config, output_name="back").to_dict())
    for name, state in (("half", RunState("interrupted", 0, 2, "stopped by the user", started_s=2.0)),
                        ("lost", RunState("failed", 1, 2, "the loss became nan", started_s=1.0))):
        run = RunFolder(folder / "runs" / name)
        run.create(replace(config, output_name=name, steps=2, preview_steps=0))
        run.write_inputs(recipe.inputs_of(run.config()))
        run.write_state(state)
    yield app.launch(host, open_browser=False, block=False), folder
    gradio.close_all()


@pytest.fixture
def page(served, browser):
    """The tab in a fresh browser, whose scripts made no mistake."""
    opened = ready(open_page(browser, served[0]))
    yield opened
    assert opened.mistakes == []
    opened.close()


def fill(page, name, value):
    page.locator(f"#dreambooth_{name} textarea:visible, #dreambooth_{name} input:visible").first.fill(str(value))
    page.keyboard.press("Tab")
    sync_api.expect(page.locator(f"#dreambooth_{name} textarea:visible, #dreambooth_{name} input:visible").first).to_have_value(
        str(value))


def expect(page, name, text):
    sync_api.expect(page.locator(f"#dreambooth_{name}").first).to_contain_text(text)


def waited_for(page, condition):
    for _ in range(LIMIT_MS // 200):
        if condition():
            return
        page.wait_for_timeout(200)
    raise AssertionError("it has not come about")


def card(page, name):
    return page.locator(f'.dreambooth-card[data-value="pick:{name}"]')


def on_card(page, name):
    to_tab(page, "Runs")
    page.click("#dreambooth_runs_refresh")
    answered(page)
    card(page, name).click()
    answered(page)  # it may have been chosen before
    sync_api.expect(card(page, name)).to_have_attribute("aria-pressed", "true")
    sync_api.expect(page.locator("#dreambooth_run input").first).to_have_value(name)


@pytest.mark.any_gradio
def test_a_page_shows_the_runs_there_are_when_it_is_opened(served, browser):
    """Not those of when the tab was built, which at the WebUI's start waits for none."""
    shutil.copytree(served[1] / "runs" / "rex", served[1] / "runs" / "since")
    run = RunFolder(served[1] / "runs" / "since")
    run.write_state(replace(run.state(), started_s=4e9))  # the newest
    page = ready(open_page(browser, served[0]))
    to_tab(page, "Runs")
    sync_api.expect(card(page, "since")).to_have_attribute("aria-pressed", "true")
    sync_api.expect(page.locator("#dreambooth_run input").first).to_have_value("since")
    to_tab(page, "Choose")
    sync_api.expect(page.locator("#dreambooth_choose_run input").first).to_have_value("since")
    sync_api.expect(page.locator("#dreambooth_choose_snapshot input").first).to_have_value("step-000004")
    page.wait_for_selector("#dreambooth_choose_grid img")
    assert page.mistakes == []
    page.close()
    run.delete()


def test_bad_values_of_a_comparison_are_told(page):
    to_tab(page, "Choose")
    choose(page, "dreambooth_choose_run", "rex")
    unfold(page, "compare_more", "More about the comparison")
    fill(page, "compare_count", 0)
    fill(page, "compare_guidance_scale", "strong")
    fill(page, "compare_snapshots", "step-000009")
    page.click("#dreambooth_compare")
    expect(page, "choose_said", "--count: 0 is less than 1")
    expect(page, "choose_said", "--guidance-scale: 'strong' is not a number")
    fill(page, "compare_count", 1)
    fill(page, "compare_guidance_scale", "")
    page.click("#dreambooth_compare")
    expect(page, "choose_said", "step-000002, step-000004")
    assert JOBS.running is None


@pytest.mark.any_gradio
def test_snapshots_are_compared_the_best_is_marked_and_a_click_publishes_one(page, served):
    to_tab(page, "Choose")
    choose(page, "dreambooth_choose_run", "rex")
    fill(page, "compare_prompts", "rxz dog in snow\na dog")
    fill(page, "compare_count", 2)
    unfold(page, "compare_more", "More about the comparison")
    fill(page, "compare_render_steps", 2)
    page.click("#dreambooth_compare")
    page.wait_for_selector("#dreambooth_choose_grid .dreambooth-badge")
    grid = page.locator("#dreambooth_choose_grid")
    assert grid.locator("thead th").count() == 3 and grid.locator("tbody th").all_inner_texts()[1].startswith("a dog")
    assert grid.locator("tbody tr").first.locator("td").count() == 3 and grid.locator("img").count() == 2 * 3 * 2
    assert grid.locator("svg circle").count() == 2 * 3 and grid.locator("thead small", has_text="near").count() == 2
    assert grid.locator("tbody tr").first.locator("td").first.locator(".dreambooth-cell").count() == 0  # the base is no snapshot
    sync_api.expect(page.locator("#dreambooth_choose_said p")).to_have_count(0)  # it is over
    screenshot(page, "choose_compared")
    page.locator('.dreambooth-shot[data-snapshot="step-000002"]').first.click()
    expect(page, "choose_said", "Publishing step-000002 of rex")
    wait_for(page, "finished", "rex")
    published = served[1] / "models" / "rex-step2.safetensors"
    assert published.is_file() and json.loads((served[1] / "models" / "selected.json").read_text())["name"] == published.name


@pytest.mark.any_gradio
def test_a_click_on_a_picture_of_the_run_before_publishes_nothing(page, served):
    """The list says another run already, and its pictures are not there yet."""
    to_tab(page, "Choose")
    choose(page, "dreambooth_choose_run", "rex")
    cells = page.locator('#dreambooth_choose_grid .dreambooth-cell[data-snapshot="step-000002"]')
    sync_api.expect(cells.first).to_have_attribute("data-run", "rex")
    late, before = [], JOBS.all()
    page.route(QUESTIONS, lambda route: late.append(route))
    page.locator("#dreambooth_choose_run input").first.click()
    page.locator("ul.options li:visible, [role=option]:visible", has_text="back").first.click()
    cells.first.click()
    waited_for(page, lambda: any("rex/step-000002" in (route.request.post_data or "") for route in late))
    page.unroute(QUESTIONS)
    for route in late:
        route.continue_()
    expect(page, "choose_said", "Nothing is published: the picture is of rex, and back is chosen by now.")
    assert JOBS.all() == before
    sync_api.expect(cells.first).to_have_attribute("data-run", "back")


@pytest.mark.any_gradio
def test_an_answer_about_the_run_before_gives_way_to_the_pictures_of_the_chosen_one(page):
    to_tab(page, "Choose")
    choose(page, "dreambooth_choose_run", "rex")
    cells = page.locator('#dreambooth_choose_grid .dreambooth-cell[data-snapshot="step-000002"]')
    sync_api.expect(cells.first).to_have_attribute("data-run", "rex")
    late = []
    page.route(QUESTIONS, lambda route: late.append(route) if '["rex"' in (route.request.post_data or "") else route.continue_())
    page.evaluate("window.dreamboothPage.click('dreambooth_choose_poll')")
    waited_for(page, lambda: late)
    page.locator("#dreambooth_choose_run input").first.click()
    page.locator("ul.options li:visible, [role=option]:visible", has_text="back").first.click()
    sync_api.expect(cells.first).to_have_attribute("data-run", "back")
    page.unroute(QUESTIONS)
    for route in late:
        route.continue_()
    answered(page)
    sync_api.expect(cells.first).to_have_attribute("data-run", "back")


@pytest.mark.any_gradio
def test_stop_means_the_run_that_the_page_shows_though_another_has_begun_since(page):
    over = [threading.Event(), threading.Event()]
    try:
        first, second = (JOBS.start(Job(name, lambda progress, go=go: go.wait(600))) for name, go in
                         zip(("shown", "next"), over, strict=True))
        page.evaluate("window.dreamboothPage.asked = 0")
        wait_for(page, "running", "shown")
        page.evaluate("window.dreamboothPage.asked = Date.now() + 1e9")  # the page sleeps
        answered(page)
        over[0].set()
        waited_for(page, lambda: JOBS.running is second)
        page.click("#dreambooth_stop")
        expect(page, "status", "Nothing was stopped: what this page showed has ended, and next is running since.")
        assert first.state == "finished" and not second.progress.cancelled
        page.click("#dreambooth_stop")
        expect(page, "status", "Stopping, as asked by this tab")
        assert second.progress.cancelled
    finally:
        for go in over:
            go.set()
    assert second.done.wait(120)


@pytest.mark.any_gradio
def test_stop_in_choose_means_the_comparison_of_the_run_that_is_chosen(page):
    over = threading.Event()

    def work(progress):
        progress.start("comparing", 4)
        over.wait(600)

    try:
        job = JOBS.start(Job("rex", work))
        page.evaluate("window.dreamboothPage.asked = 0")
        wait_for(page, "running", "rex")
        to_tab(page, "Choose")
        for name, said in (("back", "Nothing was stopped: rex is being compared, and back is chosen."), ("rex", "Stopping")):
            choose(page, "dreambooth_choose_run", name)
            page.click("#dreambooth_compare_stop")
            sync_api.expect(page.locator("#dreambooth_status").first).to_contain_text("Stopping" if name == "rex" else "rex:")
            assert job.progress.cancelled == (said == "Stopping")
    finally:
        over.set()
    assert job.done.wait(120)


def test_training_goes_on_from_a_snapshot_after_a_confirmation(page, served):
    run = RunFolder(served[1] / "runs" / "back")
    published = served[1] / "models" / "back-step2.safetensors"
    to_tab(page, "Choose")
    choose(page, "dreambooth_choose_run", "back")
    sync_api.expect(page.locator("#dreambooth_choose_grid [data-snapshot]")).to_have_count(2)
    choose(page, "dreambooth_choose_snapshot", "step-000002")
    page.click("#dreambooth_choose_publish")
    expect(page, "choose_said", "Publishing step-000002 of back")
    wait_for(page, "finished", "back")
    content = published.read_bytes()
    page.click("#dreambooth_choose_refresh")
    answered(page)
    sync_api.expect(page.locator("#dreambooth_choose_snapshot input").first).to_have_value("step-000002")
    page.click("#dreambooth_choose_back")
    page.click("#dreambooth_back_no")
    answered(page)
    page.click("#dreambooth_choose_back")
    fill(page, "back_steps", 2)
    page.click("#dreambooth_back_yes")
    expect(page, "choose_said", "--steps: 2 is not more than the 2 steps")
    assert (run.checkpoints_dir / "step-000004").is_dir()
    page.click("#dreambooth_choose_back")
    fill(page, "back_steps", 3)
    fill(page, "back_rate", "2e-6")
    page.click("#dreambooth_back_yes")
    expect(page, "choose_said", "back goes on from step-000002")
    waited_for(page, lambda: JOBS.running is None and run.state().step == 3)
    wait_for(page, "finished", "back")
    assert [entry["step"] for entry in run.metrics()] == [1, 2, 3] and run.state().state == "finished"
    assert run.metrics()[-1]["lr"] == 2e-6 != run.metrics()[0]["lr"]
    assert not (run.checkpoints_dir / "step-000004").exists() and published.read_bytes() == content


@pytest.mark.any_gradio
def test_a_run_is_opened_cloned_explained_resumed_and_deleted(page, served):
    on_card(page, "lost")
    screenshot(page, "runs")
    page.click("#dreambooth_run_open")
    frame = page.frame_locator("iframe.dreambooth-opened")
    sync_api.expect(frame.locator("body")).to_contain_text("the loss became nan")
    page.click("#dreambooth_explain")
    page.locator("#dreambooth_explain_prompts input").check()
    page.click("#dreambooth_explain_make")
    expect(page, "runs_said", "lost-failure.zip")
    page.click("#dreambooth_clone")
    expect(page, "runs_said", "The Train tab has lost's settings now.")
    to_tab(page, "Train")
    sync_api.expect(page.locator("#dreambooth_output_name textarea, #dreambooth_output_name input").first).to_have_value("lost-2")
    on_card(page, "half")
    page.click("#dreambooth_resume")
    wait_for(page, "finished", "half")
    sync_api.expect(card(page, "half")).to_contain_text("finished")
    assert (served[1] / "runs" / "half" / "report.html").is_file()
    page.click("#dreambooth_delete")
    page.click("#dreambooth_delete_no")
    answered(page)
    assert (served[1] / "runs" / "half").is_dir()
    page.click("#dreambooth_delete")
    page.click("#dreambooth_delete_yes")
    expect(page, "runs_said", "half is deleted.")
    assert not (served[1] / "runs" / "half").exists() and (served[1] / "models" / "half.safetensors").is_file()
    sync_api.expect(card(page, "half")).to_have_count(0)


def test_a_run_is_published_again_and_its_folder_opened(page, served, monkeypatch):
    shown = []
    monkeypatch.setattr(desktop, "open_folder", shown.append)
    model = served[1] / "models" / "rex.safetensors"
    content = model.read_bytes()
    model.unlink()
    on_card(page, "rex")
    page.click("#dreambooth_publish")
    expect(page, "runs_said", "rex: started")
    waited_for(page, lambda: JOBS.running is None and model.is_file())
    assert model.read_bytes() == content
    page.click("#dreambooth_run_folder")
    expect(page, "runs_said", "is open on the computer that trains")
    assert shown == [served[1] / "runs" / "rex"]


@pytest.mark.parametrize(("sound", "error", "title"), [(True, None, "✓ told finished"), (False, ValueError("no"), "! told failed")])
def test_the_end_is_told_by_the_title_and_by_a_sound_if_wanted(page, sound, error, title):
    over = threading.Event()

    def work(progress):
        progress.start("training", 4)
        progress.report(1, 4)
        assert over.wait(600)
        if error:
            raise error

    before = page.title()
    page.evaluate("document.hasFocus = () => false")  # somebody looks at another window
    page.locator("#dreambooth_sound input").set_checked(sound)
    try:
        JOBS.start(Job("told", work))
        page.evaluate("window.dreamboothPage.asked = 0")  # an idle page asks every eight seconds, now at once
        page.wait_for_function("document.title.startsWith('[25%] ')")
    finally:
        over.set()
    page.wait_for_function("title => document.title === title", arg=title)
    assert page.evaluate("window.dreamboothPage.rung || 0") == int(sound)
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    assert page.title() == before


def test_the_order_of_the_queue_is_changed_by_its_buttons(page):
    over = threading.Event()
    try:
        JOBS.start(Job("first", lambda progress: over.wait(600)))
        jobs = [JOBS.start(Job(name, lambda progress: None)) for name in ("second", "third", "fourth")]
        to_tab(page, "Runs")
        page.click("#dreambooth_runs_refresh")
        waiting = page.locator(".dreambooth-queue li")
        sync_api.expect(waiting).to_have_count(4)
        page.get_by_label("third one place sooner").click()
        sync_api.expect(waiting.nth(1)).to_contain_text("third")
        screenshot(page, "queue")
        page.get_by_label("take second out of the queue").click()
        expect(page, "runs_said", "second is out of the queue.")
        sync_api.expect(waiting).to_have_count(3)
        assert jobs[0].state == "cancelled" and [job.name for job in JOBS.all() if job.state == "queued"] == ["third", "fourth"]
    finally:
        over.set()
    assert all(job.done.wait(120) for job in jobs)


@pytest.fixture
def another(served):
    """A run that nobody else's test knows."""
    run = RunFolder(served[1] / "runs" / "another")
    run.create(replace(RunFolder(served[1] / "runs" / "rex").config(), output_name="another"))
    yield run
    shutil.rmtree(run.path, ignore_errors=True)


@pytest.mark.any_gradio
def test_an_opened_page_lists_what_has_come_since_the_tab_was_built(served, browser, another):
    kept = presets.save("since", another.config(), served[1] / "runs" / "presets")
    page = ready(open_page(browser, served[0]))
    to_tab(page, "Runs")
    sync_api.expect(card(page, "another")).to_be_visible()
    choose(page, "dreambooth_run", "another")
    sync_api.expect(card(page, "another")).to_have_attribute("aria-pressed", "true")
    to_tab(page, "Choose")
    choose(page, "dreambooth_choose_run", "another")
    to_tab(page, "Train")
    unfold(page, "advanced", "Advanced")
    choose(page, "dreambooth_preset", "since")
    kept.unlink()
    assert page.mistakes == []
    page.close()


@pytest.mark.any_gradio
def test_an_answer_that_comes_late_leaves_what_was_chosen_since(page, served, another, monkeypatch):
    go_on, delete = threading.Event(), RunFolder.delete
    monkeypatch.setattr(RunFolder, "delete", lambda run: go_on.wait(600) and delete(run))
    on_card(page, "another")
    late, hold = [], True
    page.route(QUESTIONS, lambda route: late.append(route) if hold else route.continue_())
    page.click("#dreambooth_runs_refresh")
    waited_for(page, lambda: any('["another"' in (route.request.post_data or "") for route in late))
    hold = False
    page.click("#dreambooth_delete")
    page.click("#dreambooth_delete_yes")
    expect(page, "runs_doing", "Deleting the run")
    card(page, "rex").click()
    chosen = page.locator("#dreambooth_run input").first
    sync_api.expect(chosen).to_have_value("rex")
    assert late
    for route in late:
        route.continue_()
    answered(page)
    go_on.set()
    expect(page, "runs_said", "another is deleted.")
    sync_api.expect(card(page, "another")).to_have_count(0)
    answered(page)
    sync_api.expect(chosen).to_have_value("rex")
    sync_api.expect(page.locator('.dreambooth-card[aria-pressed="true"]')).to_have_count(1)
    sync_api.expect(card(page, "rex")).to_have_attribute("aria-pressed", "true")


@pytest.mark.any_gradio
@pytest.mark.parametrize(("tab", "field", "again"), [("Runs", "run", "runs_refresh"), ("Choose", "choose_run", "choose_refresh")])
def test_a_newer_run_does_not_take_the_place_of_one_that_is_chosen_in_the_same_moment(another, page, tab, field, again):
    to_tab(page, tab)
    chosen = page.locator(f"#dreambooth_{field} input").first
    sync_api.expect(chosen).to_have_value("another")
    answered(page)
    another.write_state(replace(another.state(), started_s=1.0))  # as if the others had come since
    late = []
    page.route(QUESTIONS, lambda route: late.append(route) if '"another"' in (route.request.post_data or "") else route.continue_())
    page.click(f"#dreambooth_{again}")
    waited_for(page, lambda: late)
    choose_at_once(page, f"dreambooth_{field}", "lost")
    page.unroute(QUESTIONS)
    for route in late:
        route.continue_()
    answered(page)
    page.wait_for_timeout(500)
    sync_api.expect(chosen).to_have_value("lost")


@pytest.mark.any_gradio
@pytest.mark.parametrize(("tab", "field", "again"), [("Runs", "run", "runs_refresh"), ("Choose", "choose_run", "choose_refresh")])
def test_once_the_last_run_is_gone_none_is_chosen_and_the_next_one_is(page, monkeypatch, tab, field, again):
    to_tab(page, tab)
    chosen = page.locator(f"#dreambooth_{field} input").first
    sync_api.expect(chosen).not_to_have_value("")
    answered(page)
    with monkeypatch.context() as gone:
        gone.setattr(Service, "run_names", lambda service: [])
        page.click(f"#dreambooth_{again}")
        sync_api.expect(chosen).to_have_value("")
        answered(page)
    page.click(f"#dreambooth_{again}")
    sync_api.expect(chosen).not_to_have_value("")


def choose_at_once(page, name, value):
    """While an answer is held back."""
    page.locator(f"#{name} input").first.click()
    page.locator("ul.options li:visible, [role=option]:visible", has_text=value).first.click()
    sync_api.expect(page.locator(f"#{name} input").first).to_have_value(value)


@pytest.mark.any_gradio
def test_two_clicks_at_once_both_count_however_slow_the_answers_are(page, monkeypatch):
    over, stop = threading.Event(), Service.stop

    def slow_stop(*arguments):
        time.sleep(1)
        return stop(*arguments)

    monkeypatch.setattr(Service, "stop", slow_stop)
    try:
        JOBS.start(Job("first", lambda progress: over.wait(600)))
        jobs = [JOBS.start(Job(name, lambda progress: None)) for name in ("second", "third", "fourth")]
        to_tab(page, "Runs")
        page.click("#dreambooth_runs_refresh")
        sync_api.expect(page.locator(".dreambooth-queue li")).to_have_count(4)
        page.evaluate("""names => names.forEach((name) => document.querySelector(
            `[aria-label="take ${name} out of the queue"]`).click())""", ["second", "fourth"])
        sync_api.expect(page.locator(".dreambooth-queue li")).to_have_count(2)
        assert [job.state for job in jobs] == ["cancelled", "queued", "cancelled"]
    finally:
        over.set()
    assert all(job.done.wait(120) for job in jobs)


@pytest.mark.any_gradio
def test_the_queue_shown_is_that_of_now_however_slow_the_answers_are(page, monkeypatch):
    over, looked, refreshed = threading.Event(), threading.Event(), runs_panel._refreshed

    def slowly_refreshed(*arguments):
        answer = refreshed(*arguments)
        if JOBS.running is not None:
            looked.set()
            time.sleep(3)
        return answer

    monkeypatch.setattr(runs_panel, "_refreshed", slowly_refreshed)
    try:
        to_tab(page, "Runs")
        jobs = [JOBS.start(Job("first", lambda progress: over.wait(600)))]
        jobs.append(JOBS.start(Job("second", lambda progress: None)))
        waited_for(page, looked.is_set)
        jobs.append(JOBS.start(Job("third", lambda progress: None)))  # the page hears of it before that answer has come
        sync_api.expect(page.locator(".dreambooth-queue li")).to_have_count(3)
    finally:
        over.set()
    assert all(job.done.wait(120) for job in jobs)


def test_presets_are_kept_applied_and_removed_and_other_trainers_settings_taken(page, served, tmp_path):
    unfold(page, "advanced", "Advanced")
    fill(page, "learning_rate", "0.0002")
    fill(page, "preset_name", "a/b")
    page.click("#dreambooth_preset_save")
    expect(page, "preset_said", "Use the letters A to Z, digits")
    fill(page, "preset_name", "mine")
    page.click("#dreambooth_preset_save")
    expect(page, "preset_said", "Saved as mine")
    fill(page, "learning_rate", "0.5")
    page.click("#dreambooth_preset_apply")
    expect(page, "preset_said", "mine:")
    rate = page.locator("#dreambooth_learning_rate input, #dreambooth_learning_rate textarea").first
    sync_api.expect(rate).to_have_value("0.0002")
    page.click("#dreambooth_preset_remove")
    expect(page, "preset_said", "The preset mine is gone.")
    assert not (served[1] / "runs" / "presets" / "mine.json").exists()
    path = tmp_path / "db_config.json"
    refused = {f"option_{number}": 1 for number in range(30)}
    path.write_text(json.dumps({"model_name": "old", "learning_rate": 2e-6, "concepts_list": [], **refused}))
    page.set_input_files("#dreambooth_import input[type=file], input#dreambooth_import, input[type=file] >> nth=-1", str(path))
    expect(page, "preset_said", "3 settings were taken, 30 were not.")
    assert page.locator("#dreambooth_preset_said li").count() == 30
