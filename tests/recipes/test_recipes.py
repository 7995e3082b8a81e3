"""The recipes are whole: what they name is pinned, their layers exist, and what they need is what is counted."""

import pytest
from transformers import AutoConfig

from benchmarks.hardware import CONFIGS, written
from schemas.basis.plain_yaml import parse_mapping
from schemas.families import layouts
from schemas.params.document import Params, load
from tests.projects import ROOT

BUILT_IN = ("large-world",)
"""Recipes for the built-in model, run by those who wrote them."""
NAMES = sorted({path.stem for path in (ROOT / "recipes").glob("*.yaml")} - {*BUILT_IN})


def text(name: str) -> str:
    return (ROOT / f"recipes/{name}.yaml").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_everything_that_its_model_and_its_prompts_are(name: str) -> None:
    recipe = load(ROOT / f"recipes/{name}.yaml")
    assert set(parse_mapping(text(name), name)) == set(Params.model_fields) - {"organism"}
    assert recipe.model.revision is not None
    assert recipe.prompts.harmful.revision is not None and recipe.prompts.harmless.revision is not None
    assert not any("organism" in task for tasks in recipe.evaluate.tasks().values() for task in tasks)
    assert "NOT RUN by those who wrote it" in text(name)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_recipe_for_the_built_in_model_says_everything_and_what_came_of_it(name: str) -> None:
    assert set(parse_mapping(text(name), name)) == set(Params.model_fields)
    assert load(ROOT / f"recipes/{name}.yaml").model.source == "organism"
    assert "Run by those who wrote it" in text(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_layers_and_targets_of_a_recipe_are_its_model_s(name: str) -> None:
    recipe = load(ROOT / f"recipes/{name}.yaml")
    config = AutoConfig.for_model(**CONFIGS[name]).get_text_config()
    layout = layouts()[config.model_type]
    roles = {
        writer.role for variants in layout.sublayers.values() for variant in variants for writer in variant.writers
    }
    assert set(recipe.ablate.targets) <= roles
    for rule in recipe.ablate.rules:
        assert isinstance(rule.measurement, float | int) and 0 < rule.measurement <= config.num_hidden_layers


def test_what_docs_and_recipes_say_is_needed_is_what_is_counted() -> None:
    for path, counted in written().items():
        assert path.read_text() == counted, f"{path}: run python -m benchmarks.hardware"
    assert {path.stem for path in written() if path.suffix == ".yaml"} == set(NAMES)
