"""A recipe as params.yaml: `python -m excise.gitops.use RECIPE`; without a name, what there is."""

import sys
from pathlib import Path

from excise.gitops.git import file_of
from excise.plumbing.errors import StageError, run_stage
from excise.plumbing.files import write_text
from schemas.params.document import load
from schemas.text import show, suggest

RECIPES = Path("recipes")
PARAMS = Path("params.yaml")


def main() -> None:
    """Copy it, if nothing is lost with what stands there now."""
    names = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if not sys.argv[1:]:
        print("\n".join(names))
        return
    asked = " ".join(sys.argv[1:])
    if asked not in names:
        raise StageError(f"{show(asked)} is no recipe; there is {', '.join(names)}{suggest(asked, names)}")
    recipe = names[asked]
    params = load(recipe)
    refuse_to_lose([path.read_bytes() for path in names.values()])
    write_text(PARAMS.resolve(), recipe.read_text(encoding="utf-8"))
    print(f"{PARAMS} is {recipe} now, for {params.model.source}; its first lines say what it needs")


def refuse_to_lose(recipes: list[bytes]) -> None:
    """Raises `StageError` where params.yaml holds what neither git's latest commit nor a recipe does."""
    if not PARAMS.is_file():
        return
    there = PARAMS.read_bytes()
    committed = file_of(Path(), "HEAD", str(PARAMS))
    if there not in recipes and (committed is None or there != committed.encode()):
        raise StageError(f"{PARAMS} holds changes that are not committed, and would be lost; commit or move them first")


if __name__ == "__main__":
    run_stage(main)
