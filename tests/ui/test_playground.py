"""The tab alone, with the playground base really trained: from an upload to the published model, in a real browser."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browsing import (
    CHROMIUM,
    REPOSITORY,
    answered,
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
pytest.importorskip("gradio")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]

from dreambooth_ext import recipe  # noqa: E402
from dreambooth_ext.check import check  # noqa: E402
from dreambooth_ext.config import Concept, TrainConfig  # noqa: E402
from dreambooth_ext.dataset.manifest import sha256_of  # noqa: E402
from dreambooth_ext.hosts.standalone import StandaloneHost  # noqa: E402
from dreambooth_ext.playground import subject  # noqa: E402
from dreambooth_ext.playground.base import playground_base_path  # noqa: E402
from dreambooth_ext.progress import Progress  # noqa: E402
from dreambooth_ext.run_folder import RunFolder  # noqa: E402

# The run "uploaded" stands still at a step until somebody has watched it, however long the page takes.
SERVE = """
import sys
import time
from pathlib import Path
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training import memory
from dreambooth_ext.ui import app
write = RunFolder.append_metrics

def append_metrics(run, entry):
    write(run, entry)
    while run.path.name == "uploaded" and entry["step"] == 25 and not (Path(sys.argv[1]) / "watched").exists():
        time.sleep(0.05)

def free_bytes(device):
    told = Path(sys.argv[1]) / "free-gib"
    return int(told.read_text()) * 2**30 if told.exists() else free(device)

