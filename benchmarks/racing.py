"""Whether a race keeps the winner, and what it saves, on the built-in models: `python -m benchmarks.racing`.

Every trial of the directions and of the ranges of layers is asked all held-out prompts, once. Then each race is run in
many draws of the prompts on these answers. It keeps the winner of all prompts, or one whose paired 95 % interval
reaches it (of drift if both remove refusal, of the probability of refusing if neither does). Passes are those of a
whole diagnosis.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.organisms import Organism, make_organism
from benchmarks.trials import Unraced
from excise.diagnosis.causes import ablating, most_causal
from excise.diagnosis.explanation import FINAL_MEASUREMENTS, explain
from excise.diagnosis.recommendation import FINALISTS, KEPT, MEASUREMENTS, range_rule
from excise.inference.forward import first_token_log_probabilities
from excise.inference.passes import Passes
from excise.inference.refusals import refusal_tokens
from excise.organism.world import Item
from excise.prompts.gathering import hold_out
from excise.residual.activations import collect_activations
from excise.residual.contributions import components
from excise.residual.directions import MEAN, describe, estimate
from excise.trials.bench import Bench, layer_ranges, with_rules
from excise.trials.changes import Trial
from excise.trials.engines import InMemory
from excise.trials.questions import Asked, Kind, Numbers, Questions
from excise.trials.refusal import Outcome
from excise.trials.tree import Job
from schemas.params.ablate import Ablate, EditMethod
from schemas.params.organism import Organism as Settings
from schemas.prompts import Prompt

DRAWS = 50
MODELS = {
    "glm4_moe": Settings(architecture="glm4_moe"),
    "llama": Settings(architecture="llama"),
    "gemma2": Settings(architecture="gemma2"),
    "gemma3_text": Settings(architecture="gemma3_text"),
    "hard": Settings(architecture="llama", tuned="all", tune_steps=120),
}


class Drawn(Questions):
    """The same questions in another draw, whose answers are known."""

    def __init__(self, known: Questions, answers: Asked, seed: int) -> None:
        super().__init__(known.engine, known.harmful, known.harmless, known.tokens, seed=seed)
        self._base, self._answers = known._base, answers

    def _job(self, asked: Asked, kind: Kind, trials: list[int], rows: list[int]) -> Job:
        numbers, known = asked.numbers[kind], self._answers.numbers[kind]
        for name in (*Numbers.NAMES, "is_asked"):
            for trial in trials:
                getattr(numbers, name)[trial, rows] = getattr(known, name)[trial, rows]
        return Job([], [], lambda *_: None, self.engine.sharing([[0, 0]]))

    def _run(self, jobs: Sequence[Job]) -> None:
        pass


def halves(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Held-out and measured, as `prepare` splits them."""
    by_id = {item.id: item for item in items}
    prompts = [Prompt(id=item.id, prompt=item.prompt, item=item.thing) for item in items]
    held_out, others = ([by_id[prompt.id] for prompt in part] for part in hold_out(prompts))
    return held_out, others


def kept(known: Questions, answers: Asked, keep: int, most: int) -> int:
    """Draws in which the winner is kept, or one that is like it."""
    whole = known.outcomes(answers)
    winner = min(range(len(whole)), key=lambda number: whole[number].rank)
    count = 0
    for seed in range(DRAWS):
        drawn, asked = Drawn(known, answers, seed), Asked(answers.trials, keep=keep, most=most)
        drawn._race(asked, keep)
        outcomes = drawn.outcomes(asked)
        asked_all = [number for number, outcome in enumerate(outcomes) if outcome.is_whole]
        best = min(asked_all, key=lambda number: outcomes[number].rank)
        count += best == winner or is_like(whole[best], whole[winner])
    return count


def is_like(one: Outcome, other: Outcome) -> bool:
    """Whether the paired interval of the two reaches 0."""
    increase: Tensor = one.harmful.log_odds.sigmoid() - other.harmful.log_odds.sigmoid()
    if one.removes and other.removes:
        increase = one.kl_without - other.kl_without
    elif one.removes != other.removes:
        return False
    return float(increase.mean()) <= 1.96 * float(increase.std()) / len(increase) ** 0.5


def row(name: str, organism: Organism) -> str:
    """A line of the table."""
    model, asked = organism.model, organism.asked
    (harmful, measured_harmful), (harmless, measured_harmless) = (
        halves(asked[f"{kind}_train"]) for kind in ("harmful", "harmless")
    )
    measured = [organism.tokens(items) for items in (measured_harmful, measured_harmless)]
    sides = [collect_activations(Passes(model), {}, kind, -1, "auto", lambda _: None).stream for kind in measured]
    directions = estimate(sides[0], sides[1])
    statistics = describe(directions, sides[0], sides[1], MEAN).measurements
    first = [first_token_log_probabilities(model, kind, "auto", lambda _: None) for kind in measured]
    tokens = refusal_tokens(*(side.double().exp().mean(0) for side in first))
    prompts = organism.tokens(harmful), organism.tokens([*harmless, *asked["harmless_various"]])

    def bench(kind: type[Questions]) -> Bench:
        return Bench(organism.base, directions, kind(InMemory(model), *prompts, tokens))

    passes = [
        explain(bench(kind), EditMethod(), statistics, lambda token: str(token)).passes for kind in (Questions, Unraced)
    ]
    base = bench(Questions)
    known, watched = base.questions, components(model, organism.base)
    directed = [number for number, reason in enumerate(directions.reasons) if reason is None]
    removed = Asked([ablating(model, watched, directions.unit[number]) for number in directed])
    known.ask_base()
    known.run("Directions", [removed])
    causal = most_causal(dict(zip(directed, known.outcomes(removed), strict=True)))[:MEASUREMENTS]
    writers = list(dict.fromkeys(component.writer.role for component in watched))
    ranges: list[Trial | None] = [
        base.trial(with_rules(Ablate(), [range_rule(*layers, number, writers)]))
        for number in causal
        for layers in layer_ranges(organism.base.layout.layers)
    ]
    edited = Asked([trial for trial in ranges if trial is not None])
    known.run("Ranges", [edited])
    counts = kept(known, removed, 1, FINAL_MEASUREMENTS), kept(known, edited, KEPT, FINALISTS)
    cells = [name, *(f"{count} of {DRAWS}" for count in counts), *(f"{each:.1f}" for each in passes)]
    return f"| {' | '.join([*cells, f'{passes[0] / passes[1]:.2f}'])} |"


def main() -> None:
    """Train, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | directions: winner kept | ranges: winner kept | passes, raced | passes, tree | ratio |")
    print("| --- |" + " ---: |" * 5)
    for name in arguments.models:
        print(row(name, make_organism(MODELS[name])), flush=True)


if __name__ == "__main__":
    main()
