"""The hard organism: all its layers learned to refuse, in few steps, and rules set by hand hardly remove refusal."""

from typing import Any

import pytest

from benchmarks.organisms import make_organism, measure
from excise.edit.planning.plan import make_plan
from excise.trials.simulation import simulated
from schemas.params.ablate import Ablate
from schemas.params.organism import Organism

pytestmark = pytest.mark.nightly

RULES: tuple[dict[str, Any], ...] = (
    {},
    {"orthogonalize": "none", "rules": [{"layers": "1-4", "measurement": 4, "scale": 1.0}]},
    {"orthogonalize": "none", "rules": [{"layers": "all", "measurement": 6, "scale": 1.0}]},
)
"""The defaults, those before, and everything along the last direction."""


@pytest.mark.usefixtures("trained_anew")
def test_rules_set_by_hand_leave_most_of_the_refusal() -> None:
    organism = make_organism(Organism(architecture="llama", tuned="all", tune_steps=120))

    def share(split: str) -> float:
        """Of a split's prompts that are refused."""
        return organism.rate("refusal_rate", organism.asked[split])

    assert share("organism_harmful") >= 0.95
    assert share("organism_facts") <= 0.05 and share("organism_borderline") <= 0.05
    directions = measure(organism)
    left = []
    for rules in RULES:
        with simulated(organism.model, make_plan(Ablate.model_validate(rules), organism.base, directions)):
            left.append(share("organism_harmful"))
    assert min(left) >= 0.5, left
