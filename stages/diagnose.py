"""Stage diagnose: base model, directions and rules → who writes refusal, who reads it, and what edits would do.

Everything is tried on prompts that were not measured, in forward passes of the base; no weight is written.
"""

import json
from pathlib import Path

from excise.checkpoint.manifest import base_checkpoint, base_folder, read_layout, read_manifest, verify
from excise.diagnosis.explanation import STEPS, explain
from excise.diagnosis.plots import plots
from excise.edit.measured import read_directions, read_use
from excise.edit.odds import odds_by_layer
from excise.inference.models import load_model
from excise.inference.tokenizer import load_tokenizer
from excise.plumbing.device import placement
from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_json, write_text
from excise.plumbing.progress import progress
from excise.prompts.chats import read_format, read_prompts, tokenize
from excise.trials.bench import Bench
from excise.trials.refusal import Questions
from schemas.params.ablate import Ablate
from schemas.params.section import read_settings

ARTIFACTS = Path("artifacts")
PLOTS = ARTIFACTS / "plots"


def main() -> None:
    """Explain the base model, and write it down for programs and for pictures."""
    params = read_settings(Ablate, ARTIFACTS / "params/ablate.json")
    manifest, folder, chat = read_manifest(), base_folder(), read_format()
    layout = read_layout()
    (statistics, measured), use = read_directions(ARTIFACTS, layout), read_use(ARTIFACTS, layout)
    verify(folder, manifest)
    base = base_checkpoint(folder, manifest)
    tokenizer, model = load_tokenizer(folder, chat.date), load_model(base, manifest.dtype, placement())
    harmful, harmless = (
        tokenize(tokenizer, read_prompts(f"{side}_held_out"), chat) for side in ("harmful", "harmless")
    )
    bench = Bench(
        layout=layout,
        base=base,
        reasons=[row.reason for row in statistics],
        measured=measured,
        log_odds=odds_by_layer(use),
        questions=Questions(model, harmful, harmless),
    )
    with progress("Diagnose", STEPS, "steps") as advance:
        diagnosis, projections = explain(bench, params, statistics, tokenizer.decode, advance)

    write_json(ARTIFACTS / "diagnosis.json", diagnosis)
    for name, records in plots(diagnosis, projections).items():
        write_text(PLOTS / f"{name}.json", json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    run_stage(main)
