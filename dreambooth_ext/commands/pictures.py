"""The commands that look at pictures, and prepare them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from ..config import OPTIONS, colour_of
from ..errors import ConfigError, PictureError
from ..files import expanded, write_atomically
from ..progress import Progress
from ..words import counted
from .command import Command, say

_SHOWN = 40  # findings on a terminal; the rest is in --json and --html


def audit(parsed: argparse.Namespace, progress: Progress) -> None:
    from ..dataset.audit import audit as look_at
    from ..dataset.audit_page import page
    from ..dataset.choices import read_choices, write_choices

    folder, resolution = expanded(parsed.folder), _resolution(parsed)
    file = expanded(parsed.choices) if parsed.choices else None
    page_file = expanded(parsed.html) if parsed.html else None
    for path in (file, page_file):
        _require_outside(path, folder)
    former = read_choices(file) if file and os.path.exists(file) else {}
    progress.start("auditing", 0)
    found = look_at(folder, kind=parsed.kind, resolution=resolution, choices=former, progress=progress)
    if file:
        write_choices(file, found, former)
    if page_file:
        with write_atomically(page_file, "w") as stream:
            stream.write(page(found, folder))
    lines = found.lines()
    more = [f"... and {len(lines) - _SHOWN} more findings: --json or --html FILE shows all."] if len(lines) > _SHOWN else []
    written = [f"Wrote {path}." for path in (page_file, file) if path]
    say(parsed, "\n".join(lines[:_SHOWN] + more + [found.summary] + written), **found.to_dict())


def prepare(parsed: argparse.Namespace, progress: Progress) -> None:
    from ..dataset.choices import orders, read_choices
    from ..dataset.prepare import prepare as prepare_pictures
    from ..dataset.verdict import plain

    folder, out, resolution = expanded(parsed.folder), expanded(parsed.out), _resolution(parsed)
    _require_own(out, folder)
    if colour_of(parsed.flatten_on) is None:
        raise ConfigError([f"--flatten-on: {parsed.flatten_on!r} is no colour: white, black, grey, or #rrggbb"])
    leave_out, boxes = orders(read_choices(expanded(parsed.choices)), folder) if parsed.choices else (set(), {})
    refused: dict[str, str] = {}
    progress.start("cropping", 0)
    prepared = prepare_pictures(folder, out, resolution=resolution, crop=parsed.crop, flatten_on=parsed.flatten_on,
                                progress=progress, overrides=boxes, leave_out=leave_out, refused=refused)
    pictures: list[Mapping[str, object]] = [
        {"file": picture.path.name, "source": picture.source.name, "width": picture.width, "height": picture.height,
         "box": list(picture.box)} for picture in prepared]
    left_out = f"; {len(leave_out)} left out, as chosen" if leave_out else ""
    lines = [plain(f"{name}: cannot be used, {why}.") for name, why in refused.items()]
    lines.append(f"Prepared {counted(len(prepared), 'picture')} in {out}{left_out}.")
    say(parsed, "\n".join(lines), folder=str(out), pictures=pictures, unreadable=list(refused.items()))
    if refused:
        progress.start("preparing", 0)  # the work is done, as far as it could be: exit code 1
        raise PictureError(f"{len(prepared) + len(refused)} pictures of {folder} were to be prepared",
                           f"{len(refused)} of them cannot be used", "The others are prepared. Remove these, or save them anew.")


def _resolution(parsed: argparse.Namespace) -> int:
    fault = OPTIONS["resolution"].fault(parsed.resolution)
    if fault:
        raise ConfigError([fault])
    return parsed.resolution


def _require_outside(path: Path | None, folder: Path) -> None:
    """Nothing is written over a picture, nor anything that is no file of ours."""
    if path is not None and path.suffix.lower() not in (".json", ".html", ".htm"):
        raise ConfigError([f"{path.name}: its name is to end in .json for --choices, in .html for --html"])
    if path is not None and os.path.isdir(path):
        raise ConfigError([f"{path}: it is a folder"], f"Give the name of a file; the pictures are in {folder}.")


def _require_own(out: Path, folder: Path) -> None:
    """Preparation removes what it no longer wants, so its folder is to be new, empty, or one that it made."""
    if out.resolve() == folder.resolve():
        raise ConfigError(["--out: it is the folder of the pictures themselves"], "Give another one: originals stay as they are.")
    if os.path.isdir(out) and not (out / "prepared.json").is_file() and any(out.iterdir()):
        raise ConfigError([f"--out: {out} holds files that preparation did not make"], "Give a new or an empty folder.")


def _declare_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder of pictures; nothing in it is changed")
    parser.add_argument("--kind", choices=OPTIONS["kind"].choices, default="subject",
                        help="what they are to teach (default: subject)")
    _declare_resolution(parser)
    parser.add_argument("--html", metavar="FILE", help="write a page that shows every finding")
    parser.add_argument("--choices", metavar="FILE", help="write what to keep, fix and drop, for you to change; `prepare` reads it")


def _declare_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder of pictures; nothing in it is changed")
    parser.add_argument("--out", metavar="DIR", required=True, help="where the prepared pictures go")
    _declare_resolution(parser)
    parser.add_argument("--crop", choices=OPTIONS["crop"].choices, default=OPTIONS["crop"].default, help=OPTIONS["crop"].help)
    parser.add_argument("--flatten-on", default="white", metavar="COLOUR", help=OPTIONS["flatten_on"].help)
    parser.add_argument("--choices", metavar="FILE", help="what `audit --choices` wrote and you changed")


def _declare_resolution(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resolution", type=int, default=512, metavar="N", help="pixels that training sees (default: 512)")


COMMANDS: dict[str, Command] = {
    "audit": (audit, "Look at every picture of a folder, and say which to keep, fix or drop, and why.", _declare_audit),
    "prepare": (prepare, "Crop and resize pictures as training would, into another folder.", _declare_prepare),
}
