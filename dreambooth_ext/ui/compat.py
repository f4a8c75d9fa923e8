"""What differs between gradio 3.41 (AUTOMATIC1111), 4.40 (Forge) and the newest."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

MAJOR = int(gr.__version__.split(".", maxsplit=1)[0])
COPIES_KEPT_S = 24 * 3600
_JS = "js" if MAJOR >= 4 else "_js"


def on(
    event: Callable[..., Any], fn: Callable[..., Any] | None, inputs: Sequence[Any] = (), outputs: Sequence[Any] = (),
    *, js: str | None = None,
) -> Any:
    """Attach a handler: at once, without a queue, without a spinner over what it changes, not part of gradio's API."""
    arguments: dict[str, Any] = {"inputs": list(inputs), "outputs": list(outputs), "queue": False,
                                 "show_progress": "hidden"}
    if MAJOR >= 6:
        arguments["api_visibility"] = "private"
    else:
        arguments["api_name"] = False
    if js is not None:
        arguments[_JS] = js
    return event(fn, **arguments)


def on_script(button: Any, fn: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """As `on`, for a button that the page's script clicks. It is told of each answer: gradio drops a click that comes before."""
    answered = on(button.click, fn, inputs, outputs)
    on(answered.then, None, js=f"() => {{ window.dreamboothPage.answered('{button.elem_id}'); return []; }}")
    return answered


def hidden(kind: type, elem_id: str, **arguments: Any) -> Any:
    """A component that scripts can reach but nobody sees: newer versions leave out what is not `visible`."""
    return kind(elem_id=elem_id, elem_classes=["dreambooth-hidden"], **arguments)


def is_building() -> bool:
    """Whether a page is being built. Version 4 makes components anew whenever a handler changes them, outside of any page."""
    return Context.root_block is not None


def uploads(files: Any) -> list[str]:
    """Paths of uploaded files: objects with a name in gradio 3, paths in 4 and later.

    gradio 3 copies whatever file of this computer a request names, as if it had been uploaded: such a one is left out.
    """
    listed = files if isinstance(files, list) else [files]
    return [str(getattr(file, "name", file)) for file in listed if file is not None and _was_uploaded(file)]


def _was_uploaded(file: Any) -> bool:
    said = getattr(file, "orig_name", None)  # what the request named; gradio 4 and later look at it themselves
    if said is None or not Path(str(said)).exists():
        return True
    folder = os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio"
    return Path(folder).resolve() in Path(str(said)).resolve().parents


def blocks(title: str, css: str = "") -> Any:
    """gr.Blocks; from version 6 on, the style sheet belongs to `launch`. Newer ones clear their copies of files away, if told."""
    newer = {"delete_cache": (COPIES_KEPT_S, COPIES_KEPT_S)} if MAJOR >= 4 else {}
    return gr.Blocks(title=title, analytics_enabled=False, **newer, **({"css": css} if css and MAJOR < 6 else {}))


def launch_arguments(css: str) -> dict[str, Any]:
    return {"css": css} if MAJOR >= 6 else {}


def leave_out_of_saved_defaults(components: Iterable[Any]) -> None:
    """The WebUI would otherwise write our fields into its ui-config.json, and old values back into new versions."""
    for component in components:
        component.do_not_save_to_config = True

