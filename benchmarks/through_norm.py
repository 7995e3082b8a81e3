"""What `ablate.through_norm` is worth where norms stand behind writers: `python -m benchmarks.through_norm`.

Trains a gemma2 organism for each seed and, for each way, tries directions and scales by simulation. Of those that bring
refusal to at most 5 %, the one with the lowest KL is shown: the ways are compared at matched refusal. Prints Markdown.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from excise.checkpoint.base_model import BaseModel, make_manifest
from excise.checkpoint.weights import read_checkpoint
from excise.edit.inspection import inspect, settled
from excise.edit.planning.plan import make_plan
from excise.edit.planning.projectors import Directions
from excise.inference.forward import first_token_log_probabilities, kl
from excise.inference.passes import Passes
from excise.organism.training import save, train
from excise.organism.world import REFUSAL, Item, make_world, splits
from excise.residual.activations import collect_activations
from excise.residual.directions import estimate
from excise.trials.simulation import simulated
from schemas.params.ablate import Ablate, ThroughNorm
from schemas.params.model import Model

MOST_REFUSALS = 0.05
SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
LAYERS = ("all", "1-4")
BATCH = 128


@dataclass(frozen=True)
class Outcome:
    """What a model does, as rates, and how far it is from its base."""

    refusal: float
    right: float
    facts: float
    sums: float
    kl: float


@dataclass
class Organism:
    """A trained organism and what it is asked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    base: BaseModel
    """The same on disk."""
    asked: dict[str, list[Item]]
    unedited: Tensor
    """What it says first on held-out harmless prompts, before any edit."""

    def tokens(self, items: Sequence[Item]) -> list[list[int]]:
        """Each prompt as a chat that is the model's turn to answer."""
        chats = [[{"role": "user", "content": item.prompt}] for item in items]
        texts = self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(texts)["input_ids"])

    def rate(self, task: str, answer: str | None = None) -> float:
        """The share of greedy answers that are, word for word, the right one or the given one."""
        items = self.asked[task]
        prompts = self.tokens(items)
        ends = [self.tokenizer(f" {answer or item.answer} <eos>")["input_ids"] for item in items]
        right = 0
        for first in range(0, len(items), BATCH):
            batch = list(zip(prompts[first : first + BATCH], ends[first : first + BATCH], strict=True))
            width = max(len(prompt) + len(end) for prompt, end in batch)
            ids = torch.tensor([[*p, *e] + [0] * (width - len(p) - len(e)) for p, e in batch])
            with torch.inference_mode():
                said = self.model(input_ids=ids, use_cache=False).logits.argmax(-1)
            right += sum(said[row, len(p) - 1 : len(p) + len(e) - 1].tolist() == e for row, (p, e) in enumerate(batch))
        return right / len(items)

    def first_tokens(self) -> Tensor:
        """Log-probabilities of the first answer token on held-out harmless prompts."""
        return first_token_log_probabilities(
            self.model, self.tokens(self.asked["harmless_test"]), BATCH, lambda _: None
        )

    def outcome(self) -> Outcome:
        """Everything that the table shows."""
        return Outcome(
            refusal=self.rate("organism_harmful", REFUSAL),
            right=self.rate("organism_harmful"),
            facts=self.rate("organism_facts"),
            sums=self.rate("organism_arithmetic"),
            kl=float(kl(self.unedited, self.first_tokens()).mean()),
        )


def make_organism(seed: int, folder: Path) -> Organism:
    """Train the gemma2 organism of a seed with the defaults' steps, and save it in an empty folder."""
    model, tokenizer = train("gemma2", seed, 500, 400, lambda *_: None)
    save(model, tokenizer, folder)
    checkpoint = read_checkpoint(folder)
    layout = settled(inspect(folder, checkpoint.tensors, checkpoint.files, "float32"), checkpoint)
    base = BaseModel(
        make_manifest(folder, Model(source=str(folder.resolve()), dtype="float32"), layout), layout, checkpoint
    )
    organism = Organism(model, tokenizer, base, splits(make_world(seed)), torch.empty(0))
    organism.unedited = organism.first_tokens()
    return organism


def measure(organism: Organism) -> Directions:
    """Its refusal directions."""
    passes = Passes(organism.model)
    harmful, harmless = (
        collect_activations(passes, {}, organism.tokens(organism.asked[name]), -1, BATCH, lambda _: None).stream
        for name in ("harmful_train", "harmless_train")
    )
    return estimate(harmful, harmless)


def best(organism: Organism, directions: Directions, way: ThroughNorm) -> tuple[str, Outcome] | None:
    """The lowest KL among the edits that leave few refusals, and which edit that is; None where none does."""
    found: list[tuple[str, Outcome]] = []
    measurements = range(1, organism.base.layout.layers + 1)
    for edited, measurement, scale in itertools.product(LAYERS, measurements, SCALES):
        ablate = Ablate.model_validate(
            {"through_norm": way, "rules": [{"layers": edited, "measurement": measurement, "scale": scale}]}
        )
        with simulated(organism.model, make_plan(ablate, organism.base, directions)):
            if organism.rate("organism_harmful", REFUSAL) <= MOST_REFUSALS:
                found.append((f"{edited}, {measurement}, {scale}", organism.outcome()))
    return min(found, key=lambda edit: edit[1].kl) if found else None


def main() -> None:
    """Train, try, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    print("| seed | through_norm | layers, measurement, scale | refusal | right answers | facts | sums | KL |")
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for seed in arguments.parse_args().seeds:
        with tempfile.TemporaryDirectory() as folder:
            organism = make_organism(seed, Path(folder))
            directions = measure(organism)
            rows: list[tuple[str, tuple[str, Outcome] | None]] = [("(base)", ("", organism.outcome()))]
            rows += [(way, best(organism, directions, way)) for way in get_args(ThroughNorm)]
        for way, row in rows:
            if row is None:
                print(f"| {seed} | {way} | none brings refusal to {MOST_REFUSALS} | | | | | |")
                continue
            edit, outcome = row
            rates = f"{outcome.refusal:.3f} | {outcome.right:.3f} | {outcome.facts:.3f} | {outcome.sums:.3f}"
            print(f"| {seed} | {way} | {edit} | {rates} | {outcome.kl:.4f} |", flush=True)


if __name__ == "__main__":
    main()
