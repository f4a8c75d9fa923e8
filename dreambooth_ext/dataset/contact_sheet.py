"""Class images on one page, to strike out bad ones.

What is struck out is moved aside and never used; others are rendered in its place.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ..errors import PictureError
from ..files import make_folder, storage_error
from .class_images import STRUCK_OUT, ClassImagePlan, PromptPlan, is_recorded
from .pictures import open_picture

THUMBNAIL_PX = 128
COLUMNS = 10
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
    return [_moved(path, path.parent / STRUCK_OUT) for path in pictures]


def take_back(pictures: Sequence[Path]) -> list[Path]:
    """Bring struck-out pictures back into use; returns where they are now. Raises PictureError, StorageError."""
    strangers = [path.name for path in pictures if path.parent.name != STRUCK_OUT or not path.is_file()]
    if strangers:
        raise PictureError(f"{len(pictures)} class images are to be taken back", f"{', '.join(strangers[:10])}: not struck out",
                           "Name pictures that were struck out before.")
    return [_moved(path, path.parent.parent) for path in pictures]


def struck_out(folder: Path) -> list[Path]:
    """The pictures of a class folder that were struck out."""
    return sorted((folder / STRUCK_OUT).glob("*.png"))


def _moved(path: Path, folder: Path) -> Path:
    try:
        make_folder(folder)
        os.replace(path, folder / path.name)
    except OSError as error:
        raise storage_error(folder, error) from error
    return folder / path.name


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


def sheet(pictures: Sequence[Path], *, columns: int = COLUMNS, px: int = THUMBNAIL_PX) -> Image.Image:
    """The pictures as one RGB picture, in rows, each with its number from 1 on; what cannot be opened is left grey."""
    rows = max(1, -(-len(pictures) // columns))
    whole = Image.new("RGB", (columns * px, rows * px), (90, 90, 90))
    pen = ImageDraw.Draw(whole)
    for number, path in enumerate(pictures):
        at = number % columns * px, number // columns * px
        small = _thumbnail(path, px)
        if small is not None:
            whole.paste(small, (at[0] + (px - small.width) // 2, at[1] + (px - small.height) // 2))
        pen.rectangle([at[0], at[1], at[0] + 8 * len(str(number + 1)) + 2, at[1] + 13], fill=(0, 0, 0))
        pen.text((at[0] + 2, at[1] + 1), str(number + 1), fill=(255, 255, 255))
    return whole


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
    small = _thumbnail(path, THUMBNAIL_PX)
    if small is None:
        return f"<figure><figcaption>{html.escape(path.name)}: cannot be opened</figcaption></figure>"
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption>{html.escape(path.name)}</figcaption></figure>'


def _thumbnail(path: Path, px: int) -> Image.Image | None:
    try:
        image = open_picture(path)
    except PictureError:
        return None
    image.thumbnail((px, px), reducing_gap=2.0)
    return image
