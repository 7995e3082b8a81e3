"""What people and editors read about params.yaml; `python -m excise schema` writes it."""

import json
import re
from collections.abc import Iterable, Iterator
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


def documentation() -> dict[Path, str]:
    """The text of each file."""
    return {SCHEMA: json_schema(), REFERENCE: reference(Params.model_json_schema())}


def reference(schema: dict[str, Any]) -> str:
    """The text of docs/params.md: a table for each section, each shared mapping, and each room of extensions."""
    parts = [_INTRODUCTION]
    for key, section in schema["properties"].items():
        parts.append(_table(f"`{key}`", section["description"], _rows(schema, key, section)))
    for name in _shared(schema):
        mapping = schema["$defs"][name]
        parts.append(_table(_title(name), mapping["description"], _rows_below(schema, "", mapping)))
    for package in re.findall(r'"extension of (.+?)"', json.dumps(schema)):
        room = Room(package)
        rows = (row for name in room.own() for row in _extension(room, name))
        parts.append(_table(_title(package), import_module(package).__doc__ or "", rows))
    return "\n".join(parts)


def _table(title: str, description: str, rows: Iterable[str]) -> str:
    head = f"## {title}\n\n{description}\n\n| key | default | description |\n| --- | --- | --- |"
    return "\n".join([head, *rows, ""])


def _rows(schema: dict[str, Any], key: str, node: dict[str, Any]) -> Iterator[str]:
    """The row of a key, unless it is a section with defaults, and those of the keys below, unless they are shared."""
    value = resolve(node, schema)
    mapping, place = (resolve(value["items"], schema), f"{key}.N") if "items" in value else (value, key)
    shared = [name for name in _shared(schema) if f'/{name}"' in json.dumps(node)]
    below = [] if shared else list(_rows_below(schema, place, mapping))
    if not below or not isinstance(node.get("default"), dict):
        text = re.sub(r"\bdocs/(\w+\.md)", r"[\1](\1)", value["description"])
        if any(f"`{choice}`" not in text for choice in choices(value)):
            text += f" One of {', '.join(f'`{choice}`' for choice in choices(value))}."
        for name in shared + re.findall("extension of (.+)", mapping.get("$comment", "")):
            text += f" See [{_title(name)}](#{_title(name).lower().replace(' ', '-')})."
        yield _row(key, f"`{_yaml(node['default'])}`" if "default" in node else "required", text)
    yield from below


def _rows_below(schema: dict[str, Any], key: str, mapping: dict[str, Any]) -> Iterator[str]:
    for name, node in mapping.get("properties", {}).items():
        if node.get("$comment") != "alias":
            yield from _rows(schema, f"{key}.{name}".lstrip("."), node)


def _extension(room: Room, name: str) -> Iterator[str]:
    schema = room.load(name).model_json_schema()
    yield _row(name, "", " ".join(schema["description"].split()))
    yield from _rows_below(schema, name, schema)


def _row(key: str, default: str, text: str) -> str:
    return f"| `{key}` | {default} | {text.replace('|', chr(92) + '|')} |"


def _shared(schema: dict[str, Any]) -> list[str]:
    """The mappings that several keys take."""
    return [name for name in schema.get("$defs", ()) if json.dumps(schema).count(f'"#/$defs/{name}"') > 1]


def _title(name: str) -> str:
    """The name of a class or package as a heading: `PromptSource` is "Prompt source"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.rpartition(".")[2]).capitalize()


def _yaml(default: Any) -> str:
    """A default as YAML on one line, without the keys that are `null`."""
    return re.sub(r', "\w+": null|"', "", json.dumps(default))
