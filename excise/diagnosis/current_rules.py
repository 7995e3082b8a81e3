"""What the current rules would do, before any byte is written: predicted from the base, and simulated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import mul
from statistics import multimode
from typing import Literal

import torch
from torch import Tensor

from excise.checkpoint.base_model import BaseModel
from excise.edit.planning.plan import Edit, make_plan
from excise.edit.planning.projectors import Directions
from excise.edit.planning.shifts import Shift, make_shifts, summary
from excise.inference.forward import Tokens
from excise.inference.loading.models import decoder_layers
from excise.residual.contributions import Trace, components
from excise.trials.bench import with_scales
from excise.trials.changes import of_edits
from excise.trials.perplexity import Reading
from excise.trials.questions import Asked, Kind, Questions
from excise.trials.refusal import Beginnings, Outcome
from schemas.directions import MeasurementStatistics
from schemas.params.ablate import Ablate
from schemas.simulation import PartTrial, Projections, ScaleTrial, Simulation

SCALES = (0.5, 1.0, 2.0)
"""Factors on the scale of every rule."""

SHARE = 1 / 4
"""Of the prompts on which the rules are tried at other scales than their own."""

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


@dataclass(frozen=True)
class Written:
    """Texts by which a ruined model is known."""

    what: Literal["answers", "prompts"]
    before: Tokens
    texts: Tokens


def simulate(
    base: BaseModel,
    directions: Directions,
    use_odds: Mapping[int, Tensor],
    questions: Questions,
    written: Written,
    ablate: Ablate,
    statistics: Sequence[MeasurementStatistics],
    directions_sha256: str,
) -> Simulation:
    """Simulate the rules with all scales multiplied by each of ``SCALES``; ruinous ones also in each third of their
    layers. Raises `StageError`: the model lacks what a rule names or cannot be edited so, or its logits are not
    finite."""
    plans = {scale: make_plan(with_scales(ablate, partial(mul, scale)), base, directions) for scale in SCALES}
    shifts, model = make_shifts(ablate, base, use_odds), questions.model
    # If every scale is 0, as when only a router's bias is shifted, the plan is empty.
    named = plans[1.0] or make_plan(with_scales(ablate, lambda _: 1.0), base, directions)
    measurement = main_measurement(named, statistics)
    direction = directions.of_every_layer(measurement, ablate.orthogonalize)

    before: dict[Kind, Trace] = {
        kind: Trace(model, base.layout.family, components(model, base), direction, prompts, plans[1.0])
        for kind, prompts in questions.prompts.items()
    }
    trials = {scale: of_edits(model, edits, shifts) for scale, edits in plans.items()}
    after = {scale: Streams(questions, direction) for scale in SCALES}
    others = [scale for scale in SCALES if scale != 1]

    def see(kind: Kind, trial: int, rows: list[int], place: int, stream: Tensor) -> None:
        after[others[trial]].see(kind, trial, rows, place, stream)

    unvaried = Asked([trials[1.0]], see=after[1.0].see)
    varied = Asked([trials[scale] for scale in others], share=SHARE, see=see)
    reading = Reading(questions.engine, written.before, written.texts, list(trials.values()))
    traces = [(kind, trace.watch) for kind, trace in before.items()]
    questions.run("Current rules", [unvaried, varied], traces, reading.jobs())
    for trace in before.values():
        trace.check()
    direct = direct_effect(before["harmful"], before["harmless"])
    of_scales = [*questions.outcomes(unvaried), *questions.outcomes(varied)]
    outcomes = dict(zip([1.0, *others], of_scales, strict=True))
    rows = []
    for scale, perplexity in zip(SCALES, reading.perplexities(), strict=True):
        remainder = direct.remainder(scale)
        simulated_remainder = direct.whole + after[scale].change_of_difference(before, outcomes[scale])
        finite = outcomes[scale].is_finite and math.isfinite(simulated_remainder)
        rows.append(
            ScaleTrial(
                scale=scale,
                direct=remainder,
                simulated=simulated_remainder if finite else None,
                indirect=simulated_remainder - remainder if finite else None,
                answers=outcomes[scale].answers() if finite else None,
                perplexity=perplexity,
            )
        )

    place, current = round(measurement), SCALES.index(1.0)
    ruinous = is_ruinous(rows[current].perplexity)
    return Simulation(
        edited=summary([*plans[1.0], *shifts], base.tensors),
        measurements=sorted({edit.measurement for edit in plans[1.0]}),
        measurement=measurement,
        projections_before=Projections(**{kind: trace.stream[:, place].tolist() for kind, trace in before.items()}),
        projections_after=Projections(**{kind: of[:, place].tolist() for kind, of in after[1.0].projected.items()}),
        current=outcomes[1.0].answers(),
        difference=direct.whole,
        left_out=direct.left_out,
        scales=rows,
        read=written.what,
        ruinous=ruinous,
        thirds=try_thirds(questions, written, plans[1.0], shifts) if ruinous else [],
        passes=round(questions.passes, 2),
        ablate=ablate.model_dump(mode="json"),
        directions_sha256=directions_sha256,
    )


class Streams:
    """The projection of the stream on a direction in a trial, at every measurement."""

    def __init__(self, questions: Questions, direction: Tensor) -> None:
        self._direction = direction
        measurements = len(decoder_layers(questions.model)) + 1
        self.projected: dict[Kind, Tensor] = {
            kind: torch.full((len(prompts), measurements), torch.nan, dtype=torch.float64)
            for kind, prompts in questions.prompts.items()
        }
        """``[prompts, measurements]``; NaN for prompts that were not asked."""
        self._asked: dict[Kind, set[int]] = {kind: set() for kind in questions.prompts}

    def see(self, kind: Kind, _trial: int, rows: list[int], measurement: int, stream: Tensor) -> None:
        """Keep what is in the stream, ``[rows, hidden]``."""
        along = stream.double() @ self._direction.to(stream.device)
        self.projected[kind][rows, measurement] = along.cpu()
        self._asked[kind].update(rows)

    def change_of_difference(self, before: Mapping[Kind, Trace], outcome: Outcome) -> float:
        """By how much the trial changes the difference between harmful and harmless prompts at the last measurement:
        compared prompt by prompt, so that those that were asked stand for all."""
        changes = []
        begun_of: dict[Kind, Beginnings] = {"harmful": outcome.harmful, "harmless": outcome.harmless}
        for kind, begun in begun_of.items():
            rows = sorted(self._asked[kind])  # in the order of what they answer
            changes.append(begun.mean(self.projected[kind][rows, -1] - before[kind].stream[rows, -1]))
        return changes[0] - changes[1]


def is_ruinous(perplexity: float | None) -> bool:
    """Whether a model can no longer write as the base does, by the factor on the perplexity of the base's answers."""
    return perplexity is None or perplexity > RUINOUS


