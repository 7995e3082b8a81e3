"""Overrides of params.yaml: what a file of experiments sets, and the same as `dvc exp run -S` takes it.

DVC reads `-S` by Hydra's grammar and OmegaConf's rules: a mapping is merged, a list is replaced, a key that the file
does not hold needs `++`, and quoted text stays text. `applied` does to a document what DVC does to the file, so that
the outcome can be checked before DVC is asked.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.basis.text import dotted, show
from schemas.wording import WrongValue

_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*|0|[1-9][0-9]*")
_PLAIN = re.compile(r"[a-z][a-z_]*|[0-9]+-[0-9]+")
"""Text that Hydra reads as text without quotes, unless it is one of the words below."""
_WORDS = ("null", "true", "false", "inf", "nan")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_MISSING = object()


@dataclass(frozen=True)
class Override:
    """One key, from the section down, and the value that it is given."""

    key: tuple[str, ...]
    value: Any


def read_overrides(given: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[Override]:
    """What a `set:` holds below a key: dotted keys, nested mappings or both. Raises `WrongValue`."""
    found = []
    for name, value in given.items():
        parts = name.split(".")
        if not all(map(_PART.fullmatch, parts)):
            raise WrongValue(f'{show(name)} is not a key, or keys joined by dots, such as "ablate.rules.0.scale"')
        key = (*above, *parts)
        if not isinstance(value, dict):
            found.append(Override(key, value))
        elif value:
            found += read_overrides(value, key)
        else:
            raise WrongValue(f"{dotted(key)} is an empty mapping, which would change nothing")
    return found


def combined(overrides: Sequence[Override]) -> list[Override]:
    """The same without those that a later one overwrites."""
    return [
        override
        for number, override in enumerate(overrides, 1)
        if not any(override.key[: len(later.key)] == later.key for later in overrides[number:])
    ]


def applied(document: Mapping[str, Any], overrides: Sequence[Override]) -> tuple[dict[str, Any], list[str]]:
    """The document with its overrides, and those that change it as `-S` takes them.

    Raises `WrongValue`: an override names an item that a list does not have, or cannot be written for DVC.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(document))
    arguments = []
    for override in overrides:
        argument = f"{'.'.join(override.key)}={_literal(override.value)}"
        before = _put(changed, override)
        if before is _MISSING or _literal(before) != _literal(override.value):
            arguments.append(f"++{argument}" if before is _MISSING else argument)
    return changed, arguments


def _put(document: dict[str, Any], override: Override) -> Any:
    """Set the value in place, and give the one that was there."""
    key, before = override.key, _MISSING
    place: Any = document
    for depth, part in enumerate(key):
        index: Any = part
        if isinstance(place, list):
            if not (part.isdigit() and int(part) < len(place)):
                have = f"{dotted(key[:depth])} has {len(place)}, from 0"
                raise WrongValue(f"{dotted(key)} names an item that is not there: {have}")
            index = int(part)
        before = place[index] if isinstance(place, list) else place.get(part, _MISSING)
        if depth == len(key) - 1:
            place[index] = copy.deepcopy(override.value)
        elif not isinstance(before, dict | list):
            place[index] = {}
        place = place[index]
    return before


def _literal(value: Any) -> str:
    """A value in Hydra's grammar, which is nearly YAML's own in one line."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return value if _PLAIN.fullmatch(value) and value not in _WORDS else _quoted(value)
        case list():
            return f"[{', '.join(map(_literal, value))}]"
        case dict() if not value:
            raise WrongValue("an empty mapping in a list cannot be given to DVC, which writes what follows it wrongly")
        case dict():
            return f"{{{', '.join(f'{_name(name)}: {_literal(item)}' for name, item in value.items())}}}"
    raise AssertionError(f"{type(value)} is no value of YAML as this project reads it")


def _name(name: str) -> str:
    if _PART.fullmatch(name):
        return name
    raise WrongValue(f"{show(name)} cannot be the key of an override: use letters, digits, _ and -")


def _quoted(text: str) -> str:
    if "${" in text or text == "???" or _CONTROL.search(text):
        raise WrongValue(f"{show(text)} cannot be given to DVC: it has a control character, or is looked up (${{, ???)")
    # A backslash stands for itself, except before the closing quote and before one that is escaped.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"
