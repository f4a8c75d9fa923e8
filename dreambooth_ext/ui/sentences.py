"""The sentence under each step of the Train tab, made from what is filled in so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import advice
from ..config import STEPS_PER_PICTURE
from ..errors import DreamboothError
from ..service import Service
from . import html


class Sentences:
    """Each method takes the tab's values and returns HTML; a fault becomes a red line, never an exception."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def model(self, values: Mapping[str, Any]) -> str:
        base = values.get("base") or ""
        if not base:
            return html.note("Choose the checkpoint to start from.")
        return _told(lambda: advice.about_base(self._file(base)))

    def pictures(self, values: Mapping[str, Any]) -> str:
        folder = values.get("instance_dir") or ""
        if not folder:
            return html.note(advice.WHAT_MAKES_A_GOOD_SET)
        return _told(lambda: advice.about_pictures(self._folder(folder)))

    def concept(self, values: Mapping[str, Any]) -> str:
        token, noun = str(values.get("token") or ""), str(values.get("class_noun") or "")
        if not token or not noun:
            return html.note("The token is a new word, the class says what kind of thing it names.")
        lines = [f'Trains "{values.get("instance_prompt") or f"{token} {noun}"}"']
        if values.get("with_prior_preservation"):
            lines[0] += f' against "{values.get("class_prompt") or noun}", so that others of its kind stay as they are.'
            lines.append(self._class_images(values))
        else:
            lines[0] += ". The class itself will drift towards it."
        return html.note(" ".join(lines)) + _told(lambda: advice.about_token(token), "warning")

    def steps(self, values: Mapping[str, Any]) -> str:
        count = self._count(values)
        if not count:
            return ""
        steps = values.get("steps")
        if isinstance(steps, int) and steps > 0:
            text = f"{steps} steps: {steps / count:.0f} for each of {count} pictures"
        else:
            steps = count * STEPS_PER_PICTURE
            text = f"{count} pictures x {STEPS_PER_PICTURE} = {steps} steps"
        return html.note(text + self._duration(values, steps) + ".")

    def _duration(self, values: Mapping[str, Any], steps: int) -> str:
        resolution = values.get("resolution")
        pace = advice.seconds_a_step(self._service.host.runs_dir, Path(self._service.file_of(values.get("base") or "")),
                                     resolution if isinstance(resolution, int) else None)
        return f", about {html.duration(pace * steps)} at the pace of your last run" if pace else ""

    def review(self, values: Mapping[str, Any]) -> str:
        """The pictures with their verdicts, as a grid."""
        folder = values.get("instance_dir") or ""
        if not folder:
            return html.note("Name a folder of pictures first.")
        cards = []
        for verdict in advice.review(self._folder(folder)):
            words = html.escaped(", ".join(verdict.problems) or "good")
            kind = "warning" if verdict.problems else "good"
            name = verdict.path.name
            cards.append(f"<figure>{html.picture(verdict.path, name)}<figcaption><b>{html.escaped(name)}</b><br>"
                         f'<span class="dreambooth-{kind}">{words}</span></figcaption></figure>')
        return f'<div class="dreambooth-review">{"".join(cards)}</div>'

    def _class_images(self, values: Mapping[str, Any]) -> str:
        given, steps, count = values.get("num_class_images"), values.get("steps"), self._count(values)
        if not count:
            return ""
        wanted, reason = advice.class_images_wanted(given if isinstance(given, int) else None, count,
                                                    steps if isinstance(steps, int) else None)
        return f"{wanted} pictures of the class are wanted ({reason}); those that are missing are rendered first."

    def _count(self, values: Mapping[str, Any]) -> int:
        folder = values.get("instance_dir") or ""
        try:
            return advice.count_pictures(self._folder(folder)) if folder else 0
        except DreamboothError:
            return 0  # `pictures` says why

    def _file(self, base: str) -> Path:
        return self._service.require_allowed(Path(self._service.file_of(base)).expanduser())

    def _folder(self, folder: str) -> Path:
        return self._service.require_allowed(Path(folder).expanduser())


def _told(say: Callable[[], str], kind: str = "note") -> str:
    try:
        return html.note(say(), kind)
    except ImportError as error:  # the top of the tab says which library is missing, and how to get it
        return html.faults([f"This needs a library that is missing: {error.name}."])
    except DreamboothError as error:
        return html.faults([f"{error.why[:1].upper()}{error.why[1:]}. {error.instead}".strip()])
