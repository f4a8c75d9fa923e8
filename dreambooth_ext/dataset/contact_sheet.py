"""Class images on one page, to strike out bad ones.

What is struck out is moved aside and never used; others are rendered in its place.
"""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import PictureError
from ..files import make_folder, storage_error
from .class_images import STRUCK_OUT, ClassImagePlan, PromptPlan, is_recorded
from .pictures import jpeg_uri, open_picture

THUMBNAIL_PX = 128
SHOWN_AT_MOST = 2000
_STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; } body { margin: 1rem; }
div { display: flex; flex-wrap: wrap; gap: .5rem; } figure { margin: 0; width: 8.5rem; }
img { width: 8rem; border-radius: 4px; display: block; } figcaption { overflow-wrap: anywhere; user-select: all; }
"""


def strike_out(pictures: Sequence[Path]) -> list[Path]:
    """Move class images that the base rendered out of use; returns where they are now.

    Their seeds stay used, so that others are rendered in their place. Raises PictureError for what no base rendered here
    (a person's own picture is for that person to remove), StorageError.
    """
    strangers = [path.name for path in pictures if not (path.is_file() and is_recorded(path))]
    if strangers:
        raise PictureError(f"{len(pictures)} class images are to be struck out",
                           f"{', '.join(strangers[:10])}: no such picture was rendered here",
                           "Name pictures of the contact sheet; remove pictures of your own yourself.")
    return [_moved_aside(path) for path in pictures]


def _moved_aside(path: Path) -> Path:
    aside = path.parent / STRUCK_OUT / path.name
    try:
        make_folder(aside.parent)
        os.replace(path, aside)
    except OSError as error:
        raise storage_error(aside.parent, error) from error
    return aside


def named_among(prompts: Sequence[PromptPlan], names: Sequence[str]) -> list[Path]:
    """Pictures by their file name, or by their seed. Raises PictureError for names that are none, and seeds of several prompts."""
    known: dict[str, Path] = {}
    of_several = set()
    for path in dict.fromkeys(path for prompt in prompts for path in prompt.found):  # concepts of one class share them
        seed = path.stem.rpartition("-")[2].lstrip("0") or "0"
        of_several |= {seed} & known.keys()
        known.setdefault(path.name, path)
        known.setdefault(seed, path)
    ambiguous = [name for name in names if name in of_several]
    if ambiguous:
        raise PictureError(f"{len(names)} class images are to be struck out",
                           f"{', '.join(ambiguous[:10])}: pictures of several prompts have this seed",
                           "Name them by their files, as the contact sheet does.")
    lacking = [name for name in names if name not in known]
    if lacking:
        raise PictureError(f"{len(names)} class images are to be struck out", f"{', '.join(lacking[:10])}: there is no such one",
                           "Name them as the contact sheet does.")
    return list(dict.fromkeys(known[name] for name in names))


def page(plan: ClassImagePlan) -> str:
    """The class images of a concept as one HTML file that needs nothing beside it; each with the name to strike it out by."""
    parts = [f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Class images</title><style>{_STYLE}</style>'
             f"</head><body><p>{html.escape(plan.sentence)}</p><p>Strike out what is no good: "
             "<code>class-images --strike-out NAME NAME ...</code>; as many are rendered in their place.</p>"]
    left = SHOWN_AT_MOST
    for prompt in plan.prompts:
        parts.append(f"<h2>{html.escape(prompt.request.prompt)}</h2><div>")
        parts += [_figure(path) for path in prompt.found[:left]]
        left -= len(prompt.found[:left])
        parts.append("</div>")
    return "".join([*parts, "</body></html>\n"])


def _figure(path: Path) -> str:
    try:
        small = open_picture(path)
    except PictureError:
        return f"<figure><figcaption>{html.escape(path.name)}: cannot be opened</figcaption></figure>"
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), reducing_gap=2.0)
    return f'<figure><img alt="" src="{jpeg_uri(small, 80)}"><figcaption>{html.escape(path.name)}</figcaption></figure>'
