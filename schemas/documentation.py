"""What people and editors read about params.yaml, made from `schemas/params/`: `python -m excise schema` writes
`schemas/params.schema.json` and `docs/params.md`."""

import json
import os
import pkgutil
import re
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from schemas.extensions import Room
from schemas.params.document import Params
from schemas.wording import choices, resolve

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "schemas" / "params.schema.json"
REFERENCE = ROOT / "docs" / "params.md"

_INTRODUCTION = """\
# params.yaml

Every key of `params.yaml`, its default, and what it does. A key or section that is left out has its default; an unknown
key is an error. Errors, `dvc params diff` and `dvc exp run -S` name keys as they are written here; `N` is a place in a
list, counted from 0. `make schema` generates this page from `schemas/params/`.
"""


def json_schema() -> str:
    """The text of params.schema.json, by which editors complete and check params.yaml."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Params.model_json_schema()}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def reference(schema: dict[str, Any]) -> str:
    """The text of docs/params.md: a table for each section, then one for each type that several keys share."""
    return _Reference(schema).text()


def write_documentation() -> None:
    """Write params.schema.json and docs/params.md."""
    _write(SCHEMA, json_schema())
    _write(REFERENCE, reference(Params.model_json_schema()))


class _Reference:
    """The Markdown of a JSON Schema. A mapping that only one key has is described below that key; a mapping that
    several keys have, or that is one of several kinds, has a table of its own."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        uses = Counter(re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)))
        self.shared = {name for name, count in uses.items() if count > 1}
        self.tables: dict[str, list[str]] = {}
        """The rows of the mappings that have a table of their own, in the order in which keys mention them."""
        self.rooms: dict[str, str] = {}
        """The packages of extensions, with the key that names one."""

    def text(self) -> str:
        parts = [_INTRODUCTION]
        for name, section in self.schema["properties"].items():
            rows = self._rows(name, section)
            parts += [f"## `{name}`\n", section["description"] + "\n", _table(rows)]
        for number, (name, rows) in enumerate(self.tables.items()):
            parts += [f"## {_words(name)}\n", self.schema["$defs"][name]["description"] + "\n"]
            for other in list(self.tables)[:number]:  # what a class has from the one that it shares with another
                if len(same := [row for row in rows if row in self.tables[other]]) > 1:
                    keys = ", ".join(row.split(" | ")[0].removeprefix("| ") for row in same)
                    parts.append(f"As in {_link(other)}: {keys}.\n")
                    rows = [row for row in rows if row not in same]
            parts.append(_table(rows))
        for package, key in self.rooms.items():
            parts += [f"## {_title(package)}\n", f"What `{key}` can name.\n", _table(_extensions(Room(package)))]
        return "\n".join(parts)

    def _rows(self, key: str, node: dict[str, Any], default: Any = ...) -> list[str]:
        """The row of a key, and those of the keys below it."""
        names, resolved = self._mappings(node), resolve(node, self.schema)
        default = node.get("default", ...) if default is ... else default
        apart = [name for name in names if len(names) > 1 or name in self.shared]
        for name in apart:
            if name not in self.tables:
                self.tables[name] = []  # its place comes before those of what it mentions
                self.tables[name] += self._below("", name, {})
        if comment := re.fullmatch(r"extension of (.+)", resolved.get("$comment", "")):
            self.rooms[comment[1]] = key
            apart = [_title(comment[1])]
        row = _row(key, default, resolved, apart)
        if not names or apart:
            return [row]
        if "items" in resolved:
            return [row, *self._below(f"{key}.N", names[0], {})]
        below = self._below(key, names[0], default if isinstance(default, dict) else {})
        return below if isinstance(default, dict) else [row, *below]

    def _below(self, key: str, name: str, defaults: dict[str, Any]) -> list[str]:
        """The rows of a mapping's keys."""
        rows: list[str] = []
        definition = self.schema["$defs"][name]
        if comment := re.fullmatch(r"extension of (.+)", definition.get("$comment", "")):
            self.rooms[comment[1]] = f"{key}.…"
        for child, node in definition["properties"].items():
            if node.get("$comment") != "alias":
                rows += self._rows(f"{key}.{child}".lstrip("."), node, defaults.get(child, ...))
        return rows

    def _mappings(self, node: Any) -> list[str]:
        """The names of the mappings that a value may be, or be a list of."""
        if not isinstance(node, dict):
            return []
        if name := node.get("$ref", "").removeprefix("#/$defs/"):
            definition = self.schema["$defs"][name]
            return [name] if "properties" in definition else self._mappings(definition)
        options = [*node.get("anyOf", ()), *node.get("oneOf", ()), node.get("items"), node.get("additionalProperties")]
        return [name for option in options for name in self._mappings(option)]


def _extensions(room: Room) -> list[str]:
    """The row of each extension that is built in, and those of its parameters."""
    rows = []
    for name in sorted(module.name for module in pkgutil.iter_modules(import_module(room.package).__path__)):
        schema = room.load(name).model_json_schema()
        rows.append(f"| `{name}` |  | {' '.join(schema['description'].split())} |")
        for child, node in schema["properties"].items():
            rows += _Reference(schema)._rows(f"{name}.{child}", node)
    return rows


def _row(key: str, default: Any, node: dict[str, Any], kinds: list[str]) -> str:
    """A row of a table; `kinds` are the mappings that the value may be and that have tables of their own."""
    text = re.sub(r"\bdocs/(\w+\.md)", r"[\1](\1)", node["description"])
    if any(f"`{choice}`" not in text for choice in choices(node)):
        text += f" One of {', '.join(f'`{choice}`' for choice in choices(node))}."
    if kinds:
        text += f" Keys: {' or '.join(map(_link, kinds))}."
    shown = "required" if default is ... else f"`{_flow(default)}`"
    cells = (f"`{key}`", f"`{node['const']}`" if "const" in node else shown, text)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _table(rows: list[str]) -> str:
    return "\n".join(["| key | default | description |", "| --- | --- | --- |", *rows]) + "\n" if rows else ""


def _link(name: str) -> str:
    return f"[{_words(name)}](#{_words(name).lower().replace(' ', '-')})"


def _title(package: str) -> str:
    """The heading of a package of extensions: its last name."""
    return _words(package.rpartition(".")[2])


def _words(name: str) -> str:
    """The name of a class as words: `PromptSource` is "Prompt source"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).capitalize()


def _flow(value: Any) -> str:
    """A default as one would write it in YAML on one line; a mapping's keys that are `null` are left out."""
    match value:
        case dict():
            given = {name: item for name, item in value.items() if item is not None}
            return "{" + ", ".join(f"{name}: {_flow(item)}" for name, item in given.items()) + "}"
        case list():
            return "[" + ", ".join(map(_flow, value)) + "]"
        case str():
            return value
        case _:
            return json.dumps(value)


def _write(path: Path, text: str) -> None:
    """Replace the file as a whole (`excise.plumbing.files` does it too, but schemas import no stage)."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
