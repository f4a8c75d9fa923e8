"""Widgets from options, and settings from widgets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from ..config import OPTIONS, PATHS
from ..options import Option
from . import html

_QUOTED = re.compile(r"""^(["'])(.*)\1$""")  # as Windows' "Copy as path" gives a path


def widget(option: Option, **changes: Any) -> Any:
    """The widget of one option: its label, help and limits are those of the command line."""
    arguments: dict[str, Any] = {
        "label": f"{option.label} ({option.unit})" if option.unit else option.label, "value": shown(option, option.default),
        "info": option.help, "elem_id": f"dreambooth_{option.name}", "elem_classes": ["dreambooth-option"],
        "interactive": True, **changes,
    }
    if option.kind is bool:
        return gr.Checkbox(**arguments)
    if option.choices:
        return gr.Dropdown(choices=list(option.choices), **arguments)
    if option.kind is int and not option.optional:
        return gr.Number(precision=0, **arguments)
    if option.kind is tuple:
        return gr.Textbox(**{"lines": 2, "placeholder": "one a line", **arguments})
    # An empty number field of gradio 3 says 0, so what may be empty is a text field.
    return gr.Textbox(max_lines=1, **arguments)


def shown(option: Option, value: Any) -> Any:
    """A setting's value as its widget shows it."""
    if option.kind is tuple:
        return "\n".join(value)
    if option.kind is float or (option.kind is int and option.optional):
        return "" if value is None else _short(value) if option.kind is float else str(value)
    return value


def _short(value: float) -> str:
    """5e-06, 0.9, 1: as few digits as give the same number when they are read."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def values_of(names: Sequence[str], raw: Iterable[Any]) -> dict[str, Any]:
    """What the widgets say, as settings; text that is no number stays text, for `validate` to name."""
    return values_from({name: OPTIONS[name] for name in names}, raw)


def values_from(options: Mapping[str, Option], raw: Iterable[Any]) -> dict[str, Any]:
    """The same for widgets of other options, in their order."""
    return {name: _value(option, value) for (name, option), value in zip(options.items(), raw, strict=True)}


def updates(names: Iterable[str], values: Mapping[str, Any]) -> list[Any]:
    """What the widgets of these settings are to show; those of which `values` says nothing stay as they are."""
    return [shown(OPTIONS[name], values[name]) if name in values else gr.update() for name in names]


def with_values(widgets: Mapping[str, Any], handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose last inputs are these widgets, given their settings as its last argument instead."""
    names = list(widgets)
    return lambda *raw: handler(*raw[: len(raw) - len(names)], values_of(names, raw[len(raw) - len(names):]))


def number(text: Any, kind: type = int) -> Any:
    """A field that may be left empty: None, or a number of that kind; other text stays text, for the settings to refuse."""
    return _value(Option("number", kind, True, None, "", ""), text)


def _value(option: Option, value: Any) -> Any:
    if option.kind is tuple:
        return tuple(line.strip() for line in (value or "").splitlines() if line.strip())
    if option.kind is int and value is None and not option.optional:
        return option.default
    if option.kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if option.kind is float or (option.kind is int and option.optional and not isinstance(value, int)):
        text = str(value if value is not None else "").strip()
        if not text:
            return None if option.optional else option.default
        try:
            return option.kind(text)
        except ValueError:
            return text
    if option.kind is str:
        text = (value or "").strip()
        return _QUOTED.sub(r"\2", text) if option.name in PATHS else text
    return value


def first_alone(concepts: int) -> str:
    """What is to be said where a form takes settings of several subjects."""
    return html.note(f"The form holds one subject, the first of these {concepts}; `train --config` takes them all."
                     if concepts > 1 else "", "warning")


_STEP_OF = {"watch": "train"}  # it has no step of its own


def option_of(fault: str) -> Option | None:
    """The option that a fault is about: its sentence begins with the flag."""
    flag = re.split("[: ]", fault, maxsplit=1)[0]
    return next((option for option in OPTIONS.values() if option.flag == flag), None)


def faults_of_group(faults: Iterable[str], group: str) -> str:
    """Those of `faults` that are about options of one group, as HTML, in words of the tab instead of flags.

    Each names its option, so that the page's script can put it under the field itself.
    """
    found = ""
    for fault in faults:
        option = option_of(fault)
        if option is None and group == "train":
            found += html.faults([fault])
        elif option is not None and _STEP_OF.get(option.group, option.group or "train") == group:
            asked, _, why = fault.partition(": ")  # "--flag: why", or "--flag is to be 'x': why"
            found += html.fault_of(option.name, option.label, why or asked)
    return found
