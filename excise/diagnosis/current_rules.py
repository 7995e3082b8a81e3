"""What the current rules would do, before any byte is written: predicted from the base, and simulated."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import mul
from statistics import multimode

from torch import Tensor

from excise.checkpoint.base_model import BaseModel
from excise.edit.planning.plan import Edit, make_plan
from excise.edit.planning.projectors import Directions
from excise.edit.planning.shifts import Shift, make_shifts, summary
from excise.inference.forward import Tokens
from excise.residual.contributions import Component, Trace, components
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
"""Rules are ruinous if they multiply the perplexity of the base's own answers by more (examples: docs/diagnosis.md)."""


@dataclass(frozen=True)
class DirectEffect:
    """What projections of writers would remove of the difference between the two kinds of prompts along the direction,
    at the last measurement, if every input and every norm's divisor stayed the same."""

    whole: float
    """The difference without an edit."""
    removed: float
    """The part that the rules remove."""
    left_out: float
    """The part that comes from the embedding and from writers that no rule names."""

    def remainder(self, scale: float) -> float:
        """The remaining difference if the scale of every rule is multiplied by this."""
        return self.whole - scale * self.removed


def direct_effect(harmful: Trace, harmless: Trace) -> DirectEffect:
    """The sum over all writes, each as it arrives at the last measurement."""
    whole, removed, covered = last_difference(harmful, harmless), 0.0, 0.0
    for (layer, role), write in harmful.writes.items():
        other, reach = harmless.writes[layer, role], harmful.reach(layer)
        removed += reach * float(write.removed.mean() - other.removed.mean())
        covered += reach * float(write.covered.mean() - other.covered.mean())
    return DirectEffect(whole=whole, removed=removed, left_out=whole - covered)


def last_difference(harmful: Trace, harmless: Trace) -> float:
    """Harmful minus harmless prompts along the direction, on average, at the last measurement."""
    return float(harmful.stream[:, -1].mean() - harmless.stream[:, -1].mean())


def simulate(
    base: BaseModel,
    directions: Directions,
    use_odds: Mapping[int, Tensor],
    own: OwnAnswers,
    prompts: tuple[Tokens, Tokens],
    ablate: Ablate,
    statistics: Sequence[MeasurementStatistics],
    directions_sha256: str,
    advance: Callable[[int], None],
) -> Simulation:
    """Simulate the rules with all scales multiplied by each of ``SCALES``; ruinous ones also in each third of their
    layers. `prompts` are held-out harmful and harmless ones; `advance` is called once for the base and for each scale.
    Raises `StageError`: the model lacks what a rule names or cannot be edited so, or its logits are not finite."""
    plans = {scale: make_plan(with_scales(ablate, partial(mul, scale)), base, directions) for scale in SCALES}
    shifts, model = make_shifts(ablate, base, use_odds), own.model
    # If every scale is 0, as when only a router's bias is shifted, the plan is empty.
    named = plans[1.0] or make_plan(with_scales(ablate, lambda _: 1.0), base, directions)
    measurement = main_measurement(named, statistics)
    direction = directions.of_every_layer(measurement, ablate.orthogonalize)

    def traces(watched: Sequence[Component] = ()) -> list[Trace]:
        return [Trace(model, base.layout.family, watched, direction, kind, plans[1.0]) for kind in prompts]

    before = traces(components(model, base))
    questions = Questions(model, *prompts, *(trace.watch for trace in before))
    for trace in before:
        trace.check()
    advance(1)
    direct = direct_effect(*before)
    outcomes: dict[float, Outcome] = {}
    after: dict[float, list[Trace]] = {}
    trials = []
    for scale, edits in plans.items():
        after[scale] = traces()
        with simulated(model, edits, shifts):
            outcomes[scale] = questions.ask(*(trace.watch for trace in after[scale]))
            perplexity = own.perplexity()
        remainder, simulated_remainder = direct.remainder(scale), last_difference(*after[scale])
        finite = outcomes[scale].is_finite and math.isfinite(simulated_remainder)
        trials.append(
            ScaleTrial(
                scale=scale,
                direct=remainder,
                simulated=simulated_remainder if finite else None,
                indirect=simulated_remainder - remainder if finite else None,
                answers=outcomes[scale].answers() if finite else None,
                perplexity=perplexity,
            )
        )
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
    """Whether a model can no longer write as the base does, by the factor on the perplexity of the base's answers."""
    return perplexity is None or perplexity > RUINOUS


def try_thirds(own: OwnAnswers, edits: Sequence[Edit], shifts: Sequence[Shift]) -> list[PartTrial]:
    """Try each third of the edited layers separately, the embeddings with the first."""
    named = {edit.layer for edit in edits} | {shift.layer for shift in shifts}
    layers = sorted(layer for layer in named if layer is not None)
    bounds = [len(layers) * third // 3 for third in range(4)]
    trials = []
    for part in (layers[start:stop] for start, stop in pairwise(bounds) if start < stop):
        of_part = {*part, None} if part[0] == layers[0] else {*part}
        kept = [edit for edit in edits if edit.layer in of_part], [shift for shift in shifts if shift.layer in of_part]
        with simulated(own.model, *kept):
            trials.append(PartTrial(first=part[0], last=part[-1], perplexity=own.perplexity()))
    return trials


def main_measurement(edits: Sequence[Edit], statistics: Sequence[MeasurementStatistics]) -> float:
    """The measurement of most edits; of several, the one whose direction has the largest relative norm."""
    most = multimode(edit.measurement for edit in edits)
    return max(most, key=lambda measurement: statistics[round(measurement)].relative_norm or 0.0)
