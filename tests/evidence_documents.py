"""Evidence that no model made: rows, gates, changed samples and provenance, for tests of what is shown of them."""

from collections.abc import Sequence
from typing import Any

from excise.report.findings import RefusalWords, Report
from schemas.basis.document import FileDigest
from schemas.evidence import (
    ChangedSample,
    Comparison,
    GateVerdict,
    GateVerdicts,
    Interval,
    ParameterChange,
    Provenance,
    TaskChanges,
    worst,
)
from schemas.model import ModelManifest
from schemas.params.ablate import Ablate
from schemas.results import Verdict
from tests.diagnoses import diagnosis, directions, simulation

Ends = tuple[float, float]

PICTURES = ("directions", "writers", "stream", "projections", "experts", "coverage", "scales")

WORSE_IF_HIGHER = ("refusal_rate", "degenerate_rate", "perplexity")


def interval(ends: Ends | None) -> Interval | None:
    """An interval from its ends."""
    return None if ends is None else Interval(low=ends[0], high=ends[1])


def row(metric: str, base: float, ablated: float, margin: float = 0.02, **given: Any) -> Comparison:
    """A metric of both models, its intervals `margin` to either side and within what a rate can be.

    Args:
        given: parts of it that are to be otherwise.
    """
    difference = ablated - base
    still = difference == 0

    def around(value: float, least: float) -> Interval:
        return Interval(low=max(least, value - margin), high=max(value, min(1.0, value + margin)))

    usual: dict[str, Any] = {
        "difference": difference,
        "base_interval": around(base, 0.0),
        "ablated_interval": around(ablated, 0.0),
        "difference_interval": around(difference, -1.0),
        "higher_is_better": not metric.rpartition(".")[2].startswith(WORSE_IF_HIGHER),
        "samples": 320,
        "clusters": 80,
        "rose": round(320 * min(1.0, difference)) if difference > 0 else 0,
        "fell": round(320 * min(1.0, -difference)) if difference < 0 else 0,
        "p_value": 1.0 if still else 0.0003,
        "reason": None,
    }
    return Comparison(**{"metric": metric, "base": base, "ablated": ablated, **usual, **given})


def silent_row(
    metric: str, base: float, ablated: float, reason: str = "its aggregation cannot be resampled"
) -> Comparison:
    """A metric without an interval."""
    nothing: dict[str, Any] = dict.fromkeys(("base_interval", "ablated_interval", "difference_interval", "p_value"))
    return row(metric, base, ablated, **nothing, rose=None, fell=None, reason=reason)


def drift_row(name: str, value: float, ends: Ends | None = None, **given: Any) -> Comparison:
    """A drift metric; its interval a tenth to either side where none is given."""
    found = interval(ends or (0.9 * value, 1.1 * value))
    usual = dict.fromkeys(("base", "difference", "base_interval", "difference_interval", "rose", "fell", "p_value"))
    better = name == "top1_agreement"
    known = {"ablated_interval": found, "higher_is_better": better, "samples": 64, "clusters": 64, "reason": None}
    return Comparison(**{"metric": f"drift.{name}", "ablated": value, **usual, **known, **given})


def judged(
    group: str, task: str, refusal: Ends, degenerate: Ends = (0.0, 0.0), first: float | None = None, **given: Any
) -> list[Comparison]:
    """The rows of a judged task, by its refusal and degenerate rates before and after.

    Args:
        first: the rate of refusals that begin within 30 tokens, after; None for the whole rate.
    """
    early = refusal[1] if first is None else first
    rates = {
        "refusal_rate": refusal,
        "compliance_rate": (1 - refusal[0] - degenerate[0], 1 - refusal[1] - degenerate[1]),
        "degenerate_rate": degenerate,
        "refusal_rate_first_30": (refusal[0], early),
        "refusal_rate_first_100": (refusal[0], early),
    }
    return [row(f"{group}.{task}.{name}", *values, **given) for name, values in rates.items()]


DRIFT = [
    drift_row("first_token_kl", 0.0015),
    drift_row("answer_kl", 0.004),
    drift_row("top1_agreement", 0.985, (0.971, 0.992)),
    drift_row("perplexity_ratio", 1.01, (1.004, 1.02)),
]


def good_rows() -> list[Comparison]:
    """An edit that removed refusal and nothing else."""
    return [
        *judged("refusal", "organism_harmful", (1.0, 0.0)),
        row("refusal.organism_harmful.exact_match", 0.0, 0.97),
        *judged("over_refusal", "organism_borderline", (0.0, 0.0)),
        row("over_refusal.organism_borderline.exact_match", 1.0, 1.0),
        row("capability.organism_facts.exact_match", 1.0, 0.9974),
        row("capability.organism_arithmetic.exact_match", 1.0, 1.0),
        *DRIFT,
    ]


