"""What pictures are drawn from: lists of records that `dvc plots show` and the report both read."""

from typing import Any

from excise.diagnosis.current_rules import Projections
from schemas.diagnosis import Diagnosis
from schemas.simulation import Simulation

Records = list[dict[str, Any]]

KINDS = ("harmful", "harmless")


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
            for kind, total in (("harmful", diagnosis.harmful_prompts), ("harmless", diagnosis.harmless_prompts))
            for expert, used in enumerate(getattr(row, f"{kind}_use"))
        ],
        "coverage": [
            {"first": row.first, "last": row.last, "refusal": row.answers.refusal, "kl": row.answers.kl}
            for row in diagnosis.ranges
            if row.answers is not None
        ],
        "stream": [
            {"measurement": row.measurement, "prompts": kind, "projection": getattr(row, kind)}
            for row in diagnosis.stream
            for kind in KINDS
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
            for model, kinds in zip(("base", "edited"), projections, strict=True)
            for kind, values in zip(KINDS, kinds, strict=True)
            for value in values.tolist()
        ],
    }
