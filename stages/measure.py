"""Stage measure: base model and prompts → activations → refusal directions and their statistics; use of experts."""

from pathlib import Path

from safetensors.torch import save

from excise.checkpoint.base_model import BaseModel
from excise.inference.passes import open_model
from excise.inference.tokenizer import load_tokenizer
from excise.plumbing.device import placement, streaming
from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_bytes, write_json
from excise.plumbing.progress import progress
from excise.prompts.chats import read_format, read_prompts, tokenize
from excise.residual.activations import collect_activations
from excise.residual.directions import estimate, winsorize
from excise.residual.experts import count_use, routed_experts
from excise.residual.statistics import describe
from schemas.params import Measure, read_section

ARTIFACTS = Path("artifacts")


def main() -> None:
    """Measure both sides in one pass over the prompts, and take the difference of their means."""
    params = read_section(Measure, ARTIFACTS / "params/measure.json")
    base, chat = BaseModel.open(), read_format()
    tokenizer = load_tokenizer(base.folder, chat.date)

    harmful = tokenize(tokenizer, read_prompts("harmful"), chat)
    harmless = tokenize(tokenizer, read_prompts("harmless"), chat)
    prompts = [*harmful, *harmless]
    passes = open_model(base.checkpoint, base.manifest.dtype, placement(), streaming(), prompts, params.batch_size)
    experts = routed_experts(passes.model, base.layout.family)
    with progress("Measure", passes.steps(len(prompts)), passes.unit) as advance:
        activations = collect_activations(passes, experts, prompts, params.position, params.batch_size, advance)
    stream = activations.stream
    if params.winsorize is not None:
        stream = winsorize(stream, params.winsorize)
    sides = stream[: len(harmful)], stream[len(harmful) :]
    directions = estimate(*sides, params.estimator)

    write_bytes(
        ARTIFACTS / "activations.safetensors",
        save({"harmful": sides[0].contiguous(), "harmless": sides[1].contiguous()}),
    )
    write_bytes(
        ARTIFACTS / "directions.safetensors",
        save(
            {
                "directions": directions.unit,
                "harmful_mean": directions.harmful_mean,
                "harmless_mean": directions.harmless_mean,
            }
        ),
    )
    write_json(ARTIFACTS / "directions.json", describe(directions, *sides, params.estimator))
    write_json(ARTIFACTS / "expert_use.json", count_use(activations.used, len(harmful), len(harmless)))


if __name__ == "__main__":
    run_stage(main)
