"""The JSON Schema and the README's table say what `schemas/params.py` says."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from schemas import documentation
from schemas.basis.plain_yaml import parse_mapping
from schemas.documentation import (
    BEGIN,
    END,
    README,
    SCHEMA,
    json_schema,
    readme_table,
    replace_table,
    write_documentation,
)

ROOT = Path(__file__).resolve().parents[2]
MAKE = "stale: run `make schema`"


DOCUMENT = json.loads(json_schema())


def test_the_schema_is_what_params_say() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == json_schema(), MAKE


def test_the_readme_table_is_what_params_say() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == f"\n{readme_table()}", MAKE


def test_the_schema_is_one_and_holds_for_the_shipped_file() -> None:
    Draft202012Validator.check_schema(DOCUMENT)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    Draft202012Validator(DOCUMENT).validate(parse_mapping(text, "params.yaml"))


def test_every_mapping_of_the_schema_is_closed_and_every_key_described() -> None:
    mappings = [node for node in [DOCUMENT, *DOCUMENT["$defs"].values()] if "properties" in node]
    assert len(mappings) == 16
    for node in mappings:
        assert node["additionalProperties"] is False
        assert all(key.get("description") for key in node["properties"].values())


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("model:", True),
        ("gates:", False),
        ("gates: []", True),
        ("modle: {}", False),
        ("model: {source: /models/glm, device: cuda:1}", True),
        ("model: {source: models/glm/x}", False),
        (f"model: {{source: models/glm, revision: {'a' * 40}}}", True),
        ("model: {source: models/glm, revision: main}", False),
        ("measure: {batch_size: 0}", False),
        ("ablate: {targets: [mlp, mlp]}", False),
        ("ablate: {targets: []}", False),
        ("ablate: {router_bias: null}", True),
        ("ablate: {router_bias: {strength: -0.5}}", True),
        ("ablate: {router_bias: {}}", False),
        ("ablate: {router_bias: 0.5}", False),
        ("ablate: {rules: [{layers: [1, 3-5, all], measurement: 4}]}", True),
        ("ablate: {rules: [{layer: 1, measurement: 4, scale: 1.0, sparsity: 0.00}]}", True),
        ("ablate: {rules: [{layer: 1, measurement: 4, sparsity: 0.5}]}", False),
        ("ablate: {rules: [{layer: 1, layers: 1, measurement: 4}]}", False),
        ("ablate: {rules: [{measurement: 4}]}", False),
        ("prompts: {harmful: {source: data/a/b.jsonl, column: text}}", True),
        ("prompts: {harmful: {source: data/../b.jsonl}}", False),
        ("gates: [{metric: drift.first_token_kl, at_most: 0.1}]", True),
        ("gates: [{metric: drift.first_token_kl, at_most: 0.1, max_rise: null}]", True),
        ("gates: [{metric: drift.first_token_kl, at_most: much}]", False),
        ("gates: [{metric: drift.first_token_kl}]", False),
    ],
)
def test_an_editor_accepts_what_the_parser_accepts(text: str, valid: bool) -> None:
    assert Draft202012Validator(DOCUMENT).is_valid(parse_mapping(text, "params.yaml")) is valid


def test_the_table_has_a_row_for_every_key() -> None:
    rows = [line.split(" | ") for line in readme_table().splitlines()[2:]]
    cells = {row[0].removeprefix("| "): row[1] for row in rows}
    assert all(len(row) == 3 for row in rows)
    assert cells["`model.source`"] == "`organism`"
    assert cells["`prompts.harmless.split`"] == "`harmless_train`"
    assert cells["`prompts.limit`"] == "`null`"
    assert cells["`ablate.router_bias`"] == "`null`"
    assert cells["`ablate.router_bias.strength`"] == "required"
    assert cells["`ablate.rules.N.layers`"] == "required"
    assert cells["`ablate.rules.N.scale`"] == "`1.0`"
    assert cells["`gates.N.metric`"] == "required"


def test_the_table_is_put_between_the_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\nafter, without a line end", encoding="utf-8")
    for _ in range(2):
        replace_table(readme)
        assert readme.read_text(encoding="utf-8") == (
            f"# Title\n\n{BEGIN}\n{readme_table()}{END}\nafter, without a line end"
        )
    assert list(tmp_path.iterdir()) == [readme]


@pytest.mark.parametrize("text", ["no marks", f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_readme_without_one_pair_of_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="must have"):
        replace_table(readme)
    assert readme.read_text(encoding="utf-8") == text


def test_the_generator_writes_both_and_says_when_the_readme_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documentation, "SCHEMA", tmp_path / "params.schema.json")
    monkeypatch.setattr(documentation, "README", tmp_path / "README.md")
    with pytest.raises(ValueError, match=r"README\.md is missing"):
        write_documentation()
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    write_documentation()
    assert (tmp_path / "params.schema.json").read_text(encoding="utf-8") == json_schema()
    assert readme_table() in (tmp_path / "README.md").read_text(encoding="utf-8")
