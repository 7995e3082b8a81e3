"""Whatever happens to params.yaml, it is either valid or answered by one line that names the key."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas.basis.plain_yaml import parse_mapping
from schemas.basis.text import dotted
from schemas.documentation import json_schema
from schemas.params.document import Params, load, parse, settings_of_stages
from schemas.wording import ParamsError

SHIPPED = (Path(__file__).resolve().parents[2] / "params.yaml").read_text(encoding="utf-8")
TREE = parse_mapping(SHIPPED, "params.yaml")
SCHEMA = json.loads(json_schema())

pytestmark = pytest.mark.slow

two_hundred = settings(max_examples=200, deadline=None, derandomize=True)


def keys_of(node: Any) -> set[str]:
    """Every key that a JSON Schema knows, at whatever depth."""
    if isinstance(node, list):
        return set().union(*map(keys_of, node))
    if not isinstance(node, dict):
        return set()
    return set(node.get("properties", ())).union(*map(keys_of, node.values()))


KNOWN = keys_of(SCHEMA)


def answer(text: str) -> ParamsError | None:
    """None for a valid file, else its error; anything else that goes wrong fails the test."""
    try:
        params = parse(text)
    except ParamsError as error:
        line = str(error)
        assert line.startswith("params.yaml: ") and line.isprintable() and len(line) < 800
        assert f"params.yaml: {dotted(error.key)}" in line
        return error
    texts = settings_of_stages(params)
    documents = params.model_dump(mode="json")
    again = json.dumps(documents)
    assert settings_of_stages(parse(again)) == texts
    Draft202012Validator(SCHEMA).validate(documents)
    Draft202012Validator(SCHEMA).validate(parse_mapping(text, "params.yaml"))
    return None


def names_what_is_wrong(tree: Any, key: tuple[str | int, ...]) -> bool:
    """Whether a key is in the tree, or is one that could be there and is missing."""
    for part in key:
        if isinstance(part, int):
            if not isinstance(tree, list) or part >= len(tree):
                return False
        elif not isinstance(tree, dict) or part not in tree:
            return isinstance(tree, dict) and part in KNOWN
        tree = tree[part]
    return bool(key)


# Characters that mean something to YAML come up often enough to matter.
characters = st.one_of(st.sampled_from("\t\n\r:-,[]{}#&*!|>'\"%@`? \\~=<.0\0\x85\ufeff\u2028\ud800"), st.characters())
snippets = st.sampled_from(
    ["- x", "<<: *a", "a: &a [1]", "  limit: 3", "model:", "---", "...", "%YAML 1.1", "? x", "gates: []", "!!set {a}"]
)


@st.composite
def mutated_text(draw: st.DrawFn) -> str:
    text = SHIPPED
    for _ in range(draw(st.integers(1, 4))):
        lines = text.split("\n")
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["delete", "double", "move", "insert", "cut", "replace", "add", "repeat"])):
            case "delete":
                del lines[at]
            case "double":
                lines.insert(at, lines[at])
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case "insert":
                lines.insert(at, draw(st.one_of(snippets, st.text(characters, max_size=20))))
            case "cut":
                column = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:column] + lines[at][column + 1 :]
            case "replace":
                column = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:column] + draw(characters) + lines[at][column + 1 :]
            case "add":
                column = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:column] + draw(characters) + lines[at][column:]
            case "repeat":
                column = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:column] + lines[at][column : column + 1] * 2 + lines[at][column + 1 :]
        text = "\n".join(lines)
    return text


printable = st.text(st.characters(codec="utf-8").filter(str.isprintable) | st.sampled_from("\n\t\"'\\"), max_size=20)
telling = st.sampled_from(
    [
        "all",
        "1-4",
        "organism",
        "harmful_train",
        "data/a.txt",
        "data/a.jsonl",
        "drift.first_token_kl",
        "mlp",
        0,
        1,
        -1,
        0.0,
    ]
)
values = st.recursive(
    telling | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | printable,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3),
    max_leaves=8,
)
known_keys = st.sampled_from(sorted(KNOWN))


@st.composite
def misspelt(draw: st.DrawFn) -> str:
    key: str = draw(known_keys)
    at = draw(st.integers(0, len(key) - 1))
    letter: str = draw(st.sampled_from([*string.ascii_lowercase, ""]))
    return key[:at] + letter + key[at + 1 :]


keys = known_keys | misspelt() | printable


def containers(tree: Any) -> list[Any]:
    """Every mapping and list of a tree that has something in it."""
    inner = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    found = [tree] if inner else []
    return found + [each for item in inner for each in containers(item)]


@st.composite
def mutated_tree(draw: st.DrawFn) -> Any:
    tree: Any = json.loads(json.dumps(TREE))
    for _ in range(draw(st.integers(1, 2))):
        places = containers(tree)
        if not places:
            break
        place = draw(st.sampled_from(places))
        at = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        match draw(st.sampled_from(["replace", "adjust", "rename", "delete", "add"])):
            case "replace":
                place[at] = draw(values)
            case "adjust" if isinstance(place[at], int | float):
                place[at] += draw(st.integers(-2, 4))
            case "rename" if isinstance(place, dict):
                place[draw(keys)] = place.pop(at)
            case "delete" | "adjust":
                del place[at]
            case _ if isinstance(place, dict):
                place[draw(keys)] = draw(values)
            case _:
                place.insert(at, draw(values))
    return tree


@two_hundred
@given(mutated_text())
def test_a_mutated_text_is_valid_or_answered_in_one_line(text: str) -> None:
    answer(text)


@two_hundred
@given(mutated_tree())
def test_a_mutated_tree_is_valid_or_its_error_names_a_key_of_it(tree: Any) -> None:
    error = answer(json.dumps(tree, ensure_ascii=False))
    assert error is None or names_what_is_wrong(tree, error.key)


@two_hundred
@given(st.binary(max_size=200) | st.text(characters, max_size=100).map(lambda text: text.encode(errors="replace")))
def test_any_bytes_are_valid_or_answered_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_bytes(data)
    try:
        load(path)
    except ParamsError as error:
        assert str(error).startswith("params.yaml: ") and str(error).isprintable()


@pytest.mark.parametrize("mutate", [mutated_text, mutated_tree], ids=["text", "tree"])
def test_mutations_make_files_of_either_kind(mutate: Callable[[], st.SearchStrategy[Any]]) -> None:
    """Otherwise the tests above would hold for want of one kind."""
    valid: list[bool] = []

    @two_hundred
    @given(mutate())
    def count(file: Any) -> None:
        valid.append(answer(file if isinstance(file, str) else json.dumps(file, ensure_ascii=False)) is None)

    count()
    assert 20 <= sum(valid) <= len(valid) - 20


def test_the_canonical_form_is_a_fixed_point() -> None:
    assert answer(SHIPPED) is None
    assert settings_of_stages(parse(SHIPPED)) == settings_of_stages(Params())
