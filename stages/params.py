"""Stage params: params.yaml as a whole → for each stage exactly the settings that it reads. A bad file writes nothing,
so nothing that was made before is lost."""

from pathlib import Path

from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_text
from schemas.params.document import load, settings_of_stages

PARAMS = Path("params.yaml")
OUTPUT = Path("artifacts/params")


def main() -> None:
    """Validate everything, then write. Settings that did not change keep their file as it is."""
    for stage, text in settings_of_stages(load(PARAMS)).items():
        write_text(OUTPUT / f"{stage}.json", text)


if __name__ == "__main__":
    run_stage(main)
