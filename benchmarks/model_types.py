"""Every model type of transformers' two mappings: whether its layout is exact, and if not, why (docs/models.md).

`python -m benchmarks.model_types --write` measures all of them, in about ten minutes on 2 cores, and writes the table."""

import argparse
import gc
import multiprocessing
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from excise.plumbing.errors import StageError
from excise.plumbing.files import write_text

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
    how: str
    """How its layout is known, or why there is none."""

    def written(self) -> str:
        """As a row of the table."""
        exact = "no" if self.component is None else f"{self.component:.0e}"
        return f"| `{self.model_type}` | {self.reads} | {exact} | {self.how} |"


def model_types() -> dict[str, str]:
    """Every model type with what it reads: text, if transformers has a class for text alone."""
    both = dict.fromkeys(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, IMAGES)
    return dict(sorted((both | dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, TEXT)).items()))


def measure(model_type: str) -> Row:
    """One row; takes seconds."""
    import torch
    from transformers.utils import logging

    from excise.checkpoint.weights import read_checkpoint
    from excise.discovery.examination import examine, example

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    reads = model_types()[model_type]
    try:
        with example(model_type) as folder:
            checkpoint = read_checkpoint(folder)
            examined = examine(folder, checkpoint.tensors, checkpoint.files, model_type)
    except StageError as error:
        return Row(model_type, reads, None, _reason(str(error), model_type))
    finally:
        gc.collect()
    how = "measured"
    if examined.differences is not None:
        how = "declared, and measured alike" if not examined.differences else f"measured; {examined.differences[0]}"
    return Row(model_type, reads, examined.proof.component, how)


def _reason(error: str, model_type: str) -> str:
    """The measured reason, without what all errors say."""
    for known in ("cannot be edited: ", f"/{model_type}: ", f"{model_type} "):
        error = error.partition(known)[2] or error
    return " ".join(error.replace("|", "/").split())


def table(rows: Sequence[Row]) -> str:
    """The table and what it adds up to."""
    sums = []
    for reads in (TEXT, IMAGES):
        of_kind = [row for row in rows if row.reads == reads]
        exact = [row.component for row in of_kind if row.component is not None]
        sums.append(
            f"Of {len(of_kind)} types that read {reads}, {len(exact)} are exact (at most {max(exact):.1e} of the stream)."
        )
    head = (
        "| type | reads | left after the edit | how it is known, or why there is no layout |\n| --- | --- | --- | --- |"
    )
    return "\n".join([*sums, "", head, *(row.written() for row in rows)])


def recorded(document: str) -> dict[str, tuple[bool, str]]:
    """By model type, what a document says: whether it is exact, and how it is known or why not."""
    lines = document.partition(BEGIN)[2].partition(END)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {name.strip("`"): (exact != "no", how) for name, _, exact, how in cells}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="only these")
    parser.add_argument("--write", action="store_true", help="write the table to docs/models.md")
    arguments = parser.parse_args()
    chosen = arguments.types or list(model_types())
    # A process measures a few types: what autograd and hooks hold is given back late.
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=TYPES_A_PROCESS) as pool:
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
