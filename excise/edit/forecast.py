"""The forecast of the simulation, printed before an edit is written."""

import sys

from excise.plumbing.files import read_document, sha256_of
from schemas.basis.document import ARTIFACTS
from schemas.params.ablate import Ablate
from schemas.simulation import PartTrial, Simulation


def current_simulation(ablate: Ablate) -> Simulation | None:
    """The simulation of these rules along the current directions; None if there is none."""
    path = ARTIFACTS / "simulation.json"
    if not path.exists():
        return None
    simulation = read_document(Simulation, path)
    same_rules = simulation.ablate == ablate.model_dump(mode="json")
    same_directions = simulation.directions_sha256 == sha256_of(ARTIFACTS / "directions.safetensors")
    return simulation if same_rules and same_directions else None


def print_forecast(simulation: Simulation | None) -> None:
    """Warn on standard error of ruinous rules, or of rules that were not simulated."""
    if simulation is None:
        print("Not simulated: run `dvc repro simulate` to see whether these rules ruin the model", file=sys.stderr)
    elif simulation.ruinous:
        print(f"WARNING: {warning(simulation)}", file=sys.stderr)


def warning(simulation: Simulation) -> str:
    """How badly ruinous rules damage the model, in which layers, and what to do; one line."""
    (perplexity,) = (trial.perplexity for trial in simulation.scales if trial.scale == 1)
    thirds, ablate = simulation.thirds, Ablate.model_validate(simulation.ablate)
    line = f"these rules ruin the model: its own answers to harmless prompts become {_times(perplexity)} as perplexing"
    remedies = ["lower the scale"]
    if len(thirds) > 1:
        line += f" (by themselves {', '.join(f'{_layers(part)}: {_times(part.perplexity)}' for part in thirds)})"
        worst = max(thirds, key=lambda part: float("inf") if part.perplexity is None else part.perplexity)
        remedies.append(f"leave out {_layers(worst)}")
    if ablate.through_norm != "ignore":
        remedies.append("write through_norm: ignore")
    if ablate.orthogonalize == "none":
        remedies.append("write orthogonalize: source")
    *others, last = remedies
    return f"{line}; in params.yaml: ablate, {' or '.join([', '.join(others), last] if others else [last])}"


def _layers(part: PartTrial) -> str:
    return f"layer {part.first}" if part.first == part.last else f"layers {part.first}-{part.last}"


def _times(perplexity: float | None) -> str:
    return "infinitely" if perplexity is None else f"{perplexity:.3g} times"
