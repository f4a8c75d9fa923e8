"""An option is written once: a dataclass field whose metadata makes the flag, the widget and the API schema."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Option:
    """What people see of one field. `kind` is its Python type without the None of an optional value."""

    name: str
    kind: type
    optional: bool
    default: Any
    label: str
    help: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    group: str = ""
    advanced: bool = True

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def fault(self, value: Any) -> str | None:
        """One plain sentence if `value` cannot be used, else None."""
        if value is None:
            return None if self.optional else f"{self.flag}: a value is needed"
        return self._fault_of_kind(value) or self._fault_of_range(value)

    def _fault_of_kind(self, value: Any) -> str | None:
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            return None if abs(value) < _LONGEST else f"{self.flag}: a number of so many digits makes no sense"
        if not isinstance(value, self.kind) or (isinstance(value, bool) and self.kind is not bool):
            return f"{self.flag}: {value!r} is not {_A_KIND[self.kind]}"
        if isinstance(value, tuple) and not all(isinstance(item, str) for item in value):
            return f"{self.flag}: {value!r} is not {_A_KIND[tuple]}"
        if isinstance(value, int) and abs(value) >= _LONGEST:
            return f"{self.flag}: a number of so many digits makes no sense"
        for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
            if _NO_TEXT.search(text):
                return f"{self.flag}: {text!r} holds characters that cannot be written to a file"
        return None

    def _fault_of_range(self, value: Any) -> str | None:
        if self.choices and value not in self.choices:
            return f"{self.flag}: {value!r} is not one of {', '.join(self.choices)}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{self.flag}: {value} is not a finite number"
        if self.minimum is not None and value < self.minimum:
            return f"{self.flag}: {value:g} is less than {self.minimum:g}, the least that makes sense"
        if self.maximum is not None and value > self.maximum:
            return f"{self.flag}: {value:g} is more than {self.maximum:g}, the most that makes sense"
        return None


_LONGEST = 10**18  # beyond it, numbers do not fit where they are used
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
_A_KIND = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a list of texts"}


def option(default: Any, label: str, help: str, **metadata: Any) -> Any:
    """A dataclass field with the metadata that `Option` shows."""
    return dataclasses.field(default=default, metadata={"label": label, "help": help, **metadata})


def options_of(config_class: type) -> tuple[Option, ...]:
    """The options of a configuration class, in the order of its fields; fields without a label are none."""
    return _options(config_class)


@cache
def _options(config_class: type) -> tuple[Option, ...]:
    hints, found = get_type_hints(config_class), []
    for field in dataclasses.fields(config_class):
        if "label" not in field.metadata:
            continue
        kinds = [kind for kind in getattr(hints[field.name], "__args__", ()) if kind is not type(None)]
        is_tuple = getattr(hints[field.name], "__origin__", None) is tuple
        optional = not is_tuple and bool(kinds)
        kind = tuple if is_tuple else (kinds[0] if optional else hints[field.name])
        default = None if field.default is MISSING else field.default
        found.append(Option(field.name, kind, optional, default, **field.metadata))
    return tuple(found)


def faults_of(config: Any) -> list[str]:
    """Faults of all options of one configuration object, taken one by one."""
    found = (option_.fault(getattr(config, option_.name)) for option_ in options_of(type(config)))
    return [fault for fault in found if fault]


def from_mapping(config_class: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Split a JSON object into keyword arguments for `config_class` and faults for names it does not have."""
    known = {field.name for field in dataclasses.fields(config_class)}
    faults = [f"{name}: there is no such setting{_is_meant(name, known)}" for name in values if name not in known]
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    taken = {name: value for name, value in given.items() if name in known}
    return taken, faults


def _is_meant(name: str, known: Collection[str]) -> str:
    found = get_close_matches(name.replace("-", "_"), known, 1, cutoff=0.8)
    return f". Is {found[0]} meant?" if found else ""
