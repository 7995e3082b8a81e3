"""What a report is made of, and the facts that its templates put into words."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, Generic, TypeVar

from ruamel.yaml import YAML

from schemas.diagnosis import Answers, Cause, Diagnosis, RangeTrial, WeightsSplit
from schemas.directions import DirectionStatistics
from schemas.evidence import Comparison, GateVerdicts, TaskChanges
from schemas.model import LayoutProof, ModelManifest
from schemas.params.ablate import Ablate
from schemas.simulation import Simulation

T = TypeVar("T")

MOST_ROWS = 8
"""Rows of a table about a large model; it says how many it leaves out, because a report must fit into a comment."""
GROUPS = ("refusal", "over_refusal", "capability", "drift")
NOTHING = 0.005
"""A smaller share is due to rounding."""


@dataclass(frozen=True)
class RefusalWords:
    """The diagnosis's refusal words, held against the verdicts on the base's answers that begin with them."""

    of_refusals: list[str]
    others: list[str]
    """Those that surely begin other answers."""
    reason: str | None
    """Why they explain no refusal; None if they do."""


@dataclass(frozen=True)
class Report:
    """Everything except the provenance."""

    rows: list[Comparison]
    gates: GateVerdicts
    changes: list[TaskChanges]
    left_out: dict[str, int]
    """Judged task → samples that were not asked, because their prompts were measured."""
    diagnosis: Diagnosis
    simulation: Simulation
    words: RefusalWords
    directions: DirectionStatistics
    ablate: Ablate
    manifest: ModelManifest
    pictures: dict[str, str]
    """SVG by name."""
    proof: LayoutProof | None = None
    """Of a layout that was found by measurement."""
    drawn: dict[str, int] = field(default_factory=dict)
    """Task → samples that it has, if `evaluate.limit` drew fewer."""


@dataclass(frozen=True)
class Rows(Generic[T]):
    """The rows that a table shows, and how many it leaves out."""

    shown: list[T]
    left_out: int


def findings(report: Report) -> dict[str, Any]:
    """The facts that are not a field of a document, by their names in templates."""
    unexplained = report.diagnosis.reason or report.words.reason
    explained = {} if unexplained else _of_refusal(report.diagnosis, report.ablate)
    return {"unexplained": unexplained} | _of_the_edit(report) | explained


def _of_the_edit(report: Report) -> dict[str, Any]:
    simulation, ablate = report.simulation, report.ablate
    rule_scales = {rule.scale for rule in ablate.rules}
    scales = [row for row in simulation.scales if row.answers is not None]
    # A fraction lies between two measurements.
    whole = {end for number in simulation.measurements for end in (math.floor(number), math.ceil(number))}
    used = [row for row in report.directions.measurements if row.measurement in whole]
    return {
        "words": report.words.of_refusals,
        "other_words": report.words.others,
        "failures": list(_failures(report.rows)),
        "unmeasured": [group for group in GROUPS if not any(row.metric.startswith(f"{group}.") for row in report.rows)],
        "warnings": [(row.measurement, warning) for row in used for warning in row.warnings],
        "used": _most(used, lambda row: row.relative_norm or 0.0, lambda row: row.measurement),
        "scale": ablate.rules[0].scale if len(rule_scales) == 1 else None,
        "scales": scales,
        "as_it_is": next((row for row in scales if row.scale == 1), None),
        "perplexity": next(row.perplexity for row in simulation.scales if row.scale == 1),
        "left_by_norms": _left_by_norms(simulation) if rule_scales == {1.0} else None,
        "broken": [row.scale for row in simulation.scales if row.answers is None],
    }


def _of_refusal(diagnosis: Diagnosis, ablate: Ablate) -> dict[str, Any]:
    """Those of a base that refuses."""
    assert diagnosis.named is not None  # because no reason is given why nothing is
    role = diagnosis.named.role
    tried = [row for row in diagnosis.experts if row.effect is not None]
    shares = [row for row in diagnosis.routers if row.share is not None]
    changed = [row for row in diagnosis.routers if row.changed is not None]
    ranges = [(row, row.answers) for row in diagnosis.ranges if row.answers is not None]
    whole = [
        (row, answers) for row, answers in ranges if answers.harmful_prompts == diagnosis.harmful_prompts
    ]  # others were ruled out by a part of the prompts
    removing = [(row, answers) for row, answers in whole if answers.remaining <= diagnosis.limit]
    rules = diagnosis.recommendation.rules if diagnosis.recommendation is not None else None
    return {
        "cause": next(row for row in diagnosis.roles if row.role == role),
        "adds_most": max(diagnosis.roles, key=lambda row: row.difference),
        "roles": sorted(diagnosis.roles, key=lambda row: row.effect),
        # Of single layers.
        "strongest": min(diagnosis.writers, key=lambda row: row.effect),
        "largest": max(diagnosis.writers, key=lambda row: row.difference),
        "writers": _most(diagnosis.writers, lambda row: abs(row.effect), lambda row: row.effect),
        "experts": _most(tried, lambda row: abs(row.effect or 0.0), lambda row: row.effect),
        "experts_tried": len(tried),
        "shares": sorted(shares, key=lambda row: row.share or 0.0),
        "distances": sorted(diagnosis.routers, key=lambda row: row.distance),
        "changed": sorted(changed, key=lambda row: row.changed or 0.0),
        "unblinded": [row.layer for row in diagnosis.routers if row.changed is None],
        "uses": _most(_uses(diagnosis), lambda use: abs(use[0]), lambda use: -use[0]),
        "split": _split(diagnosis.weights),
        "layers": _most(_layers(diagnosis), lambda row: abs(row[1]), lambda row: row[0]),
        "ranges_tried": len(ranges),
        "ranges_asked_all": len(whole),
        "removing": [row for row, _ in removing],
        "smallest": _first(removing, lambda row, answers: (row.last - row.first, answers.kl_without_refusal)),
        "cheapest": _first(removing, lambda row, answers: (answers.kl_without_refusal, row.last - row.first)),
        "least": _first(whole, lambda _, answers: (answers.remaining, answers.kl_without_refusal)),
        "main": next(row for row in diagnosis.causes if row.measurement == diagnosis.measurement),
        "undirected": [row.measurement for row in diagnosis.causes if row.reason is not None],
        "causes": _causes(diagnosis),
        # As they are pasted under `ablate:` of params.yaml.
        "rules": None if rules is None else as_yaml({"ablate": {"rules": rules}}).removeprefix("ablate:\n"),
        "recommends_current": rules is not None and Ablate.model_validate({"rules": rules}).rules == ablate.rules,
    }


def _failures(rows: Sequence[Comparison]) -> Iterator[dict[str, Any]]:
    """For each judged task, how many answers failed in which way; `-` for those that were not counted."""
    degenerate = {row.metric: row for row in rows if row.metric.endswith(".degenerate_rate")}
    for row in rows:
        task, _, name = row.metric.rpartition(".")
        if name == "refusal_rate" and row.rose is not None:
            useless = degenerate.get(f"{task}.degenerate_rate")
            yield {
                "task": task,
                "samples": row.samples,
                "still_refused": round(row.ablated * row.samples) - row.rose,
                "newly_refused": row.rose,
                "degenerate": "-" if useless is None else round(useless.ablated * row.samples),
                "degenerate_before": "-" if useless is None else round((useless.base or 0.0) * row.samples),
            }


def as_yaml(document: dict[str, Any]) -> str:
    """A part of params.yaml as people write it."""
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.default_flow_style = None
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def _most(rows: Iterable[T], size: Callable[[T], Any], order: Callable[[T], Any]) -> Rows[T]:
    """The largest rows, sorted by `order`."""
    ranked = sorted(rows, key=size, reverse=True)
    return Rows(sorted(ranked[:MOST_ROWS], key=order), max(0, len(ranked) - MOST_ROWS))


def _first(
    ranges: Iterable[tuple[RangeTrial, Answers]], rank: Callable[[RangeTrial, Answers], tuple[float, float]]
) -> RangeTrial | None:
    return min(ranges, key=lambda pair: rank(*pair), default=(None, None))[0]


def _uses(diagnosis: Diagnosis) -> list[tuple[float, int, int, int, int]]:
    """The log-odds of each expert's use, its layer and number, and how many harmful and harmless prompts use it."""
    return [
        (odds, row.layer, expert, harmful, harmless)
        for row in diagnosis.routers
        for expert, (odds, harmful, harmless) in enumerate(
            zip(row.log_odds, row.harmful_use, row.harmless_use, strict=True)
        )
    ]


