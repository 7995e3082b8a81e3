"""The whole diagnosis of a model, independent of the rules: along its most causal direction, over all writers."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from torch import Tensor

from excise.diagnosis.causes import Patches, ablating, adding, explain_causes, most_causal
from excise.diagnosis.recommendation import Edits, explain_ranges, recommend
from excise.diagnosis.router import RouterTrace, blind_routers, explain_routers, explain_weights
from excise.diagnosis.writers import Contrast, Importance
from excise.edit.planning.projectors import Directions, NoProjector
from excise.inference.forward import Watch
from excise.plumbing.errors import StageError
from excise.residual.contributions import Trace, components
from excise.trials.bench import Bench
from excise.trials.questions import Asked, Kind, Questions
from excise.trials.racing import SHARES
from excise.trials.refusal import LIMIT
from schemas.diagnosis import Diagnosis
from schemas.directions import MeasurementStatistics
from schemas.params.ablate import Ablate, EditMethod, Orthogonalize

FINAL_MEASUREMENTS = 3
"""Measurements that are asked all prompts, at most."""


def explain(
    bench: Bench,
    settings: EditMethod,
    statistics: Sequence[MeasurementStatistics],
    decode: Callable[[int], str],
) -> Diagnosis:
    """Explain a model in four rounds; `decode` gives a token's text. A base that hardly refuses names nothing. Raises
    `StageError`: no direction can be explained."""
    questions, base, ablate = bench.questions, bench.base, Ablate(**settings.model_dump())
    model, layout = questions.model, base.layout.family
    if not questions.engine.reads and questions.unexplained is not None:
        return unexplained(questions, questions.unexplained)

    watched, unit = components(model, base), bench.directions.unit
    directed = [row for row, reason in enumerate(bench.directions.reasons) if reason is None]
    lengths = {row.measurement: row.norm or 0.0 for row in statistics}
    removed = Asked([ablating(model, watched, unit[row]) for row in directed], keep=1, most=FINAL_MEASUREMENTS)
    put = Asked([adding(model, row, unit[row] * lengths[row]) for row in directed], ("harmless",), share=SHARES[0])
    questions.run("Directions (1 of 4)", [removed, put])
    if questions.unexplained is not None:
        return unexplained(questions, questions.unexplained)
    without = dict(zip(directed, questions.outcomes(removed), strict=True))
    added = dict(zip(directed, questions.begun(put, "harmless"), strict=True))
    causal = most_causal(without)
    measurement, direction = explained_direction(bench.directions, causal, settings.orthogonalize)

    contrast = Contrast(*(Trace(model, layout, watched, direction, prompts) for prompts in questions.prompts.values()))
    patches = Patches(questions, watched, direction, contrast.harmless)
    importance = Importance(patches, contrast)
    others = [other for other in causal if other != measurement]
    edits = Edits(bench, ablate, [*importance.by_role], [measurement, *others])
    routed = [layer for layer, role, _ in patches.sites if role == "routed_experts"]
    blinding = blind_routers(bench, ablate, measurement, routed)
    sides = questions.prompts if routed else {}
    routing = [RouterTrace(model, layout, blinding, prompts) for prompts in sides.values()]
    # Means on harmless prompts are what harmful ones are patched with.
    traces: list[tuple[Kind, Watch]] = [("harmless", contrast.harmless.watch), ("harmful", contrast.harmful.watch)]
    traces += [(kind, trace.watch) for kind, trace in zip(sides, routing, strict=True)]
    explained = Asked([adding(model, measurement, unit[measurement] * lengths[measurement])], ("harmless",))
    asked = [patches.ask(importance.single()), edits.ask_ranges(), explained]
    questions.run("Writers and ranges (2 of 4)", asked, traces)
    for trace in (contrast.harmful, contrast.harmless):
        trace.check()
    patches.answered()
    edits.answered()
    (added[measurement],) = questions.begun(explained, "harmless")

    questions.run("Parts and variants (3 of 4)", [patches.ask(importance.candidates()), edits.ask_variants()])
    patches.answered()
    edits.answered()
    named = importance.name_writer()
    questions.run("What is named (4 of 4)", [edits.ask_last(named)])
    edits.answered()
    return Diagnosis(
        reason=None,
        measurement=measurement,
        passes=round(questions.passes, 2),
        harmful_prompts=len(questions.harmful),
        harmless_prompts=len(questions.harmless),
        refusal_tokens=questions.tokens,
        refusal_words=[decode(token) for token in questions.tokens],
        limit=LIMIT,
        base=questions.unedited.answers(),
        causes=explain_causes(statistics, without, added),
        stream=contrast.stream(),
        layer_scales=contrast.harmful.scales,
        writers=importance.explain_writers(),
        roles=importance.explain_roles(),
        experts=importance.explain_experts(),
        named=named,
        routers=explain_routers(*(trace.routings for trace in routing)) if routed else [],
        weights=explain_weights(contrast),
        ranges=explain_ranges(edits.tried, contrast, base.layout.layers, measurement, [*importance.by_role]),
        recommendation=recommend(edits),
    )


def unexplained(questions: Questions, reason: str) -> Diagnosis:
    """The diagnosis of a base that hardly refuses, which names nothing; `reason` is that of `Questions.unexplained`."""
    return Diagnosis(
        reason=reason,
        measurement=None,
        passes=round(questions.passes, 2),
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
