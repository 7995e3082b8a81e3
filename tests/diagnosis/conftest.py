"""A well-trained organism for all tests here: training it takes a minute, and what they ask needs it to be good."""

import pytest

from schemas.params import Organism
from stages.organism.training import train
from tests.known_causes import Trained, read_trained


@pytest.fixture(scope="session")
def trained() -> Trained:
    """The default organism. Not to be changed."""
    recipe = Organism()
    model, tokenizer = train(
        recipe.architecture, recipe.seed, recipe.pretrain_steps, recipe.tune_steps, lambda *_: None
    )
    return read_trained(model, tokenizer, recipe.seed)
