"""The tab in the double of the WebUI, driven by a real headless browser. Training is played there (see pretend.py)."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from browsing import (
    CHROMIUM,
    QUESTIONS,
    REPOSITORY,
    answered,
    choose,
    field,
    fill,
    open_page,
    press,
    ready,
    screenshot,
    text,
    to_tab,
    unfold,
    wait_for,
)
from launching import free_port

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]

ANY = pytest.mark.any_gradio
DOUBLE = REPOSITORY / "tests" / "webui_double" / "webui" / "webui.py"


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    """The double as a process; yields its address and its folder."""
    with served(tmp_path_factory.mktemp("webui")) as served_at:
        yield served_at


@contextmanager
def served(data, *flags):
    for name in ("models/Stable-diffusion", "models/Lora", "pictures"):
        (data / name).mkdir(parents=True)
    (data / "models" / "Stable-diffusion" / "base.ckpt").write_bytes(b"base")
    from PIL import Image

    for number in range(4):
        Image.new("RGB", (96, 96), (number * 60, 90, 120)).save(data / "pictures" / f"{number}.png")
    port = free_port()
    log = (data / "log.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, str(DOUBLE), "--data", str(data), "--port", str(port), "--extension", str(REPOSITORY),
         "--pretend", "--seconds-a-step", "0.1", *flags],
        stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"})
    try:
        end = time.monotonic() + 300
        while "serving" not in (data / "log.txt").read_text():
            assert process.poll() is None and time.monotonic() < end, (data / "log.txt").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", data
    finally:
        process.terminate()
        process.wait(120)
        log.close()


@pytest.fixture
def page(webui, browser):
    """The Dreambooth tab in a fresh browser, whose scripts made no mistake."""
    opened = open_tab(browser, webui)
    yield opened
    assert opened.mistakes == []
    opened.close()


def open_tab(browser, webui, **more):
    page = open_page(browser, webui[0], **more)
    to_tab(page, "Dreambooth", "tabs")
    return ready(page)


def settings(webui, name, steps=12):
    return {"instance_dir": webui[1] / "pictures", "token": "rxz", "class_noun": "dog", "output_name": name, "steps": steps}


def start(page, webui, name, steps=12):
    fill(page, **settings(webui, name, steps))
    press(page, "dreambooth_train")
    page.wait_for_selector(f'.dreambooth-status[data-name="{name}"]', state="attached")


def discard(page):
    page.click("#dreambooth_discard")
    page.click("#dreambooth_discard_yes")


@contextmanager
def held(webui, step=0):
    """A run stands still at that step meanwhile, however long the page takes."""
    hold = webui[1] / "hold"
    hold.write_text(str(step))
    try:
        yield
    finally:
        hold.unlink()


def test_an_empty_form_says_what_is_missing_where_it_is_missing(page):
    sync_api.expect(page.locator("#dreambooth_ready").first).to_contain_text("Still needed: pictures, token, class, name.")
    page.click("#dreambooth_train")
    page.wait_for_selector("#dreambooth_said .dreambooth-fault")
    for name, told in (("instance_dir", "a folder of pictures is needed"), ("token", "must not be empty"),
                       ("class_noun", "what kind of thing"), ("output_name", "a name is needed")):
        sync_api.expect(under(page, name)).to_contain_text(told)
        assert field(page, f"dreambooth_{name}").get_attribute("aria-invalid") == "true"
    assert page.locator('.dreambooth-status[data-state="running"]').count() == 0
    fill(page, token="rxz")  # its line goes, and the check of the form leaves the others where they are
    sync_api.expect(page.locator("#dreambooth_ready").first).to_contain_text("Still needed: pictures, class, name.")
    sync_api.expect(under(page, "token")).to_have_count(0)
    for name in ("instance_dir", "class_noun", "output_name"):
        sync_api.expect(under(page, name)).to_be_visible()


def under(page, name):
    return page.locator(f"#dreambooth_{name} .dreambooth-under-field, .dreambooth-under-field[data-of={name}]").first


@pytest.mark.parametrize(("name", "value", "told"), [
    pytest.param("steps", "many", "not a whole number", marks=ANY), ("steps", "0", "less than 1"),
    pytest.param("output_name", "a/b", "letters A to Z", marks=ANY), ("resolution", "100", "multiple of 8"),
    pytest.param("learning_rate", "fast", "not a number", marks=ANY), ("caption_dropout", "2", "more than 1"),
    ("snr_gamma", "-1", "less than 0.01"), ("lora_rank", "-3", "less than 0"), ("preview_seed", "-1", "less than 0"),
    pytest.param("vae", "~nobody-of-that-name/a.vae", "whom this computer does not know", marks=ANY),
    ("lr_warmup_steps", "50", "longer than the whole run"),
])
def test_a_bad_value_is_told_under_its_field_before_train_is_pressed(page, name, value, told):
    unfold(page, "advanced", "Advanced")
    if name == "lr_warmup_steps":
        fill(page, instance_dir="pictures", steps="20")
    fill(page, **{name: value})
    sync_api.expect(under(page, name)).to_contain_text(told)
    sync_api.expect(page.locator("#dreambooth_ready").first).to_contain_text("To be put right")


def test_a_fault_that_is_put_right_goes_away(page):
    fill(page, steps="many")
    sync_api.expect(under(page, "steps")).to_be_visible()
    fill(page, steps="30")
    sync_api.expect(page.locator(".dreambooth-under-field")).to_have_count(0)
    assert field(page, "dreambooth_steps").get_attribute("aria-invalid") is None


def test_advice_on_a_field_stands_under_it_and_calls_nothing_wrong(page):
    unfold(page, "advanced", "Advanced")
    fill(page, lora_rank="8")
    sync_api.expect(under(page, "learning_rate")).to_contain_text("learns next to nothing")
    assert field(page, "dreambooth_learning_rate").get_attribute("aria-invalid") is None
    fill(page, learning_rate="1e-4", lora_alpha="8")
    sync_api.expect(page.locator(".dreambooth-under-field")).to_have_count(0)


@pytest.mark.parametrize(("name", "value", "note", "told"), [
    ("instance_dir", "/no/such/folder", "pictures", "no such folder"), ("base", "/no/such/base.ckpt", "model", "no such file"),
])
def test_a_path_that_leads_nowhere_is_told_below_it(page, name, value, note, told):
    field(page, f"dreambooth_{name}").fill(value[:-1])
    field(page, f"dreambooth_{name}").press(value[-1])
    page.keyboard.press("Tab")
    sync_api.expect(page.locator(f"#dreambooth_note_{note}").first).to_contain_text(told, ignore_case=True)


@ANY
def test_what_is_chosen_before_the_opened_page_was_answered_stays(browser, webui):
    """A busy server answers late: what it says of the page as it was opened leaves alone what was typed since."""
    late = []
    page = open_page(browser, webui[0], late=late)
    to_tab(page, "Dreambooth", "tabs")
    page.wait_for_function("window.dreamboothPage && window.dreamboothPage.asked")
    field(page, "dreambooth_base").fill("/no/such/base.ckp")
    field(page, "dreambooth_base").press("t")
    page.keyboard.press("Tab")
    page.unroute(QUESTIONS)
    assert late
    for route in late:
        route.continue_()
    sync_api.expect(page.locator("#dreambooth_note_model").first).to_contain_text("no such file", ignore_case=True)
    assert field(page, "dreambooth_base").input_value() == "/no/such/base.ckpt"
    assert page.mistakes == []
    page.close()


def test_a_server_that_does_not_answer_is_left_alone_for_a_while(page):
    """While the WebUI's page is loaded anew there is none; the first question that comes through is not to come too early."""
    failed = []
    page.route(QUESTIONS, lambda route: (failed.append(route), route.abort()) if not failed else route.continue_())
    page.wait_for_function("window.dreamboothPage.lost && window.dreamboothPage.asked > window.dreamboothPage.lost")
    assert failed
    assert page.evaluate("window.dreamboothPage.asked - window.dreamboothPage.lost") >= 4900
    page.unroute(QUESTIONS)


