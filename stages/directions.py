"""Stage directions: activations → the refusal direction of each measurement, and its statistics. No forward pass."""

import torch
from safetensors.torch import save

from excise.checkpoint.base_model import read_layout
from excise.checkpoint.weights import read_tensors
from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_bytes, write_json
from excise.residual.directions import describe, estimate, winsorize
from schemas.basis.document import ARTIFACTS, read_settings
from schemas.params.directions import Directions


def main() -> None:
    settings, layout = read_settings(Directions, ARTIFACTS / "params/directions.json"), read_layout()
    shape = ("float32", (None, layout.layers + 1, layout.hidden_size))
    sides = read_tensors(ARTIFACTS / "activations.safetensors", {"harmful": shape, "harmless": shape})
    harmful, harmless = sides["harmful"], sides["harmless"]
    if settings.winsorize is not None:
        clamped = winsorize(torch.cat([harmful, harmless]), settings.winsorize)
        harmful, harmless = clamped[: len(harmful)], clamped[len(harmful) :]
    directions = estimate(harmful, harmless, settings.estimator)

    means = {"harmful_mean": directions.harmful_mean, "harmless_mean": directions.harmless_mean}
    tensors = {"directions": directions.unit, **means}
    write_bytes(ARTIFACTS / "directions.safetensors", save(tensors))
    write_json(ARTIFACTS / "directions.json", describe(directions, harmful, harmless, settings.estimator))


if __name__ == "__main__":
    run_stage(main)
