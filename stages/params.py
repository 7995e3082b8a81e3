"""Stage params: params.yaml as a whole → for each stage the settings that it reads; a bad file writes nothing."""

from pathlib import Path

from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_text
from schemas.params.document import load, settings_of_stages


def main() -> None:
    """Validate everything, then write. Settings that did not change keep their file as it is."""
    for stage, text in settings_of_stages(load(Path("params.yaml"))).items():
        write_text(Path(f"artifacts/params/{stage}.json"), text)


if __name__ == "__main__":
    run_stage(main)
