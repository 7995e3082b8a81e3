"""Stage evaluate: one model, the base or the edited one → metrics, every sample, and the drift from the base."""

import math
import sys
from pathlib import Path

from safetensors.torch import load_file, save

from schemas.artifacts import Results
from schemas.params import Evaluate, read_section
from stages.base.device import placement
from stages.base.files import write_bytes, write_json, write_text
from stages.base.forward import first_token_log_probabilities, mean_kl
from stages.base.manifest import base_folder, read_manifest, verify
from stages.base.models import load_model, load_tokenizer
from stages.base.progress import progress
from stages.base.prompts import read_format, read_prompts, tokenize
from stages.base.stage import StageError, run_stage
from stages.evidence.harness import run_tasks

RESULTS = Path("results")
ABLATED = Path("models/ablated")
FIRST_TOKENS = "first_token_log_probabilities.safetensors"


def main() -> None:
    """Ask the tasks and take the first-token distributions; the edited model's are compared with the base's."""
    side = sys.argv[1] if len(sys.argv) == 2 else ""
    if side not in ("base", "ablated"):
        raise StageError("say which model: python -m stages.evaluate base, or ablated")
    params = read_section(Evaluate, Path("artifacts/params/evaluate.json"))
    manifest, chat, folder = read_manifest(), read_format(), ABLATED if side == "ablated" else base_folder()
    if side == "base":
        verify(folder, manifest)
    tokenizer, model = load_tokenizer(folder), load_model(folder, manifest.dtype, placement())

    prompts = tokenize(tokenizer, read_prompts("drift"), chat)
    with progress(f"First tokens of {side}", len(prompts), "prompts") as advance:
        first_tokens = first_token_log_probabilities(model, prompts, params.batch_size, advance)
    metrics, samples = run_tasks(model, tokenizer, params, chat)

    drift = {}
    if side == "ablated":
        reference = load_file(RESULTS / "base" / FIRST_TOKENS)["log_probabilities"]
        drift["first_token_kl"] = mean_kl(reference, first_tokens)
        if not math.isfinite(drift["first_token_kl"]):
            raise StageError(
                f"{folder} answers with what is no number; look for a smaller scale in params.yaml: ablate"
            )
    output = RESULTS / side
    for task, answered in samples.items():
        write_text(output / "samples" / f"{task}.jsonl", "".join(s.model_dump_json() + "\n" for s in answered))
    write_bytes(output / FIRST_TOKENS, save({"log_probabilities": first_tokens}))
    counts = {task: len(answered) for task, answered in samples.items()}
    write_json(output / "results.json", Results(metrics=metrics, samples=counts, drift=drift))


if __name__ == "__main__":
    run_stage(main)
