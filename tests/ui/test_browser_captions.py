"""Captions that are typed in Review, in a real headless browser; what the page asks may be answered late."""

import pytest
from browsing import CHROMIUM, QUESTIONS, answered, field, fill, open_page, ready, unfold
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

from dreambooth_ext.hosts.standalone import StandaloneHost  # noqa: E402
from dreambooth_ext.ui import app  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.any_gradio,
              pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]
LONG = "a photo of the toy on a table in the kitchen, beside a window where the sun comes in and a cat looks at the birds outside"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, folder): the tab alone, and a folder with one picture."""
    folder = tmp_path_factory.mktemp("captions")
    for name in ("pictures", "models", "runs"):
        (folder / name).mkdir()
    Image.effect_noise((96, 96), 90).convert("RGB").save(folder / "pictures" / "one.png")
    yield app.launch(StandaloneHost(folder / "models", folder / "runs"), open_browser=False, block=False), folder
    gradio.close_all()


@pytest.fixture
def page(served, browser):
    """The picture is open, and has no caption."""
    caption_of(served).unlink(missing_ok=True)
    page = ready(open_page(browser, served[0], height=1500))
    fill(page, instance_dir=served[1] / "pictures", token="rxz", class_noun="toy")
    unfold(page, "review_fold", "Review the pictures")
    page.click(".dreambooth-shown")
    sync_api.expect(told(page)).to_contain_text('Trained as "rxz toy"')
    answered(page)
    page.locator("#dreambooth_caption_save").scroll_into_view_if_needed()
    field(page, "dreambooth_caption").click()
    yield page
    assert page.mistakes == []
    page.close()


def caption_of(served):
    return served[1] / "pictures" / "one.txt"


def told(page):
    return page.locator("#dreambooth_caption_told").first


def saved(page):
    return page.locator("#dreambooth_caption_done").first


def held(page, word):
    """Questions with that word in them, in their order, which wait for an answer from now on."""
    late = []
    page.route(QUESTIONS, lambda route: late.append(route) if word in (route.request.post_data or "") else route.continue_())
    return late


def come(page, late, count):
    for _ in range(400):
        if len(late) >= count:
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"{len(late)} questions came, {count} are expected")


def test_save_stays_under_the_mouse_while_the_caption_is_counted(page, served):
    """What is told of a long caption takes another line, and may come between pressing the button and letting it go."""
    late = held(page, "birds")
    page.keyboard.insert_text(LONG)
    come(page, late, 1)
    page.locator("#dreambooth_caption_save").hover()
    page.mouse.down()
    page.unroute(QUESTIONS)
    late[0].continue_()
    sync_api.expect(told(page)).to_contain_text("birds outside")
    page.mouse.up()
    sync_api.expect(saved(page)).to_contain_text("Saved in one.txt.")
    assert caption_of(served).read_text() == LONG + "\n"


def test_a_count_that_comes_late_leaves_what_save_says(page, served):
    late = held(page, "sitting")
    page.keyboard.insert_text("a toy, sitting")
    come(page, late, 1)
    page.click("#dreambooth_caption_save")
    come(page, late, 2)
    page.unroute(QUESTIONS)
    for route in reversed(late):
        route.continue_()
        answered_so_far = "Saved in one.txt." if route is late[-1] else 'Trained as "a rxz toy, sitting"'
        sync_api.expect(page.locator("#dreambooth_picture").first).to_contain_text(answered_so_far)
    answered(page)
    sync_api.expect(saved(page)).to_contain_text("Saved in one.txt.")
    page.keyboard.press("Shift+Tab")
    field(page, "dreambooth_caption").press("End")
    page.keyboard.type(" there")
    sync_api.expect(saved(page)).not_to_contain_text("Saved")  # what stands there now is not saved
    sync_api.expect(told(page)).to_contain_text("sitting there")


def test_what_is_typed_while_a_count_is_on_its_way_is_counted_too(page):
    late = held(page, "hidden")
    page.keyboard.insert_text("a hidden")
    come(page, late, 1)
    page.keyboard.type(" toy box")
    page.wait_for_timeout(500)
    page.unroute(QUESTIONS)
    for route in late:
        route.continue_()
    sync_api.expect(told(page)).to_contain_text("hidden rxz toy box")


@pytest.fixture
def folders(served):
    """Two folders with pictures of the same names."""
    for folder in (served[1] / "first", served[1] / "second"):
        folder.mkdir(exist_ok=True)
        for name in ("a", "b"):
            Image.effect_noise((96, 96), 90).convert("RGB").save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text(f"the {name} of {folder.name}\n")
    return served[1] / "first", served[1] / "second"


def opened(page, folder):
    fill(page, instance_dir=folder)
    sync_api.expect(page.locator(".dreambooth-shown")).to_have_count(2)
    answered(page)
    page.click('.dreambooth-shown[data-name="a.png"]')
    sync_api.expect(field(page, "dreambooth_caption")).to_have_value(f"the a of {folder.name}")
    answered(page)


def test_a_caption_is_saved_for_the_picture_that_is_open_whichever_is_left_out_meanwhile(page, folders):
    first, _ = folders
    opened(page, first)
    page.click('.dreambooth-toggle[data-name="b.png"]')
    sync_api.expect(page.locator(".dreambooth-dropped")).to_have_count(1)
    answered(page)
    field(page, "dreambooth_caption").fill("another")
    page.click("#dreambooth_caption_save")
    sync_api.expect(saved(page)).to_contain_text("Saved in ")
    assert [(first / f"{name}.txt").read_text() for name in "ab"] == ["another\n", "the b of first\n"]


def test_a_picture_that_is_open_is_closed_when_another_folder_is_named(page, folders):
    """Which may have one of the same name: its caption would be written over."""
    first, second = folders
    opened(page, first)
    fill(page, instance_dir=second)
    sync_api.expect(page.locator("#dreambooth_caption_save")).to_be_hidden()
    sync_api.expect(page.locator("#dreambooth_review_open textarea, #dreambooth_review_open input").first).to_have_value("")
    assert (second / "a.txt").read_text() == "the a of second\n"


def test_a_count_of_the_picture_before_gives_way_to_one_of_the_caption_that_is_open(page, folders):
    opened(page, folders[0])
    late = held(page, "sitting")
    field(page, "dreambooth_caption").fill("sitting")
    come(page, late, 1)
    page.click('.dreambooth-shown[data-name="b.png"]')
    sync_api.expect(told(page)).to_contain_text("the b of first")
    page.evaluate("""() => { window.seen = []; new MutationObserver(() => window.seen.push(
        document.querySelector('#dreambooth_caption_told').textContent)).observe(
        document.querySelector('#dreambooth_caption_told'), {childList: true, subtree: true}); }""")
    page.unroute(QUESTIONS)
    for route in late:
        route.continue_()
    page.wait_for_function("window.seen.some((text) => text.includes('sitting'))")
    sync_api.expect(told(page)).to_contain_text("the b of first")


def draw(page):
    """A part of the picture that is shown."""
    whole = page.locator(".dreambooth-whole")
    whole.scroll_into_view_if_needed()
    box = whole.bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"], steps=5)
    page.mouse.up()


def test_an_answer_about_the_picture_before_gives_way_to_the_one_that_is_open(page, folders):
    opened(page, folders[0])
    detail = page.locator("#dreambooth_picture_detail h4").first
    sync_api.expect(detail).to_contain_text("a.png")
    late = held(page, '["a.png"')  # this question alone: what was typed is judged again some seconds later
    page.evaluate("dreamboothPage.asked = Date.now() + 1e9; dreamboothPage.click('dreambooth_review_again')")
    come(page, late, 1)
    page.click('.dreambooth-shown[data-name="b.png"]')
    sync_api.expect(detail).to_contain_text("b.png")
    page.evaluate("""() => { window.seen = []; new MutationObserver(() => window.seen.push(
        document.querySelector('#dreambooth_picture_detail h4').textContent.slice(0, 5))).observe(
        document.querySelector('#dreambooth_picture_detail'), {childList: true, subtree: true}); }""")
    page.unroute(QUESTIONS)
    late[0].continue_()
    page.wait_for_function("window.seen.includes('a.png')")
    sync_api.expect(detail).to_contain_text("b.png")


def test_a_part_that_is_drawn_on_the_picture_before_is_not_cut_from_the_one_that_is_open(page, folders, served):
    opened(page, folders[0])
    page.evaluate("window.shown = window.dreamboothPage.askAgain; window.dreamboothPage.askAgain = () => null")
    page.evaluate("window.dreamboothPage.setText('dreambooth_review_open', 'b.png')")  # whose own is on its way
    draw(page)
    page.wait_for_timeout(500)
    answered(page)
    assert field(page, "dreambooth_picture_box").input_value() == ""
    page.evaluate("window.dreamboothPage.askAgain = window.shown")
    sync_api.expect(page.locator("#dreambooth_picture_detail h4").first).to_contain_text("b.png")
    draw(page)
    sync_api.expect(field(page, "dreambooth_picture_box")).not_to_have_value("")


def test_a_caption_is_saved_for_the_picture_that_it_is_of_though_another_one_was_picked(page, folders):
    """Whose own has not come yet: what stands in the field is not for it."""
    opened(page, folders[0])
    late = held(page, "b.png")
    page.click('.dreambooth-shown[data-name="b.png"]')
    come(page, late, 1)
    page.click("#dreambooth_caption_save")
    sync_api.expect(saved(page)).to_contain_text("Saved in a.txt.")
    page.unroute(QUESTIONS)
    late[0].continue_()
    sync_api.expect(field(page, "dreambooth_caption")).to_have_value("the b of first")
    page.click("#dreambooth_caption_save")
    sync_api.expect(saved(page)).to_contain_text("Saved in b.txt.")
    assert [(folders[0] / f"{name}.txt").read_text() for name in "ab"] == ["the a of first\n", "the b of first\n"]


def test_an_answer_about_the_part_of_the_picture_before_leaves_the_fields_of_the_one_that_is_open(page, folders):
    opened(page, folders[1])  # of which nothing is left out
    late = held(page, "1, 2, 33, 44")
    box = field(page, "dreambooth_picture_box")
    box.fill("1, 2, 33, 44")
    box.press("Enter")
    come(page, late, 1)
    page.click('.dreambooth-shown[data-name="b.png"]')
    sync_api.expect(box).to_have_value("")
    page.unroute(QUESTIONS)
    late[0].continue_()
    sync_api.expect(page.locator("#dreambooth_review_grid").first).to_contain_text("part chosen")  # it has come
    answered(page)
    assert box.input_value() == "" and page.locator("#dreambooth_picture_choice input:checked").input_value() == "keep"
    sync_api.expect(page.locator("#dreambooth_picture_detail h4").first).to_contain_text("b.png")
    page.click('.dreambooth-shown[data-name="a.png"]')
    sync_api.expect(box).to_have_value("1, 2, 33, 44")
    assert page.locator("#dreambooth_picture_choice input:checked").input_value() == "fix"
