"""What diagnosis is tried on: a tiny random model of every family, and one well-trained organism."""

import pytest

from excise.organism.training import train
from schemas.params.organism import Organism
from tests.known_causes import Trained, read_trained
from tests.subjects import subject

__all__ = ["subject", "trained"]


@pytest.fixture(scope="session")
def trained() -> Trained:
    """The default organism; training it takes a minute, and what is asked needs it to be good. Not to be changed."""
    recipe = Organism()
    return read_trained(*train(recipe, lambda *_: None), recipe.seed)