def try_thirds(
    questions: Questions, written: Written, edits: Sequence[Edit], shifts: Sequence[Shift]
) -> list[PartTrial]:
    """Try each third of the edited layers separately, the embeddings with the first."""
    named = {edit.layer for edit in edits} | {shift.layer for shift in shifts}
    layers = sorted(layer for layer in named if layer is not None)
    bounds = [len(layers) * third // 3 for third in range(4)]
    parts = [layers[start:stop] for start, stop in pairwise(bounds) if start < stop]
    trials = []
    for part in parts:
        of_part = {*part, None} if part[0] == layers[0] else {*part}
        kept = [edit for edit in edits if edit.layer in of_part], [shift for shift in shifts if shift.layer in of_part]
        trials.append(of_edits(questions.model, *kept))
    reading = Reading(questions.engine, written.before, written.texts, trials)
    questions.run("Thirds of the rules", [], others=reading.jobs())
    return [
        PartTrial(first=part[0], last=part[-1], perplexity=perplexity)
        for part, perplexity in zip(parts, reading.perplexities(), strict=True)
    ]


def main_measurement(edits: Sequence[Edit], statistics: Sequence[MeasurementStatistics]) -> float:
    """The measurement of most edits; of several, the one whose direction has the largest relative norm."""
    most = multimode(edit.measurement for edit in edits)
    return max(most, key=lambda measurement: statistics[round(measurement)].relative_norm or 0.0)