@ANY
def test_nothing_fades_while_its_answer_is_awaited(page):
    late = []
    page.route(QUESTIONS, lambda route: late.append(route))
    with page.expect_request(QUESTIONS):
        fill(page, output_name="faint")
    faint = page.evaluate("""async () => {
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)));
        return Array.from(document.querySelectorAll('#dreambooth_tabs .pending')).filter((element) => {
            element.getAnimations().forEach((change) => change.finish());
            return getComputedStyle(element).opacity !== '1';
        }).map((element) => element.outerHTML);
    }""")
    assert faint == []
    page.unroute(QUESTIONS)
    for route in late:
        route.continue_()


def test_pictures_in_train_pressed_model_selected_prompt_filled_in(page, webui):
    fill(page, **settings(webui, "whole", steps=20), resolution=64)
    sync_api.expect(page.locator("#dreambooth_note_pictures").first).to_contain_text("4 pictures: ")
    sync_api.expect(page.locator("#dreambooth_note_class").first).to_contain_text('Trains "rxz dog" against "dog"')
    with held(webui, 12):
        press(page, "dreambooth_train")
        wait_for(page, "running")
        page.wait_for_selector("#dreambooth_curve svg")
        page.wait_for_selector("#dreambooth_previews img")
        screenshot(page, "tab_running")
    wait_for(page, "finished")
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value === 'rxz dog'")
    page.wait_for_function("document.querySelector('#setting_sd_model_checkpoint input').value.startsWith('whole.ckpt')")
    page.wait_for_selector("#txt2img_prompt textarea", state="visible")
    assert [page.locator(f"#txt2img_{name} input").first.input_value() for name in ("width", "height")] == ["64", "64"]
    page.click("#txt2img_generate")
    page.wait_for_function("document.querySelector('#txt2img_gallery textarea, #txt2img_gallery input').value"
                           ".startsWith('rxz dog by whole.ckpt')")


