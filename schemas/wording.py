"""What is wrong with a parameter file, in one line; what is allowed is read off the JSON Schema."""

from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.basis.text import Key, dotted, printable, show, suggest


class ParamsError(ValueError):
    """A parameter file that cannot be used, in one line; `key` is the path of the key that it names."""

    def __init__(self, name: str, message: str, key: Key = ()) -> None:
        self.key = tuple(key)
        separator = " " if key else ""
        super().__init__(f"{printable(name)}: {dotted(key)}{separator}{printable(message)}")


class WrongValue(ValueError):
    """Raised by a validator: `message` follows the key; `at` is the path from the validated value to that key."""

    def __init__(self, message: str, *at: str | int) -> None:
        super().__init__(message)
        self.message, self.at = message, at


def first_mistake(error: ValidationError, model: type[BaseModel]) -> tuple[str, Key]:
    """The message and the key of the most useful mistake, with the number of the others."""
    # An unknown key first: it is often the misspelt one that another mistake calls missing.
    mistakes = sorted(error.errors(include_url=False), key=lambda mistake: mistake["type"] != "extra_forbidden")
    document = model.model_json_schema()
    message, key = _worded(mistakes[0], document)
    others = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return message + others, key


def _worded(mistake: Any, document: dict[str, Any]) -> tuple[str, Key]:
    key: tuple[str | int, ...] = mistake["loc"]
    cause = mistake.get("ctx", {}).get("error")
    if isinstance(cause, WrongValue):
        return cause.message, (*key, *cause.at)
    if mistake["type"] == "extra_forbidden":
        known = list(find(document, key[:-1])["properties"])
        hint = suggest(key[-1], known) or (f"; known here: {', '.join(known)}" if known else "; nothing is set here")
        return f"is not a key{hint}", key
    node = find(document, key)
    if mistake["type"] == "missing":
        return f"is missing: {node['description']}", key
    given = mistake["input"]
    empty = "; write [] for none" if given is None and node.get("type") == "array" and "minItems" not in node else ""
    return f"must be {allowed(node, document)}, got {show(given)}{suggest(given, choices(node))}{empty}", key


def find(document: dict[str, Any], key: Key) -> dict[str, Any]:
    """The JSON Schema of the value at a key."""
    node = resolve(document, document)
    for part in key:
        if isinstance(part, int):  # an item of a list, or of a list that may be null
            node = next(option["items"] for option in (node, *node.get("anyOf", ())) if "items" in option)
        else:
            node = node["properties"][part]
        node = resolve(node, document)
    return node


def resolve(node: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """The node with its references followed; the mapping, if it may be null."""
    while "$ref" in node:
        target = document["$defs"][node["$ref"].removeprefix("#/$defs/")]
        node = {**target, **{name: value for name, value in node.items() if name != "$ref"}}
    for option in node.get("anyOf", ()):
        if "properties" in (inner := resolve(option, document)):
            return {**inner, **{name: value for name, value in node.items() if name != "anyOf"}}
    return node


def choices(node: dict[str, Any]) -> list[str]:
    options = [node, *node.get("anyOf", ())]
    return [choice for option in options for choice in option.get("enum", ())]


def allowed(node: dict[str, Any], document: dict[str, Any]) -> str:
    node = resolve(node, document)
    if "anyOf" in node:
        return " or ".join(allowed(option, document) for option in node["anyOf"])
    if "enum" in node:
        return f"one of {', '.join(node['enum'])}"
    words = {
        "array": f"a {'non-empty ' if 'minItems' in node else ''}list",
        "object": "a mapping",
        "boolean": "true or false",
        "integer": "an integer",
        "number": "a finite number",
        "string": "text",
        "null": "null",
    }
    return words[node["type"]] + _limits(node)


def _limits(node: dict[str, Any]) -> str:
    match node:
        case {"minimum": low, "maximum": high}:
            return f" from {low} to {high}"
        case {"exclusiveMinimum": low, "maximum": high}:
            return f" > {low:g} and ≤ {high:g}"
        case {"minimum": low}:
            return f" ≥ {low:g}"
        case {"maximum": high}:
            return f" ≤ {high:g}"
        case _:
            return ""
