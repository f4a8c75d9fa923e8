"""What each picture is called in training."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..config import Concept
from ..errors import PictureError
from ..files import storage_error, write_atomically
from ..words import counted
from .pictures import is_link_elsewhere, list_pictures

LONGEST_BYTES = 64 * 1024
TOKENS_AT_MOST = 77  # of CLIP's text encoder, the start and the end among them
COMMON_BELOW = 20_000  # CLIP's vocabulary is in order of how common its pieces are
PLACES = ("[filewords]", "[name]", "[class]")  # in a template: the caption, the token, the class
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_WORD_END = "</w>"  # of CLIP's pieces

PiecesOf = Callable[[str], Sequence[tuple[str, int]]]  # models/tokenizer.py: a text as (piece, number)


@dataclass(frozen=True)
class Caption:
    """One picture's caption, the prompt that it makes, and how much of CLIP's 77 tokens that takes.

    `text` is None where there is no .txt file; `cut` is what is beyond the limit and goes unread; `problem` says why a file
    cannot be used, and the prompt is then the concept's own.
    """

    picture: Path
    text: str | None
    prompt: str
    tokens: int
    cut: str = ""
    problem: str = ""


def caption_path(picture: Path) -> Path:
    """The .txt file beside a picture that holds its caption; IMG.TXT as well, as where capitals make no difference."""
    usual = picture.with_suffix(".txt")
    others = (picture.with_suffix(suffix) for suffix in (".TXT", ".Txt"))
    return usual if usual.is_file() else next((path for path in others if path.is_file()), usual)


def caption_of(picture: Path) -> str | None:
    """The text of the .txt file beside a picture on one line, or None. Raises PictureError if it is no text."""
    path = caption_path(picture)
    if not path.is_file():
        return None
    if is_link_elsewhere(path):
        raise _refused(path, "it is a link to a file elsewhere")
    try:
        with path.open("rb") as stream:
            data = stream.read(LONGEST_BYTES + 1)
    except OSError as error:
        raise _refused(path, "it may not be read") from error
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
        if len(data) > LONGEST_BYTES or "\0" in text:  # UTF-16 without its mark is UTF-8 with a zero after each letter
            raise ValueError
        return " ".join(text.split())
    except ValueError as error:
        raise _refused(path, "it is no text in UTF-8 or UTF-16") from error


def _refused(path: Path, why: str) -> PictureError:
    return PictureError(f"{path.name} is to be read as a caption", why, "Save it as UTF-8 text, or remove it.")


def write_caption(picture: Path, text: str) -> Path:
    """Write a picture's caption beside it, on one line; an empty text takes the file away. Raises PictureError, StorageError."""
    path, line = caption_path(picture), " ".join(text.split())
    if path.is_dir() or is_link_elsewhere(path):
        raise PictureError(f"{path.name} is to be written", "it is a folder, or a link to a file elsewhere", "Remove it first.")
    if len(line.encode("utf-8", "surrogatepass")) > LONGEST_BYTES or not line.isprintable():
        raise PictureError(f"{path.name} is to be written", "it is too long, or holds characters that are none",
                           "Use plain text; CLIP reads 75 tokens of it.")
    if not line:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error
    else:
        with write_atomically(path, "w") as stream:
            stream.write(line + "\n")
    return path


def captions_in(folder: Path, concept: Concept, pieces_of: PiecesOf) -> list[Caption]:
    """Every picture of a folder with its caption and prompt. Raises PictureError if there is no such folder."""
    return [caption_for(path, concept, pieces_of) for path in list_pictures(folder)]


def caption_for(picture: Path, concept: Concept, pieces_of: PiecesOf) -> Caption:
    """One picture's caption and the prompt that it makes."""
    text, problem = None, ""
    try:
        text = caption_of(picture)
    except PictureError as error:
        problem = error.why
    prompt = prompt_for(concept, text)
    tokens, cut = count_tokens(prompt, pieces_of)
    return Caption(picture, text, prompt, tokens, cut, problem)