def test_the_webui_draws_its_cards_anew_when_there_is_a_new_model(page, webui):
    start(page, webui, "carded", steps=2)
    card = page.locator("#txt2img_checkpoints_cards_html .card[data-name=carded]")
    sync_api.expect(card).to_have_count(1)
    (webui[1] / "models" / "Stable-diffusion" / "later.ckpt").write_bytes(b"later")
    later = page.locator("#txt2img_checkpoints_cards_html .card[data-name=later]")
    page.reload()
    wait_for(page, "finished", "carded")
    page.wait_for_function("window.dreamboothPage.cards")
    answered(page)  # this browser has seen the run end: the cards are not drawn twice
    sync_api.expect(later).to_have_count(0)
    page.evaluate("localStorage.clear()")  # as if no page had been open when it ended
    page.reload()
    sync_api.expect(later).to_have_count(1)


def test_a_prompt_that_somebody_typed_stays(page, webui):
    to_tab(page, "txt2img", "tabs")
    page.fill("#txt2img_prompt textarea", "my own prompt")
    page.locator("#txt2img_width input").first.fill("128")
    to_tab(page, "Dreambooth", "tabs")
    fill(page, resolution=64)
    start(page, webui, "typed", steps=5)
    wait_for(page, "finished")
    page.wait_for_function("document.querySelector('#setting_sd_model_checkpoint input').value.startsWith('typed.ckpt')")
    assert page.input_value("#txt2img_prompt textarea") == "my own prompt"
    assert [page.locator(f"#txt2img_{name} input").first.input_value() for name in ("width", "height")] == ["128", "512"]


