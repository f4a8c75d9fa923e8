"""How quick the tab is in a real browser: python benchmarks/bench_tab.py [--points 10000] [--previews 200] [--seconds 15].

Prints the time from the click on Train to the first progress that is seen (a real run of the playground base, whose
training starts in the same process), how long every handler took meanwhile until it returned, and until the browser had the
first byte of its answer; then, with a job that has so many points and previews and goes on writing, the same of its news, how
long the page was held up, and the other tabs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HANDLERS = "handlers.txt"
HANDLER_S, FIRST_PROGRESS_S = 0.2, 1.0  # what is promised


def serve(root: Path, points: int, previews: int) -> None:
    """The tab alone, with a run that the second part watches."""
    import gradio

    _time_handlers(root / HANDLERS)
    from dreambooth_ext.commands.webui import load_libraries
    from dreambooth_ext.config import Concept, TrainConfig
    from dreambooth_ext.hosts.standalone import StandaloneHost
    from dreambooth_ext.jobs import JOBS, Job
    from dreambooth_ext.run_folder import RunFolder
    from dreambooth_ext.ui import app

    host = StandaloneHost(root / "models", root / "runs")
    run = RunFolder(host.runs_dir / "long")
    run.create(TrainConfig(base="playground.safetensors", output_name="long", runs_dir=str(host.runs_dir),
                           concepts=(Concept(str(root / "pictures"), "rxz", "square"),)))
    _fill(run, points, previews)
    load_libraries()  # as `ui` does it
    address = app.launch(host, open_browser=False, block=False)
    print(f"serving {address} gradio {gradio.__version__}", flush=True)
    sys.stdin.readline()

    def goes_on(progress: Any) -> None:
        progress.start("training", 2 * points)
        step = points
        while not progress.cancelled:
            step += 1
            run.append_metrics({"step": step, "loss": 0.1 + (step * 7919 % 101) / 500, "lr": 5e-6})
            progress.report(step, 2 * points, loss=0.1, learning_rate=5e-6, steps_per_s=10.0, seconds_left=60.0)
            time.sleep(0.1)

    JOBS.start(Job("long", goes_on))
    threading.Event().wait()


def _time_handlers(path: Path) -> None:
    """Before the panels take `compat.on` over: what each handler took, in milliseconds, one line each."""
    from dreambooth_ext.ui import compat

    attach = compat.on

    def on(event: Any, fn: Any, *arguments: Any, **more: Any) -> Any:
        def timed(*raw: Any) -> Any:
            started = time.perf_counter()
            try:
                return fn(*raw)
            finally:
                with path.open("a") as stream:
                    stream.write(f"{1000 * (time.perf_counter() - started):.1f}\n")

        return attach(event, timed if fn else None, *arguments, **more)

    compat.on = on


def _fill(run: Any, points: int, previews: int) -> None:
    import numpy as np
    from PIL import Image

    with run.metrics_path.open("w") as stream:
        for step in range(1, points + 1):
            more = {"validation_loss": 0.3} if step % 500 == 0 else {}
            stream.write(json.dumps({"step": step, "loss": 0.1 + (step * 7919 % 101) / 500, "loss_instance": 0.1,
                                     "loss_prior": 0.1, "lr": 5e-6, "grad_norm": 0.5, "seconds": 0.1, **more}) + "\n")
    run.previews_dir.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(previews):
        small = Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8))
        small.resize((512, 512)).save(run.previews_dir / f"step-{number // 2 * (points // (previews // 2)):06d}-{number % 2}.png")


class Page:
    """A browser's page that notes how long each of the server's answers took."""

    def __init__(self, browser: Any, address: str, handlers: Path) -> None:
        self._handlers = handlers
        self.page = browser.new_page(viewport={"width": 1500, "height": 1000})
        self.page.route(lambda url: not url.startswith(address.rstrip("/")), lambda route: route.abort())
        self.times_s: list[float] = []
        self.page.on("requestfinished", self._note)
        self.page.goto(address)
        self.page.wait_for_function("window.dreamboothPage && window.dreamboothPage.polls > 0", timeout=60_000)
        self.page.wait_for_timeout(1500)

    def _note(self, request: Any) -> None:
        if request.method == "POST" and "upload" not in request.url:
            self.times_s.append(request.timing["responseStart"] / 1000)

    def field(self, name: str) -> Any:
        return self.page.locator(f"#dreambooth_{name} textarea:visible, #dreambooth_{name} input:visible").first

    def to(self, name: str) -> None:
        """Another of the tab's parts. Newer versions of gradio have each button twice, one of them out of reach."""
        for button in self.page.locator("#dreambooth_tabs button:visible", has_text=name).all():
            try:
                return button.click(timeout=1000)
            except Exception:  # noqa: BLE001  not this one, then
                continue
        raise RuntimeError(f"no tab {name} can be clicked")

    def told(self, title: str) -> None:
        times, own = sorted(self.times_s), sorted(map(float, self._handlers.read_text().split()))
        if times and own:
            print(f"{title}: {len(own)} handlers returned in {statistics.median(own):.0f} ms (median), the slowest in "
                  f"{own[-1]:.0f} ms (promised: {1000 * HANDLER_S:.0f} ms); seen by the browser: "
                  f"{1000 * statistics.median(times):.0f} ms, {1000 * times[-1]:.0f} ms")
        self.times_s.clear()
        self._handlers.write_text("")


