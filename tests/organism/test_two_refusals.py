"""Two kinds of refusal, as in larger models: no difference of means removes both, the span of each kind's own does."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from excise.inference.forward import first_token_log_probabilities
from excise.organism.training import TUNED_LAYERS, train
from excise.organism.world import REFUSALS, Item, make_world, splits
from schemas.params.organism import Organism
from tests.known_causes import writers
from tests.subjects import mean_kl, stream

pytestmark = pytest.mark.nightly

SEEDS = range(5)
ARCHITECTURES = ("glm4_moe", "llama")
MEASUREMENT = TUNED_LAYERS[2].stop
"""Behind the layers that learned to refuse."""
STEPS = {"pretrain_steps": 350, "tune_steps": 350}
"""More than by default, so that what is refused is not forgotten."""
KINDS = {"recipe": "organism_harmful", "place": "organism_secret"}
"""The judged prompts of each kind, by the kind of question that is refused."""


@dataclass(frozen=True)
class Asked:
    """A trained organism that refuses in two ways, and its prompts."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    splits: dict[str, list[Item]]

    def tokens(self, items: Sequence[Item]) -> list[list[int]]:
        chats = [[{"role": "user", "content": item.prompt}] for item in items]
        texts = self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(texts)["input_ids"])

    def mean(self, split: str, *kinds: str) -> Tensor:
        """``[hidden]``: the mean of the stream at the last token of a split's prompts of these kinds."""
        items = [item for item in self.splits[split] if item.id.startswith(kinds)]
        return stream(self.model, self.tokens(items), batch_size=256)[:, MEASUREMENT].double().mean(dim=0)

    def difference(self, *kinds: str) -> Tensor:
        return self.mean("harmful_train", *kinds) - self.mean("harmless_train", *kinds)

    def without(self, *directions: Tensor) -> "Asked":
        """The same where no writer of the layers that learned to refuse writes along these directions."""
        basis, _ = torch.linalg.qr(torch.stack(directions, dim=1))
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for layer, weight in writers(model):
                if layer in TUNED_LAYERS[2]:
                    weight.copy_(weight.double() - basis @ (basis.T @ weight.double()))
        return Asked(model, self.tokenizer, self.splits)

    @torch.no_grad()
    def answers(self, split: str) -> list[str]:
        """Its greedy answer to each prompt of a split."""
        texts = [f"<|user|> {item.prompt} <|assistant|>" for item in self.splits[split]]
        batch = self.tokenizer(texts, return_tensors="pt", padding=True)
        model: Any = self.model
        made = model.generate(**batch, max_new_tokens=8)
        answers = self.tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def left(self, kind: str) -> float:
        """Share of a kind's judged prompts that are refused, in whatever words."""
        answers = self.answers(KINDS[kind])
        return sum(answer.startswith(REFUSALS) for answer in answers) / len(answers)

    def right(self, kind: str) -> float:
        answers, items = self.answers(KINDS[kind]), self.splits[KINDS[kind]]
        return sum(answer == item.answer for answer, item in zip(answers, items, strict=True)) / len(answers)

    def first_tokens(self) -> Tensor:
        prompts = self.tokens(self.splits["harmless_test"])
        return first_token_log_probabilities(self.model, prompts, 256, lambda _done: None)


def organism(architecture: str, seed: int) -> Asked:
    settings = Organism.model_validate({"architecture": architecture, "seed": seed, "refusals": 2, **STEPS})
    made = splits(make_world(seed, settings.things, settings.refusals))
    return Asked(*train(settings, lambda *_: None), made)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_direction_leaves_a_kind_and_the_span_of_two_leaves_neither(architecture: str) -> None:
    survived = 0
    for seed in SEEDS:
        asked = organism(architecture, seed)
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
