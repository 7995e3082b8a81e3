"""The release of a tag: `python -m excise.gitops.attach TAG FOLDER` attaches what `make release` wrote to it."""

import sys
from pathlib import Path

from excise.gitops.github import GitHub, setting
from excise.plumbing.errors import StageError, run_stage

CARD = "card.md"


def main() -> None:
    """The card is the release's text; every file, it too, is attached."""
    if len(sys.argv) != 3:
        raise StageError("name a tag and the folder that `make release` wrote")
    tag, folder = sys.argv[1], Path(sys.argv[2])
    if not (folder / CARD).is_file():
        raise StageError(f"{folder / CARD} is not there; `make release` makes it")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    api, graphql = setting("GITHUB_API_URL"), setting("GITHUB_GRAPHQL_URL")
    with GitHub(setting("GITHUB_REPOSITORY"), setting("GITHUB_TOKEN"), api, graphql) as github:
        print(github.release(tag, (folder / CARD).read_text(errors="replace"), files))


if __name__ == "__main__":
    run_stage(main)