def count_tokens(prompt: str, pieces_of: PiecesOf) -> tuple[int, str]:
    """How many of CLIP's 77 tokens a prompt takes, its start and end among them; and the text beyond, which goes unread."""
    pieces = [piece for piece, _ in pieces_of(prompt)]
    beyond = "".join(pieces[TOKENS_AT_MOST - 2 :]).replace(_WORD_END, " ").strip()
    return len(pieces) + 2, beyond


def prompt_for(concept: Concept, caption: str | None) -> str:
    """The prompt of one picture: the caption with token and class, or the concept's own prompt.

    A template is a prompt with [filewords] in it, which stands for the caption; [name] is the token, [class] the class.
    """
    if not caption:
        return concept.uncaptioned_text
    template = concept.template
    if "[filewords]" in template:
        return " ".join(template.replace("[filewords]", caption).split()).strip(" ,")
    return _with_names(caption, concept.token, concept.class_noun)


def _with_names(caption: str, token: str, noun: str) -> str:
    """The caption, with token and class where they are missing."""
    if not token or (_place(token, caption) and (not noun or _place(noun, caption))):
        return caption
    at = _place(token, caption)
    if at:  # the class goes after the token
        return f"{caption[: at.end()]} {noun}{caption[at.end() :]}"
    at = _place(noun, caption) if noun else None
    if at:  # the token goes before the class
        return f"{caption[: at.start()]}{token} {caption[at.start() :]}"
    return f"{f'{token} {noun}'.strip()}, {caption}"


def _place(word: str, text: str) -> re.Match[str] | None:
    """Where a word stands by itself: "man" is not in "woman"."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)


def bracket_advice(what: str, text: str) -> str:
    """What to know about a prompt, or a part of one, with brackets: a sentence on `what`; empty if it has none."""
    for place in PLACES:
        text = text.replace(place, "")
    told = f"{what} has brackets: training learns them as letters, txt2img as weights. Omit them, or write \\( and \\[ there."
    return told if re.search(r"[()\[\]]", text) else ""


def captions_advice(folder: Path) -> str:
    """What to know about the captions of a folder, in a sentence. Raises PictureError if there is no such folder."""
    found = []
    for picture in list_pictures(folder):
        with suppress(PictureError):  # which whoever reads the caption for training is told
            if bracket_advice("", caption_of(picture) or ""):
                found.append(caption_path(picture).name)
    return bracket_advice(f"The caption {found[0]}" + (f" (and {counted(len(found) - 1, 'other')})" if found[1:] else ""), "()") \
        if found else ""


def token_advice(token: str, pieces_of: PiecesOf) -> str:
    """What to know about a token, in a sentence; empty if it is a good one. `pieces_of` gives (piece, number) pairs."""
    if bracketed := bracket_advice(f'"{token}"', token):
        return bracketed
    pieces = list(pieces_of(token))
    if len(pieces) == 1 and pieces[0][1] < COMMON_BELOW:
        return (f'"{token}" is a word that the model knows well, and what it knows will mix with your pictures: '
                "consider a rare one, such as rxz or sks.")
    if len(pieces) > 4:
        return f'"{token}" is {len(pieces)} pieces to the model: a shorter token is learnt more surely.'
    return ""


def token_pieces_told(token: str, pieces_of: PiecesOf) -> str:
    """How CLIP reads a token, in a sentence: how many pieces, which, and how common each of them is."""
    pieces = [(piece.replace(_WORD_END, ""), number) for piece, number in pieces_of(token)]
    named = ", ".join(f'"{piece}" (number {number}{", common" if number < COMMON_BELOW else ", rare"})'
                      for piece, number in pieces)
    count = "1 piece" if len(pieces) == 1 else f"{len(pieces)} pieces"
    return f'CLIP reads "{token}" as {count}: {named}; the higher the number (of 49,408), the rarer.' if pieces else ""
