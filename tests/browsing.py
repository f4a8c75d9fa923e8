"""A headless Chromium on the Dreambooth tab: what the browser tests share."""

import shutil
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REPOSITORY = Path(__file__).resolve().parents[1]
ARTEFACTS = REPOSITORY / "artefacts"  # screenshots, to be looked at
LIMIT_MS = 240_000  # for what comes in a moment: a busy machine is slow, and that is no fault

QUESTIONS = "**/run/predict**"  # gradio's, for handlers without a queue


def launched(playwright):
    """A running Chromium."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=LIMIT_MS)


def open_page(browser, address, *, width=1500, height=1100, dark=False, late=None, **more):
    """A page on the address, whose scripts' mistakes are gathered in `mistakes`; nothing else is reached from it.
    What it asks the server is gathered in `late`, if given, until somebody lets it go on.
    """
    from playwright.sync_api import expect

    scheme = "dark" if dark else "light"
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
    page.set_default_timeout(LIMIT_MS)
    expect.set_options(timeout=LIMIT_MS)
    page.mistakes, page.asking = [], set()
    page.on("pageerror", lambda error: page.mistakes.append(str(error)))
    page.on("request", lambda request: page.asking.add(request) if request.method == "POST" else None)
    for end in ("requestfinished", "requestfailed"):
        page.on(end, lambda request: page.asking.discard(request))
    page.route(lambda url: not url.startswith(address.rstrip("/")), lambda route: route.abort())  # fonts and the like
    if late is not None:
        page.route(QUESTIONS, lambda route: late.append(route))
    page.goto(f"{address.rstrip('/')}/?__theme={scheme}")
    return page


def ready(page):
    """The page's script has found the tab, and the server has answered it: it says what is still needed."""
    page.wait_for_function("window.dreamboothPage && document.querySelector('#dreambooth_ready p')")
    return answered(page)


def answered(page):
    """What the page has asked so far is answered and shown, so that no answer to it comes after what the test does now."""
    turn = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))"
    page.evaluate(turn)  # what a click sets off is asked by now
    end, asked = time.monotonic() + LIMIT_MS / 1000, set(page.asking)
    while asked & page.asking:
        assert time.monotonic() < end, [request.url for request in asked & page.asking]
        page.wait_for_timeout(25)
    page.evaluate(turn)
    return page


def screenshot(page, name):
    """A picture of the whole page, for each gradio its own."""
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"gradio{version('gradio').partition('.')[0]}_{name}.png", full_page=True)


def field(page, name):
    return page.locator(f"#{name} textarea:visible, #{name} input:visible").first


def fill(page, **values):
    for name, value in values.items():
        field(page, f"dreambooth_{name}").fill(str(value))
    page.keyboard.press("Tab")


def unfold(page, name, title):
    page.locator(f"#dreambooth_{name}").get_by_text(title, exact=True).click()
    page.wait_for_timeout(500)  # newer versions fill what is inside only now


def wait_for(page, state, name=None):
    """The state of the shown job, or of the one of that name."""
    named = f'[data-name="{name}"]' if name else ""
    page.wait_for_selector(f'.dreambooth-status[data-state="{state}"]{named}', state="attached", timeout=2 * LIMIT_MS)


def press(page, name):
    """By the keyboard: while answers come, what stands above a button grows, and a mouse may miss what moves under it."""
    page.locator(f"button#{name}, #{name} button").first.press("Enter")


def choose(page, name, value):
    """Pick from a dropdown whose choices may still be on their way."""
    from playwright.sync_api import TimeoutError as NotYet

    box, option = page.locator(f"#{name} input").first, page.locator("ul.options li:visible, [role=option]:visible", has_text=value)
    for _ in range(LIMIT_MS // 2000):
        box.click()
        with suppress(NotYet):
            option.first.wait_for(timeout=2000)
            break
        page.keyboard.press("Escape")
        box.blur()
    else:
        told = page.locator("ul.options, [role=option], .toast-body, .toast-wrap").all_inner_texts()
        raise AssertionError(f"{value} is not among the choices of {name}, {box.input_value()} is chosen: {told}")
    option.first.click()
    answered(page)


def text(page, name):
    return page.locator(f"#{name}").first.inner_text()


def to_tab(page, name, among="dreambooth_tabs"):
    """Click on a tab. Newer versions of gradio have each tab's button twice, one of them under the other."""
    on_top = "it => { const r = it.getBoundingClientRect();" \
        " return it.contains(document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2)); }"
    for _ in range(LIMIT_MS // 250):  # while the page is being built
        for button in page.locator(f"#{among} button:visible", has_text=name).all():
            if button.evaluate(on_top):
                return button.click()
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(250)
    raise AssertionError(f"no tab {name} can be clicked")
