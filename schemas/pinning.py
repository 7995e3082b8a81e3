"""Writes a Hub model's id and commit into params.yaml where YAML's marks say, and proves that only they changed."""

import contextlib
import re

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from schemas.basis import plain_yaml
from schemas.params.document import parse
from schemas.wording import ParamsError

_SECTION = "model"
_NUMBER = re.compile(r"[0-9]+(?:e[0-9]+)?")
_END_OF_LINE = re.compile(r"\r?\n|\Z")


def pinned(text: str, source: str, revision: str, name: str = "params.yaml") -> str:
    """The text with `model.source` and `model.revision`. Raises `ParamsError`: it cannot be edited or is invalid."""
    values = {"source": source, "revision": revision}
    document = plain_yaml.parse_mapping(text, name)
    section = document.get(_SECTION)
    if not isinstance(section, dict | None):
        raise ParamsError(name, "must be a mapping of keys, so that it can be pinned", (_SECTION,))
    # Only digits, or digits with an e between them, would be read as a number.
    scalars = {key: f'"{value}"' if _NUMBER.fullmatch(value) else value for key, value in values.items()}
    changed = _edited(text, scalars)
    result = None
    with contextlib.suppress(ParamsError):
        result = plain_yaml.parse_mapping(changed, name)
    if result != {**document, _SECTION: {**(section or {}), **values}}:
        by_hand = f"set source: {source} and revision: {revision} there"
        raise ParamsError(name, f"cannot be edited as it is written; {by_hand}", (_SECTION,))
    parse(changed, name)
    return changed


def _edited(text: str, values: dict[str, str]) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = "".join(f"{newline}  {name}: {value}" for name, value in values.items())
    pairs = _pairs(YAML(typ="safe", pure=True).compose(text))
    if _SECTION not in pairs:
        end = "" if text.endswith("\n") else newline
        return f"{text}{end}{_SECTION}:{lines}{newline}"
    key, section = pairs[_SECTION]
    start, stop = section.start_mark.index, section.end_mark.index
    if isinstance(section, MappingNode) and section.value:
        return _with_values(text, section, values, newline)
    if not text[start:stop].strip():
        end_of_key = _end_of_line(text, key.end_mark.index)
        return f"{text[:end_of_key]}{lines}{text[end_of_key:]}"
    flow = ", ".join(f"{name}: {value}" for name, value in values.items())
    return f"{text[:start]}{{{flow}}}{text[stop:]}"


def _with_values(text: str, section: MappingNode, values: dict[str, str], newline: str) -> str:
    """A section that is not empty with these values; missing keys come first, or `revision` after `source`."""
    pairs = _pairs(section)
    first = section.value[0][0].start_mark
    separator = ", " if section.flow_style else newline + " " * first.column
    missing = "".join(f"{separator}{key}: {value}" for key, value in values.items() if key not in pairs)
    edits = [(first.index, first.index, missing.removeprefix(separator) + separator)] if missing else []
    for name, value in values.items():
        if name not in pairs:
            continue
        key, old = pairs[name]
        start, stop = old.start_mark.index, old.end_mark.index
        if not text[start:stop].strip():  # an empty value, whose marks are those of what follows
            start = stop = text.index(":", key.end_mark.index) + 1
            value = f" {value}"
        edits.append((start, stop, value))
        if missing and name == "source":
            end = stop if section.flow_style else _end_of_line(text, stop)
            edits[0] = (end, end, missing)
    for start, stop, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[stop:]
    return text


def _pairs(node: object) -> dict[str, tuple[Node, Node]]:
    return {key.value: (key, value) for key, value in node.value} if isinstance(node, MappingNode) else {}


def _end_of_line(text: str, index: int) -> int:
    return next(_END_OF_LINE.finditer(text, index)).start()
