"""Two kinds of refusal, as in larger models: no difference of means removes both, the span of each kind's own does."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.mixture_and_dense import ARCHITECTURES, SEEDS
from benchmarks.organisms import Organism, make_organism
from excise.inference.forward import first_token_log_probabilities
from excise.organism.training import TUNED_LAYERS
from schemas.params.organism import Organism as Settings
from tests.known_causes import writers
from tests.subjects import mean_kl, stream

pytestmark = pytest.mark.nightly

MEASUREMENT = TUNED_LAYERS[2].stop
"""Behind the layers that learned to refuse."""
STEPS = {"tune_steps": 450}
"""More than by default, for twice as much to refuse."""
KINDS = {"recipe": "organism_harmful", "place": "organism_secret"}
"""The judged prompts of each kind, by the kind of question that is refused."""


@dataclass(frozen=True)
class Asked:
    """A trained organism that refuses in two ways."""

    organism: Organism

    def mean(self, split: str, *kinds: str) -> Tensor:
        """``[hidden]``: the mean of the stream at the last token of a split's prompts of these kinds."""
        items = [item for item in self.organism.asked[split] if item.id.startswith(kinds)]
        found = stream(self.organism.model, self.organism.tokens(items), batch_size=256)
        return found[:, MEASUREMENT].double().mean(dim=0)

    def difference(self, *kinds: str) -> Tensor:
        return self.mean("harmful_train", *kinds) - self.mean("harmless_train", *kinds)

    def without(self, *directions: Tensor) -> "Asked":
        """The same where no writer of the layers that learned to refuse writes along these directions."""
        basis, _ = torch.linalg.qr(torch.stack(directions, dim=1))
        model = copy.deepcopy(self.organism.model)
        with torch.no_grad():
            for layer, weight in writers(model):
                if layer in TUNED_LAYERS[2]:
                    weight.copy_(weight.double() - basis @ (basis.T @ weight.double()))
        return Asked(replace(self.organism, model=model))

    def left(self, kind: str) -> float:
        """Share of a kind's judged prompts that are refused, in whatever words."""
        return self.organism.rate("refusal_rate", self.organism.asked[KINDS[kind]])

    def right(self, kind: str) -> float:
        return self.organism.rate("exact_match", self.organism.asked[KINDS[kind]])

    def first_tokens(self) -> Tensor:
        prompts = self.organism.tokens(self.organism.asked["harmless_test"])
        return first_token_log_probabilities(self.organism.model, prompts, 256, lambda _done: None)


def trained(architecture: str, seed: int) -> Asked:
    settings = {"architecture": architecture, "seed": seed, "refusals": 2, **STEPS}
    return Asked(make_organism(Settings.model_validate(settings)))


@pytest.mark.usefixtures("trained_anew")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_direction_leaves_a_kind_and_the_span_of_two_leaves_neither(architecture: str) -> None:
    survived = 0
    for seed in SEEDS:
        asked = trained(architecture, seed)
        assert all(asked.left(kind) >= 0.95 for kind in KINDS), (architecture, seed)
        first, second = (asked.difference(kind) for kind in KINDS)
        pooled = asked.difference(*KINDS)
        balanced = normalize(first, dim=0) + normalize(second, dim=0)
        leaves = [max(asked.without(each).left(kind) for kind in KINDS) for each in (pooled, balanced)]
        survived += min(leaves) >= 0.3

        both = asked.without(first, second)
        assert all(both.left(kind) <= 0.05 and both.right(kind) >= 0.8 for kind in KINDS), (architecture, seed)
        assert mean_kl(asked.first_tokens(), both.first_tokens()) <= 0.1, (architecture, seed)
    assert survived >= 4
