"""What each picture is called in training."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config import Concept
from ..errors import PictureError

LONGEST_BYTES = 64 * 1024
COMMON_BELOW = 20_000  # CLIP's vocabulary is in order of how common its pieces are
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def caption_of(picture: Path) -> str | None:
    """The text of the .txt file beside a picture on one line, or None. Raises PictureError if it is no text."""
    path = picture.with_suffix(".txt")
    if not path.is_file():
        return None
    data = path.read_bytes()
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        if len(data) > LONGEST_BYTES:
            raise ValueError
        return " ".join(data.decode(encoding).split())
    except ValueError as error:
        raise PictureError(f"{path.name} is to be read as a caption", "it is no text in UTF-8 or UTF-16",
                           "Save it as UTF-8 text, or remove it.") from error


def prompt_for(concept: Concept, caption: str | None) -> str:
    """The prompt of one picture: the caption with token and class, or the concept's own prompt.

    A template is a prompt with [filewords] in it, which stands for the caption.
    """
    template = concept.instance_text
    if "[filewords]" in template:
        return " ".join(template.replace("[filewords]", caption or "").split())
    if not caption:
        return template
    if concept.token and concept.token.lower() not in caption.lower():
        name = f"{concept.token} {concept.class_noun}".strip()
        at = caption.lower().find(concept.class_noun.lower()) if concept.class_noun else -1
        # The class is named already: the token goes before it. Else both go in front.
        return f"{caption[:at]}{concept.token} {caption[at:]}" if at >= 0 else f"{name}, {caption}"
    return caption


def token_advice(token: str, pieces_of: Callable[[str], Sequence[tuple[str, int]]]) -> str:
    """What to know about a token, in a sentence; empty if it is a good one. `pieces_of` gives (piece, number) pairs."""
    pieces = list(pieces_of(token))
    if len(pieces) == 1 and pieces[0][1] < COMMON_BELOW:
        return (f'"{token}" is a word that the model knows well, and what it knows will mix with your pictures: '
                "consider a rare one, such as rxz or sks.")
    if len(pieces) > 4:
        return f'"{token}" is {len(pieces)} pieces to the model: a shorter token is learnt more surely.'
    return ""
