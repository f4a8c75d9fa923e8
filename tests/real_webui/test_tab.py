"""The tab of a running WebUI, by a real browser: from pictures to the subject in txt2img, as a person would do it."""

import base64
import io
import shutil
import time
from pathlib import Path

import pytest

from dreambooth_ext.demo import SETTINGS, TOKEN
from dreambooth_ext.playground import subject

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
SHOTS = Path(__file__).resolve().parents[2] / "artefacts" / "real_webui"
FIELDS = ("steps", "train_batch_size", "learning_rate", "text_encoder_learning_rate", "num_class_images",
          "class_guidance_scale", "preview_guidance_scale", "snapshot_every", "lr_warmup_steps", "prior_loss_weight")
PICTURES = 8
PROMPT = subject.instance_prompt(TOKEN)
SOCKETS: dict = {}  # of each page


@pytest.fixture
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        for page in [page for context in running.contexts for page in context.pages]:
            leave(page)
        running.close()


def opened(browser, url):
    page = browser.new_page(viewport={"width": 1500, "height": 1150})
    page.on("websocket", lambda socket: SOCKETS.setdefault(page, []).append(socket))
    page.goto(url)
    page.wait_for_selector("#txt2img_prompt", timeout=60_000)
    to_tab(page, "Dreambooth")
    page.wait_for_function("window.dreamboothPage && window.dreamboothPage.polls !== undefined")
    page.wait_for_timeout(1500)
    return page


def leave(page):
    """Close a page that has all its answers.

    gradio 3.41 keeps the connection of one that left while it waited for good, and the WebUI's next Reload UI waits for that.
    """
    end = time.monotonic() + 60
    while not all(socket.is_closed() for socket in SOCKETS.get(page, ())):
        assert time.monotonic() < end, "the page waits for an answer"
        page.wait_for_timeout(200)
    page.close()


def to_tab(page, name):
    page.locator("#tabs button:visible", has_text=name).first.click()


def fill(page, **values):
    for name, value in values.items():
        page.locator(f"#dreambooth_{name} textarea:visible, #dreambooth_{name} input:visible").first.fill(str(value))
    page.keyboard.press("Tab")


def shot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def test_from_pictures_to_the_subject_in_txt2img(browser, webui, tmp_path):
    subject.draw_pictures(tmp_path, PICTURES)
    webui.select(webui.base)
    page = opened(browser, webui.url)
    name = f"tab-{int(time.time()) % 100_000}"
    assert page.input_value("#dreambooth_base input").startswith(webui.base)  # the loaded checkpoint is preselected
    fill(page, instance_dir=tmp_path, token=TOKEN, class_noun=subject.CLASS_NOUN, output_name=name)
    advanced = page.locator("#dreambooth_advanced").get_by_text("Advanced", exact=True)
    advanced.click()
    page.wait_for_timeout(500)
    fill(page, instance_prompt=PROMPT, class_prompt=subject.class_prompt(), **{field: SETTINGS[field] for field in FIELDS})
    page.locator("#dreambooth_lr_scheduler input").fill(SETTINGS["lr_scheduler"])
    page.keyboard.press("Enter")
    advanced.click()
    page.wait_for_timeout(1500)
    shot(page, "filled_in")
    page.click("#dreambooth_train")
    page.wait_for_selector('.dreambooth-status[data-state="running"]', state="attached", timeout=5_000)
    page.wait_for_selector("#dreambooth_previews img", timeout=900_000)
    page.wait_for_timeout(1500)
    shot(page, "running")
    leave(page)
    page = opened(browser, webui.url)  # the page was closed: the run is found again
    before = page.locator("#dreambooth_status").first.inner_text()
    assert name in before
    page.wait_for_timeout(3000)
    assert page.locator("#dreambooth_status").first.inner_text() != before
    page.wait_for_selector('.dreambooth-status[data-state="finished"]', state="attached", timeout=1_800_000)
    page.wait_for_function(
        f"document.querySelector('#setting_sd_model_checkpoint input').value.startsWith('{name}.ckpt')", timeout=60_000)
    page.wait_for_selector("#txt2img_prompt textarea", state="visible")
    assert page.input_value("#txt2img_prompt textarea") == PROMPT
    assert [page.locator(f"#txt2img_{side} input").first.input_value() for side in ("width", "height")] == ["64", "64"]
    shown = sum(subject.recognises(picture) for picture in generate(page))
    shot(page, "txt2img")
    print(f"the subject is recognised in {shown} of {PICTURES} pictures that Generate rendered")
    to_tab(page, "Dreambooth")
    page.wait_for_timeout(1500)
    shot(page, "finished")
    for part in ("Runs", "Choose"):
        page.locator("#dreambooth_tabs button:visible", has_text=part).first.click()
        page.click(f"#dreambooth_{part.lower()}_refresh")
        page.wait_for_timeout(2500)
        shot(page, part.lower())
    assert shown >= 0.75 * PICTURES


def test_reload_ui_does_not_lose_a_running_job(browser, webui, tmp_path):
    subject.draw_pictures(tmp_path, PICTURES)
    name = f"reload-{int(time.time()) % 100_000}"
    page = opened(browser, webui.url)
    job = webui.post("/dreambooth/v1/start", {
        "base": webui.base, "instance_dir": str(tmp_path), "token": TOKEN, "class_noun": subject.CLASS_NOUN, "output_name": name,
        "steps": 200, "num_class_images": 4, "class_steps": 4, "preview_steps": 4})
    webui.wait_for_phase("training", at_least=2)
    page.locator("#footer").get_by_text("Reload UI").click()
    webui.wait_for_restart()
    page = opened(browser, webui.url)
    assert webui.status()["running"]["id"] == job["id"]
    assert name in page.locator("#dreambooth_status").first.inner_text()
    assert webui.wait(job)["state"] == "finished"
    page.wait_for_selector('.dreambooth-status[data-state="finished"]', state="attached", timeout=60_000)
    assert webui.selected().startswith(f"{name}.ckpt")
    page.wait_for_timeout(2000)  # it asks for the list of checkpoints anew


def generate(page):
    """Press Generate for PICTURES pictures; returns them."""
    from PIL import Image

    for field, value in (("width", 64), ("height", 64), ("steps", 30), ("batch_size", PICTURES), ("cfg_scale", 3)):
        page.locator(f"#txt2img_{field} input[type=number]").first.fill(str(value))
    page.locator("#txt2img_seed input").first.fill("1")
    page.keyboard.press("Tab")
    page.wait_for_timeout(500)
    page.click("#txt2img_generate")
    thumbnails = page.locator("#txt2img_gallery .grid-wrap img, #txt2img_gallery .thumbnails img")
    end = time.monotonic() + 300
    while thumbnails.count() < PICTURES:
        assert time.monotonic() < end, "Generate gave no pictures"
        page.wait_for_timeout(300)
    page.wait_for_timeout(1500)
    pictures = []
    for source in dict.fromkeys(thumbnails.evaluate_all("images => images.map(image => image.src)")):
        encoded = page.evaluate(
            "async url => { const blob = await (await fetch(url)).blob(); return await new Promise(done => {"
            " const reader = new FileReader(); reader.onload = () => done(reader.result); reader.readAsDataURL(blob); }); }",
            source)
        with Image.open(io.BytesIO(base64.b64decode(encoded.split(",")[-1]))) as picture:
            if picture.size == (64, 64):  # the grid of all is larger
                pictures.append(picture.convert("RGB"))
    return pictures[:PICTURES]
