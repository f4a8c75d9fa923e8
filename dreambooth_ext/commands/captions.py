"""The command that shows what each picture is called, and writes captions."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import Concept
from ..errors import ConfigError
from ..files import expanded
from ..progress import Progress
from .command import Command, say
from .flags import add_config_flags, given

_OPTIONS = ("token", "class_noun", "instance_prompt")


def captions(parsed: argparse.Namespace, progress: Progress) -> None:
    from .. import picture_room
    from ..dataset.captions import TOKENS_AT_MOST
    from ..dataset.verdict import plain

    folder = expanded(parsed.folder)
    concept = Concept(instance_dir=str(folder), **{name: given(parsed, name, "") for name in _OPTIONS})
    if parsed.set:
        _write(folder, parsed.set[0], " ".join(parsed.set[1:]))
    found = picture_room.captions(folder, concept)
    lines = [plain(f"{each.picture.name} ({each.tokens} of {TOKENS_AT_MOST} tokens): {each.prompt}")
             + (plain(f" [not used: {each.problem}]") if each.problem else "")
             + (plain(f" [unread: {each.cut}]") if each.cut else "") for each in found]
    own = sum(each.text is not None for each in found)
    say(parsed, "\n".join([*lines, f"{own} of {len(found)} pictures have a caption of their own."]),
        captions=[{"picture": each.picture.name, "text": each.text, "prompt": each.prompt, "tokens": each.tokens,
                   "cut": each.cut, "problem": each.problem} for each in found])


def _write(folder: Path, name: str, text: str) -> None:
    from ..dataset.captions import write_caption
    from ..dataset.pictures import list_pictures

    picture = next((path for path in list_pictures(folder) if path.name == name), None)
    if picture is None:
        raise ConfigError([f"--set: there is no picture {name!r} in {folder}"])
    write_caption(picture, text)


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder of pictures; captions are .txt files beside them")
    parser.add_argument("--set", nargs="+", metavar=("PICTURE", "TEXT"), help="write one picture's caption; no TEXT removes it")
    add_config_flags(parser, _OPTIONS)


COMMANDS: dict[str, Command] = {
    "captions": (captions, "What each picture is called in training, and how many of CLIP's tokens that takes.", _declare),
}
