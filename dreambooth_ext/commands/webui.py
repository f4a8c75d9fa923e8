"""The commands about the tab: open it without a WebUI, and give a WebUI a base to try it on."""

from __future__ import annotations

import argparse
import gc
import signal
from contextlib import suppress
from importlib import import_module
from typing import Any

from ..files import expanded
from ..hosts.standalone import StandaloneHost
from ..jobs import JOBS
from ..progress import Progress
from ..service import Service
from ..signals import heard
from .command import Command, say

WAKES_EVERY_S = 0.5  # Windows hears no Ctrl+C while a thread waits for an event


def load_libraries() -> None:
    """Import what forms and runs need before a page is open: its answers would wait for it.

    A full garbage collection of all these objects takes a third of a second, in which no page is answered: they are frozen.
    """
    from .. import picture_room  # noqa: F401
    from ..dataset import audit  # noqa: F401
    from ..models.networks import load_class

    for part in ("unet", "vae", "text_encoder"):
        load_class(part)
    with suppress(ImportError):
        import_module("matplotlib.pyplot")  # gradio imports it when it gives its first answer
    gc.collect()
    gc.freeze()


def ui(parsed: argparse.Namespace, progress: Progress) -> None:
    from ..ui.app import launch

    print("Loading the libraries; right after an installation this takes a minute.", flush=True)
    load_libraries()
    host = StandaloneHost(expanded(parsed.models_dir), expanded(parsed.runs_dir), device=parsed.device)
    with heard(signal.default_int_handler):  # the first Ctrl+C ends the page; the job that works behind it is stopped below
        launch(host, port=parsed.port, open_browser=parsed.open, extend=_with_api if parsed.api else None)
        job = JOBS.stop_all("the end of the page")
        if job is not None:
            print(f"{job.name} stops after this step, and what it has learnt is kept (Ctrl+C again to end at once) ...", flush=True)
            while not job.done.wait(WAKES_EVERY_S):
                pass


def _with_api(server: Any, service: Service) -> None:
    from .. import api

    api.mount(server, service, {})
    print(f"The HTTP API answers below {api.PREFIX} (docs/api.md).", flush=True)


def playground(parsed: argparse.Namespace, progress: Progress) -> None:
    from ..playground.install import install_into

    paths = install_into(expanded(parsed.into))
    say(parsed, f"{paths[0]} is there. Press the refresh button beside the WebUI's list of checkpoints, and choose it.",
        files=[str(path) for path in paths])


def _declare_ui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models-dir", default="models", metavar="DIR", help="checkpoints, old and new (default: models)")
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="folder of the runs (default: runs)")
    parser.add_argument("--port", type=int, default=7862, metavar="N", help="on this computer only (default: 7862)")
    parser.add_argument("--device", default="auto", metavar="NAME",
                        help="cpu, cuda or cuda:1; auto: the first GPU, else the CPU (default: auto)")
    parser.add_argument("--api", action="store_true", help="answer the HTTP API as well, on this computer only")
    parser.add_argument("--open", action="store_true", help="open a browser")


def _declare_playground(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--into", required=True, metavar="DIR", help="the WebUI's models/Stable-diffusion")


COMMANDS: dict[str, Command] = {
    "ui": (ui, "Open the tab in a browser, without a WebUI.", _declare_ui),
    "playground": (playground, "Write the small playground base into a WebUI's models folder.", _declare_playground),
}