RunFolder.append_metrics = append_metrics
free, memory.free_bytes = memory.free_bytes, free_bytes
app.launch(StandaloneHost(Path(sys.argv[1]) / "models", Path(sys.argv[1]) / "runs"), port=int(sys.argv[2]), open_browser=False)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The tab as a process; yields its address and its folder."""
    root = tmp_path_factory.mktemp("alone")
    shutil.copytree(playground_base_path().parent, root / "models")
    (root / "runs").mkdir()
    subject.draw_pictures(root / "given", 5, side=96)
    port = free_port()
    with (root / "log.txt").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", SERVE, str(root), str(port)], cwd=root, stdout=log, stderr=log, env={
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY)})
        try:
            end = time.monotonic() + 300
            while "page is at" not in (root / "log.txt").read_text():
                assert process.poll() is None and time.monotonic() < end, (root / "log.txt").read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", root
        finally:
            process.terminate()
            process.wait(120)


@pytest.fixture
def page(served, browser):
    opened = ready(open_page(browser, served[0]))
    yield opened
    assert opened.mistakes == []
    opened.close()


def note(page, step, told):
    sync_api.expect(page.locator(f"#dreambooth_note_{step}").first).to_contain_text(told)


def upload(page, files):
    """The pictures, one of them written by hand; returns the folder in which they are now."""
    page.locator("#dreambooth_upload input[type=file]").set_input_files([str(file) for file in files])
    page.wait_for_function("document.querySelector('#dreambooth_instance_dir textarea, #dreambooth_instance_dir input').value")
    return field(page, "dreambooth_instance_dir").input_value()


PASTE = """async () => {
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 96;
    const pen = canvas.getContext('2d');
    for (let each = 0; each < 400; each++) {
        pen.fillStyle = `hsl(${each * 37 % 360} 80% 50%)`;
        pen.fillRect(each * 29 % 96, each * 53 % 96, 9, 9);
    }
    const data = await new Promise((done) => canvas.toBlob(done, 'image/png'));
    const given = new DataTransfer();
    given.items.add(new File([data], 'image.png', {type: 'image/png'}));
    document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: given, bubbles: true}));
}"""


@pytest.mark.any_gradio
def test_from_an_upload_to_the_published_model(page, browser, served):
    address, root = served
    sync_api.expect(field(page, "dreambooth_base")).to_have_value("playground.safetensors")
    note(page, "model", "64 px")
    given = sorted((root / "given").iterdir())
    folder = upload(page, given)
    note(page, "pictures", "5 pictures: ")
    page.evaluate(PASTE)
    note(page, "pictures", "6 pictures: ")
    assert field(page, "dreambooth_instance_dir").input_value() == folder
    review(page, folder, given)
    fill(page, token="rxz", class_noun="square", output_name="uploaded", steps=80)
    note(page, "class", 'CLIP reads "rxz" as 2 pieces')
    note(page, "train", "80 steps: 16 for each of 5 pictures")
    unfold(page, "advanced", "Advanced")
    fill(page, num_class_images=4, preview_every=20, preview_steps=4, snapshot_every=40)
    sync_api.expect(page.locator("#dreambooth_note_memory").first).to_contain_text("are free")
    sync_api.expect(page.locator("#dreambooth_ready").first).to_contain_text("Ready.")
    screenshot(page, "form")
    press(page, "dreambooth_train")
    wait_for(page, "running")
    page.wait_for_selector("#dreambooth_curve svg")
    note(page, "class", "4 found that this checkpoint made; 0 to render")
    watched_again_after_a_reload(page, browser, address)
    (root / "watched").touch()
    wait_for(page, "finished", "uploaded")
    sync_api.expect(page.locator("#dreambooth_status").first).to_contain_text("uploaded.ckpt is in the models folder")
    sync_api.expect(page.locator("#dreambooth_ready").first).to_contain_text("Name: a run named uploaded is there already")
    run = RunFolder(root / "runs" / "uploaded")
    assert (root / "models" / "uploaded.ckpt").stat().st_size > 1 << 20
    assert [entry["step"] for entry in run.metrics() if "validation_loss" in entry] == list(range(10, 81, 10))
    assert len(list((run.dataset_dir / "concept-0").glob("*.png"))) == 5  # the one that was left out is not among them
    sync_api.expect(page.locator("#dreambooth_previews img")).to_have_count(10)
    page.locator("#dreambooth_previews img").last.click()
    page.wait_for_selector(".dreambooth-enlarged img")
    screenshot(page, "finished")


def on_its_way(page, files):
    """An upload that lasts until it is let go; returns what lets it."""
    late = []
    page.route("**/upload**", lambda route: late.append(route))
    page.locator("#dreambooth_upload input[type=file]").set_input_files([str(file) for file in files])
    end = time.monotonic() + 240
    while not late:  # however slow the machine
        assert time.monotonic() < end
        page.wait_for_timeout(100)

    def let_go():
        page.unroute("**/upload**")
        assert late
        for route in late:
            route.continue_()

    return let_go


def test_pictures_that_are_long_on_their_way_come_and_are_counted(page, served):
    """The form is judged again and again meanwhile, and they come into a folder that it knows already."""
    given = sorted((served[1] / "given").iterdir())
    upload(page, given[:2])
    note(page, "pictures", "2 pictures: ")
    let_go = on_its_way(page, given[2:3])
    page.wait_for_timeout(4500)
    let_go()
    note(page, "pictures", "3 pictures: ")


@pytest.mark.any_gradio
def test_fields_may_be_filled_while_pictures_are_on_their_way(page, served):
    """gradio 3 forgets an upload at any answer: to a box that was ticked, even if text fields are judged afterwards."""
    let_go = on_its_way(page, sorted((served[1] / "given").iterdir())[:2])
    fill(page, token="rxz", class_noun="square")
    page.locator("#dreambooth_with_prior_preservation input").first.click()
    page.wait_for_timeout(2000)
    let_go()
    note(page, "pictures", "2 pictures: ")
    note(page, "class", 'Trains "rxz square"')
    page.wait_for_timeout(2000)  # what was forgotten was sent again, and once only
    note(page, "pictures", "2 pictures: ")


@pytest.mark.any_gradio
def test_a_list_that_is_left_while_pictures_are_on_their_way_closes(page, served):
    let_go = on_its_way(page, sorted((served[1] / "given").iterdir())[:1])
    chosen = page.locator("#dreambooth_memory_profile input").first
    chosen.click()
    options = page.locator("ul.options li:visible, [role=option]:visible")
    sync_api.expect(options).not_to_have_count(0)
    field(page, "dreambooth_output_name").click()
    sync_api.expect(options).to_have_count(0)
    let_go()
    note(page, "pictures", "1 picture: ")


@pytest.mark.any_gradio
def test_why_an_upload_was_refused_stands_until_the_next_one(page, served):
    (served[1] / "letter.pdf").write_text("no picture")
    chosen = page.locator("#dreambooth_upload input[type=file]")
    chosen.set_input_files(str(served[1] / "letter.pdf"))
    told = page.locator("#dreambooth_upload_said").first
    sync_api.expect(told).to_contain_text("letter.pdf")
    fill(page, token="rxz")
    note(page, "class", "The token is a new word")
    sync_api.expect(told).to_contain_text("letter.pdf")
    screenshot(page, "refused")
    upload(page, sorted((served[1] / "given").iterdir())[:1])
    sync_api.expect(told).not_to_contain_text("letter.pdf")


def review(page, folder, given):
    """Leave the pasted picture out, cut another one, caption a third: all is remembered, and the pictures stay as they are."""
    before = {path.name: path.read_bytes() for path in given}
    unfold(page, "review_fold", "Review the pictures")
    cards = page.locator("#dreambooth_review_grid figure")
    sync_api.expect(cards).to_have_count(6)
    answered(page)
    page.click('.dreambooth-toggle[data-name="image.png"]')
    sync_api.expect(page.locator(".dreambooth-dropped")).to_have_count(1)
    note(page, "pictures", "6 pictures: ")
    page.click('.dreambooth-shown[data-name="subject_02.png"]')
    whole = page.locator(".dreambooth-whole")
    sync_api.expect(whole).to_be_visible()
    answered(page)
    page.wait_for_function("[...document.querySelectorAll('#dreambooth_picture_detail img')].every((it) => it.naturalWidth)")
    whole.scroll_into_view_if_needed()
    frame = whole.bounding_box()
    page.mouse.move(frame["x"] + 0.25 * frame["width"], frame["y"] + 0.25 * frame["height"])
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.75 * frame["width"], frame["y"] + 0.75 * frame["height"], steps=4)
    page.mouse.up()
    sync_api.expect(field(page, "dreambooth_picture_box")).to_have_value(
        re.compile(r"2[345], 2[345], 7[123], 7[123]"))
    sync_api.expect(page.locator("#dreambooth_picture_choice input[value=fix]")).to_be_checked()
    field(page, "dreambooth_caption").fill("a photo of the toy, standing")
    sync_api.expect(page.locator("#dreambooth_caption_told").first).to_contain_text("the toy, standing")
    answered(page)
    page.click("#dreambooth_caption_save")
    sync_api.expect(page.locator("#dreambooth_caption_done").first).to_contain_text("Saved in subject_02.txt")
    screenshot(page, "review")
    page.click("#dreambooth_picture_close")
    after = {name: (Path(folder) / name).read_bytes() for name in before}
    assert after == before


def watched_again_after_a_reload(page, browser, address):
    page.reload()
    ready(page)
    sync_api.expect(page.locator("#dreambooth_status").first).to_contain_text("uploaded: step")
    sync_api.expect(field(page, "dreambooth_output_name")).to_have_value("uploaded")
    sync_api.expect(page.locator("#dreambooth_locked").first).to_be_visible()
    page.locator("#dreambooth_sound input").check()
    second = ready(open_page(browser, address, width=900, dark=True))
    sync_api.expect(second.locator("#dreambooth_curve svg")).to_be_visible()
    screenshot(second, "running_dark_narrow")
    assert second.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert second.mistakes == []
    second.close()


@pytest.mark.any_gradio
def test_a_run_is_stopped_and_kept_or_discarded(page, served):
    given = str(served[1] / "given")
    unfold(page, "advanced", "Advanced")
    fill(page, num_class_images=2, preview_steps=1)
    for name, buttons in (("kept", ("stop",)), ("thrown-away", ("discard", "discard_yes"))):
        sync_api.expect(page.locator("#dreambooth_locked").first).to_be_hidden()
        fill(page, instance_dir=given, token="rxz", class_noun="square", output_name=name, steps=4000)
        press(page, "dreambooth_train")
        wait_for(page, "running", name)
        sync_api.expect(page.locator("#dreambooth_status").first).to_contain_text("step ")
        for button in buttons:
            page.click(f"#dreambooth_{button}")
        wait_for(page, "cancelled", name)
    assert (served[1] / "runs" / "kept" / "checkpoints").is_dir() and not (served[1] / "runs" / "thrown-away").exists()
    assert RunFolder(served[1] / "runs" / "kept").state().state == "interrupted"


def with_class_images(root, count):
    """What a run before would have left: the base's own pictures of the class."""
    config = TrainConfig(base=str(root / "models" / "playground.safetensors"), output_name="class-images",
                         runs_dir=str(root / "runs"), models_dir=str(root / "models"),
                         concepts=(Concept(instance_dir=str(root / "given"), token="rxz", class_noun="square",
                                           num_class_images=count),))
    checked = check(config)
    recipe.class_images(checked, sha256_of(Path(config.base)), StandaloneHost(root / "models", root / "runs"), Progress())


