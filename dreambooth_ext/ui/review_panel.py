"""Review: every picture as training will see it, the verdict on it, and what is to be done with it; originals stay as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..dataset.verdict import ADVICE, Audit, PictureAudit
from ..errors import DreamboothError, PictureError
from ..service import Service
from . import fields, html
from .caption_editor import CaptionEditor
from .compat import hidden, on, on_script
from .sentences import Sentences
from .shown_pictures import Shown, ShownPictures

if TYPE_CHECKING:
    from ..dataset.choices import Choice

CARDS_AT_MOST = 200  # more would make the page heavy; the others are looked at all the same
TEACHING = ("Here each picture is shown as it will be trained, with what is good or bad about it. "
            "Name a folder of pictures first, or drop some.")
Values = Mapping[str, Any]


class ReviewPanel:
    """Laid out by its making; `wire` needs all the widgets of the form."""

    def __init__(self, service: Service, sentences: Sentences) -> None:
        self._service, self._sentences = service, sentences
        self._pictures = ShownPictures(sentences.lookups)
        with gr.Accordion("Review the pictures", open=False, elem_id="dreambooth_review_fold"):
            self.grid = gr.HTML(value=html.note(TEACHING), elem_id="dreambooth_review_grid")
            with gr.Column(visible=False, elem_id="dreambooth_picture") as self.column:
                self.detail = gr.HTML(value="", elem_id="dreambooth_picture_detail")
                with gr.Row():
                    self.choice = gr.Radio(label="What to do with it", choices=list(ADVICE), value="keep", interactive=True,
                                           elem_id="dreambooth_picture_choice", info="fix: only a part of it is used.")
                    self.box = gr.Textbox(label="Part to use (left, top, right, bottom)", max_lines=1, interactive=True,
                                          elem_id="dreambooth_picture_box", placeholder="draw it on the picture, or type it",
                                          info="In pixels. Empty: chosen by itself.")
                self.captions = CaptionEditor(service, sentences)
                self.close = gr.Button("Close", size="sm", elem_id="dreambooth_picture_close")
        # Clicked by the page's script, which also names the picture. Outside: what is folded may not be on the page.
        self.look = hidden(gr.Button, "dreambooth_review", value="look")
        self.wanted = hidden(gr.Textbox, "dreambooth_review_name", label="picture to open")
        self.name = hidden(gr.Textbox, "dreambooth_review_open", label="picture")  # the one whose own stands in the fields
        self.found, self.said = (hidden(gr.Textbox, f"dreambooth_review_{each}", label=f"{each} values")
                                 for each in ("found", "said"))
        self.other = hidden(gr.Textbox, "dreambooth_review_other", label="picture to leave out or take in")
        self.acts = {act: hidden(gr.Button, f"dreambooth_review_{act}", value=act) for act in ("pick", "again", "toggle", "cut")}

    def wire(self, widgets: Mapping[str, Any]) -> None:
        inputs, with_values = list(widgets.values()), partial(fields.with_values, widgets)
        folder, pick, cut = widgets["instance_dir"], self.acts["pick"], self.acts["cut"]
        part, changed = [self.choice, self.box], [self.detail, self.grid, self.said]
        on_script(self.look, with_values(self.grid_html), inputs, [self.grid])
        on_script(self.acts["again"], with_values(self._again), [self.name, *inputs], [self.detail])
        on_script(self.acts["toggle"], with_values(self._toggled), [self.other, *inputs], [self.grid])
        picked = on_script(pick, _with_name(with_values(self._picked)), [folder, self.wanted, *inputs],
                           [self.column, self.detail, self.found])
        _fill(picked, self.found, folder, self.wanted, [self.name, *part, *self.captions.outputs])
        done = on(self.choice.input if hasattr(self.choice, "input") else self.choice.change, _with_name(with_values(self._chosen)),
                  [folder, self.name, self.choice, self.box, *inputs], changed)
        _fill(done, self.said, folder, self.name, part)
        for attach, event in ((on_script, cut), (on, self.box.submit)):
            done = attach(event, _with_name(with_values(self._cut)), [folder, self.name, self.box, *inputs], changed)
            _fill(done, self.said, folder, self.name, part)
        # The page forgets the name at once: what is typed and drawn from now on is not for a picture of that name in another
        # folder. The column is hidden when the server answers.
        for event in (self.close.click, folder.change):
            on(event, None, [], [self.name, self.wanted], js="() => ['', '']")
            on(event, lambda: gr.update(visible=False), [], [self.column])
        self.captions.wire(self.name, widgets)

    # ---- what is shown

    def grid_html(self, values: Values) -> str:
        """All pictures as cards, those to look at first; or how far the looking is."""
        if not values.get("instance_dir"):
            return html.note(TEACHING)
        try:
            audit, shown, choices = self._found(values)
        except DreamboothError as error:
            return html.note(str(error), "fault")
        except _NotYet as waiting:
            return str(waiting)
        order = sorted(audit.pictures, key=lambda picture: -ADVICE.index(picture.advice))
        cards = "".join(self._card(picture, shown.get(picture.name), choices.get(picture.name))
                        for picture in order[:CARDS_AT_MOST])
        bad = "".join(self._card_of_bad(name, why, choices.get(name)) for name, why in audit.unreadable[:CARDS_AT_MOST])
        more = max(0, len(audit.pictures) - CARDS_AT_MOST) + max(0, len(audit.unreadable) - CARDS_AT_MOST)
        note = html.note(f"{more} more are not shown here." if more else "", "warning")
        return f'{note}<div class="dreambooth-review">{bad}{cards}</div>'

    @staticmethod
    def _card(picture: PictureAudit, shown: Shown | None, chosen: Choice | None) -> str:
        from .. import advice

        name, dropped = html.escaped(picture.name), chosen is not None and chosen.choice == "drop"
        has_part = chosen is not None and chosen.choice == "fix" and chosen.box
        word = "left out" if dropped else "part chosen" if has_part else advice.word_for(picture)
        kind = {"keep": "good", "fix": "warning", "drop": "fault"}[picture.advice]
        image = f'<img alt="{name}" src="{shown.thumbnail}">' if shown else ""
        reasons = html.escaped(" ".join(verdict.reason for verdict in picture.verdicts) or "nothing is wrong with it")
        return (f'<figure class="{"dreambooth-dropped" if dropped else ""}">'
                f'<button class="dreambooth-shown" data-name="{name}" title="{reasons}">'
                f'{image}</button><figcaption><span class="dreambooth-name">{name}</span>'
                f'<span class="dreambooth-{kind}">{html.escaped(word)}</span>{_toggle(name, dropped)}</figcaption></figure>')

    @staticmethod
    def _card_of_bad(name: str, why: str, chosen: Choice | None) -> str:
        """A file that cannot be used keeps a run from starting until it is left out."""
        name, dropped = html.escaped(name), chosen is not None and chosen.choice == "drop"
        return (f'<figure class="{"dreambooth-dropped" if dropped else ""}"><div class="dreambooth-bad">{html.escaped(why)}</div>'
                f'<figcaption><span class="dreambooth-name" title="{name}">{name}</span>'
                f'<span class="dreambooth-fault">{"left out" if dropped else "cannot be used"}</span>'
                f"{_toggle(name, dropped)}</figcaption></figure>")

    def _detail_html(self, name: str, values: Values) -> str:
        """It carries its name: answers may come late, when another picture is open, and the page's script compares them."""
        return f'<div class="dreambooth-detail" data-name="{html.escaped(name)}">{self._detail_of(name, values)}</div>'

    def _detail_of(self, name: str, values: Values) -> str:
        try:
            audit, shown, _ = self._found(values)
            picture = self._of(audit, name)
        except DreamboothError as error:
            return html.note(str(error), "fault")
        except _NotYet as waiting:
            return str(waiting)
        found = shown.get(name)
        if found is None:
            return html.note(f"{name} cannot be opened any more.", "fault")
        left, top, right, bottom = found.part
        place = (f"left:{100 * left / found.width:.2f}%;top:{100 * top / found.height:.2f}%;"
                 f"width:{100 * (right - left) / found.width:.2f}%;height:{100 * (bottom - top) / found.height:.2f}%")
        reasons = "".join(f'<li><b>{html.escaped(verdict.check)}</b>: {html.escaped(verdict.reason)}'
                          f"{_measured(verdict.value, verdict.threshold)}.</li>" for verdict in picture.verdicts)
        suggested = "" if picture.kept_box is None else html.note(
            f"Suggested part: {_as_text(picture.kept_box)}. Choose fix to take it.")
        return (f'<h4>{html.escaped(name)} <small>{found.width} x {found.height}</small></h4><div class="dreambooth-sides"><figure>'
                f'<div class="dreambooth-whole" data-width="{found.width}" data-height="{found.height}">'
                f'<img alt="the whole picture" draggable="false" src="{found.whole}">'
                f'<div class="dreambooth-crop" style="{place}"></div></div><figcaption>the whole picture; draw the part to use'
                f'</figcaption></figure><figure><img class="dreambooth-trained" alt="as it is trained" src="{found.trained}">'
                f"<figcaption>as it is trained: {found.side[0]} x {found.side[1]}</figcaption></figure></div>"
                f"<ul>{reasons or '<li>Nothing is wrong with it.</li>'}</ul>{suggested}")

    def _audit(self, values: Values) -> Audit:
        """Raises _NotYet while pictures are being looked at, PictureError."""
        answer = self._sentences.audit(values)
        if answer.error is not None:
            if isinstance(answer.error, DreamboothError):
                raise answer.error
            raise PictureError("The pictures are to be looked at", str(answer.error),
                               "Try again; if it stays so, report it with this line.") from answer.error
        if not answer.ready:
            raise _NotYet(html.pending("Looking at the pictures", answer.done, answer.total))
        return answer.value  # type: ignore[no-any-return]

    def _found(self, values: Values) -> tuple[Audit, dict[str, Shown], dict[str, Choice]]:
        """The audit, the pictures as they are shown, and what was chosen. Raises _NotYet while that is being made."""
        audit, choices = self._audit(values), self._sentences.choices_of(values)
        boxes = {name: chosen.box for name, chosen in choices.items() if chosen.choice == "fix" and chosen.box}
        folder = self._sentences.folder(values)
        shown = self._pictures.of(folder, [picture.name for picture in audit.pictures], boxes,
                                  resolution=self._sentences.resolution(values), crop=str(values.get("crop") or "smart"))
        if not shown.ready:
            raise _NotYet(html.pending("Cropping the pictures", shown.done, shown.total))
        return audit, shown.value or {}, choices

    @staticmethod
    def _of(audit: Audit, name: str) -> PictureAudit:
        """Raises PictureError."""
        found = next((picture for picture in audit.pictures if picture.name == name), None)
        if found is None:
            raise PictureError(f"{name} is to be shown", "there is no such picture in the folder any more", "Look again.")
        return found

    # ---- what is done

    def _picked(self, name: str, values: Values) -> list[Any]:
        from ..dataset.choices import Choice

        try:
            chosen = self._sentences.choices_of(values).get(name) or Choice("keep")
        except DreamboothError as error:
            return [gr.update(visible=True), html.note(str(error), "fault"), [None] * (3 + len(self.captions.outputs))]
        return [gr.update(visible=True), self._detail_html(name, values), [
            name, chosen.choice, _as_text(chosen.box), *self.captions.shown(name, values)]]

    def _again(self, name: str, values: Values) -> str:
        return self._detail_html(name, values) if name else ""

    def _toggled(self, name: str, values: Values) -> str:
        from ..dataset.choices import Choice

        try:
            before = self._sentences.choices_of(values).get(name) or Choice("keep")
            part = None if before.choice == "keep" else before.box  # which outlasts that its picture is left out for a while
            taken_in = Choice("fix", box=part) if part else None
            self._remember(name, taken_in if before.choice == "drop" else Choice("drop", box=part), values)
        except (DreamboothError, _NotYet) as error:
            return html.note(str(error), "fault") if isinstance(error, DreamboothError) else str(error)
        return self.grid_html(values)

    def _chosen(self, name: str, choice: str, box: str, values: Values) -> list[Any]:
        from ..dataset.choices import Choice

        try:
            part = _box_of(box) or (self._of(self._audit(values), name).kept_box if choice == "fix" else None)
            self._remember(name, Choice(choice, box=part), values)
        except (DreamboothError, _NotYet) as error:
            return self._refused(error)
        return [self._detail_html(name, values), self.grid_html(values), [None, _as_text(part)]]

    def _cut(self, name: str, box: str, values: Values) -> list[Any]:
        """A part that was drawn or typed is to be used; an empty one makes it be chosen by itself again."""
        from ..dataset.choices import Choice

        try:
            part = _box_of(box)
            self._remember(name, Choice("fix", box=part) if part else None, values)
        except (DreamboothError, _NotYet) as error:
            return self._refused(error)
        return [self._detail_html(name, values), self.grid_html(values), ["fix" if part else "keep", _as_text(part)]]

    def _remember(self, name: str, choice: Choice | None, values: Values) -> None:
        from ..dataset.choices import Choice, choose

        audit = self._audit(values)
        is_bad = any(name == bad for bad, _ in audit.unreadable)
        sha256 = _sha256_of_bad(self._sentences.folder(values) / name) if is_bad else self._of(audit, name).sha256
        choose(self._sentences.choices_path(values), name, choice and Choice(choice.choice, sha256, choice.box))

    @staticmethod
    def _refused(error: Exception) -> list[Any]:
        said = html.note(str(error), "fault") if isinstance(error, DreamboothError) else str(error)
        return [said, gr.update(), [None, None]]


