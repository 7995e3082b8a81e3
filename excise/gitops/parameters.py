"""Writing params.yaml for a person: a recipe, or the newest commit of its base. Nothing that they wrote is lost."""

import re
from pathlib import Path

from excise.gitops.git import file_of
from excise.plumbing.errors import StageError
from excise.plumbing.files import write_text
from schemas.basis import plain_yaml
from schemas.basis.text import show, suggest
from schemas.params.document import load
from schemas.params.model import HUB_ID
from schemas.pinning import pinned

PARAMS = Path("params.yaml")
RECIPES = Path("recipes")


def recipes() -> dict[str, Path]:
    """The file of each recipe by its name, sorted."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def use_recipe(name: str) -> str:
    """Make params.yaml a recipe; a line that says so. Raises `StageError` where there is no such recipe, or params.yaml
    holds what neither git's latest commit nor a recipe does."""
    known = recipes()
    if name not in known:
        raise StageError(f"{show(name)} is not a recipe; there is {', '.join(known)}{suggest(name, known)}")
    source = load(known[name]).model.source
    if PARAMS.is_file():
        committed = file_of(Path(), "HEAD", str(PARAMS))
        kept = [path.read_bytes() for path in known.values()] + ([] if committed is None else [committed.encode()])
        if PARAMS.read_bytes() not in kept:
            what = f"{PARAMS} holds changes that are not committed, and would be lost"
            raise StageError(f"{what}; commit or move them first")
    write_text(PARAMS.resolve(), known[name].read_text(encoding="utf-8"))
    return f"{PARAMS} is {known[name]} now, for {source}; its first lines say what it needs"


def pin_base(model: str | None) -> str:
    """Pin the base to the newest commit of a Hub model, by default the one in params.yaml; a line that says so. Raises
    `StageError` where the Hub does not know it, and `ParamsError` where params.yaml cannot be read or edited."""
    from excise.gitops.hub import newest  # slow to import, and a recipe needs none of it

    if not model:
        section = plain_yaml.parse_mapping(_read(), PARAMS.name).get("model")
        model = section.get("source") if isinstance(section, dict) else None
        if not isinstance(model, str) or not re.fullmatch(HUB_ID, model):
            remedy = "name one: `make pin MODEL=organization/name`"
            raise StageError(f"{PARAMS}: model.source is not a model of the Hub; {remedy}")
    revision = newest(model, "model")
    write_text(PARAMS.resolve(), pinned(_read(), model, revision))  # read again: somebody may have edited it meanwhile
    return f"{PARAMS}: model.source is {model}, model.revision {revision}"


def _read() -> str:
    return plain_yaml.read_text(PARAMS, PARAMS.name)
