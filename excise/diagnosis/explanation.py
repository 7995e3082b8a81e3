"""From what is traced and tried to what `diagnosis.json` says: one function a hypothesis, and the whole."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from excise.diagnosis.causes import ENOUGH, Part, Patches, ablated, added
from excise.diagnosis.contributions import Component, Trace, components, removals, trace
from excise.diagnosis.recommendation import LIMIT, Rules, range_rule, recommend
from excise.diagnosis.router import Routing, changed_choices, distance_of_use, share_through, split, trace_routers
from excise.edit.directions import CannotEdit, edit_direction
from excise.edit.odds import log_odds
from excise.edit.plan import Edit
from excise.edit.projection import Pair
from excise.plumbing.errors import StageError
from excise.trials.bench import Bench, at_scale, direct_effect, layer_ranges, targets_of, with_rules
from excise.trials.refusal import Outcome
from schemas.diagnosis import (
    Answers,
    Cause,
    Diagnosis,
    ExpertPart,
    NamedWriter,
    RangePart,
    Recommendation,
    RolePart,
    RouterPart,
    ScalePart,
    StreamPoint,
    WeightsPart,
    WriterPart,
)
from schemas.directions import MeasurementStatistics
from schemas.params.ablate import Ablate
from schemas.text import layers_as_written

SCALES = tuple(number / 4 for number in range(9))
"""From nothing to twice all of it."""

STEPS = 6
"""How often `explain` tells how far it is."""

EXPERTS_TRIED = 16
"""Of how many routed experts, those that write most, the effect is looked for."""


@dataclass(frozen=True)
class Projections:
    """Prompts of both sides along the direction, ``[prompts]`` float64 each, at the measurement that it is of."""

    before: tuple[Tensor, Tensor]
    """Harmful and harmless, in the base."""
    after: tuple[Tensor, Tensor]
    """The same with the rules of params.yaml."""


@dataclass(frozen=True)
class Sides:
    """Held-out prompts of both sides, traced along one direction."""

    harmful: Trace
    harmless: Trace

    def means(self, part: Part) -> tuple[float, float]:
        """What a writer or one of its experts adds, the mean of either side."""
        layer, role, expert = part
        harmful, harmless = (
            float(side.writes[layer, role].part(expert).mean()) for side in (self.harmful, self.harmless)
        )
        return harmful, harmless

    def difference(self, part: Part) -> float:
        """Harmful minus harmless."""
        harmful, harmless = self.means(part)
        return harmful - harmless


def explain(
    bench: Bench,
    ablate: Ablate,
    statistics: Sequence[MeasurementStatistics],
    decode: Callable[[int], str],
    advance: Callable[[int], None],
) -> tuple[Diagnosis, Projections]:
    """Explain a model, and what the rules of params.yaml would do to it.

    Args:
        statistics: of each measurement.
        decode: gives a token's text.
        advance: told each step of ``STEPS``.

    Raises:
        StageError: the rules name what the model does not have.
    """
    questions, layout = bench.questions, bench.layout.family
    base = answers(questions.base)
    watched = components(questions.model, bench.layout, bench.base.tensors)
    without = try_directions(bench, watched, statistics)
    plan, pairs = bench.plan(at_scale(ablate, 1.0))
    measurement = main_measurement(plan, without)
    direction = edit_direction(
        bench.measured, measurement, 0, "none" if ablate.orthogonalize == "target" else ablate.orthogonalize
    )
    causes = explain_causes(bench, statistics, without)
    advance(1)

    removed = removals(plan, pairs)
    sides = Sides(
        *(
            trace(questions.model, layout, watched, direction, removed, prompts, lambda _: None)
            for prompts in (questions.harmful, questions.harmless)
        )
    )
    patches = Patches(questions, watched, direction, sides.harmless)
    roles, experts = explain_roles(sides, patches), explain_experts(sides, patches)
    named = name_writer(roles, experts, sides, patches)
    writers = explain_writers(sides, patches)
    advance(1)

    routed = [layer for (layer, _), write in sides.harmful.writes.items() if write.experts is not None]
    blinding = blind_routers(bench, ablate, measurement, routed)
    routings = [
        trace_routers(questions.model, layout, *blinding, prompts, lambda _: None)
        for prompts in (questions.harmful, questions.harmless)
    ]
    routers, weights = explain_routers(*routings), explain_weights(sides)
    advance(1)
    ranges = explain_ranges(bench, ablate, sides, measurement)
    advance(1)
    scales = explain_scales(bench, ablate, sides, direction)
    advance(1)
    best, tried = recommend(
        bench,
        ablate,
        [row.role for row in roles],
        {measurement: outcome for measurement, outcome in without.items() if outcome.is_finite},
        [(row.first, row.last) for row in ranges],
        rules_of(named, measurement),
    )
    advance(1)
    diagnosis = Diagnosis(
        measurement=measurement,
        harmful_prompts=len(questions.harmful),
        harmless_prompts=len(questions.harmless),
        refusal_tokens=questions.tokens,
        refusal_words=[decode(token) for token in questions.tokens],
        base=base,
        current=answers(bench.outcome(ablate)),
        causes=causes,
        stream=explain_stream(sides),
        layer_scales=sides.harmful.scales,
        writers=writers,
        roles=roles,
        experts=experts,
        named=named,
        routers=routers,
        weights=weights,
        ranges=ranges,
        scales=scales,
        left_out=direct_effect(sides.harmful, sides.harmless).left_out,
        recommendation=Recommendation(
            rules=best.rules,
            removes=best.removes,
            limit=LIMIT,
            answers=answers(best.outcome),
            tried=len(tried),
            alike=sum(one is not best and one.removes and one.is_like(best) for one in tried),
        ),
    )
    place = round(measurement)
    before = sides.harmful.stream[:, place], sides.harmless.stream[:, place]
    after = tuple(side[:, place] for side in bench.projections(ablate, direction))
    return diagnosis, Projections(before, (after[0], after[1]))


def main_measurement(plan: Sequence[Edit], without: Mapping[int, Outcome]) -> float:
    """The measurement of most edits; of several, that whose direction is most the cause."""
    counts = Counter(edit.measurement for edit in plan)
    most = [measurement for measurement, times in counts.items() if times == max(counts.values())]

    def refuses(measurement: float) -> float:
        outcome = without.get(round(measurement))
        return float(outcome.harmful.mean()) if outcome is not None and outcome.is_finite else math.inf

    return min(most, key=refuses)


def blind_routers(
    bench: Bench, ablate: Ablate, measurement: float, layers: Sequence[int]
) -> tuple[list[Edit], list[Pair]]:
    """What blinds the routers of these layers to the direction, but for those whose norm is such that nothing can."""
    plan: list[Edit] = []
    pairs: list[Pair] = []
    for layer in layers:
        rule = {"layers": layer, "measurement": measurement, "targets": ["router"]}
        with suppress(CannotEdit):
            found = bench.plan(with_rules(ablate, [rule]))
            plan, pairs = plan + found[0], pairs + found[1]
    return plan, pairs


def answers(outcome: Outcome) -> Answers:
    """As it stands in diagnosis.json.

    Raises:
        StageError: the model answers with what is no number.
    """
    if not outcome.is_finite:
        raise StageError(
            "the model answers with what is no number; look for a smaller scale in params.yaml: ablate, or another "
            "model.dtype"
        )
    return Answers(
        refusal=outcome.refusal,
        probability=outcome.probability,
        remaining=outcome.remaining,
        harmful_log_odds=float(outcome.harmful.mean()),
        over_refusal=outcome.over_refusal,
        harmless_log_odds=float(outcome.harmless.mean()),
        kl=max(0.0, float(outcome.kl.mean())),
        median_kl=max(0.0, float(outcome.kl.median())),
    )


def _if_finite(outcome: Outcome) -> Answers | None:
    return answers(outcome) if outcome.is_finite else None


def try_directions(
    bench: Bench, watched: Sequence[Component], statistics: Sequence[MeasurementStatistics]
) -> dict[int, Outcome]:
    """What the model answers with the direction of each measurement ablated everywhere."""
    return {
        row.measurement: ablated(bench.questions, watched, bench.measured.unit[row.measurement])
        for row in statistics
        if row.reason is None
    }


def explain_causes(
    bench: Bench, statistics: Sequence[MeasurementStatistics], without: Mapping[int, Outcome]
) -> list[Cause]:
    """Whether each direction is the cause: refusal without it, and with it added to harmless prompts."""
    rows = []
    for row in statistics:
        there = row.measurement in without
        vector = bench.measured.unit[row.measurement] * (row.norm or 0.0)
        rows.append(
            Cause(
                measurement=row.measurement,
                reason=row.reason,
                ablated=_if_finite(without[row.measurement]) if there else None,
                added=_if_finite(added(bench.questions, row.measurement, vector)) if there else None,
            )
        )
    return rows


def explain_stream(sides: Sides) -> list[StreamPoint]:
    """The stream along the direction, before anything is edited."""
    harmful, harmless = (side.stream.mean(0).tolist() for side in (sides.harmful, sides.harmless))
    return [
        StreamPoint(measurement=number, harmful=a, harmless=b, difference=a - b)
        for number, (a, b) in enumerate(zip(harmful, harmless, strict=True))
    ]


def explain_writers(sides: Sides, patches: Patches) -> list[WriterPart]:
    """Who writes it, layer by layer."""
    rows = []
    for layer, role in sides.harmful.writes:
        harmful, harmless = sides.means((layer, role, None))
        rows.append(
            WriterPart(
                layer=layer,
                role=role,
                harmful=harmful,
                harmless=harmless,
                difference=harmful - harmless,
                effect=patches.effect([(layer, role, None)]),
            )
        )
    return rows


def explain_roles(sides: Sides, patches: Patches) -> list[RolePart]:
    """Who writes it, kind by kind."""
    kinds = dict.fromkeys(role for _, role in sides.harmful.writes)
    rows = []
    for kind in kinds:
        parts: list[Part] = [(layer, role, None) for layer, role in sides.harmful.writes if role == kind]
        reaching = [sides.harmful.reach(part[0]) * sides.difference(part) for part in parts]
        rows.append(RolePart(role=kind, difference=sum(reaching), effect=patches.effect(parts)))
    return rows


def explain_experts(sides: Sides, patches: Patches) -> list[ExpertPart]:
    """What single routed experts write, and the effect of those that write most."""
    parts = _expert_parts(sides)
    largest = sorted(parts, key=lambda part: -abs(sides.difference(part)))[:EXPERTS_TRIED]
    return [
        ExpertPart(
            layer=layer,
            expert=expert,
            difference=sides.difference((layer, role, expert)),
            effect=patches.effect([(layer, role, expert)]) if (layer, role, expert) in largest else None,
        )
        for layer, role, expert in parts
        if expert is not None
    ]


def _expert_parts(sides: Sides) -> list[Part]:
    return [
        (layer, role, expert)
        for (layer, role), write in sides.harmful.writes.items()
        if write.experts is not None
        for expert in range(write.experts.projected.shape[1])
    ]


def name_writer(
    roles: Sequence[RolePart], experts: Sequence[ExpertPart], sides: Sides, patches: Patches
) -> NamedWriter:
    """The kind of writer with the largest effect, and what of it has nearly that effect.

    Routed experts are named singly where the few that were tried have it, and by whole layers where they have not.
    """
    cause = min(roles, key=lambda row: row.effect)
    layers: list[Part] = [(layer, role, None) for layer, role in sides.harmful.writes if role == cause.role]
    tried: list[Part] = [(row.layer, "routed_experts", row.expert) for row in experts if row.effect is not None]
    few = cause.role == "routed_experts" and patches.effect(tried) <= ENOUGH * cause.effect
    # What writes least is tried first to be done without.
    candidates = sorted(tried if few else layers, key=lambda part: abs(sides.difference(part)))
    least = patches.smallest(candidates, cause.effect)
    chosen: dict[int, list[int]] = {}
    for layer, _, expert in sorted(least, key=lambda part: (part[0], part[2] or 0)):
        chosen.setdefault(layer, []).extend([] if expert is None else [expert])
    return NamedWriter(
        role=cause.role, layers=sorted(chosen), experts=chosen if few else {}, effect=patches.effect(least)
    )


def rules_of(named: NamedWriter, measurement: float) -> Rules:
    """Rules that edit what is named, and nothing else."""
    common = {"measurement": measurement, "scale": 1.0, "targets": [named.role]}
    if not named.experts:
        return [{"layers": layers_as_written(named.layers), **common}]
    return [{"layers": layer, **common, "experts": experts} for layer, experts in named.experts.items()]


def explain_routers(harmful: Mapping[int, Routing], harmless: Mapping[int, Routing]) -> list[RouterPart]:
    """Does the router read it?"""
    rows = []
    for layer, routing in harmful.items():
        other = harmless[layer]
        counts = [side.used.sum(0) for side in (routing, other)]
        rows.append(
            RouterPart(
                layer=layer,
                share=share_through(routing, other) if routing.is_blinded else None,
                distance=distance_of_use(routing, other),
                changed=changed_choices(routing) if routing.is_blinded else None,
                harmful_use=counts[0].tolist(),
                harmless_use=counts[1].tolist(),
                log_odds=log_odds(counts[0], len(routing.used), counts[1], len(other.used)).tolist(),
            )
        )
    return rows


def explain_weights(sides: Sides) -> list[WeightsPart]:
    """Do the combination weights carry it?"""
    rows = []
    for (layer, role), write in sides.harmful.writes.items():
        other = sides.harmless.writes[layer, role]
        if write.experts is None or other.experts is None:
            continue
        separable = not bool(write.experts.weights.isnan().any())
        parts = split(write.experts, other.experts) if separable else None
        rows.append(
            WeightsPart(
                layer=layer,
                difference=sides.difference((layer, role, None)),
                by_weights=float(parts.by_weights.sum()) if parts is not None else None,
                by_outputs=float(parts.by_outputs.sum()) if parts is not None else None,
            )
        )
    return rows


def explain_ranges(bench: Bench, ablate: Ablate, sides: Sides, measurement: float) -> list[RangePart]:
    """Layer coverage: the direction taken out in some layers alone."""
    rows = []
    for first, last in layer_ranges(bench.layout.layers):
        rule = range_rule(first, last, measurement, targets_of(ablate))
        outcome = bench.attempt(with_rules(ablate, [rule]))
        written = [
            sides.difference((layer, role, None)) for layer, role in sides.harmful.writes if first <= layer <= last
        ]
        rows.append(
            RangePart(
                first=first,
                last=last,
                written=sum(written),
                answers=answers(outcome) if outcome is not None else None,
            )
        )
    return rows


def explain_scales(bench: Bench, ablate: Ablate, sides: Sides, direction: Tensor) -> list[ScalePart]:
    """Scale: what is left of the difference, directly and in truth."""
    direct = direct_effect(sides.harmful, sides.harmless)
    rows = []
    for scale in SCALES:
        scaled = at_scale(ablate, scale)
        harmful, harmless = bench.projections(scaled, direction)
        simulated = float(harmful[:, -1].mean() - harmless[:, -1].mean())
        outcome = _if_finite(bench.outcome(scaled))
        there = outcome is not None and math.isfinite(simulated)
        rows.append(
            ScalePart(
                scale=scale,
                direct=direct.remainder(scale),
                simulated=simulated if there else None,
                indirect=simulated - direct.remainder(scale) if there else None,
                answers=outcome if there else None,
            )
        )
    return rows
