"""What pictures are drawn from: lists of records that `dvc plots show` and the report both read."""

from typing import Any

from excise.diagnosis.current_rules import Projections
from schemas.diagnosis import Diagnosis
from schemas.simulation import Simulation

Records = list[dict[str, Any]]


def plots_of_diagnosis(diagnosis: Diagnosis) -> dict[str, Records]:
    """By name of the file in `artifacts/plots/`, without its ending."""
    return {
        "writers": [
            {"layer": row.layer, "writer": row.role, "difference": row.difference, "effect": row.effect}
            for row in diagnosis.writers
        ],
        "experts": [
            {"layer": row.layer, "expert": expert, "prompts": kind, "share": used / total}
            for row in diagnosis.routers
            for kind, uses, total in (
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
            {"measurement": row.measurement, "prompts": kind, "projection": getattr(row, kind)}
            for row in diagnosis.stream
            for kind in ("harmful", "harmless")
        ],
    }


def plots_of_simulation(simulation: Simulation, projections: Projections) -> dict[str, Records]:
    """The same of `artifacts/simulation/`."""
    return {
        "scales": [
            {"scale": row.scale, "prediction": name, "remainder": getattr(row, name)}
            for row in simulation.scales
            for name in ("direct", "simulated")
        ],
        "projections": [
            {"model": model, "prompts": kind, "projection": value}
            for model, kinds in (("base", projections.before), ("edited", projections.after))
            for kind, values in zip(("harmful", "harmless"), kinds, strict=True)
            for value in values.tolist()
        ],
    }
