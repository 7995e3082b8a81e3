"""What simulation foresees of an edit, said before any byte of it is written."""

import sys
from pathlib import Path

from excise.plumbing.files import read_document, sha256_of
from schemas.params.ablate import Ablate
from schemas.simulation import PartTrial, Simulation

ARTIFACTS = Path("artifacts")


def foreseen(ablate: Ablate) -> Simulation | None:
    """What was simulated of these rules along the present directions; None where that was not done. Raises
    `StageError`: the file is not whole."""
    path = ARTIFACTS / "simulation.json"
    if not path.exists():
        return None
    simulation = read_document(Simulation, path)
    same_rules = simulation.ablate == ablate.model_dump(mode="json")
    along_these = simulation.directions_sha256 == sha256_of(ARTIFACTS / "directions.safetensors")
    return simulation if same_rules and along_these else None


def say_foreseen(simulation: Simulation | None) -> None:
    """Say on standard error whether rules are ruinous, or that nobody tried."""
    if simulation is None:
        print(
            "Not simulated: whether these rules leave a model that can write is for `dvc repro simulate`",
            file=sys.stderr,
        )
    elif simulation.ruinous:
        print(f"WARNING: {warning(simulation)}", file=sys.stderr)


def warning(simulation: Simulation) -> str:
    """Of ruinous rules: how bad it is, in which layers it comes about, and what to do; one line."""
    (whole,) = (trial.perplexity for trial in simulation.scales if trial.scale == 1)
    thirds, ablate = simulation.thirds, Ablate.model_validate(simulation.ablate)
    line = f"these rules ruin the model: its own answers to harmless prompts become {_times(whole)} as perplexing"
    if len(thirds) > 1:
        line += f" (by themselves {', '.join(f'{_layers(part)}: {_times(part.perplexity)}' for part in thirds)})"
    todo = ["lower the scale"]
    worst = max(thirds, key=lambda part: float("inf") if part.perplexity is None else part.perplexity, default=None)
    if worst is not None and len(thirds) > 1:
        todo.append(f"leave out {_layers(worst)}")
    if ablate.through_norm != "ignore":
        todo.append("write through_norm: ignore")
    if ablate.orthogonalize == "none":
        todo.append("write orthogonalize: source")
    *others, last = todo
    return f"{line}; in params.yaml: ablate, {' or '.join([', '.join(others), last] if others else [last])}"


def _layers(part: PartTrial) -> str:
    return f"layer {part.first}" if part.first == part.last else f"layers {part.first}-{part.last}"


def _times(perplexity: float | None) -> str:
    return "infinitely" if perplexity is None else f"{perplexity:.3g} times"
