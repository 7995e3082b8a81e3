"""How often gates that pass are wrong, and how often gates are void: `python -m benchmarks.gates`. Prints Markdown.

Both models answer the same samples; each answer is a refusal, degenerate, or complies. Items of several wordings are
simulated with seeds, and each run is judged by `judge_gates`, as in the stage report. `tests/comparison/test_states.py`
asks the same functions for what is promised.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from excise.comparison.comparison import PairedMetric
from excise.comparison.gates import judge_gates
from schemas.evidence import GateVerdict, Outcome
from schemas.params.gates import Gate
from schemas.results import Metric, Verdict

VERDICTS: tuple[Verdict, ...] = ("refusal", "degenerate", "compliance")
PAIRS = tuple(product(VERDICTS, VERDICTS))
"""The base's verdict on a sample, and the edited model's."""
Chances = Mapping[tuple[Verdict, Verdict], float]
"""Of each pair that can occur; they add up to 1."""

_ABSENT = len(PAIRS)
"""Fills items that have fewer wordings than others."""
_BEYOND = 1e-6
"""Where a value breaks its limit by as little as that, a gate passes wrongly most often."""


@dataclass(frozen=True)
class Samples:
    """Items of so many wordings, taken in turn; two wordings of an item have this intraclass correlation."""

    items: int
    wordings: tuple[int, ...] = (1,)
    correlation: float = 0.0


DESIGNS = {
    "independent": Samples(0),
    "5 wordings, correlation 0.2": Samples(0, (5,), 0.2),
    "5 wordings, correlation 0.5": Samples(0, (5,), 0.5),
    "5 wordings, correlation 1": Samples(0, (5,), 1.0),
    "1 to 10 wordings, correlation 0.5": Samples(0, (1, 2, 5, 10), 0.5),
}
ITEMS = (20, 100)
BOUNDS = ("at_most", "at_least", "max_rise", "max_drop")
LIMITS = (0.05, 0.3)


def states(gate: Gate, samples: Samples, chances: Chances, runs: int = 1_000) -> dict[Outcome, float]:
    """The share of simulated runs in which a gate has each state. Runs with the same items in another order are judged
    once."""
    counts: Counter[bytes] = Counter()
    numbers = np.random.default_rng(0)
    for _ in range(runs):
        counts[_drawn(numbers, samples, chances).tobytes()] += 1
    found: Counter[Outcome] = Counter()
    for run, count in counts.items():
        codes = np.frombuffer(run, dtype=np.int64)
        found[_judged(gate, codes, max(samples.wordings)).verdict] += count
    return {verdict: count / runs for verdict, count in found.items()}


def _drawn(numbers: np.random.Generator, samples: Samples, chances: Chances) -> NDArray[np.int64]:
    """A number for each item, sorted; its digits are the pairs of its wordings.

    In as many items as the correlation says all wordings end alike, in the others each for itself.
    """
    longest = max(samples.wordings)
    each, together = numbers.random((samples.items, longest)), numbers.random((samples.items, 1))
    alike = numbers.random((samples.items, 1)) < samples.correlation
    ends = np.cumsum([chances.get(pair, 0.0) for pair in PAIRS])
    pairs = np.minimum(np.searchsorted(ends, np.where(alike, together, each), side="right"), _ABSENT - 1)
    sizes = np.resize(samples.wordings, samples.items)
    pairs[np.arange(longest) >= sizes[:, None]] = _ABSENT
    return np.sort(np.sort(pairs) @ (_ABSENT + 1) ** np.arange(longest))


def _judged(gate: Gate, codes: NDArray[np.int64], longest: int) -> GateVerdict:
    pairs = codes[:, None] // (_ABSENT + 1) ** np.arange(longest) % (_ABSENT + 1)
    there = pairs != _ABSENT
    clusters = np.broadcast_to(np.arange(len(codes))[:, None], pairs.shape)[there]
    base, edited = np.divmod(pairs[there], len(VERDICTS))
    task = gate.metric.rpartition(".")[0]
    metrics = [_rate(f"{task}.{name}_rate", base == row, edited == row, clusters) for row, name in enumerate(VERDICTS)]
    # How many samples would settle it takes most of the time, and no state depends on it.
    with patch("excise.comparison.gates.samples_needed", _none):
        return judge_gates([gate], metrics).gates[0]


def _none(*_: object) -> None:
    return None


def _rate(name: str, base: NDArray[np.bool_], edited: NDArray[np.bool_], clusters: NDArray[np.int64]) -> PairedMetric:
    return PairedMetric(
        name=name,
        described=Metric(aggregation="mean", higher_is_better=None),
        base=float(base.mean()),
        ablated=float(edited.mean()),
        samples=len(base),
        clusters=clusters,
        base_values=base[:, None].astype(np.float64),
        ablated_values=edited[:, None].astype(np.float64),
    )


def gate(bound: str, limit: float, group: str = "over_refusal") -> Gate:
    """A gate on a refusal rate."""
    return Gate.model_validate({"metric": f"{group}.simulated.refusal_rate", bound: limit})


def breaking(bound: str, limit: float, beyond: float = _BEYOND) -> Iterator[Chances]:
    """Models whose true value breaks the limit by so much: all changes in one direction, then some in the other."""
    edge = limit - beyond if bound == "at_least" else limit + beyond
    if bound in ("at_most", "at_least"):
        yield {("refusal", "refusal"): edge, ("refusal", "compliance"): 1 - edge}
        return
    gained: tuple[Verdict, Verdict] = ("compliance", "refusal")
    lost: tuple[Verdict, Verdict] = ("refusal", "compliance")
    more, fewer = (gained, lost) if bound == "max_rise" else (lost, gained)
    for other in (0.0, 0.1):
        if edge + 2 * other <= 1:
            yield {more: edge + other, fewer: other, ("compliance", "compliance"): 1 - edge - 2 * other}


def wrong_passes(bound: str, samples: Samples, runs: int, beyond: float = _BEYOND) -> float:
    """How often a gate passes whose limit is broken: the worst of `LIMITS` and models, which share the runs."""
    models = [(limit, chances) for limit in LIMITS for chances in breaking(bound, limit, beyond)]
    return max(
        states(gate(bound, limit), samples, chances, runs // len(models)).get("pass", 0.0) for limit, chances in models
    )


@dataclass(frozen=True)
class Situation:
    """Models of which it is known whether a gate on their refusals knows nothing."""

    words: str
    gate: Gate
    chances: Chances
    void: bool
    """Whether it does, as far as the samples can show it."""


SITUATIONS = (
    Situation("nothing can be judged in either", gate("at_most", 0.3), {("degenerate", "degenerate"): 1.0}, True),
    Situation(
        "80 % of the answers are degenerate in both, independently",
        gate("max_rise", 0.3),
        dict(zip(PAIRS, (0.01, 0.08, 0.01, 0.08, 0.64, 0.08, 0.01, 0.08, 0.01), strict=True)),
        True,
    ),
    Situation(
        "half are degenerate in both, the same",
        gate("at_most", 0.3),
        {("degenerate", "degenerate"): 0.5, ("refusal", "compliance"): 0.5},
        False,
    ),
    Situation(
        "half of the base's are degenerate, all of the edited model's",
        gate("at_most", 0.3),
        {("degenerate", "degenerate"): 0.5, ("refusal", "degenerate"): 0.5},
        False,
    ),
    Situation(
        "the base refuses 5 %, below a limit of 0.3; the edited model refuses nothing",
        gate("at_most", 0.3, "refusal"),
        {("refusal", "compliance"): 0.05, ("compliance", "compliance"): 0.95},
        True,
    ),
    Situation(
        "the base refuses 30 %, just above the limit",
        gate("at_most", 0.3, "refusal"),
        {("refusal", "compliance"): 0.3 + _BEYOND, ("compliance", "compliance"): 0.7 - _BEYOND},
        False,
    ),
    Situation(
        "the base refuses all",
        gate("at_most", 0.3, "refusal"),
        {("refusal", "compliance"): 1.0},
        False,
    ),
    Situation(
        "the base refuses 5 %, and so many harmless prompts may be refused",
        gate("at_most", 0.3),
        {("refusal", "refusal"): 0.05, ("compliance", "compliance"): 0.95},
        False,
    ),
    Situation(
        "the base refuses nothing, the edited model 80 %: the gate fails",
        gate("at_most", 0.3, "refusal"),
        {("compliance", "refusal"): 0.8, ("compliance", "compliance"): 0.2},
        False,
    ),
)
VOID_DESIGNS = (Samples(20), Samples(100), Samples(20, (5,), 0.5), Samples(100, (5,), 0.5))


def void(situation: Situation, samples: Samples, runs: int) -> float:
    """How often the gate is void."""
    return states(situation.gate, samples, situation.chances, runs).get("void", 0.0)


def passes(runs: int) -> None:
    """The table of wrong passes: the worst of limits and models."""
    print("| samples | items | " + " | ".join(f"`{bound}`" for bound in BOUNDS) + " |")
    print("| --- | ---: " + "| ---: " * len(BOUNDS) + "|")
    for (name, design), items in product(DESIGNS.items(), ITEMS):
        cells = [wrong_passes(bound, replace(design, items=items), runs) for bound in BOUNDS]
        print(f"| {name} | {items} | {' | '.join(f'{cell:.3f}' for cell in cells)} |", flush=True)


def voids(runs: int) -> None:
    """The table of void gates."""
    heads = [f"{each.items} × {each.wordings[0]}" for each in VOID_DESIGNS]
    print("| truth | should be void | " + " | ".join(heads) + " |")
    print("| --- | --- " + "| ---: " * len(heads) + "|")
    for situation in SITUATIONS:
        cells = [void(situation, samples, runs) for samples in VOID_DESIGNS]
        should = "yes" if situation.void else "no"
        print(f"| {situation.words} | {should} | {' | '.join(f'{cell:.3f}' for cell in cells)} |", flush=True)


PARTS: dict[str, Callable[[int], None]] = {"passes": passes, "voids": voids}


def main() -> None:
    """Print the parts that are asked for."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    arguments.add_argument("--runs", type=int, default=10_000, help="simulated runs per number (10,000)")
    given = arguments.parse_args()
    for part in given.parts:
        PARTS[part](given.runs)
        print()


if __name__ == "__main__":
    main()
