"""Over how many layers refusal is spread, in dense models and mixtures: `python -m benchmarks.spread`.

Trains organisms of several seeds of both architectures, in which three middle layers may learn to refuse, and others in
which all may. Along the most causal direction of each it takes, on unseen prompts,

- the effective number of layers, (Σ e)² / Σ e², where e is how much less likely refusing becomes (log-odds) if what all
  writers of one layer write is replaced by its mean on harmless prompts: n if n layers have the same effect and the
  others none;
- the fewest adjacent layers whose writers must be edited, at scale 1, to leave at most 5 % of refusal.

Prints each organism's in Markdown, and the means of mixture and dense with the 95 % interval of their difference
(Welch).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.mixture_and_dense import compared, organisms
from benchmarks.organisms import Organism, make_organism, measure, of_each
from excise.diagnosis.causes import Patches, ablating, most_causal
from excise.residual.contributions import Trace, components
from excise.trials.bench import Bench, layer_ranges, with_rules
from excise.trials.questions import questions_of
from schemas.params.ablate import Ablate
from schemas.params.organism import Organism as Settings

PROMPTS = 96


def effects(bench: Bench, measurement: int) -> list[float]:
    """By layer: the change of the log-odds of refusing, nats, when its writers' part along a direction is patched."""
    questions, direction = bench.questions, bench.directions.unit[measurement]
    watched = components(questions.model, bench.base)
    harmless = Trace(questions.model, bench.base.layout.family, watched, direction, questions.harmless).run()
    patches = Patches(questions, watched, direction, harmless)
    layers = [[site for site in patches.sites if site[0] == number] for number in range(bench.base.layout.layers)]
    questions.run("Patches", [patches.ask(layers)])
    patches.answered()
    return [patches.effect(sites) for sites in layers]


def effective(changes: list[float]) -> float:
    """How many layers lower refusal, as if all that do had the same effect."""
    lowered = np.maximum(-np.array(changes), 0)
    return float(lowered.sum() ** 2 / (lowered**2).sum())


def fewest(bench: Bench, measurement: int) -> int | None:
    """Layers of the shortest range that is enough; None if not even all are."""
    ranges = layer_ranges(bench.base.layout.layers)
    rules = [{"layers": f"{first}-{last}", "measurement": measurement, "scale": 1.0} for first, last in ranges]
    tried = [bench.trial(with_rules(Ablate(orthogonalize="none"), [rule])) for rule in rules]
    outcomes = iter(bench.questions.ask_all([trial for trial in tried if trial is not None]))
    enough = [trial is not None and next(outcomes).removes for trial in tried]
    return min((last - first + 1 for (first, last), each in zip(ranges, enough, strict=True) if each), default=None)


def bench_of(organism: Organism) -> Bench:
    asked = (organism.tokens(organism.asked[name]) for name in ("organism_harmful", "harmless_test"))
    harmful, harmless = (prompts[:: max(1, len(prompts) // PROMPTS)] for prompts in asked)
    return Bench(organism.base, measure(organism), questions_of(organism.model, harmful, harmless))


@dataclass(frozen=True)
class Spread:
    """Of one organism."""

    measurement: int
    effects: list[float]
    fewest: int | None


def spread(settings: Settings) -> Spread:
    """Train one, and patch and edit it along its most causal direction."""
    bench = bench_of(make_organism(settings))
    watched = components(bench.questions.model, bench.base)
    rows = [row for row, reason in enumerate(bench.directions.reasons) if reason is None]
    model, unit = bench.questions.model, bench.directions.unit
    without = bench.questions.ask_all([ablating(model, watched, unit[row]) for row in rows])
    measurement = most_causal(dict(zip(rows, without, strict=True)))[0]
    return Spread(measurement, effects(bench, measurement), fewest(bench, measurement))


def table(asked: Sequence[Settings]) -> None:
    """Train, patch, and print."""
    print("| model | seed | measurement | effect of layers 0 to 5 | effective layers | fewest |")
    print("| --- | ---: | ---: | --- | ---: | ---: |")
    layers = []
    for settings, one in zip(asked, of_each(asked, spread), strict=True):
        layers.append(effective(one.effects))
        told = ", ".join(f"{change:+.1f}" for change in one.effects)
        cells = [settings.architecture, settings.seed, one.measurement, told, f"{layers[-1]:.2f}", one.fewest or "more"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\nEffective layers: {compared(asked, layers)}.\n")


def main() -> None:
    """Both kinds of organisms."""
    for tuned in ("middle", "all"):
        print(f"Layers that may learn to refuse: {tuned}\n")
        table(organisms(__doc__, tuned=tuned))


if __name__ == "__main__":
    main()
