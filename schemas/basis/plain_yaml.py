"""YAML 1.2, as DVC reads it: any bytes give a mapping of what JSON can hold, or a `ParamsError` of one line."""

import math
import re
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from schemas.basis.text import shorten, show
from schemas.wording import ParamsError

MOST_CHARACTERS = 256 * 1024
"""A rule for each layer of a large model needs a tenth of it."""
LARGEST_FILE = 8 * 2**20
"""Bytes of a file that is read as text: documents are longer than parameters."""
MOST_VALUES = 50_000
"""Counted with aliases expanded: nine lines of YAML can hold a billion values."""
DEEPEST = 40
LARGEST = 2**63 - 1

_DUPLICATE = re.compile(r'found duplicate key "(.*)" with value ', re.DOTALL)


def read_text(path: Path, name: str) -> str:
    """The text of a file; `name` is what errors call it. Raises `ParamsError`."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait
            raise ParamsError(name, "cannot be read: it is not a file")
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ParamsError(name, f"there is no such file in {path.absolute().parent}") from None
    except OSError as error:
        raise ParamsError(name, f"cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_FILE:
        raise ParamsError(name, f"has more than {LARGEST_FILE} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ParamsError(name, f"line {line}: not UTF-8 text; save the file as UTF-8") from None


def parse_mapping(text: str, name: str) -> dict[str, Any]:
    """The mapping that a YAML text holds. Raises `ParamsError`."""
    if len(text) > MOST_CHARACTERS:
        raise ParamsError(name, f"is longer than {MOST_CHARACTERS} characters")
    try:
        with warnings.catch_warnings(action="ignore"):  # a reused anchor is legal, and its warning is many lines long
            value = _load(text, name)
    except ParamsError:
        raise
    except MarkedYAMLError as error:
        raise ParamsError(name, _worded(error)) from None
    except RecursionError:
        raise ParamsError(name, f"is nested more than {DEEPEST} deep") from None
    except Exception as error:
        # ruamel.yaml also raises internal errors: an IndexError for `!!float ""`, a KeyError for `!!bool x`, …
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ParamsError(name, f"is not valid YAML: {shorten(line, 160)}") from None
    plain = _plain(value, name, ())
    if isinstance(plain, dict):
        return plain
    got = "an empty file" if plain is None else "a list" if isinstance(plain, list) else show(plain)
    raise ParamsError(name, f"must hold a mapping of sections, got {got}")


def _load(text: str, name: str) -> Any:
    """The value of a text, whose size is checked before it is constructed: merging (`<<`) multiplies aliases too."""
    yaml = YAML(typ="safe", pure=True)
    root = yaml.compose(text)
    if root is None:
        return None
    values, depth = _measure(root, {})
    if depth > DEEPEST:
        raise ParamsError(name, f"is nested more than {DEEPEST} deep")
    if values > MOST_VALUES:
        raise ParamsError(name, f"holds more than {MOST_VALUES} values, with aliases expanded")
    return yaml.constructor.construct_document(root)


def _measure(node: Node, known: dict[Node, tuple[int, float]]) -> tuple[int, float]:
    """The number of values in a node, and their depth, which is infinite if the node contains itself."""
    if node not in known:
        known[node] = (1, math.inf)
        children = node.value if isinstance(node, CollectionNode) else []
        if isinstance(node, MappingNode):
            children = [part for pair in children for part in pair]
        sizes = [_measure(child, known) for child in children]
        known[node] = (1 + sum(values for values, _ in sizes), 1 + max((depth for _, depth in sizes), default=0))
    return known[node]


def _plain(value: object, name: str, key: tuple[str | int, ...]) -> Any:
    """A copy that holds only what JSON can hold."""
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ParamsError(name, f"must be Unicode text, got {show(value)}", key) from None
            return value
        case int() if abs(value) > LARGEST:
            raise ParamsError(name, f"must be a number below 2^63, got {show(value)}", key)
        case float() if not math.isfinite(value):
            raise ParamsError(name, f"must be a finite number, got {value}", key)
        case None | bool() | int() | float():
            return value
        case list():
            return [_plain(item, name, (*key, number)) for number, item in enumerate(value)]
        case dict():
            return {_text_key(part, name, key): _plain(item, name, (*key, part)) for part, item in value.items()}
    kind = type(value).__name__
    raise ParamsError(name, f"is read by YAML as a {kind} ({show(str(value))}); quote it to make it text", key)


def _text_key(part: object, name: str, key: tuple[str | int, ...]) -> Any:
    if isinstance(part, str):
        return _plain(part, name, (*key, part))
    raise ParamsError(name, f"must have text for its keys, got {show(part)}; quote it to make it text", key)


def _worded(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = error.problem or error.context or "not valid YAML"
    if twice := _DUPLICATE.match(problem):
        problem = f"the key {show(twice[1])} is given twice"
    elif problem.startswith("but "):
        problem = f"{error.context}, {problem}"
    elif "'\\t'" in problem:
        problem = "a tab, where YAML allows only spaces"
    return where + shorten(" ".join(problem.split()), 160)