@ANY
def test_in_forge_the_new_model_stays_selected(browser, tmp_path):
    """Its list knows no hashes, and acts on what our script shows in it; the base is what it has in memory still."""
    with served(tmp_path / "forge", "--forge") as forge:
        page = open_tab(browser, forge)
        box = page.locator(".model_selection input").first
        sync_api.expect(box).to_have_value("base.ckpt")
        start(page, forge, "rex", steps=2)
        sync_api.expect(box).to_have_value("rex.ckpt")
        page.wait_for_selector("#txt2img_generate", state="visible")
        page.wait_for_timeout(500)
        answered(page)  # what the list's change does, however slow the machine
        page.click("#txt2img_generate")
        sync_api.expect(field(page, "txt2img_gallery")).to_have_value("rxz dog by rex.ckpt")
        page.reload()
        sync_api.expect(page.locator(".model_selection input").first).to_have_value("rex.ckpt")
        page.close()
        assert page.mistakes == [] and "Traceback" not in (forge[1] / "log.txt").read_text()


def test_a_reloaded_page_and_a_second_browser_find_the_run_again(page, browser, webui):
    start(page, webui, "reloaded", steps=2000)  # goes on until it is stopped, however slow the machine
    page.reload()
    to_tab(page, "Dreambooth", "tabs")
    sync_api.expect(page.locator("#dreambooth_status").first).to_contain_text("reloaded: step")
    second = open_tab(browser, webui)
    sync_api.expect(second.locator("#dreambooth_status").first).to_contain_text("reloaded: step")
    before = second.locator("#dreambooth_status").first.inner_text()
    sync_api.expect(second.locator("#dreambooth_status").first).not_to_have_text(before, use_inner_text=True)  # it goes on moving
    second.click("#dreambooth_stop")
    wait_for(second, "cancelled")
    wait_for(page, "cancelled")
    assert "Stopped by this tab" in text(second, "dreambooth_status")
    second.close()


def test_a_stopped_run_is_resumed_from_the_list(page, webui):
    start(page, webui, "taken-up", steps=900)
    page.wait_for_selector("#dreambooth_curve svg")
    page.click("#dreambooth_stop")
    wait_for(page, "cancelled")
    to_tab(page, "Runs")
    page.click("#dreambooth_runs_refresh")
    sync_api.expect(page.locator("#dreambooth_runs").first).to_contain_text("interrupted")
    choose(page, "dreambooth_run", "taken-up")
    with held(webui):
        page.click("#dreambooth_resume")
        wait_for(page, "running", "taken-up")
    wait_for(page, "finished", "taken-up")


def test_stop_and_discard_leaves_no_run(page, webui):
    start(page, webui, "discarded", steps=2000)
    wait_for(page, "running", "discarded")
    page.click("#dreambooth_discard")
    sync_api.expect(page.locator("#dreambooth_discard_confirm").first).to_contain_text("discarded is deleted, with all")
    page.click("#dreambooth_discard_no")
    sync_api.expect(page.locator("#dreambooth_discard_confirm")).not_to_be_visible()
    wait_for(page, "running", "discarded")
    discard(page)
    wait_for(page, "cancelled", "discarded")
    to_tab(page, "Runs")
    page.click("#dreambooth_runs_refresh")
    answered(page)
    assert "discarded" not in text(page, "dreambooth_runs")


@ANY
@pytest.mark.parametrize("width", [1400, 390])
def test_what_goes_on_comes_into_sight_when_train_is_pressed(browser, webui, width):
    page = open_tab(browser, webui, width=width, height=700)
    start(page, webui, f"in-sight-{width}", steps=2000)
    sync_api.expect(page.locator("#dreambooth_status .dreambooth-bar")).to_be_in_viewport()
    discard(page)
    wait_for(page, "cancelled")
    page.close()


