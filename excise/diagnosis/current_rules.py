"""What the current rules would do, before any byte is written: predicted directly, and simulated in forward passes.
The base passes once, and the edited model once for each scale: what it answers and where its stream lies are read in
the same pass. A few prompts more tell whether it can still write."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import mul
from typing import Any

from torch import Tensor

from excise.checkpoint.base_model import BaseModel
from excise.diagnosis.contributions import Component, Trace, Tracer, components
from excise.edit.planning.plan import Edit, make_plan
from excise.edit.planning.projectors import Directions
from excise.edit.planning.shifts import Shift, make_shifts, summary
from excise.trials.bench import with_scales
from excise.trials.perplexity import OwnAnswers
from excise.trials.refusal import Outcome, Questions
from excise.trials.simulation import simulated
from schemas.directions import MeasurementStatistics
from schemas.params.ablate import Ablate
from schemas.simulation import PartTrial, Projections, ScaleTrial, Simulation

SCALES = (0.5, 1.0, 2.0)
"""Factors on the scale of every rule."""

RUINOUS = 2.0
"""Rules are ruinous where the base's own answers become more than this many times as perplexing: each of their tokens
less than half as likely, on average. docs/diagnosis.md has examples on either side."""


@dataclass(frozen=True)
class DirectEffect:
    """What an edit would leave of the difference between the two kinds of prompts along the direction, in the last
    measurement, if every input stayed as it is, and whatever a norm divides by. Of projections of writers only."""

    whole: float
    """The difference without an edit."""
    removed: float
    """What the rules, as they are, take out of it."""
    left_out: float
    """What of it is due to writers that the rules leave out, and to the embedding."""

    def remainder(self, scale: float) -> float:
        """The difference that is left where the scale of every rule is multiplied by this."""
        return self.whole - scale * self.removed


def direct_effect(harmful: Trace, harmless: Trace) -> DirectEffect:
    """Add up what was traced: each write, times what later layers multiply the stream by."""
    whole, removed, covered = last_difference(harmful, harmless), 0.0, 0.0
    for (layer, role), write in harmful.writes.items():
        other, reach = harmless.writes[layer, role], harmful.reach(layer)
        removed += reach * float(write.removed.mean() - other.removed.mean())
        covered += reach * float(write.covered.mean() - other.covered.mean())
    return DirectEffect(whole=whole, removed=removed, left_out=whole - covered)


def last_difference(harmful: Trace, harmless: Trace) -> float:
    """Harmful minus harmless prompts along the direction, on average, in the last measurement."""
    return float(harmful.stream[:, -1].mean() - harmless.stream[:, -1].mean())


def simulate(
    base: BaseModel,
    directions: Directions,
    use_odds: Mapping[int, Tensor],
    own: OwnAnswers,
    prompts: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    ablate: Ablate,
    statistics: Sequence[MeasurementStatistics],
    directions_sha256: str,
    advance: Callable[[int], None],
) -> Simulation:
    """Simulate the rules of params.yaml, with the scale of each times ``SCALES``, and where they are ruinous each third
    of their layers by itself. Raises `StageError`: the model does not have what a rule names, or cannot be edited so;
    or it answers with NaN.

    Args:
        use_odds: by layer with routed experts, the log-odds of each one's use.
        own: the model, and its answers to a few prompts.
        prompts: the tokens of harmful and of harmless ones, held out.
        statistics: of each measurement.
        directions_sha256: of the file that holds the directions.
        advance: called after each pass over the prompts: one of the base, and one per scale.
    """
    plans = {scale: make_plan(with_scales(ablate, partial(mul, scale)), base, directions) for scale in SCALES}
    shifts, model = make_shifts(ablate, base, use_odds), own.model
    # Where every scale is 0, as for a router's bias only: of what the rules name.
    named = plans[1.0] or make_plan(with_scales(ablate, lambda _: 1.0), base, directions)
    measurement = main_measurement(named, statistics)
    direction = directions.of_every_layer(measurement, ablate.orthogonalize)

    def tracers(watched: Sequence[Component] = ()) -> list[Tracer]:
        return [Tracer(model, base.layout.family, watched, direction, kind, plans[1.0]) for kind in prompts]

    of_base = tracers(components(model, base))
    questions = Questions(model, *prompts, *(tracer.watch for tracer in of_base))
    before = [tracer.trace() for tracer in of_base]
    advance(1)
    direct = direct_effect(*before)
    outcomes: dict[float, Outcome] = {}
    after: dict[float, list[Trace]] = {}
    trials = []
    for scale, edits in plans.items():
        of_edited = tracers()
        with simulated(model, edits, shifts):
            outcomes[scale] = questions.ask(*(tracer.watch for tracer in of_edited))
            perplexity = own.perplexity()
        after[scale] = [tracer.trace() for tracer in of_edited]
        remainder, left = direct.remainder(scale), last_difference(*after[scale])
        told: dict[str, Any] = dict.fromkeys(("simulated", "indirect", "answers"))
        if outcomes[scale].is_finite and math.isfinite(left):
            told = {"simulated": left, "indirect": left - remainder, "answers": outcomes[scale].answers()}
        trials.append(ScaleTrial(scale=scale, direct=remainder, perplexity=perplexity, **told))
        advance(1)

    ruinous = is_ruinous(trials[SCALES.index(1.0)].perplexity)
    return Simulation(
        edited=summary([*plans[1.0], *shifts], base.tensors),
        measurements=sorted({edit.measurement for edit in plans[1.0]}),
        measurement=measurement,
        projections_before=_projections(before, round(measurement)),
        projections_after=_projections(after[1.0], round(measurement)),
        current=outcomes[1.0].answers(),
        difference=direct.whole,
        left_out=direct.left_out,
        scales=trials,
        ruinous=ruinous,
        thirds=try_thirds(own, plans[1.0], shifts) if ruinous else [],
        ablate=ablate.model_dump(mode="json"),
        directions_sha256=directions_sha256,
    )


def _projections(traces: Sequence[Trace], measurement: int) -> Projections:
    harmful, harmless = (trace.stream[:, measurement].tolist() for trace in traces)
    return Projections(harmful=harmful, harmless=harmless)


def is_ruinous(perplexity: float | None) -> bool:
    """Whether a model can no longer write as the base does, given the perplexity of the base's own answers to it, as a
    multiple of the base's."""
    return perplexity is None or perplexity > RUINOUS


def try_thirds(own: OwnAnswers, edits: Sequence[Edit], shifts: Sequence[Shift]) -> list[PartTrial]:
    """Each third of the layers that are edited by itself, the embeddings with the first."""
    named = {edit.layer for edit in edits} | {shift.layer for shift in shifts}
    layers = sorted(layer for layer in named if layer is not None)
    bounds = [len(layers) * third // 3 for third in range(4)]
    found = []
    for part in (layers[start:stop] for start, stop in pairwise(bounds) if start < stop):
        of_part = {*part, None} if part[0] == layers[0] else {*part}
        here = [edit for edit in edits if edit.layer in of_part], [shift for shift in shifts if shift.layer in of_part]
        with simulated(own.model, *here):
            found.append(PartTrial(first=part[0], last=part[-1], perplexity=own.perplexity()))
    return found


def main_measurement(edits: Sequence[Edit], statistics: Sequence[MeasurementStatistics]) -> float:
    """The measurement of most edits; of several, that whose direction is longest beside the stream."""
    counts = Counter(edit.measurement for edit in edits)
    most = [measurement for measurement, times in counts.items() if times == max(counts.values())]
    return max(most, key=lambda measurement: statistics[round(measurement)].relative_norm or 0.0)
