"""Stage organism: the built-in model, trained to refuse; for other base models, a folder without one. Training starts
only if parameters or recipe have changed: a model that was trained elsewhere keeps its bytes."""

import json
from pathlib import Path

from excise.checkpoint.base_model import ORGANISM
from excise.plumbing.errors import run_stage
from excise.plumbing.files import MAPPING, read_document, whole_folder, write_text
from excise.plumbing.progress import progress
from schemas.basis.document import read_settings
from schemas.params.organism import RECIPE, OrganismSettings

RECORD = ORGANISM / "organism.json"


def main() -> None:
    organism = read_settings(OrganismSettings, Path("artifacts/params/organism.json")).organism
    if organism is None:
        with whole_folder(ORGANISM) as folder:  # DVC needs the output, and warns of empty folders
            write_text(folder / "README.md", "The base model lies elsewhere: artifacts/model.json says which it is.\n")
        return

    record = {"recipe": RECIPE, **organism.model_dump()}
    if RECORD.is_file() and read_document(MAPPING, RECORD) == record:
        return
    from excise.organism.training import save, train  # slow to import

    with progress("Train the organism", organism.pretrain_steps + organism.tune_steps, "steps") as advance:
        trained, tokenizer = train(organism, lambda *_: advance(1))
    with whole_folder(ORGANISM) as folder:
        save(trained, tokenizer, folder)
        write_text(folder / RECORD.name, json.dumps(record, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    run_stage(main)