def form_and_start(browser: Any, address: str, root: Path) -> None:
    tab = Page(browser, address, root / HANDLERS)
    tab.told("opening the page")
    values = {"instance_dir": root / "pictures", "token": "rxz", "class_noun": "square", "output_name": "quick", "steps": 40}
    for name, value in values.items():
        tab.field(name).fill(str(value))
        tab.page.keyboard.press("Tab")
        tab.page.wait_for_timeout(300)
    tab.told("filling the form in")
    tab.page.wait_for_function("!document.querySelector('.dreambooth-pending')", timeout=120_000)
    tab.told("sentences that are found in the background")
    tab.page.get_by_text("Review the pictures", exact=True).click()
    tab.page.locator(".dreambooth-shown").first.wait_for(timeout=60_000)
    for number in (0, 1):
        tab.page.locator(".dreambooth-shown").nth(number).click()
        tab.page.wait_for_selector("#dreambooth_picture_detail img")
        tab.page.wait_for_timeout(500)
    tab.told("reviewing two pictures")
    started = time.perf_counter()
    tab.page.click("#dreambooth_train")
    tab.page.wait_for_selector('.dreambooth-status[data-state="running"]', state="attached")
    first_s = time.perf_counter() - started
    print(f"from click to the first progress seen: {first_s:.2f} s (promised: {FIRST_PROGRESS_S:.0f} s)")
    tab.page.wait_for_selector("#dreambooth_curve svg", timeout=300_000)
    tab.told("the run's start")
    tab.page.wait_for_selector('.dreambooth-status[data-state="finished"]', state="attached", timeout=300_000)
    tab.told("the run")
    tab.page.close()


HELD_UP = """async (seconds) => {
    const gaps = [], end = performance.now() + 1000 * seconds;
    let last = performance.now();
    while (performance.now() < end) {
        await new Promise((next) => setTimeout(next, 0));
        const now = performance.now();
        gaps.push(now - last);
        last = now;
    }
    gaps.sort((a, b) => a - b);
    return [gaps[Math.floor(0.99 * (gaps.length - 1))], gaps[gaps.length - 1], document.documentElement.outerHTML.length];
}"""


def long_run(browser: Any, address: str, root: Path, seconds: float) -> None:
    started = time.perf_counter()
    tab = Page(browser, address, root / HANDLERS)
    tab.page.wait_for_selector("#dreambooth_previews img", timeout=60_000)
    print(f"opening the page on the long run, to its previews: {time.perf_counter() - started:.1f} s")
    tab.told("opening it")
    usual, longest, length = tab.page.evaluate(HELD_UP, seconds)
    print(f"the page, watched for {seconds:.0f} s: 99 % of its turns within {usual:.0f} ms, the longest {longest:.0f} ms; "
          f"its document has {length / 2**20:.1f} MiB")
    tab.told("news of the long run")
    box = tab.field("output_name")
    box.click()
    started = time.perf_counter()
    box.press_sequentially("typed while it goes on")
    print(f"a key press, typed meanwhile: {1000 * (time.perf_counter() - started) / 22:.0f} ms")
    tab.page.close()


def other_tabs(browser: Any, address: str, root: Path) -> None:
    """With the long run and the finished one."""
    tab = Page(browser, address, root / HANDLERS)
    tab.told("opening it once more")
    tab.to("Runs")
    for name in ("runs_refresh", "run_open", "clone"):
        tab.page.locator(f"#dreambooth_{name}").last.click()
        tab.page.wait_for_timeout(1500)
        tab.to("Runs")
    tab.told("the list of runs: refreshed, opened, settings taken over")
    tab.to("Choose")
    tab.page.locator("#dreambooth_choose_refresh").last.click()
    tab.page.wait_for_timeout(1500)
    tab.told("the snapshots of a run")
    tab.page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--previews", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(Path(arguments.serve), arguments.points, arguments.previews)
        return
    from playwright.sync_api import sync_playwright

    from dreambooth_ext.playground import subject
    from dreambooth_ext.playground.base import playground_base_path

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(playground_base_path().parent, root / "models")
        (root / "runs").mkdir()
        subject.draw_pictures(root / "pictures", 8)
        command = [sys.executable, __file__, "--serve", folder, "--points", str(arguments.points), "--previews",
                   str(arguments.previews)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdin is not None and server.stdout is not None
        try:
            line = next(line for line in server.stdout if line.startswith("serving"))
            print(line.partition(" gradio ")[2].strip(), "is the gradio")
            address = line.split()[1]
            with sync_playwright() as playwright:
                chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
                form_and_start(browser, address, root)
                server.stdin.write("\n")
                server.stdin.flush()
                long_run(browser, address, root, arguments.seconds)
                other_tabs(browser, address, root)
                browser.close()
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