def test_the_token_is_drawn_and_bad_class_images_are_struck_out(page, served):
    with_class_images(served[1], 4)
    fill(page, instance_dir=served[1] / "given", token="rxz", class_noun="square", output_name="drawn", steps=80)
    unfold(page, "advanced", "Advanced")
    fill(page, num_class_images=4)
    unfold(page, "class_fold", "See what the base draws")
    page.click("#dreambooth_token_check")
    drawn = page.locator("#dreambooth_token_pictures")
    sync_api.expect(drawn.locator("img")).to_have_count(12)
    sync_api.expect(drawn.locator("h4")).to_have_text(["rxz", "rxz square", "square"])
    sync_api.expect(page.locator("#dreambooth_locked").first).to_be_hidden()  # nothing of the form is in its way
    page.click("#dreambooth_class_look")
    strikes = page.locator(".dreambooth-strike")
    sync_api.expect(strikes).to_have_count(4)
    screenshot(page, "class")
    strikes.first.click()
    sync_api.expect(strikes).to_have_count(3)
    note(page, "class", "3 found that this checkpoint made; 1 to render")
    assert len(list((served[1] / "runs" / "class-images").glob("*/struck-out/*.png"))) == 1


@pytest.mark.any_gradio
def test_a_form_that_is_opened_again_tells_what_is_free_now(page, served):
    told = page.locator("#dreambooth_note_memory").first
    free = served[1] / "free-gib"
    try:
        free.write_text("777")
        fill(page, instance_dir=served[1] / "given", token="rxz")
        sync_api.expect(told).to_contain_text("777.0 GiB are free")
        page.wait_for_timeout(4000)  # what was typed is judged again until then
        free.write_text("555")
        to_tab(page, "Runs")
        page.wait_for_timeout(600)
        to_tab(page, "Train")
        sync_api.expect(told).to_contain_text("555.0 GiB are free")
        free.write_text("333")
        page.evaluate("window.dispatchEvent(new Event('focus'))")  # back from the program that took or freed it
        sync_api.expect(told).to_contain_text("333.0 GiB are free")
    finally:
        free.unlink()


