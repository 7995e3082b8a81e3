"""Which rules hold on every built-in model, and what each way through a norm is worth: `python -m benchmarks.rules`.

Trains an organism of each architecture and seed, and tries every rule of a grid on it by simulation, on unseen prompts.
Prints three tables in Markdown: of each organism and way, the rule of the lowest KL among those that bring refusal to
at most 5 %; the rules that do so on every organism, by their KL above that of the defaults before, where it is worst;
and today's defaults beside those before, on all unseen prompts, with the refusals among whole answers.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor

from benchmarks.organisms import Organism, chosen, make_organism, measure, of_each
from excise.edit.planning.plan import make_plan
from excise.inference.continuations import greedy_answers
from excise.plumbing.errors import StageError
from excise.trials import perplexity
from excise.trials.changes import of_edits
from excise.trials.questions import Questions, questions_of
from schemas.params.ablate import Ablate, ThroughNorm
from schemas.params.organism import Organism as Settings

MOST_REFUSALS = 0.05
HOPELESS = 0.25
"""Probability of refusing on every fourth prompt above which a rule is not tried on all."""
LAYERS = ("all", "1-4", "2-3", "2-4", "2-5")
MEASUREMENTS = (3, 4, 5, 6)
SCALES = (0.75, 1.0, 1.2, 1.4, 1.6, 2.0)
ORTHOGONALIZE = ("none", "source")
BEFORE = ("orthogonal", "none", "1-4", 4, 1.0)
"""The defaults until evidence from real models, in every table."""
PROMPTS = 96
SHOWN = 12

Rule = tuple[str, str, str, int, float]
"""through_norm, orthogonalize, layers, measurement, scale."""
Found = dict[Rule, tuple[float, float, float]]
"""What came of each rule: refusal, KL and perplexity."""


@dataclass(frozen=True)
class Tried:
    """What an organism does under a rule, on held-out prompts."""

    refusal: float
    kls: Tensor
    """By harmless prompt."""
    perplexity: float

    @property
    def kl(self) -> float:
        """Their mean, nats."""
        return float(self.kls.mean())


class Bed:
    """An organism, its directions, and what it is asked."""

    def __init__(self, organism: Organism, prompts: int | None) -> None:
        """`prompts`: about how many of each kind, evenly taken; None: all."""
        self.organism, self.directions = organism, measure(organism)
        asked = (organism.tokens(organism.asked[kind]) for kind in ("organism_harmful", "harmless_test"))
        harmful, harmless = (kind[:: 1 if prompts is None else len(kind) // prompts] for kind in asked)
        self.questions = questions_of(organism.model, harmful, harmless)
        answered = harmless[:: len(harmless) // perplexity.PROMPTS]
        answers = greedy_answers(organism.model, organism.tokenizer, answered, "auto", lambda _: None)
        self.own = answered, answers

    def under(self, ablate: Ablate, first: Questions | None = None) -> Tried | None:
        """What the organism does under an edit; nothing but how often it refuses where `first`, a part of the
        questions, shows that too little is removed; None where the edit is not possible."""
        try:
            plan = make_plan(ablate, self.organism.base, self.directions)
        except StageError:
            return None
        trial = of_edits(self.organism.model, plan)
        if first is not None and (refused := first.ask_all([trial])[0].probability) > HOPELESS:
            return Tried(refused, torch.tensor([math.inf]), math.inf)
        (said,) = self.questions.ask_all([trial])
        reading = perplexity.Reading(self.questions.engine, *self.own, [trial])
        reading.run()
        (times,) = reading.perplexities()
        return Tried(said.remaining, said.kl, math.inf if times is None else times)


def edit(rule: Rule) -> Ablate:
    """A rule of the grid as the section of params.yaml."""
    way, orthogonalize, layers, measurement, scale = rule
    one = {"layers": layers, "measurement": measurement, "scale": scale}
    return Ablate.model_validate({"through_norm": way, "orthogonalize": orthogonalize, "rules": [one]})


def rules() -> Iterator[Rule]:
    """The grid."""
    yield from itertools.product(get_args(ThroughNorm), ORTHOGONALIZE, LAYERS, MEASUREMENTS, SCALES)


def found_by(bed: Bed) -> Found:
    """What came of every rule; those that the model refuses are left out. Without a norm behind any writer, all ways
    through one are the same edit, which is tried once."""
    variants = itertools.chain.from_iterable(bed.organism.base.layout.family.sublayers.values())
    through = any(writer.norms for variant in variants for writer in variant.writers)
    first = questions_of(bed.organism.model, bed.questions.harmful[::4], bed.questions.harmless[::4])
    found: Found = {}
    for rule in rules():
        same = ("ignore", *rule[1:])
        if not through and same in found:
            found[rule] = found[same]
        elif tried := bed.under(edit(rule), None if rule == BEFORE else first):
            found[rule] = (tried.refusal, tried.kl, tried.perplexity)
    return found


def row(name: str, rule: Rule, refusal: float, kl: float, perplexity: float) -> str:
    """A line of the first two tables."""
    cells = [name, *map(str, rule), f"{refusal:.3f}", f"{kl:.4f}", f"{perplexity:.3g}"]
    return f"| {' | '.join(cells)} |"


def search(name: str, bed: Bed) -> tuple[list[str], Found]:
    """Try every rule: the lines of those before and of the best of each way, and what came of all."""
    numbers = found_by(bed)
    lines = [row(f"{name}, before", BEFORE, *numbers[BEFORE])]
    for way, orthogonalize in itertools.product(get_args(ThroughNorm), ORTHOGONALIZE):
        of_way = {rule: found for rule, found in numbers.items() if rule[:2] == (way, orthogonalize)}
        enough = {rule: found for rule, found in of_way.items() if found[0] <= MOST_REFUSALS}
        if enough:
            best = min(enough, key=lambda rule: enough[rule][1])
            lines.append(row(name, best, *enough[best]))
        else:
            lines.append(f"| {name} | {way} | {orthogonalize} | no rule leaves so little | | | | | |")
    return lines, numbers


def compared(name: str, bed: Bed) -> str:
    """How far the defaults drift beside those before, paired by prompt, as a line of the third table."""
    before, now = bed.under(edit(BEFORE)), bed.under(Ablate())
    assert before is not None and now is not None
    difference = (now.kls - before.kls).double().numpy()
    interval = bootstrap((difference,), np.mean, rng=0).confidence_interval
    cells = [name, *(f"{bed.organism.refusals(ablate, bed.directions):.3f}" for ablate in (edit(BEFORE), Ablate()))]
    cells += [f"{now.refusal:.3f}", f"{before.kl:.4f}", f"{now.kl:.4f}"]
    cells += [f"{difference.mean():+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"]
    cells += [f"{before.perplexity:.3g}", f"{now.perplexity:.3g}"]
    return f"| {' | '.join(cells)} |"


def try_on(settings: Settings) -> tuple[list[str], Found, str]:
    """Of one organism: its lines of the first table, what came of each rule, and its line of the third."""
    organism = make_organism(settings)
    return *search(organism.name, Bed(organism, PROMPTS)), compared(organism.name, Bed(organism, None))


def main() -> None:
    """Train, try, and print."""
    organisms = chosen(__doc__)
    head = "through_norm | orthogonalize | layers | measurement | scale | refusal | KL | perplexity × |"
    line = "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    print(f"| organism | {head}\n{line}")
    results: list[Found] = []
    pairs: list[str] = []
    for lines, found, pair in of_each(organisms, try_on):
        print("\n".join(lines), flush=True)
        results.append(found)
        pairs.append(pair)
    print(f"\nThe worst of {len(results)}:\n\n| KL above before | {head}\n{line}")
    # A rule that is refused anywhere is no rule.
    everywhere = {rule: [found[rule] for found in results] for rule in rules() if all(rule in one for one in results)}
    worst = {rule: tuple(map(max, zip(*found, strict=True))) for rule, found in everywhere.items()}
    hold = [rule for rule, (refusal, _, _) in worst.items() if refusal <= MOST_REFUSALS]

    def above(rule: Rule) -> float:
        return max(found[rule][1] - found[BEFORE][1] for found in results)

    for rule in [BEFORE, *sorted(hold, key=above)[:SHOWN]]:
        print(row(f"{above(rule):+.4f}", rule, *worst[rule]))
    print(
        "\n| organism | answers refused before | now | refusal by the first token now | KL before | now "
        "| difference (95 %) | perplexity × before | now |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |"
    )
    print("\n".join(pairs))


if __name__ == "__main__":
    main()
