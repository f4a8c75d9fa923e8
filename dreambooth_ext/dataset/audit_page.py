"""An audit as one HTML file that needs nothing beside it; the faults are shown, and names and reasons are escaped."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from ..errors import PictureError
from .crop import Box
from .pictures import jpeg_uri, open_picture
from .verdict import ADVICE, Audit, PictureAudit, Verdict

WHOLE_PX, CROP_PX = 220, 180
SHOWN_PICTURES = 500  # with their images; of the others only the words, or no browser would open the page
_TITLES = {"keep": "good as it is", "fix": "to be fixed", "drop": "better left out"}
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
article { display: flex; gap: 1rem; flex-wrap: wrap; border-top: 1px solid #8886; padding: 1rem 0; }
article > div { flex: 1 1 20rem; } h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 .5rem; } figcaption { font-size: .9rem; } img { max-width: 100%; border-radius: 4px; }
.drop h2 span { color: #c0392b; } .fix h2 span { color: #b9770e; } .keep h2 span { color: #1e8449; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; }
"""


def page(audit: Audit, folder: Path) -> str:
    """The report on the pictures of `folder`, which are read again for their thumbnails; the original files stay as they are."""
    head = (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Pictures of {html.escape(audit.folder)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>')
    worst_first = sorted(audit.pictures, key=lambda picture: -ADVICE.index(picture.advice))
    pictures = "".join(_article(picture, folder if place < SHOWN_PICTURES else None)
                       for place, picture in enumerate(worst_first))
    return "".join([head, f"<h1>Pictures of {html.escape(audit.folder)}</h1>", f"<p>{html.escape(audit.summary)}</p>",
                    _together(audit), pictures, "</body></html>\n"])


def _together(audit: Audit) -> str:
    together = audit.together
    rows = [("looked at for", f"a {audit.kind}, at {audit.resolution} pixels"), ("backgrounds", _counted(together.backgrounds)),
            ("framing", _counted(together.framings)), ("shapes", _counted(together.aspects)),
            ("the same picture", "; ".join(" = ".join(group) for group in together.duplicates)),
            ("with a mark in common", ", ".join(together.marked)), ("made unlike the others", ", ".join(together.outliers)),
            ("compared", together.compared)]
    rows += [("cannot be used", f"{name}: {reason}") for name, reason in audit.unreadable]
    body = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows if text)
    advice = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in together.advice)
    return f"<table>{body}</table><ul>{advice}</ul>"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _article(picture: PictureAudit, folder: Path | None) -> str:
    image = _opened(folder / picture.name) if folder else None
    chosen = f", you chose {picture.choice}" if picture.choice else ""
    title = f"{html.escape(picture.name)} <span>{_TITLES[picture.advice]}{chosen}</span>"
    size = f"<p>{picture.width} x {picture.height} pixels</p>"
    whole = _image(_with_boxes(image, picture), "the whole picture", WHOLE_PX) if image else ""
    return (f'<article class="{picture.advice}">{whole}<div><h2>{title}</h2>{size}'
            f"{''.join(_figures(picture, image, folder))}</div></article>")


def _figures(picture: PictureAudit, image: Image.Image | None, folder: Path | None) -> Iterator[str]:
    for verdict in picture.verdicts:
        shown = _image(_cut(image, verdict.box) if verdict.box else image, verdict.check, CROP_PX) if image else ""
        other = _opened(folder / verdict.other) if folder and verdict.other else None
        if other is not None:
            shown += _image(other, verdict.other, CROP_PX)
        yield f"<figure>{shown}<figcaption>{html.escape(_said(verdict))}</figcaption></figure>"


def _said(verdict: Verdict) -> str:
    number = f" ({verdict.value:.3g}, threshold {verdict.threshold:.3g})" if verdict.threshold else ""
    fix = f" Keep the part {list(verdict.fix.box)}." if verdict.fix and verdict.fix.box else ""
    return f"{verdict.check}: {verdict.reason}{number}.{fix}"


def _opened(path: Path) -> Image.Image | None:
    try:
        return open_picture(path)
    except PictureError:  # it was there when it was looked at, and has gone since
        return None


def _cut(image: Image.Image, box: Box) -> Image.Image:
    return image.crop((max(0, box[0]), max(0, box[1]), min(image.width, box[2]), min(image.height, box[3])))


def _with_boxes(image: Image.Image, picture: PictureAudit) -> Image.Image:
    """The whole picture with a frame around each place that a verdict names."""
    scale = min(1.0, 2 * WHOLE_PX / max(image.size))
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), reducing_gap=2.0)
    pen = ImageDraw.Draw(small)
    for verdict in picture.verdicts:
        if verdict.box and verdict.box != (0, 0, *image.size):
            left, top, right, bottom = (round(edge * scale) for edge in verdict.box)
            pen.rectangle([left, top, max(left, right - 1), max(top, bottom - 1)], outline=(230, 60, 40), width=2)
    return small


def _image(image: Image.Image, text: str, size: int) -> str:
    shown = image.copy()
    shown.thumbnail((2 * size, 2 * size), reducing_gap=2.0)
    return f'<img alt="{html.escape(text)}" width="{min(size, shown.width)}" src="{jpeg_uri(shown, 85)}">'
