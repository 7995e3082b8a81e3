"""Every model type of transformers' two mappings: whether its layout is exact, and if not, why (docs/models.md).

`python -m benchmarks.model_types --write` measures all of them in about ten minutes on 2 cores, and writes the table.
"""

import argparse
import gc
import multiprocessing
import os
import re
import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import read_checkpoint
from excise.discovery.examination import examine, example
from excise.discovery.proof import READERS, WRITERS, base_of, edits_of, first_possible, random_direction
from excise.discovery.stream import run
from excise.edit.checkpoint import write_edited
from excise.edit.planning.plan import Edit
from excise.inference.loading.models import load_model
from excise.plumbing.errors import StageError
from excise.plumbing.files import write_text
from excise.trials.simulation import simulated
from schemas.model import ModelLayout

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/models.md"
BEGIN, END = "<!-- types:begin -->", "<!-- types:end -->"
TEXT, IMAGES = "text", "images and text"
TYPES_A_PROCESS = 10
MEMORY = 8 << 30
"""Bytes that the model of one type may take."""


@dataclass(frozen=True)
class Row:
    """What is known of one model type, in the form that the defaults of its config have."""

    model_type: str
    reads: str
    component: float | None
    """Share of the stream left along the direction after the edit; None if the type is refused."""
    simulation: float | None
    """How far a simulated edit is from the edited weights."""
    how: str
    """How its layout is known, or why there is none."""

    def written(self) -> str:
        """As a row of the table."""
        exact, error = ("no" if each is None else f"{each:.0e}" for each in (self.component, self.simulation))
        return f"| `{self.model_type}` | {self.reads} | {exact} | {error} | {self.how} |"


def model_types() -> dict[str, str]:
    """Every model type with what it reads: text, if transformers has a class for text alone."""
    both = dict.fromkeys(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, IMAGES)
    return dict(sorted((both | dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, TEXT)).items()))


def measure(model_type: str) -> Row:
    """One row; takes seconds."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    reads = model_types()[model_type]
    try:
        with example(model_type) as folder:
            checkpoint = read_checkpoint(folder)
            examined = examine(folder, checkpoint.tensors, checkpoint.files, model_type)
            simulation = simulation_error(folder, examined.layout)
    except StageError as error:
        return Row(model_type, reads, None, None, _reason(str(error), model_type))
    finally:
        gc.collect()
    how = "measured"
    if examined.layout.family.reads_elsewhere:
        how = "measured; writers only"
    if examined.differences is not None:
        how = "declared, and measured alike" if not examined.differences else f"measured; {examined.differences[0]}"
    return Row(model_type, reads, examined.proof.component, simulation, how)


def simulation_error(folder: Path, layout: ModelLayout) -> float:
    """How far simulated edits of all writers, and of all readers, are from edited weights: relative, of the logits."""
    base, cpu, errors = base_of(folder, layout), torch.device("cpu"), []
    ids = torch.arange(5, 27).reshape(2, 11)
    model = load_model(base.checkpoint, "float32", cpu)
    for targets in (WRITERS,) if layout.family.reads_elsewhere else (WRITERS, READERS):
        edits = _possible_edits(base, targets)
        with tempfile.TemporaryDirectory() as target, torch.inference_mode():
            write_edited(base, Path(target), edits, [], cpu, lambda _: None)
            edited = run(load_model(read_checkpoint(Path(target)), "float32", cpu), ids).logits
            with simulated(model, edits):
                apart = (run(model, ids).logits - edited).norm(dim=-1) / edited.norm(dim=-1)
        # The median of all tokens: a router that is blinded may choose either of two experts with equal scores.
        errors.append(float(apart.median()))
    return max(errors)


def _possible_edits(base: BaseModel, targets: Sequence[str]) -> list[Edit]:
    """Along the first random direction that the random norms of readers allow."""
    directions = [random_direction(base.layout.hidden_size, seed) for seed in range(1, 9)]
    possible = first_possible(base, targets, directions)
    return edits_of(base, targets, directions[0]) if possible is None else possible[1]


def _reason(error: str, model_type: str) -> str:
    """The measured reason, without what all errors say."""
    error = re.sub(r"^the model type '[^']+' cannot be edited: ", "", error)
    error = re.sub(rf"^\S*/{re.escape(model_type)}(/config.json)?:? ", "", error)
    return " ".join(error.replace("|", "/").split())


def table(rows: Sequence[Row]) -> str:
    """The table and what it adds up to."""
    sums = []
    for reads in (TEXT, IMAGES):
        of_kind = [row for row in rows if row.reads == reads]
        exact = [row.component for row in of_kind if row.component is not None]
        left = f"at most {max(exact, default=0):.1e} of the stream is left along the direction"
        sums.append(f"Of {len(of_kind)} types that read {reads}, {len(exact)} are exact: {left}.")
    columns = ["type", "reads", "left after the edit", "simulated", "how it is known, or why there is no layout"]
    head = f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|"
    return "\n".join([*sums, "", head, *(row.written() for row in rows)])


def recorded(document: str) -> dict[str, tuple[bool, str]]:
    """By model type, what a document says: whether it is exact, and how it is known or why not."""
    lines = document.partition(BEGIN)[2].partition(END)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {name.strip("`"): (exact != "no", how) for name, _, exact, _, how in cells}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="only these")
    parser.add_argument("--write", action="store_true", help="write the table to docs/models.md")
    arguments = parser.parse_args()
    chosen = arguments.types or list(model_types())
    # A process measures a few types: what autograd and hooks hold is given back late.
    limit = resource.RLIMIT_DATA, (MEMORY, MEMORY)
    pools = multiprocessing.get_context("spawn")
    with pools.Pool(os.cpu_count(), resource.setrlimit, limit, maxtasksperchild=TYPES_A_PROCESS) as pool:
        rows = []
        for row in pool.imap(measure, chosen):
            print(row.written(), file=sys.stderr, flush=True)
            rows.append(row)
    if arguments.write:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        write_text(DOCUMENT, f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
