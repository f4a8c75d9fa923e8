"""A headless Chromium on the Dreambooth tab: what the browser tests share."""

import shutil
from importlib.metadata import version
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REPOSITORY = Path(__file__).resolve().parents[1]
ARTEFACTS = REPOSITORY / "artefacts"  # screenshots, to be looked at


def open_page(browser, address, *, width=1500, height=1100, dark=False, **more):
    """A page on the address, whose scripts' mistakes are gathered in `mistakes`; nothing else is reached from it."""
    scheme = "dark" if dark else "light"
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
    page.mistakes = []
    page.on("pageerror", lambda error: page.mistakes.append(str(error)))
    page.route(lambda url: not url.startswith(address.rstrip("/")), lambda route: route.abort())  # fonts and the like
    page.goto(f"{address.rstrip('/')}/?__theme={scheme}")
    return page


def ready(page):
    """The page's script has found the tab, and the server has answered it."""
    page.wait_for_function("window.dreamboothPage && window.dreamboothPage.polls !== undefined", timeout=60_000)
    page.wait_for_timeout(800)
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


def wait_for(page, state, limit_s=90):
    page.wait_for_selector(f'.dreambooth-status[data-state="{state}"]', state="attached", timeout=limit_s * 1000)


def text(page, name):
    return page.locator(f"#{name}").first.inner_text()


def to_tab(page, name, among="dreambooth_tabs"):
    """Click on a tab. Newer versions of gradio have each tab's button twice, one of them under the other."""
    on_top = "it => { const r = it.getBoundingClientRect();" \
        " return it.contains(document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2)); }"
    for _ in range(20):  # while the page is being built
        for button in page.locator(f"#{among} button:visible", has_text=name).all():
            if button.evaluate(on_top):
                return button.click()
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(250)
    raise AssertionError(f"no tab {name} can be clicked")
