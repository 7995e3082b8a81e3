"""The model card tells which base was edited."""

import pytest
from ruamel.yaml import YAML

from excise.edit.checkpoint import Left, render_card
from schemas.params.ablate import Ablate
from tests.evidence_documents import manifest

OF_HUB = {"source": "hub", "id": "some/model", "revision": "1" * 40}


@pytest.mark.parametrize(
    ("update", "head"),
    [
        ({"source": "organism"}, {"base_model": "organism"}),
        ({"source": "folder"}, {}),
        (OF_HUB, {"base_model": "some/model", "base_model_revision": "1" * 40}),
    ],
)
def test_the_head_names_the_base_and_its_commit(update: dict[str, str], head: dict[str, str]) -> None:
    card = render_card(manifest().model_copy(update=update), Ablate(), [], Left(), [], [])
    told = YAML(typ="safe", pure=True).load(card.split("---\n")[1])
    assert {key: value for key, value in told.items() if key.startswith("base_")} == head