def _with_name(handler: Any) -> Any:
    """A handler whose last answer, the values of fields, is sent with the folder and the picture that they are of."""
    def named(folder: str | None, name: str, *raw: Any) -> list[Any]:
        *shown, values = handler(name, *raw)
        return [*shown, json.dumps({"folder": folder, "name": name, "values": values})]
    return named


def _fill(answered: Any, values: Any, folder: Any, meant: Any, into: list[Any]) -> None:
    """Put such an answer into the fields, unless it comes late, and another picture is `meant` by now."""
    on(answered.then, None, [values, folder, meant, *into], into, js="(...all) => window.dreamboothPage.fill(...all)")


def _toggle(name: str, dropped: bool) -> str:
    """`name` is escaped."""
    return (f'<button class="dreambooth-toggle" data-name="{name}" aria-pressed="{str(dropped).lower()}">'
            f'{"Use it" if dropped else "Leave out"}</button>')


def _sha256_of_bad(path: Path) -> str:
    """Of a file that is no picture; empty, which stands for whatever has that name, where it cannot be read either."""
    from ..dataset.manifest import sha256_of
    from ..dataset.pictures import require_own_file

    try:
        require_own_file(path)
        return sha256_of(path)
    except (PictureError, OSError):
        return ""


class _NotYet(Exception):
    """Its text is the HTML that says how far it is."""


def _measured(value: float, threshold: float) -> str:
    return f" (measured {value:.3g}, the limit is {threshold:.3g})" if threshold else ""


def _as_text(box: tuple[int, ...] | None) -> str:
    return ", ".join(map(str, box)) if box else ""


def _box_of(text: str) -> tuple[int, int, int, int] | None:
    """"10, 20, 300, 400" -> (10, 20, 300, 400); None for an empty text. Raises PictureError."""
    if not (text or "").strip():
        return None
    found = [int(number) for number in re.findall(r"-?\d{1,9}", text)]
    if len(found) != 4 or not (0 <= found[0] < found[2] and 0 <= found[1] < found[3]):
        raise PictureError("A part of the picture is to be used", f"{text.strip()[:60]!r} names none",
                           "Give left, top, right and bottom in pixels, such as 0, 0, 512, 512.")
    return found[0], found[1], found[2], found[3]
