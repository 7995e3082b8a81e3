"""What pictures are drawn from: lists of records that `dvc plots show` and the report both read."""

from typing import Any

from excise.diagnosis.explanation import Projections
from schemas.diagnosis import Diagnosis

Records = list[dict[str, Any]]


def plots(diagnosis: Diagnosis, projections: Projections) -> dict[str, Records]:
    """By name of the file, without its ending."""
    return {
        "writers": [
            {"layer": row.layer, "writer": row.role, "difference": row.difference, "effect": row.effect}
            for row in diagnosis.writers
        ],
        "experts": [
            {"layer": row.layer, "expert": expert, "prompts": side, "share": used / total}
            for row in diagnosis.routers
            for side, uses, total in (
                ("harmful", row.harmful_use, diagnosis.harmful_prompts),
                ("harmless", row.harmless_use, diagnosis.harmless_prompts),
            )
            for expert, used in enumerate(uses)
        ],
        "coverage": [
            {"first": row.first, "last": row.last, "refusal": row.answers.refusal, "kl": row.answers.kl}
            for row in diagnosis.ranges
            if row.answers is not None
        ],
        "stream": [
            {"measurement": row.measurement, "prompts": side, "projection": getattr(row, side)}
            for row in diagnosis.stream
            for side in ("harmful", "harmless")
        ],
        "scales": [
            {"scale": row.scale, "prediction": name, "remainder": getattr(row, name)}
            for row in diagnosis.scales
            for name in ("direct", "simulated")
        ],
        "projections": [
            {"model": model, "prompts": side, "projection": value}
            for model, sides in (("base", projections.before), ("edited", projections.after))
            for side, values in zip(("harmful", "harmless"), sides, strict=True)
            for value in values.tolist()
        ],
    }
