"""Small pieces of HTML. Whatever comes from outside (names, prompts, messages, file names) is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..files import DAMAGED
from ..words import duration

escaped = html.escape
THUMBNAIL_PX = 192


def faults(lines: Iterable[str]) -> str:
    """What is wrong, one line each; empty if nothing is."""
    return "".join(f'<p class="dreambooth-fault" role="alert">{escaped(line)}</p>' for line in lines)


def fault_of(option: str, label: str, text: str) -> str:
    """What is wrong with one field; the page's script moves it there, and then leaves the label out."""
    return (f'<p class="dreambooth-fault" role="alert" data-option="{escaped(option)}"><b>{escaped(label)}:</b> '
            f"{escaped(text)}</p>")


def warning_of(option: str, label: str, text: str) -> str:
    """Advice on one field, which the page's script moves there as well."""
    if not text:
        return ""
    return f'<p class="dreambooth-warning" data-option="{escaped(option)}"><b>{escaped(label)}:</b> {escaped(text)}</p>'


def note(text: str, kind: str = "note") -> str:
    """A sentence or several lines; `kind` is note, good, warning or fault."""
    body = "<br>".join(escaped(line) for line in text.splitlines())
    return f'<p class="dreambooth-{kind}">{body}</p>' if text else ""


def listed(title: str, lines: Iterable[str]) -> str:
    """Lines behind a title that opens; nothing without lines."""
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return f'<details class="dreambooth-listed" open><summary>{escaped(title)}</summary><ul>{items}</ul></details>' if items else ""


def pending(text: str, done: int = 0, total: int = 0) -> str:
    """Something that is being found out; while it stands on the page, the script asks for it again."""
    count = f": {done} of {total}" if total else ""
    return f'<p class="dreambooth-note dreambooth-pending">{escaped(text)}{count} ...</p>'


def bar(share: float, label: str) -> str:
    percent = round(100 * min(max(share, 0.0), 1.0))
    return (f'<div class="dreambooth-bar" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" '
            f'aria-valuemax="100" aria-label="{escaped(label)}"><div style="width:{percent}%"></div>'
            f"<span>{escaped(label)}</span></div>")


def figures(status: Mapping[str, Any]) -> str:
    """The numbers of a job in the words of a person, separated by dots; how fast it is only while it runs."""
    values = {name: value for name, value in status["figures"].items()
              if status["state"] == "running" or name not in _OF_RUNNING}
    words = []
    for name, form in _FIGURES.items():
        if isinstance(values.get(name), (int, float)):
            words.append(form(values[name]))
    words += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items()
              if name not in _FIGURES and isinstance(value, (int, float)) and not isinstance(value, bool)]
    return '<p class="dreambooth-figures">' + " · ".join(escaped(word) for word in words) + "&nbsp;</p>"


_OF_RUNNING = {"steps_per_s", "images_per_s", "seconds_left", "memory_gib"}
_FIGURES: dict[str, Any] = {
    "loss": lambda value: f"loss {value:.4f}",
    "validation_loss": lambda value: f"validation {value:.4f}",
    "learning_rate": lambda value: f"learning rate {value:.3g}",
    "steps_per_s": lambda value: f"{value:.2f} steps/s",
    "images_per_s": lambda value: f"{value:.1f} pictures/s",
    "seconds_left": lambda value: f"{duration(value)} left",
    "memory_gib": lambda value: f"{value:.1f} GiB",
}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are HTML already: their makers escape."""
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="dreambooth-scroll"><table class="dreambooth-table"><thead><tr>{head}</tr></thead>' \
           f"<tbody>{body}</tbody></table></div>"


def _cell(content: str) -> str:
    wide = ' class="dreambooth-wide"' if "<small>" in content else ""
    return f"<td{wide}>{content}</td>"


def picture(path: Path, text: str = "", size: int = THUMBNAIL_PX, *, file: str = "") -> str:
    """An <img> that carries its own data, so that no folder has to be opened to the browser; nothing for a link.

    With `file`, its run and name, it is a picture that the page's script lets people enlarge.
    """
    from PIL import Image

    try:
        status = path.lstat()
        source = "" if path.is_symlink() else _data_uri(path, status.st_mtime_ns, status.st_size, size)
    except (*DAMAGED, Image.DecompressionBombError):
        source = ""  # one that is being written comes with the next refresh
    if not source:
        return ""
    more = f' data-file="{escaped(file)}" tabindex="0" role="button"' if file else ""
    return f'<img alt="{escaped(text)}" title="{escaped(text)}" src="{source}"{more}>'


@lru_cache(maxsize=1024)
def _data_uri(path: Path, mtime_ns: int, length: int, size: int) -> str:
    from PIL import Image, ImageOps

    from ..dataset.pictures import jpeg_uri

    with Image.open(path) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((size, size))
    return jpeg_uri(small, 88)