def _split(rows: Sequence[WeightsSplit]) -> dict[str, Any] | None:
    """What routed experts write in all layers in which weights and outputs are separable; None if there are none."""
    separable = [row for row in rows if row.by_weights is not None]
    if not separable:
        return None
    return {
        "difference": sum(row.difference for row in separable),
        "by_weights": sum(row.by_weights or 0.0 for row in separable),
        "by_outputs": sum(row.by_outputs or 0.0 for row in separable),
        "layers": _most(separable, lambda row: abs(row.difference), lambda row: row.layer),
        "inseparable": [row.layer for row in rows if row.by_weights is None],
    }


def _layers(diagnosis: Diagnosis) -> list[tuple[int, float, float]]:
    """What all writers of each layer add to the difference, and what it is after that layer."""
    after = {point.measurement - 1: point.difference for point in diagnosis.stream}
    return [
        (layer, sum(row.difference for row in diagnosis.writers if row.layer == layer), after[layer])
        for layer in sorted({row.layer for row in diagnosis.writers})
    ]


def _left_by_norms(simulation: Simulation) -> float | None:
    """The share of the covered difference that the rules leave at scale 1 by ignoring norms; None if it is nothing."""
    covered = simulation.difference - simulation.left_out
    left = next(row.direct for row in simulation.scales if row.scale == 1) - simulation.left_out
    return left / covered if covered and abs(left / covered) > NOTHING else None


def _causes(diagnosis: Diagnosis) -> Rows[Cause]:
    """Those whose removal leaves the least refusal, at the lowest KL; and the one that is explained."""

    def rank(row: Cause) -> tuple[bool, float, float]:
        assert row.ablated is not None
        return row.measurement == diagnosis.measurement, -row.ablated.remaining, -row.ablated.kl_without_refusal

    tested = [row for row in diagnosis.causes if row.ablated is not None and row.added is not None]
    return _most(tested, rank, lambda row: row.measurement)
