"""Which rules hold on every built-in model, and what each way through a norm is worth: `python -m benchmarks.rules`.

Trains an organism of each architecture and seed and tries every rule of a grid on it by simulation, on unseen prompts.
Prints two tables in Markdown: of each way, the rule of the lowest KL among those that bring refusal to at most 5 %; and
the rules that do so on every organism, those first whose highest KL is the lowest.
"""

import argparse
import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.organisms import Organism, make_organism, measure
from excise.edit.planning.plan import make_plan
from excise.inference.continuations import greedy_answers
from excise.organism.model import ARCHITECTURES
from excise.plumbing.errors import StageError
from excise.trials.perplexity import OwnAnswers
from excise.trials.refusal import Questions
from excise.trials.simulation import simulated
from schemas.params.ablate import Ablate, ThroughNorm

MOST_REFUSALS = 0.05
LAYERS = ("all", "1-4", "2-4", "2-5", "3-5")
MEASUREMENTS = (3, 4, 5)
SCALES = (0.75, 1.0, 1.5, 2.0)
ORTHOGONALIZE = ("none", "source")
BEFORE = ("orthogonal", "none", "1-4", 4, 1.0)
"""The defaults until evidence from real models, in every table."""
PROMPTS, ANSWERS = 96, 32
SHOWN = 12

Rule = tuple[str, str, str, int, float]
"""through_norm, orthogonalize, layers, measurement, scale."""


@dataclass(frozen=True)
class Tried:
    """What an organism does under a rule, on held-out prompts."""

    refusal: float
    kl: float
    perplexity: float


class Bed:
    """An organism, its directions, and what it is asked."""

    def __init__(self, organism: Organism) -> None:
        self.organism, self.directions = organism, measure(organism)
        harmful, harmless = (
            organism.tokens(organism.asked[kind])[:PROMPTS] for kind in ("organism_harmful", "harmless_test")
        )
        self.questions = Questions(organism.model, harmful, harmless)
        answers = greedy_answers(organism.model, organism.tokenizer, harmless[:ANSWERS], "auto", lambda _: None)
        self.own = OwnAnswers(organism.model, harmless[:ANSWERS], answers)

    def under(self, rule: Rule) -> Tried | None:
        """What the organism does under a rule; None where the rule is refused."""
        way, orthogonalize, layers, measurement, scale = rule
        one = {"layers": layers, "measurement": measurement, "scale": scale}
        ablate = Ablate.model_validate({"through_norm": way, "orthogonalize": orthogonalize, "rules": [one]})
        try:
            plan = make_plan(ablate, self.organism.base, self.directions)
        except StageError:
            return None
        with simulated(self.organism.model, plan):
            said, perplexity = self.questions.ask(), self.own.perplexity()
        return Tried(said.remaining, float(said.kl.mean()), math.inf if perplexity is None else perplexity)


def rules() -> Iterator[Rule]:
    """The grid."""
    yield from itertools.product(get_args(ThroughNorm), ORTHOGONALIZE, LAYERS, MEASUREMENTS, SCALES)


def show(name: str, rule: Rule, tried: Tried) -> None:
    """Print a line of a table."""
    print(
        f"| {name} | {' | '.join(map(str, rule))} | {tried.refusal:.3f} | {tried.kl:.4f} | {tried.perplexity:.3g} |",
        flush=True,
    )


def worst(rule: Rule, results: list[dict[Rule, Tried]]) -> Tried:
    """The worst that a rule does anywhere; a rule that is refused anywhere is no rule."""
    each = [found.get(rule, Tried(math.inf, math.inf, math.inf)) for found in results]
    return Tried(
        *(max(values) for values in zip(*((one.refusal, one.kl, one.perplexity) for one in each), strict=True))
    )


def main() -> None:
    """Train, try, and print both tables."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    given = arguments.parse_args()
    head = "through_norm | orthogonalize | layers | measurement | scale | refusal | KL | perplexity × |"
    print(f"| organism | {head}\n| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    results: list[dict[Rule, Tried]] = []
    for architecture, seed in itertools.product(given.architectures, given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            bed = Bed(make_organism(architecture, seed, Path(folder)))
            found = {rule: tried for rule in rules() if (tried := bed.under(rule))}
        results.append(found)
        name = f"{architecture}, seed {seed}"
        show(f"{name}, before", BEFORE, found[BEFORE])
        for way, orthogonalize in itertools.product(get_args(ThroughNorm), ORTHOGONALIZE):
            enough = [
                rule
                for rule, tried in found.items()
                if rule[:2] == (way, orthogonalize) and tried.refusal <= MOST_REFUSALS
            ]
            if enough:
                best = min(enough, key=lambda rule: found[rule].kl)
                show(name, best, found[best])
            else:
                print(
                    f"| {name} | {way} | {orthogonalize} | none brings refusal to {MOST_REFUSALS} | | | | | |",
                    flush=True,
                )
    print(f"\n| worst of {len(results)} | {head}\n| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    everywhere = {rule: worst(rule, results) for rule in rules()}
    hold = [rule for rule, tried in everywhere.items() if tried.refusal <= MOST_REFUSALS]
    for rule in [BEFORE, *sorted(hold, key=lambda rule: everywhere[rule].kl)[:SHOWN]]:
        show("", rule, everywhere[rule])


if __name__ == "__main__":
    main()
