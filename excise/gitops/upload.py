"""Upload an edited model to the Hub: `python -m excise.gitops.upload MODEL_DIR OWNER/NAME [--public]`.

It is private unless said otherwise. The token is that of HF_TOKEN alone, and none that lies on this machine.
"""

import argparse
import os
from pathlib import Path

from excise.checkpoint.edited import check_edited
from excise.gitops.hub import upload
from excise.plumbing.errors import StageError, run_stage


def main() -> None:
    """Check every digest first: what does not prove to be an edited model goes nowhere."""
    parser = argparse.ArgumentParser(
        prog="python -m excise.gitops.upload", description="Upload an edited model to the Hub."
    )
    parser.add_argument("folder", type=Path, help="of the edited model")
    parser.add_argument("name", help="OWNER/NAME on the Hub")
    parser.add_argument("--public", action="store_true", help="let everybody see it")
    asked = parser.parse_args()
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise StageError("HF_TOKEN is not set; set it to a token of the Hub that may write")
    check_edited(asked.folder)
    print(f"{asked.folder} is at {upload(asked.folder, asked.name, token, asked.public)}")


if __name__ == "__main__":
    run_stage(main)
