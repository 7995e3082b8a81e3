"""Diagnoses and simulations that no model made, for tests of what is shown of them: every number is another one."""

from itertools import count
from typing import Any

from excise.trials.bench import layer_ranges
from schemas.diagnosis import Diagnosis
from schemas.directions import DirectionStatistics
from schemas.simulation import Simulation

KINDS = ("attention", "routed_experts", "shared_experts")


def answers(refusal: float = 0.0, kl: float = 0.125, **given: float) -> dict[str, float]:
    """What a model answers."""
    usual = {"probability": refusal, "remaining": refusal, "median_kl": kl / 4, "kl_without_refusal": kl / 2}
    usual |= {"harmful_prompts": 32, "harmless_prompts": 16}
    odds = {"harmful_log_odds": -4.5, "over_refusal": 0.25, "harmless_log_odds": -6.5}
    return {"refusal": refusal, "kl": kl, **usual, **odds, **given}


def diagnosis(layers: int = 4, experts: int = 4, **given: Any) -> Diagnosis:
    """A diagnosis; with no experts, of a dense model.

    Args:
        given: parts of it that are to be otherwise.
    """
    different = (number / 64 for number in count(65))
    kinds = KINDS if experts else ("attention", "mlp")
    writers = [
        {"layer": layer, "role": kind, "harmful": 0.0, "harmless": 0.0}
        | {"difference": next(different), "effect": -next(different) / 16}
        for layer in range(layers)
        for kind in kinds
    ]
    document = {
        "measurement": 2,
        "passes": 17.5,
        "harmful_prompts": 32,
        "harmless_prompts": 16,
        "refusal_tokens": [8],
        "refusal_words": ["I"],
        "limit": 0.05,
        "base": answers(1.0, 0.0, harmful_log_odds=2.75),
        "causes": [{"measurement": 0, "reason": "all prompts are the same here", "ablated": None, "added": None}]
        + [
            {"measurement": place, "reason": None}
            | {
                "ablated": answers(1 / (1 + place), place / 8),
                "added": {"over_refusal": place / (1 + layers), "log_odds": -6.5, "prompts": 16},
            }
            for place in range(1, layers + 1)
        ],
        "stream": [
            {"measurement": place, "harmful": next(different), "harmless": -next(different)}
            | {"difference": next(different)}
            for place in range(layers + 1)
        ],
        "layer_scales": [1.0] * layers,
        "writers": writers,
        "roles": [
            {"role": kind, "difference": next(different), "effect": effect}
            for kind, effect in zip(kinds, (-5.25, -1.75, -0.625), strict=False)
        ],
        "experts": [
            {"layer": layer, "expert": expert, "difference": next(different), "effect": -0.5 if expert < 2 else None}
            for layer in range(layers)
            for expert in range(experts)
        ],
        "named": {"role": "attention", "layers": [1, 2], "experts": {}, "effect": -4.875},
        "routers": [
            {"layer": layer, "share": layer / 64, "distance": 0.25 + layer / 128, "changed": 0.125 + layer / 256}
            | {"harmful_use": [expert % 32 for expert in range(experts)], "harmless_use": [1] * experts}
            | {"log_odds": [next(different) for _ in range(experts)]}
            for layer in range(layers if experts else 0)
        ],
        "weights": [
            {"layer": layer, "difference": 3.0, "by_weights": 1.0 + layer / 64, "by_outputs": 2.0 - layer / 64}
            for layer in range(layers if experts else 0)
        ],
        "ranges": [
            {"first": first, "last": last, "written": 1.0}
            | {"answers": answers(0.0 if first <= 1 <= 2 <= last else 1.0, (10 + last) / (100 + first))}
            for first, last in layer_ranges(layers)
        ],
        "recommendation": {
            "rules": [{"layers": "1-2", "measurement": 2, "scale": 1.0, "targets": ["attention"]}],
            "removes": True,
            "answers": answers(0.0, 0.0625, harmful_log_odds=-3.75),
            "tried": 77,
            "ruled_out": 41,
            "alike": 12,
        },
    }
    return Diagnosis.model_validate(document | given)


def simulation(**given: Any) -> Simulation:
    """A simulation of the current rules.

    Args:
        given: parts of it that are to be otherwise.
    """
    document = {
        "edited": [{"role": "attention", "tensors": 2, "layers": [0, 1], "parameters": 8192, "bytes": 32768}],
        "measurements": [2.0],
        "measurement": 2.0,
        "projections_before": {
            "harmful": [number / 8 for number in range(16)],
            "harmless": [-number / 8 for number in range(16)],
        },
        "projections_after": {"harmful": [number / 32 for number in range(16)], "harmless": [0.25] * 16},
        "current": answers(0.5, 0.375),
        "difference": 9.125,
        "left_out": 5.125,
        "scales": [
            {"scale": scale, "direct": 8.0 - 4 * scale, "simulated": 7.0 - 8 * scale, "indirect": -1.0 - 4 * scale}
            | {"answers": answers(0.0, scale / 8), "perplexity": 1 + scale / 16}
            for scale in (0.5, 1.0, 2.0)
        ],
        "read": "answers",
        "passes": 2.5,
        "ruinous": False,
        "thirds": [],
        "ablate": {},
        "directions_sha256": "ef" * 32,
    }
    return Simulation.model_validate(document | given)


def directions(measurements: int = 5, **given: Any) -> DirectionStatistics:
    """Statistics of directions; the embeddings have none.

    Args:
        given: parts of each measurement that are to be otherwise.
    """
    names = ("norm", "harmful_mean_norm", "harmless_mean_norm", "relative_norm", "cosine_of_means", "cosine_with_next")
    more = ("auroc", "stability", "stability_low", "stability_high", "largest_channel_share")
    rows = [
        {"measurement": place, "reason": None if place else "all prompts are the same here", "warnings": []}
        | {name: (place + number) / 64 if place else None for number, name in enumerate(names + more)}
        | (given if place else {})
        for place in range(measurements)
    ]
    return DirectionStatistics.model_validate({"harmful_prompts": 128, "harmless_prompts": 64, "measurements": rows})
