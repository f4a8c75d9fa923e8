"""Pictures that are pasted faster than they are put away, in a real headless browser."""

import pytest
from browsing import CHROMIUM, LIMIT_MS, QUESTIONS, answered, field, open_page, ready

sync_api = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

from dreambooth_ext.hosts.standalone import StandaloneHost  # noqa: E402
from dreambooth_ext.ui import app  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.any_gradio,
              pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]
PASTED = """async (name) => {
    const canvas = document.createElement('canvas'), given = new DataTransfer();
    canvas.width = canvas.height = 64;
    given.items.add(new File([await new Promise((done) => canvas.toBlob(done))], name, {type: 'image/png'}));
    document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: given, bubbles: true}));
}"""


@pytest.fixture
def served(tmp_path):
    """(address, folder of the uploads)"""
    for name in ("models", "runs"):
        (tmp_path / name).mkdir()
    yield app.launch(StandaloneHost(tmp_path / "models", tmp_path / "runs"), open_browser=False, block=False), (
        tmp_path / "runs" / "uploads")
    gradio.close_all()


def waited_for(page, condition):
    for _ in range(LIMIT_MS // 100):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it has not come about")


def pasted(page, name):
    before = page.evaluate("window.dreamboothPage.arrived || 0")
    page.evaluate(PASTED, name)
    page.wait_for_function("before => (window.dreamboothPage.arrived || 0) > before", arg=before)


def test_pictures_that_come_before_the_first_are_put_away_are_put_beside_them(served, browser):
    page = ready(open_page(browser, served[0]))
    late = []
    page.route(QUESTIONS, lambda route: late.append(route) if "one.png" in (route.request.post_data or "") else route.continue_())
    pasted(page, "one.png")
    waited_for(page, lambda: late)
    page.locator("#dreambooth_upload button[aria-label=Clear]").first.click()
    pasted(page, "two.png")
    page.unroute(QUESTIONS)
    for route in late:
        route.continue_()
    waited_for(page, lambda: len(list(served[1].rglob("*.png"))) == 2)
    answered(page)
    folder, = served[1].iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["one.png", "two.png"]
    sync_api.expect(field(page, "dreambooth_instance_dir")).to_have_value(str(folder))
    assert page.mistakes == []
    page.close()
