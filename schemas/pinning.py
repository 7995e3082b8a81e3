"""Writing a Hub model's id and commit into the text of params.yaml, of which nothing else changes, not a space: they
are put where YAML's marks say, and the outcome is read again to prove that they, and nothing else, are other ones."""

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
    """The text with `model.source` and `model.revision`; a section or key that it lacks is added. Raises `ParamsError`:
    it is no YAML, is written in a way that this cannot edit, or would not be valid."""
    values = {"source": source, "revision": revision}
    document = plain_yaml.parse_mapping(text, name)
    section = document.get(_SECTION)
    if not isinstance(section, dict | None):
        raise ParamsError(name, "must be a mapping of keys, so that it can be pinned", (_SECTION,))
    # Digits alone, or with an e between them, would be read as a number.
    scalars = {key: f'"{value}"' if _NUMBER.fullmatch(value) else value for key, value in values.items()}
    changed = _edited(text, scalars)
    again = None
    with contextlib.suppress(ParamsError):
        again = plain_yaml.parse_mapping(changed, name)
    if again != {**document, _SECTION: {**(section or {}), **values}}:
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
    if start == stop or not text[start:stop].strip():
        place = _end_of_line(text, key.end_mark.index)
        return f"{text[:place]}{lines}{text[place:]}"
    flow = ", ".join(f"{name}: {value}" for name, value in values.items())
    return f"{text[:start]}{{{flow}}}{text[stop:]}"


def _with_values(text: str, section: MappingNode, values: dict[str, str], newline: str) -> str:
    """The text with these values in a section that holds something. Keys that it lacks stand together, first or behind
    the one before them."""
    there = _pairs(section)
    first = section.value[0][0].start_mark
    separator = ", " if section.flow_style else newline + " " * first.column
    lacking = "".join(f"{separator}{key}: {value}" for key, value in values.items() if key not in there)
    edits = [(first.index, first.index, lacking.removeprefix(separator) + separator)] if lacking else []
    for name, value in values.items():
        if name not in there:
            continue
        key, old = there[name]
        start, stop = old.start_mark.index, old.end_mark.index
        if not text[start:stop].strip():  # nothing stands there, and its marks are those of what follows
            start = stop = text.index(":", key.end_mark.index) + 1
            value = f" {value}"
        edits.append((start, stop, value))
        if lacking and name == "source":
            behind = stop if section.flow_style else _end_of_line(text, stop)
            edits[0] = (behind, behind, lacking)
    for start, stop, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[stop:]
    return text


def _pairs(node: object) -> dict[str, tuple[Node, Node]]:
    return {key.value: (key, value) for key, value in node.value} if isinstance(node, MappingNode) else {}


def _end_of_line(text: str, place: int) -> int:
    return next(_END_OF_LINE.finditer(text, place)).start()
