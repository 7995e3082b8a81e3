"""Stage params: params.yaml → the settings that each stage reads; an invalid file writes nothing."""

from pathlib import Path

from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_text
from schemas.params.document import load, settings_of_stages


def main() -> None:
    for stage, text in settings_of_stages(load(Path("params.yaml"))).items():
        write_text(Path(f"artifacts/params/{stage}.json"), text)


if __name__ == "__main__":
    run_stage(main)
