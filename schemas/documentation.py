"""What people and editors read about params.yaml, made from `schemas/params/`: `python -m excise schema` writes
`schemas/params.schema.json` and the table between the two marks in README.md."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.params.document import Params
from schemas.wording import choices, resolve

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "schemas" / "params.schema.json"
README = ROOT / "README.md"
BEGIN = "<!-- params:begin -->"
END = "<!-- params:end -->"

_REQUIRED = object()


def json_schema() -> str:
    """The text of params.schema.json, by which editors complete and check params.yaml."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Params.model_json_schema()}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def readme_table() -> str:
    """Every key of params.yaml as a Markdown table: key, default, what it does."""
    document = Params.model_json_schema()
    lines = ["| key | default | what it does |", "| --- | --- | --- |"]
    for key, default, node in _rows(document, document, ""):
        shown = "required" if default is _REQUIRED else f"`{_flow(default)}`"
        options = f" One of {', '.join(f'`{choice}`' for choice in choices(node))}." if choices(node) else ""
        cells = (f"`{key}`", shown, node["description"] + options)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def replace_table(readme: Path) -> None:
    """Put the table between the marks of a Markdown file; the rest of it is kept, and the file is never half-written.

    Raises `ValueError`: the file is missing, or has not exactly one pair of marks.
    """
    if not readme.is_file():
        raise ValueError(f"{readme} is missing; the table of parameters belongs between {BEGIN} and {END} there")
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme} must have {BEGIN} once and {END} once after it")
    before, _, rest = text.partition(BEGIN)
    _write(readme, f"{before}{BEGIN}\n{readme_table()}{END}{rest.partition(END)[2]}")


def write_documentation() -> None:
    """Write the schema and the README's table. Raises `ValueError` where the README has no place for it."""
    _write(SCHEMA, json_schema())
    replace_table(README)


def _rows(node: dict[str, Any], document: dict[str, Any], key: str, default: Any = _REQUIRED) -> Iterator[Any]:
    """Key, default and schema of every value: a mapping is its keys, a list of mappings is followed by theirs."""
    node = resolve(node, document)
    default = node.get("default", _REQUIRED) if default is _REQUIRED else default
    if "properties" in node:
        if default is None:  # nothing but a whole mapping turns it on
            yield key, default, node
            default = _REQUIRED
        defaults = {} if default is _REQUIRED else default
        for name, child in node["properties"].items():
            if child.get("$comment") != "alias":
                yield from _rows(child, document, f"{key}.{name}".lstrip("."), defaults.get(name, _REQUIRED))
        return
    yield key, default, node
    items = resolve(node.get("items", {}), document)
    if "properties" in items:
        yield from _rows(items, document, f"{key}.N")


def _flow(value: Any) -> str:
    """A default as one would write it in YAML on one line; what a list's mappings leave at `null` is left out."""
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
