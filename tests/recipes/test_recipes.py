"""The recipes are whole: what they name is pinned, their layers exist, and what they need is what is counted."""

import itertools
from pathlib import Path

import pytest
from transformers import AutoConfig

from benchmarks.hardware import CONFIGS, written
from excise.checkpoint.weights import read_checkpoint
from excise.discovery.examination import measured_family
from excise.discovery.twin import build, twin_config
from excise.edit.inspection import inspect
from excise.inference.loading.models import auto_class
from schemas.basis.plain_yaml import parse_mapping
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
def test_prepare_accepts_a_small_model_of_the_recipe_s_kind_that_has_its_targets(name: str, tmp_path: Path) -> None:
    recipe = load(ROOT / f"recipes/{name}.yaml")
    config = AutoConfig.for_model(**CONFIGS[name])
    small = twin_config(config, 12)
    build(small, auto_class(small)).float().save_pretrained(tmp_path)
    small.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    layout = inspect(tmp_path, checkpoint.tensors, checkpoint.files, "auto", measure=measured_family)
    variants = itertools.chain.from_iterable(layout.family.sublayers.values())
    assert set(recipe.ablate.targets) <= {writer.role for variant in variants for writer in variant.writers}
    layers = config.get_text_config().num_hidden_layers
    for rule in recipe.ablate.rules:
        assert isinstance(rule.measurement, float | int) and 0 < rule.measurement <= layers
        assert rule.layers == "all" or max(rule.layers) < layers


def test_what_docs_and_recipes_say_is_needed_is_what_is_counted() -> None:
    for path, counted in written().items():
        assert path.read_text() == counted, f"{path}: run python -m benchmarks.hardware"
    assert {path.stem for path in written() if path.suffix == ".yaml"} == set(NAMES)
