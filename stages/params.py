"""Stage params: params.yaml as a whole → one resolved file a section, on which the other stages depend.

A bad file writes nothing, so nothing that was made before is lost.
"""

from pathlib import Path

from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_text
from schemas.params import load, sections

PARAMS = Path("params.yaml")
OUTPUT = Path("artifacts/params")


def main() -> None:
    """Validate everything, then write. A section that did not change keeps its file as it is."""
    for name, text in sections(load(PARAMS)).items():
        write_text(OUTPUT / f"{name}.json", text)


if __name__ == "__main__":
    run_stage(main)