@ANY
def test_two_runs_are_worked_off_in_order(page, webui):
    with held(webui):
        start(page, webui, "first-of-two", steps=5)
        page.click("text=Set up the next run")
        page.wait_for_function("!document.querySelector('#dreambooth_left [inert]')")
        sync_api.expect(page.locator("#dreambooth_ready").first).to_contain_text("first-of-two is being worked on")
        fill(page, output_name="second-of-two", steps=5)
        press(page, "dreambooth_train")
        sync_api.expect(page.locator("#dreambooth_ready").first).to_contain_text("waits until first-of-two is done")
        sync_api.expect(page.locator("#dreambooth_status").first).to_contain_text("Waiting: second-of-two")
    wait_for(page, "finished", "second-of-two")


def test_a_snapshot_is_chosen_and_published(page, webui):
    start(page, webui, "chosen", steps=20)
    wait_for(page, "finished")
    page.wait_for_selector("#txt2img_prompt textarea", state="visible")  # opened by itself
    to_tab(page, "Dreambooth", "tabs")
    to_tab(page, "Choose")
    choose(page, "dreambooth_choose_run", "chosen")  # it is listed without Refresh
    page.wait_for_selector('#dreambooth_choose_grid .dreambooth-cell[data-snapshot="step-000010"]')
    assert page.locator("#dreambooth_choose_grid img").count() == 4
    screenshot(page, "tab_choose")
    page.click('.dreambooth-cell[data-snapshot="step-000010"]')
    sync_api.expect(page.locator("#dreambooth_choose_said").first).to_contain_text("step-000010")


def test_a_run_is_deleted_only_after_a_confirmation(page, webui):
    start(page, webui, "deleted", steps=3)
    wait_for(page, "finished")
    page.wait_for_selector("#txt2img_prompt textarea", state="visible")  # opened by itself
    to_tab(page, "Dreambooth", "tabs")
    to_tab(page, "Runs")
    page.click("#dreambooth_runs_refresh")
    answered(page)
    choose(page, "dreambooth_run", "deleted")
    page.click("#dreambooth_delete")
    page.click("#dreambooth_delete_no")
    answered(page)
    assert "deleted" in text(page, "dreambooth_runs")
    page.click("#dreambooth_delete")
    page.click("#dreambooth_delete_yes")
    sync_api.expect(page.locator("#dreambooth_runs_said").first).to_contain_text("deleted is deleted")
    assert (webui[1] / "models" / "Stable-diffusion" / "deleted.ckpt").exists()


def test_options_are_found_by_a_word_of_their_help(page):
    page.locator("#dreambooth_advanced").get_by_text("Advanced", exact=True).click()
    field(page, "dreambooth_search").fill("min-snr")
    sync_api.expect(page.locator("#dreambooth_snr_gamma").first).to_be_visible()
    sync_api.expect(page.locator("#dreambooth_adam_beta1")).to_be_hidden()


@pytest.mark.parametrize(("name", "width", "dark"), [("dark", 1500, True), ("narrow", 900, False), ("phone", 480, True)])
def test_it_fits_and_can_be_read(browser, webui, name, width, dark):
    page = open_tab(browser, webui, width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    screenshot(page, f"tab_{name}")
    page.close()


def test_while_a_run_goes_on_its_settings_are_locked_and_a_reload_shows_them(page, webui):
    start(page, webui, "locked", steps=2000)
    page.wait_for_function("document.querySelector('#dreambooth_left [inert] #dreambooth_train, "
                           "#dreambooth_left #dreambooth_train[inert]')")
    page.reload()
    to_tab(page, "Dreambooth", "tabs")
    sync_api.expect(field(page, "dreambooth_output_name")).to_have_value("locked")
    sync_api.expect(field(page, "dreambooth_token")).to_have_value("rxz")
    sync_api.expect(page.locator("#dreambooth_locked").first).to_be_visible()
    discard(page)
    wait_for(page, "cancelled")
    sync_api.expect(page.locator("#dreambooth_locked").first).to_be_hidden()
