"""Pin the base model to the newest commit of a Hub model: `python -m excise.gitops.pin [MODEL] [--dataset ID]`.

Without MODEL, the one that params.yaml names is pinned anew. With --dataset, only the newest commit of a data set is
printed.
"""

import argparse
import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import FileMetadataError

from excise.plumbing.errors import StageError, run_stage
from excise.plumbing.files import write_text
from excise.plumbing.hub import Kind, hub_errors
from schemas import plain_yaml
from schemas.params.model import HUB_ID
from schemas.pinning import pinned

PARAMS = Path("params.yaml")


def main() -> None:
    """Ask the Hub, then write both keys, and nothing else, into params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m excise.gitops.pin", description="Pin the base model to a commit.")
    parser.add_argument("model", nargs="?", help="organisation/name on the Hub; by default, that of params.yaml")
    parser.add_argument("--dataset", help="organisation/name of a data set, whose newest commit is printed instead")
    asked = parser.parse_args()
    if asked.dataset:
        print(newest(asked.dataset, "dataset"))
        return
    model = asked.model or chosen(read())
    revision = newest(model, "model")
    write_text(PARAMS.resolve(), pinned(read(), model, revision))  # read again: somebody may have edited it meanwhile
    print(f"{PARAMS}: model.source is {model}, model.revision {revision}")


def read() -> str:
    """The text of params.yaml."""
    return plain_yaml.read_text(PARAMS, PARAMS.name)


def chosen(text: str) -> str:
    """The Hub model that params.yaml names.

    Raises:
        StageError: it names none.
    """
    section = plain_yaml.parse_mapping(text, PARAMS.name).get("model")
    source = section.get("source") if isinstance(section, dict) else None
    if not isinstance(source, str) or not re.fullmatch(HUB_ID, source):
        raise StageError(f"{PARAMS}: model.source is none of the Hub's; say which: `make pin MODEL=organisation/name`")
    return source


def newest(name: str, kind: Kind) -> str:
    """The newest commit of a repository's default branch.

    Raises:
        StageError: it is no name of a repository, or the Hub does not tell.
    """
    if not re.fullmatch(HUB_ID, name):
        raise StageError(f"make pin: {name} is no Hub id; it is written organisation/name")
    with hub_errors("make pin", name, kind):
        try:
            return str(HfApi().repo_info(name, repo_type=kind).sha)
        except KeyError:  # JSON, but of no Hub
            raise FileMetadataError from None


if __name__ == "__main__":
    run_stage(main)
