"""The whole diagnosis of a model, independent of the rules: along its most causal direction, over all writers."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from torch import Tensor

from excise.diagnosis.causes import ActivationPatching, ablating, adding, explain_causes, most_causal
from excise.diagnosis.recommendation import explain_ranges, recommend, rules_of, try_edits
from excise.diagnosis.router import blind_routers, explain_routers, explain_weights, trace_routers
from excise.diagnosis.writers import Contrast, explain_experts, explain_roles, explain_writers, name_writer
from excise.edit.planning.projectors import Directions, NoProjector
from excise.plumbing.errors import StageError
from excise.residual.contributions import Trace, components
from excise.trials.bench import Bench
from excise.trials.refusal import LIMIT, Questions
from schemas.diagnosis import Diagnosis
from schemas.directions import MeasurementStatistics
from schemas.params.ablate import Ablate, EditMethod, Orthogonalize

STEPS = 4
"""Progress steps of `explain`."""


def explain(
    bench: Bench,
    settings: EditMethod,
    statistics: Sequence[MeasurementStatistics],
    decode: Callable[[int], str],
    advance: Callable[[int], None],
) -> Diagnosis:
    """Explain a model that refuses; `decode` gives a token's text. Raises `StageError`: no direction can be
    explained."""
    questions, base, ablate = bench.questions, bench.base, Ablate(**settings.model_dump())
    model, layout, kinds = questions.model, base.layout.family, (questions.harmful, questions.harmless)
    watched = components(model, base)
    unit = bench.directions.unit
    directed = [row for row, reason in enumerate(bench.directions.reasons) if reason is None]
    trials = [ablating(model, watched, unit[row]) for row in directed]
    lengths = {row.measurement: row.norm or 0.0 for row in statistics}
    trials += [adding(model, row, unit[row] * lengths[row]) for row in directed]
    outcomes = questions.ask_all(trials)
    without, added = (
        dict(zip(directed, each, strict=True)) for each in (outcomes[: len(directed)], outcomes[len(directed) :])
    )
    causal = most_causal(without)
    measurement, direction = explained_direction(bench.directions, causal, settings.orthogonalize)
    causes = explain_causes(statistics, without, added)
    advance(1)

    contrast = Contrast(*(Trace(model, layout, watched, direction, prompts).run().check() for prompts in kinds))
    patching = ActivationPatching(questions, watched, direction, contrast.harmless)
    roles, experts = explain_roles(contrast, patching), explain_experts(contrast, patching)
    named = name_writer(roles, experts, contrast, patching)
    writers = explain_writers(contrast, patching)
    advance(1)

    routed = [layer for layer, role in contrast.harmful.writes if role == "routed_experts"]
    blinding = blind_routers(bench, ablate, measurement, routed)
    routings = [trace_routers(model, layout, blinding, prompts) for prompts in kinds]
    advance(1)

    kinds_of_writer, others = [row.role for row in roles], [other for other in causal if other != measurement]
    tried = try_edits(bench, ablate, kinds_of_writer, [measurement, *others], rules_of(named, measurement))
    advance(1)
    return Diagnosis(
        reason=None,
        measurement=measurement,
        harmful_prompts=len(questions.harmful),
        harmless_prompts=len(questions.harmless),
        refusal_tokens=questions.tokens,
        refusal_words=[decode(token) for token in questions.tokens],
        limit=LIMIT,
        base=questions.unedited.answers(),
        causes=causes,
        stream=contrast.stream(),
        layer_scales=contrast.harmful.scales,
        writers=writers,
        roles=roles,
        experts=experts,
        named=named,
        routers=explain_routers(*routings),
        weights=explain_weights(contrast),
        ranges=explain_ranges(tried, contrast, base.layout.layers, measurement, kinds_of_writer),
        recommendation=recommend(tried),
    )


def unexplained(questions: Questions, reason: str) -> Diagnosis:
    """The diagnosis of a base that hardly refuses, which names nothing; `reason` is that of `Questions.unexplained`."""
    return Diagnosis(
        reason=reason,
        measurement=None,
        harmful_prompts=len(questions.harmful),
        harmless_prompts=len(questions.harmless),
        refusal_tokens=[],
        refusal_words=[],
        limit=LIMIT,
        base=questions.unedited.answers(),
        causes=[],
        stream=[],
        layer_scales=[],
        writers=[],
        roles=[],
        experts=[],
        named=None,
        routers=[],
        weights=[],
        ranges=[],
        recommendation=None,
    )


def explained_direction(
    directions: Directions, causal: Sequence[int], orthogonalize: Orthogonalize
) -> tuple[int, Tensor]:
    """The first of the most causal measurements, and its direction ``[hidden]`` as edits use it. If edits orthogonalize
    directions to the harmless mean, one that lies along that mean is skipped. Raises `StageError`: none is left."""
    for measurement in causal:
        with suppress(NoProjector):
            return measurement, directions.of_every_layer(measurement, orthogonalize)
    reasons = "; ".join(dict.fromkeys(reason for reason in directions.reasons if reason is not None))
    raise StageError(
        f"no measurement has a direction that can be explained ({reasons or 'logits without it are not finite'}); "
        "change params.yaml: prompts, measure.position or ablate.orthogonalize"
    )