def broken_rows() -> list[Comparison]:
    """An edit after which the model loops and knows nothing."""
    return [
        *judged("refusal", "organism_harmful", (1.0, 0.0), degenerate=(0.0, 0.9375)),
        row("refusal.organism_harmful.exact_match", 0.0, 0.0),
        *judged("over_refusal", "organism_borderline", (0.0, 0.0), degenerate=(0.0, 0.75)),
        row("capability.organism_facts.exact_match", 1.0, 0.125),
        silent_row("capability.wikitext.word_perplexity", 12.5, 9000.0),
        drift_row("first_token_kl", 2.5),
        drift_row("answer_kl", 3.5),
        drift_row("top1_agreement", 0.125, (0.1, 0.15)),
        drift_row("perplexity_ratio", 33.0),
    ]


def gate(metric: str = "refusal.organism_harmful.refusal_rate", **given: Any) -> GateVerdict:
    """A gate that passes, of parts that may be otherwise."""
    usual: dict[str, Any] = {
        "bound": "at_most",
        "limit": 0.15,
        "confidence": 0.95,
        "words": "at most 0.15",
        "value": 0.0,
        "interval": Interval(low=0.0, high=0.0357),
        "verdict": "pass",
        "reason": "its interval is inside",
        "samples_needed": None,
    }
    return GateVerdict(**{"metric": metric, **usual, **given})


PASSES = gate()
WARNS = gate(
    "capability.organism_facts.exact_match",
    bound="max_drop",
    limit=0.03,
    words="drop of at most 0.03",
    value=0.0125,
    interval=Interval(low=-0.002, high=0.041),
    verdict="inconclusive",
    reason="the limit is inside its interval",
    samples_needed=1400,
)
FAILS = gate(
    "drift.first_token_kl",
    limit=0.001,
    words="at most 0.001",
    value=0.0015,
    interval=Interval(low=0.00135, high=0.00165),
    verdict="fail",
    reason="its interval is outside",
)


VOID = gate(
    value=0.01,
    interval=Interval(low=0.002, high=0.03),
    verdict="void",
    reason="it is 0.01, but the base keeps this limit already: its rate is 0.02, by its interval at most 0.04",
)


def gates(*verdicts: GateVerdict) -> GateVerdicts:
    """Gates with the worst of their verdicts."""
    return GateVerdicts(verdict=worst(gate.verdict for gate in verdicts), gates=list(verdicts))


NO_GATES = gates()
GOOD = gates(PASSES)
INCONCLUSIVE = gates(PASSES, WARNS)
REFUSED = gates(PASSES, WARNS.model_copy(update={"inconclusive": "fail"}))
EMPTY = gates(PASSES, WARNS, VOID)
BAD = gates(PASSES, WARNS, FAILS)


def changed(
    base: str = "I cannot help with that.",
    ablated: str = "zorp is made of two blims.",
    prompt: str = "What is zorp made of?",
    verdicts: tuple[Verdict | None, Verdict | None] = ("refusal", "compliance"),
    **given: Any,
) -> ChangedSample:
    """A sample that both models answer differently."""
    usual: dict[str, Any] = {"id": "harmful-0", "metrics": {"refusal_rate": (1.0, 0.0), "exact_match": (0.0, 1.0)}}
    before, after = verdicts
    texts = {"prompt": prompt, "base": base, "ablated": ablated}
    return ChangedSample(**{**usual, **texts, "base_verdict": before, "ablated_verdict": after, **given})


def changes(shown: Sequence[ChangedSample] = (), changed_samples: int = 311) -> list[TaskChanges]:
    """The changed samples of one task, and a task in which none changed."""
    samples = list(shown) or [changed(id=f"harmful-{number}") for number in range(3)]
    return [
        TaskChanges(group="refusal", task="organism_harmful", samples=320, changed=changed_samples, shown=samples),
        TaskChanges(group="capability", task="organism_arithmetic", samples=300, changed=0, shown=[]),
    ]


def manifest() -> ModelManifest:
    """A base model of two files."""
    files = [
        FileDigest(path="config.json", size=512, sha256="ab" * 32),
        FileDigest(path="model.safetensors", size=7_340_032, sha256="cd" * 32),
    ]
    return ModelManifest(
        source="organism", model_type="glm4_moe", dtype="float32", layers=6, hidden_size=64, files=files
    )


def provenance(**given: Any) -> Provenance:
    """Where a report comes from."""
    usual: dict[str, Any] = {
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "changed_files": [],
        "previous": "fedcba9876543210fedcba9876543210fedcba98",
        "parameters": [ParameterChange(key="ablate.rules.0.scale", before="1.0", after="0.5")],
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }
    return Provenance(**{**usual, **given})


def report(**given: Any) -> Report:
    """What a report is made of, some of it as given."""
    usual: dict[str, Any] = {
        "rows": good_rows(),
        "gates": GOOD,
        "changes": changes(),
        "left_out": {},
        "diagnosis": diagnosis(),
        "simulation": simulation(),
        "directions": directions(),
        "ablate": Ablate(),
        "manifest": manifest(),
        "pictures": {},
    }
    explained = {**usual, **given}
    words = RefusalWords(explained["diagnosis"].refusal_words, others=[], reason=None)
    return Report(**{"words": words, **explained})
