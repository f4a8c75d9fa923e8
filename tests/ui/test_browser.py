"""The tab in the double of the WebUI, driven by a real headless browser. Training is played there (see pretend.py)."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]

REPOSITORY = Path(__file__).resolve().parents[2]
DOUBLE = REPOSITORY / "tests" / "webui_double" / "webui" / "webui.py"
ARTEFACTS = REPOSITORY / "artefacts"


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    """The double as a process; yields its address and its folder."""
    data = tmp_path_factory.mktemp("webui")
    for name in ("models/Stable-diffusion", "models/Lora", "pictures"):
        (data / name).mkdir(parents=True)
    (data / "models" / "Stable-diffusion" / "base.ckpt").write_bytes(b"base")
    from PIL import Image

    for number in range(4):
        Image.new("RGB", (96, 96), (number * 60, 90, 120)).save(data / "pictures" / f"{number}.png")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (data / "log.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, str(DOUBLE), "--data", str(data), "--port", str(port), "--extension", str(REPOSITORY),
         "--pretend", "--seconds-a-step", "0.1"],
        stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"})
    try:
        end = time.monotonic() + 90
        while "serving" not in (data / "log.txt").read_text():
            assert process.poll() is None and time.monotonic() < end, (data / "log.txt").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", data
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def page(webui, browser):
    """The Dreambooth tab in a fresh browser, whose scripts made no mistake."""
    opened = open_tab(browser, webui)
    yield opened
    assert opened.mistakes == []
    opened.close()


def open_tab(browser, webui, **more):
    page = browser.new_page(viewport={"width": 1500, "height": 1100}, **more)
    page.mistakes = []
    page.on("pageerror", lambda error: page.mistakes.append(str(error)))
    page.route(lambda url: not url.startswith(webui[0]), lambda route: route.abort())  # fonts and the like
    page.goto(webui[0])
    to_tab(page, "Dreambooth")
    page.wait_for_function("window.dreamboothPage && window.dreamboothPage.polls !== undefined")
    page.wait_for_timeout(800)
    return page


def to_tab(page, name):
    page.locator("#tabs button:visible", has_text=name).first.click()


def to_part(page, name):
    page.locator("#dreambooth_tabs button:visible", has_text=name).first.click()


def field(page, name):
    return page.locator(f"#{name} textarea:visible, #{name} input:visible").first


def fill(page, **values):
    for name, value in values.items():
        field(page, f"dreambooth_{name}").fill(str(value))
    page.keyboard.press("Tab")


def settings(webui, name, steps=12):
    return {"instance_dir": webui[1] / "pictures", "token": "rxz", "class_noun": "dog", "output_name": name, "steps": steps}


def start(page, webui, name, steps=12):
    fill(page, **settings(webui, name, steps))
    page.click("#dreambooth_train")
    wait_for(page, "running")


def wait_for(page, state, limit_s=90):
    page.wait_for_selector(f'.dreambooth-status[data-state="{state}"]', state="attached", timeout=limit_s * 1000)


def text(page, name):
    return page.locator(f"#{name}").first.inner_text()


def test_an_empty_form_says_what_is_missing_where_it_is_missing(page):
    page.click("#dreambooth_train")
    page.wait_for_selector("#dreambooth_said .dreambooth-fault")
    assert "a folder of pictures is needed" in text(page, "dreambooth_faults_pictures")
    assert "Token" in text(page, "dreambooth_faults_class") and "Name" in text(page, "dreambooth_faults_train")
    assert page.locator('.dreambooth-status[data-state="idle"]').count() == 1


@pytest.mark.parametrize(("name", "value", "step", "told"), [
    ("steps", "many", "train", "not a whole number"), ("resolution", "100", "pictures", "multiple of 8"),
    ("instance_dir", "/no/such/folder", "pictures", "no such folder"), ("output_name", "a/b", "train", "letters, digits"),
])
def test_a_bad_value_is_told_as_soon_as_it_is_typed(page, name, value, step, told):
    fill(page, **{name: value})
    group = page.locator(f"#dreambooth_faults_{step}, #dreambooth_note_{step}")
    sync_api.expect(group.filter(has_text=told).first).to_be_visible(timeout=30_000)


def test_pictures_in_train_pressed_model_selected_prompt_filled_in(page, webui):
    fill(page, **settings(webui, "whole", steps=60))
    sync_api.expect(page.locator("#dreambooth_note_pictures").first).to_contain_text("4 pictures: 4 good", timeout=30_000)
    sync_api.expect(page.locator("#dreambooth_note_class").first).to_contain_text('Trains "rxz dog" against "dog"')
    page.click("#dreambooth_train")
    wait_for(page, "running")
    page.wait_for_selector("#dreambooth_curve svg")
    page.wait_for_selector("#dreambooth_previews img")
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / "tab_running.png", full_page=True)
    wait_for(page, "finished")
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value === 'rxz dog'")
    page.wait_for_function("document.querySelector('#setting_sd_model_checkpoint input').value.startsWith('whole.ckpt')")
    page.wait_for_selector("#txt2img_prompt textarea", state="visible")
    page.click("#txt2img_generate")
    page.wait_for_function("document.querySelector('#txt2img_gallery textarea, #txt2img_gallery input').value"
                           ".startsWith('rxz dog by whole.ckpt')")


def test_a_prompt_that_somebody_typed_stays(page, webui):
    to_tab(page, "txt2img")
    page.fill("#txt2img_prompt textarea", "my own prompt")
    to_tab(page, "Dreambooth")
    start(page, webui, "typed", steps=5)
    wait_for(page, "finished")
    page.wait_for_function("document.querySelector('#setting_sd_model_checkpoint input').value.startsWith('typed.ckpt')")
    assert page.input_value("#txt2img_prompt textarea") == "my own prompt"


def test_a_reloaded_page_and_a_second_browser_find_the_run_again(page, browser, webui):
    start(page, webui, "reloaded", steps=2000)  # goes on until it is stopped, however slow the machine
    page.reload()
    to_tab(page, "Dreambooth")
    sync_api.expect(page.locator("#dreambooth_status").first).to_contain_text("reloaded: step", timeout=30_000)
    second = open_tab(browser, webui)
    sync_api.expect(second.locator("#dreambooth_status").first).to_contain_text("reloaded: step", timeout=30_000)
    before = second.locator("#dreambooth_status").first.inner_text()
    second.wait_for_timeout(2500)
    assert second.locator("#dreambooth_status").first.inner_text() != before  # it goes on moving
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
    to_part(page, "Runs")
    page.click("#dreambooth_runs_refresh")
    sync_api.expect(page.locator("#dreambooth_runs").first).to_contain_text("interrupted", timeout=30_000)
    choose(page, "dreambooth_run", "taken-up")
    page.click("#dreambooth_resume")
    page.wait_for_selector('.dreambooth-status[data-state="running"]', state="attached")
    wait_for(page, "finished")


def test_stop_and_discard_leaves_no_run(page, webui):
    start(page, webui, "discarded", steps=2000)
    page.click("#dreambooth_discard")
    wait_for(page, "cancelled")
    to_part(page, "Runs")
    page.click("#dreambooth_runs_refresh")
    page.wait_for_timeout(1000)
    assert "discarded" not in text(page, "dreambooth_runs")


def test_two_runs_are_worked_off_in_order(page, webui):
    start(page, webui, "first-of-two", steps=150)
    fill(page, output_name="second-of-two", steps=5)
    page.click("#dreambooth_train")
    sync_api.expect(page.locator("#dreambooth_said").first).to_contain_text("waits until first-of-two is done", timeout=30_000)
    sync_api.expect(page.locator("#dreambooth_status").first).to_contain_text("Waiting: second-of-two", timeout=30_000)
    page.wait_for_selector('.dreambooth-status[data-name="second-of-two"][data-state="finished"]', state="attached",
                           timeout=90_000)


def test_a_snapshot_is_chosen_and_published(page, webui):
    start(page, webui, "chosen", steps=20)
    wait_for(page, "finished")
    page.wait_for_selector("#txt2img_prompt textarea", state="visible")  # opened by itself
    to_tab(page, "Dreambooth")
    to_part(page, "Choose")
    page.click("#dreambooth_choose_refresh")
    choose(page, "dreambooth_choose_run", "chosen")
    page.wait_for_selector('#dreambooth_choose_grid .dreambooth-cell[data-snapshot="step-000010"]', timeout=30_000)
    assert page.locator("#dreambooth_choose_grid img").count() == 4
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / "tab_choose.png", full_page=True)
    page.click('.dreambooth-cell[data-snapshot="step-000010"]')
    sync_api.expect(page.locator("#dreambooth_choose_said").first).to_contain_text("step-000010", timeout=30_000)


def test_a_run_is_deleted_only_after_a_confirmation(page, webui):
    start(page, webui, "deleted", steps=3)
    wait_for(page, "finished")
    page.wait_for_selector("#txt2img_prompt textarea", state="visible")  # opened by itself
    to_tab(page, "Dreambooth")
    to_part(page, "Runs")
    page.click("#dreambooth_runs_refresh")
    page.wait_for_timeout(600)
    choose(page, "dreambooth_run", "deleted")
    page.click("#dreambooth_delete")
    page.click("#dreambooth_delete_no")
    assert "deleted" in text(page, "dreambooth_runs")
    page.click("#dreambooth_delete")
    page.click("#dreambooth_delete_yes")
    sync_api.expect(page.locator("#dreambooth_runs_said").first).to_contain_text("deleted is deleted", timeout=30_000)
    assert (webui[1] / "models" / "Stable-diffusion" / "deleted.ckpt").exists()


def choose(page, name, value):
    """Pick from a dropdown whose choices may still be on their way."""
    box, option = page.locator(f"#{name} input").first, page.locator("ul.options li:visible, [role=option]:visible", has_text=value)
    for _ in range(20):
        box.click()
        page.wait_for_timeout(400)
        if option.count():
            break
        page.keyboard.press("Escape")
        box.blur()
    option.first.click()
    page.wait_for_timeout(500)


def test_options_are_found_by_a_word_of_their_help(page):
    page.locator("#dreambooth_advanced").get_by_text("Advanced", exact=True).click()
    field(page, "dreambooth_search").fill("min-snr")
    sync_api.expect(page.locator("#dreambooth_snr_gamma").first).to_be_visible()
    sync_api.expect(page.locator("#dreambooth_adam_beta1")).to_be_hidden()


@pytest.mark.parametrize(("name", "width", "scheme"), [("dark", 1500, "dark"), ("narrow", 900, "light")])
def test_it_fits_and_can_be_read(browser, webui, name, width, scheme):
    page = open_tab(browser, webui, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 1000})
    if scheme == "dark":
        page.goto(webui[0] + "/?__theme=dark")
        to_tab(page, "Dreambooth")
    page.wait_for_timeout(1000)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"tab_{name}.png", full_page=True)
    page.close()
