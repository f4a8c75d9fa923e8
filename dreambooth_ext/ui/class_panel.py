"""What the base makes of the class and of the token: its class images, to strike out bad ones, and the token drawn beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import DreamboothError, RunBusy
from ..jobs import Job
from ..service import Service
from ..words import counted
from . import fields, html
from .compat import hidden, on, on_script
from .sentences import Sentences

SHOWN_AT_MOST = 200
STRIKE_WAITS_S = 10  # usually none: what is looked for is found in a moment
TOKEN_CHECK = "token check"  # the job's name and key
TOKEN_NEEDS = "Fill in base, token and class first."
LOOK_NEEDS = "Fill in base, pictures and class first."
Values = Mapping[str, Any]


class ClassPanel:
    """Laid out by its making; `wire` needs all the widgets of the form."""

    def __init__(self, service: Service, sentences: Sentences) -> None:
        self._service, self._sentences = service, sentences
        with gr.Accordion("See what the base draws", open=False, elem_id="dreambooth_class_fold"):
            with gr.Row(elem_classes=["dreambooth-buttons"]):
                self.check = gr.Button("Draw the token before training", size="sm", elem_id="dreambooth_token_check")
                self.look = gr.Button("Look at the class images", size="sm", elem_id="dreambooth_class_look")
            self.drawn = gr.HTML(value=html.note(
                "A good token means nothing to the base: its pictures show nothing in particular. If they show one and the same "
                "thing, choose another token. Class images show what the class is to the base; strike out those that are broken."),
                elem_id="dreambooth_token_pictures")
            self.sheet = gr.HTML(value="", elem_id="dreambooth_class_pictures")
        self.again = hidden(gr.Button, "dreambooth_token_show", value="show")
        self.name = hidden(gr.Textbox, "dreambooth_strike_name", label="class image")
        self.strike = hidden(gr.Button, "dreambooth_strike", value="strike out")

    def wire(self, widgets: Mapping[str, Any]) -> None:
        inputs, with_values = list(widgets.values()), partial(fields.with_values, widgets)
        on(self.check.click, with_values(self._check), inputs, [self.drawn])
        on_script(self.again, self.drawn_html, [], [self.drawn])
        on_script(self.look, with_values(self.sheet_html), inputs, [self.sheet])
        on_script(self.strike, with_values(self._strike), [self.name, *inputs], [self.sheet])

    def _check(self, values: Values) -> str:
        from ..picture_room import token_pictures

        if not all(values.get(name) for name in ("base", "token", "class_noun")):
            return html.note(TOKEN_NEEDS, "warning")
        try:
            config = self._service.settings(values)
        except DreamboothError as error:
            return html.note(str(error), "fault")
        side, host = self._sentences.resolution(values), self._service.host

        def work(progress: Any) -> list[Any]:
            with host.job(TOKEN_CHECK, progress):
                return token_pictures(Path(config.base), config.concepts[0], host, progress, resolution=side,
                                      prediction_type=config.prediction_type, clip_skip=config.clip_skip, vae=config.vae)

        with suppress(RunBusy):  # what is being drawn already is shown when it is there
            self._service.jobs.start(Job(TOKEN_CHECK, work, TOKEN_CHECK))
        return self.drawn_html()

    def drawn_html(self) -> str:
        """What the newest check has drawn, or how far it is."""
        job = next((job for job in self._service.jobs.all() if job.key == TOKEN_CHECK), None)
        if job is None:
            return html.note(TOKEN_NEEDS)
        if job.state in ("queued", "running"):
            return html.pending("The base draws the token", job.last.done, job.last.total)
        if job.state != "finished":
            return html.note(f"Nothing was drawn: {job.message}", "warning")
        rows = ""
        for drawn in job.result:
            pictures = "".join(f"<figure>{html.picture(path, drawn.prompt)}</figure>" for path in drawn.pictures)
            rows += f'<h4>{html.escaped(drawn.prompt)}</h4><div class="dreambooth-strip" tabindex="0">{pictures}</div>'
        return rows

    def sheet_html(self, values: Values) -> str:
        """The class images that are there, each with a button to strike it out."""
        try:
            answer = self._sentences.class_image_plans(values)
        except DreamboothError as error:
            return html.note(str(error), "fault")
        if answer is None:
            return html.note(LOOK_NEEDS, "warning")
        if not answer.ready:
            return html.pending("Looking for class images", answer.done, answer.total)
        if answer.error is not None:
            return html.note(str(answer.error), "fault")
        paths = [path for plan in answer.value for prompt in plan.prompts for path in prompt.found]
        if not paths:
            return html.note("There are none yet for this base, class and size; they are rendered when training starts.")
        cards = "".join(
            f'<figure>{html.picture(path, path.name, html.THUMBNAIL_PX)}<figcaption><button class="dreambooth-strike" '
            f'data-name="{html.escaped(path.name)}">Strike out</button></figcaption></figure>' for path in paths[:SHOWN_AT_MOST])
        more = f" The first {SHOWN_AT_MOST} are shown." if len(paths) > SHOWN_AT_MOST else ""
        return html.note(f"{counted(len(paths), 'class image')}.{more} One that is struck out is never used; another is "
                         'rendered in its place.') + f'<div class="dreambooth-review">{cards}</div>'

    def _strike(self, name: str, values: Values) -> str:
        from ..picture_room import named, strike_out

        try:
            answer = self._sentences.class_image_plans(values)
            # A field that was changed, a run that has begun or a click just before: then they are looked for once more.
            if answer is not None and not answer.event.wait(STRIKE_WAITS_S):
                return html.note(f"{name} is not struck out: class images are still being looked for. Look at them again.", "fault")
            if answer is not None and answer.value:
                strike_out(named(answer.value, [name]))
        except DreamboothError as error:
            return html.note(str(error), "fault")
        self._sentences.forget_class_images()
        return self.sheet_html(values)
