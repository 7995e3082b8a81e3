"""The model card tells which base was edited."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import Checkpoint
from excise.edit.checkpoint import Remainder, ResolvedEdit, render_card
from schemas.families import layouts
from schemas.model import ModelLayout
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
    llama = layouts()["llama"]
    layout = ModelLayout(
        model_type="llama", layers=1, hidden_size=1, experts=None, residual_multiplier=1.0, tied=False, family=llama
    )
    base = BaseModel(manifest().model_copy(update=update), layout, Checkpoint(Path(), {}, (), (), ()))
    card = render_card(ResolvedEdit(Ablate(), base, [], []), Remainder())
    front_matter = YAML(typ="safe", pure=True).load(card.split("---\n")[1])
    assert {key: value for key, value in front_matter.items() if key.startswith("base_")} == head
