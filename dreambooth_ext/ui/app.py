"""The tab alone, without a WebUI: python -m dreambooth_ext ui."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..host import Host
from ..service import Service
from . import tab
from .compat import launch_arguments
from .same_page import SamePageOnly

PARTS = Path(__file__).resolve().parents[2]  # where style.css and javascript/ stand, as the WebUI wants them

# The WebUI gives its tabs the whole window; gradio alone does not.
WIDE = """
.gradio-container, .gradio-container .app, .gradio-container .main { max-width: 1800px !important; width: 100% !important; }
.gradio-container { margin-inline: auto !important; overflow: clip !important; }
.gradio-container .app, .gradio-container .main { padding-inline: .8rem !important; margin-inline: auto; box-sizing: border-box; }
"""


def build(service: Service) -> tuple[Any, str]:
    """gr.Blocks, and the style sheet that `launch` may want."""
    css = (PARTS / "style.css").read_text(encoding="utf-8") + WIDE
    parts = sorted((PARTS / "javascript").glob("*.js"))  # in the WebUI's order
    script = "\n".join(path.read_text(encoding="utf-8") for path in parts)
    return tab.build(service, css=css, script=script), css


def launch(
    host: Host, *, port: int | None = None, open_browser: bool = True, block: bool = True,
    extend: Callable[[Any, Service], None] | None = None,
) -> str:
    """Serve the tab on this computer only; returns its address. Raises ConfigError if the port cannot be had.

    `extend` may add routes to the server; what guards the page guards them, too.
    """
    from starlette.middleware import Middleware

    service = Service(host)
    page, css = build(service)
    try:
        server, address, _ = page.queue().launch(
            server_name="127.0.0.1", server_port=port, inbrowser=open_browser, prevent_thread_lock=True, quiet=True,
            app_kwargs={"middleware": [Middleware(SamePageOnly)]}, **launch_arguments(css))
    except (OSError, OverflowError) as error:
        raise ConfigError([f"--port: {port} cannot be had; another program may use it"], "Choose another with --port N.") from error
    server.cwd = server.uploaded_file_dir  # gradio 3 serves every file of the folder in which it was started
    if extend is not None:
        extend(server, service)
    print(f"The Dreambooth page is at {address} (Ctrl+C ends it)", flush=True)
    if block:
        page.block_thread()
    return address
