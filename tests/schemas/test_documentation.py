"""The JSON Schema and docs/params.md say what `schemas/params/` says."""

import json
import re
from pathlib import Path
from typing import Literal

import pytest
from jsonschema import Draft202012Validator

from excise.commands.project import schema
from schemas import documentation
from schemas.basis.document import Listed, Section
from schemas.basis.plain_yaml import parse_mapping
from schemas.documentation import REFERENCE, SCHEMA, json_schema, reference

ROOT = Path(__file__).resolve().parents[2]
MAKE = "stale: run `make schema`"


DOCUMENT = json.loads(json_schema())


def test_the_schema_is_what_params_say() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == json_schema(), MAKE


def test_the_reference_is_what_params_say() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference(DOCUMENT), MAKE


def test_the_schema_is_one_and_holds_for_the_shipped_file() -> None:
    Draft202012Validator.check_schema(DOCUMENT)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    Draft202012Validator(DOCUMENT).validate(parse_mapping(text, "params.yaml"))


def test_every_mapping_of_the_schema_is_closed_but_for_names_of_extensions_and_every_key_described() -> None:
    mappings = [node for node in [DOCUMENT, *DOCUMENT["$defs"].values()] if "properties" in node]
    assert len(mappings) == 14
    for node in mappings:
        assert node["additionalProperties"] is False or node["$comment"].startswith("extension of ")
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


def rows(text: str) -> dict[str, list[str]]:
    """The cells of every row, by key."""
    found = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| `")]
    assert all(len(cells) == 3 for cells in found)
    return {cells[0].strip("`"): cells[1:] for cells in found}


def test_the_reference_has_a_row_for_every_key() -> None:
    cells = {key: default for key, (default, _) in rows(reference(DOCUMENT)).items()}
    assert cells["model.source"] == "`organism`"
    assert cells["prompts.harmless"] == "`{source: organism, split: harmless_train}`"
    assert cells["prompts.limit"] == "`null`"
    assert cells["ablate.router_bias"] == "`null`"
    assert cells["ablate.router_bias.strength"] == "required"
    assert cells["ablate.rules.N.layers"] == "required"
    assert cells["ablate.rules.N.scale"] == "`1.0`"
    assert cells["gates.N.metric"] == "required"
    text = reference(DOCUMENT)
    names = {name for node in [DOCUMENT, *DOCUMENT["$defs"].values()] for name in node.get("properties", ())}
    assert all(re.search(rf"[`.]{name}[`.]", text) for name in names - {"layer"})  # another name for layers


def test_what_several_keys_share_is_described_once() -> None:
    text = reference(DOCUMENT)
    assert text.count("Split of a Hub dataset. For") == 1
    assert "prompts.harmful.split" not in text and "(#prompt-source)" in rows(text)["prompts.harmful"][1]
    assert "\n## Prompt source\n" in text


def test_what_a_page_links_to_is_there() -> None:
    text = reference(DOCUMENT)
    headings = {line[3:].lower().replace(" ", "-") for line in text.splitlines() if line.startswith("## ")}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        assert link[1:] in headings if link.startswith("#") else (REFERENCE.parent / link).is_file(), link


class Limits(Section):
    """Which limits there are."""

    kind: Literal["a", "b"] = "a"
    """Either."""
    value: float
    """The limit | itself, or `a` (docs/hub.md)."""


class Sections(Section):
    """A file."""

    limits: Limits
    """The limits."""
    other: Listed[Limits] | None = None
    """Any number of limits."""


def test_a_row_names_the_choices_links_documents_and_holds_no_border() -> None:
    text = reference(Sections.model_json_schema())
    assert rows(text)["limits"] == ["required", "The limits. See [Limits](#limits)."]
    assert rows(text)["other"] == ["`null`", "Any number of limits. See [Limits](#limits)."]
    table = text.split("\n## Limits\n")[1]
    assert table.startswith("\nWhich limits there are.\n")
    assert rows(table)["kind"] == ["`a`", "Either. One of `a`, `b`."]
    assert rows(table)["value"] == ["required", "The limit \\| itself, or `a` ([hub.md](hub.md))."]


def test_the_generator_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documentation, "SCHEMA", tmp_path / "params.schema.json")
    monkeypatch.setattr(documentation, "REFERENCE", tmp_path / "params.md")
    schema()
    assert (tmp_path / "params.schema.json").read_text(encoding="utf-8") == json_schema()
    assert (tmp_path / "params.md").read_text(encoding="utf-8") == reference(DOCUMENT)
