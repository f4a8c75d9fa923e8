"""One picture's caption, the prompt it makes, and how much of CLIP's 77 tokens that takes; the host's captioners for all."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..config import Concept
from ..errors import DreamboothError, HostError, PictureError
from ..jobs import Job
from ..service import Service
from . import fields, html
from .compat import hidden, on, on_script
from .sentences import Sentences

Values = Mapping[str, Any]


class CaptionEditor:
    """Stands in Review; `wire` is told where the picture's name comes from, and needs all the widgets of the form."""

    def __init__(self, service: Service, sentences: Sentences) -> None:
        self._service, self._sentences = service, sentences
        captioners = _captioners(service)
        self.text = gr.Textbox(label="Caption", lines=2, interactive=True, elem_id="dreambooth_caption",
                               info="Kept in a .txt file beside the picture. Empty: the instance prompt.")
        # What is told grows by a line while somebody types: below the buttons, else they would move away under the mouse.
        with gr.Row(elem_classes=["dreambooth-buttons"]):
            self.save = gr.Button("Save the caption", size="sm", elem_id="dreambooth_caption_save")
            self.describe = [(name, gr.Button(f"Caption all that have none with {name}", size="sm",
                                              elem_id=f"dreambooth_caption_{name.lower()}")) for name in captioners]
        # Apart from each other: a count that comes late would take "Saved" away.
        self.done = gr.HTML(value="", elem_id="dreambooth_caption_done", elem_classes=["dreambooth-said"])
        self.told = gr.HTML(value="", elem_id="dreambooth_caption_told", elem_classes=["dreambooth-said"])
        # Clicked by the page's script: what is typed or pasted while a count is on its way would go uncounted otherwise.
        self.count = hidden(gr.Button, "dreambooth_caption_count", value="count")

    @property
    def outputs(self) -> list[Any]:
        return [self.text, self.done, self.told]

    def wire(self, name: Any, widgets: Mapping[str, Any]) -> None:
        inputs, with_values = list(widgets.values()), partial(fields.with_values, widgets)
        on(self.text.change, None, [], [self.done], js="() => ['']")
        on_script(self.count, with_values(self._count), [self.text, *inputs], [self.told])
        on(self.save.click, with_values(self._saved), [name, self.text, *inputs], [self.done, self.told])
        for captioner, button in self.describe:
            on(button.click, with_values(partial(self._describe, captioner)), inputs, [self.done])

    def shown(self, name: str, values: Values) -> list[str]:
        """The caption of a picture and what is to be said of it."""
        from ..dataset.captions import caption_of

        try:
            text = caption_of(_picture(self._sentences.folder(values), name)) or ""
        except DreamboothError as error:
            return ["", html.note(str(error), "fault"), ""]
        return [text, "", self._count(text, values)]

    @staticmethod
    def _count(text: str, values: Values) -> str:
        from ..dataset.captions import bracket_advice
        from ..picture_room import caption_told

        prompt, count = caption_told(_concept(values), text or "")
        counted = f'<span class="dreambooth-counted" data-text="{html.escaped(text or "")}"></span>'  # the script compares it
        return (counted + html.note(f'Trained as "{prompt}": {count}.', "warning" if "unread" in count else "note")
                + html.note(bracket_advice("It", text or ""), "warning"))

    def _saved(self, name: str, text: str, values: Values) -> list[Any]:
        from ..dataset.captions import write_caption

        try:
            path = write_caption(_picture(self._sentences.folder(values), name), text or "")
        except DreamboothError as error:
            return [html.note(str(error), "fault"), gr.update()]
        done = f"Saved in {path.name}." if (text or "").strip() else f"{path.name} is removed."
        return [html.note(done, "good"), self._count(text, values)]

    def _describe(self, captioner: str, values: Values) -> str:
        from ..picture_room import caption_with

        try:
            pictures = self._sentences.folder(values)
            self._service.jobs.start(Job("captions", lambda progress: caption_with(
                pictures, self._service.host, captioner, progress=progress), "captions"))
        except DreamboothError as error:
            return html.note(str(error), "fault")
        return html.note(f"{captioner} writes the captions; the right side shows how it goes. Open a picture again to see its own.",
                         "good")


def _captioners(service: Service) -> list[str]:
    try:
        return service.host.captioners()
    except HostError:
        return []


def _concept(values: Values) -> Concept:
    token, noun, prompt = (str(values.get(name) or "") for name in ("token", "class_noun", "instance_prompt"))
    return Concept(token=token, class_noun=noun, instance_prompt=prompt)


def _picture(folder: Path, name: str) -> Path:
    """Raises PictureError unless the folder has a picture of that name: the page may say anything."""
    from ..dataset.pictures import list_pictures

    found = next((path for path in list_pictures(folder) if path.name == name), None)
    if found is None:
        raise PictureError(f"{name} is to be captioned", "there is no such picture in the folder", "Look again.")
    return found
