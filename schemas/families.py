"""The known layouts, from `architectures/`. Only `prepare` reads them, so that a new one reruns nobody's model."""

import functools
import json
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML

from schemas.basis.text import shorten
from schemas.model import Layout

FOLDER = Path(__file__).parent / "architectures"


@functools.cache
def layouts() -> dict[str, Layout]:
    """Every known layout by model type. Raises `ValueError`: a file is not a layout, or names a type of another one."""
    known: dict[str, Layout] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        try:
            layout = Layout.model_validate_json(json.dumps(YAML(typ="safe", pure=True).load(path.read_text())))
        except ValidationError as error:
            raise ValueError(f"{path.name} is not a layout: {error}") from None
        for model_type in layout.model_types:
            if model_type in known:
                raise ValueError(f"{path.name} names the model type {model_type!r}, which another layout has already")
            known[model_type] = layout
    return known


def layout_of(model_type: str) -> Layout:
    """The layout of a model type. Raises `KeyError` with a message: it is unknown."""
    if model_type not in layouts():
        known = shorten(", ".join(sorted(layouts())), 150)
        raise KeyError(
            f"the layout of model type {shorten(model_type, 60)!r} is unknown, so it cannot be edited; "
            f"docs/architectures.md says how to add it; known: {known}"
        )
    return layouts()[model_type]
