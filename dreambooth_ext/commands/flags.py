"""Flags from options, and settings from flags."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from .. import other_trainers
from ..config import OPTIONS, PATHS, TrainConfig
from ..files import expanded
from ..options import Option, options_of

_NOT_GIVEN = object()
_NEEDED = ("base", "instance_dir", "token", "class_noun", "output_name")  # by every run, if no file has them
# How the help is divided, in its order: what the tab shows at once, then what it has under Advanced.
_TITLES = {"": "the basics", "model": "the model", "pictures": "pictures", "class": "the class", "train": "training",
           "watch": "snapshots and previews"}


def add_config_flags(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add a flag for each option of the run and of its one concept that is in `names`."""
    for name in sorted(names, key=list(OPTIONS).index):
        _add_flag(parser, OPTIONS[name])


def add_all_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option, in groups: there are dozens, and five are needed."""
    groups = {name: parser.add_argument_group(title) for name, title in _TITLES.items()}
    places = {name: place for place, name in enumerate(_NEEDED)}
    for option in sorted(OPTIONS.values(), key=lambda option: places.get(option.name, len(places))):
        _add_flag(groups[option.group if option.advanced else ""], option)


def add_flags_of(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add a flag for each option of another class of settings."""
    for option in options_of(config_class):
        _add_flag(parser, option)


def given_of(parsed: argparse.Namespace, config_class: type) -> dict[str, Any]:
    """The values of those flags that the user wrote."""
    values = {option.name: getattr(parsed, option.name, _NOT_GIVEN) for option in options_of(config_class)}
    return {name: value for name, value in values.items() if value is not _NOT_GIVEN}


def config_from_flags(parsed: argparse.Namespace, preset: Mapping[str, Any] | None = None) -> TrainConfig:
    """Settings of a preset and of --config FILE, if given, overridden by the flags that were given.

    Each can be used, taken by itself: what a command does not ask for may be empty. Raises ConfigError.
    """
    values: dict[str, Any] = dict(preset or {})
    if getattr(parsed, "config", None):
        values |= TrainConfig.read(expanded(parsed.config)).to_dict()
    given = {name: value for name, value in vars(parsed).items() if name in OPTIONS and value is not _NOT_GIVEN}
    return TrainConfig.from_dict({**values, **given}).require_usable()


def given(parsed: argparse.Namespace, name: str, default: Any) -> Any:
    """The value of a flag made by `add_config_flags`, or `default` if the user did not write it."""
    value = getattr(parsed, name, _NOT_GIVEN)
    return default if value is _NOT_GIVEN else value


def like(unknown: str, flags: Sequence[str]) -> Sequence[str]:
    """Which of the flags an unknown one may mean: the one that sd-scripts or diffusers' script calls so, or one spelt nearly so."""
    flag = unknown.partition("=")[0]
    ours = "--" + other_trainers.name_here(flag.removeprefix("--").replace("-", "_")).replace("_", "-")
    return [ours] if ours in flags else get_close_matches(flag, flags, 1)


def _add_flag(parser: argparse._ActionsContainer, option: Option) -> None:
    default = "" if option.default in (None, "", ()) else f" (default: {option.default}{_unit(option)})"
    help_text = f"{option.help}{default}".replace("%", "%%")
    if option.kind is bool:
        parser.add_argument(option.flag, action=argparse.BooleanOptionalAction, default=_NOT_GIVEN, help=help_text)
    elif option.kind is tuple:
        parser.add_argument(option.flag, nargs="+", default=_NOT_GIVEN, metavar="TEXT", help=help_text)
    else:
        parser.add_argument(option.flag, type=_reader(option), default=_NOT_GIVEN, metavar=_metavar(option),
                            help=help_text)


def _reader(option: Option) -> Any:
    """Turn a flag's text into the option's type; text that is no number stays text, for `validate` to name."""
    def read(text: str) -> Any:
        if option.optional and text.lower() in ("", "none", "auto"):
            return None
        try:
            return option.kind(text)
        except ValueError:
            return text

    return read


def _metavar(option: Option) -> str:
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    if option.name in PATHS:
        return "DIR" if option.name.endswith("_dir") else "FILE"
    return {int: "N", float: "X", str: "TEXT"}[option.kind]


def _unit(option: Option) -> str:
    return f" {option.unit}" if option.unit else ""