def test_of_many_pictures_the_one_that_is_clicked_on_comes_into_sight(browser, served, tmp_path):
    page = ready(open_page(browser, served[0], width=390, height=700))
    subject.draw_pictures(tmp_path, 40, side=96)
    fill(page, instance_dir=tmp_path)
    unfold(page, "review_fold", "Review the pictures")
    page.locator(".dreambooth-shown").first.click()
    sync_api.expect(page.locator("#dreambooth_picture h4")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth") and page.mistakes == []
    page.close()


def test_a_path_that_is_typed_for_the_base_is_looked_at(page):
    field(page, "dreambooth_base").fill("/no/such/base.ckp")
    field(page, "dreambooth_base").press("t")  # gradio 3 takes what was typed when a key is let go
    page.keyboard.press("Tab")
    note(page, "model", "There is no such file")


@pytest.mark.any_gradio
@pytest.mark.parametrize(("width", "dark"), [(1500, False), (1000, True), (480, False)])
def test_it_fits(browser, served, width, dark):
    page = ready(open_page(browser, served[0], width=width, dark=dark))
    fill(page, instance_dir=served[1] / "given", steps="many", output_name="a/b")
    sync_api.expect(page.locator(".dreambooth-under-field")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    screenshot(page, f"{width}_{'dark' if dark else 'light'}")
    assert "many" in text(page, "dreambooth_steps")
    page.close()
