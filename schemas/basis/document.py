"""What files that pass between stages are made of: declared inputs only, and no time, host or library version."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from schemas.basis import plain_yaml
from schemas.basis.fields import POSITIVE_ZERO
from schemas.wording import ParamsError, first_mistake

ARTIFACTS = Path("artifacts")
T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)
Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False), POSITIVE_ZERO]
Margin = Annotated[float, Field(allow_inf_nan=False, ge=0), POSITIVE_ZERO]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# Strict validation would want a Python tuple, which YAML and JSON cannot give; what is in the list stays strict.
Listed = Annotated[tuple[T, ...], Field(strict=False)]


def is_none(value: object) -> bool:
    """For `exclude_if` of a key that few files have: without it a file is as an earlier version wrote it, so that no
    stage runs again for it."""
    return value is None


class Document(BaseModel):
    """Strict, closed and immutable; an integer may stand for a number. A string below a field is its description."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        document = handler(schema)
        for field in handler.resolve_ref_schema(document).get("properties", {}).values():
            if "description" in field:  # on one line, for errors and tables
                field["description"] = " ".join(field["description"].split())
        return document


class Section(Document):
    """A part of params.yaml."""


class FileDigest(Document):
    """One file of a model folder."""

    path: str = Field(description="relative to the folder, with forward slashes")
    size: int = Field(description="bytes")
    sha256: Sha256


def read_settings(section: type[S], path: Path) -> S:
    """A stage's settings. Raises `ParamsError`: the file is missing, or not as the stage params writes it."""
    name = str(path)
    try:
        return validated(section, json.loads(plain_yaml.read_text(path, name)), name)
    except (ValueError, RecursionError) as error:
        wrong = str(error).removeprefix(f"{name}: ") if isinstance(error, ParamsError) else "is not JSON"
        raise ParamsError(name, f"{wrong}; `python -m stages.params` writes it again") from None


def validated(section: type[S], document: Any, name: str) -> S:
    """A section from parsed YAML or JSON; `name` is what errors call the file. Raises `ParamsError`."""
    try:
        return section.model_validate(document)
    except ValidationError as error:
        raise ParamsError(name, *first_mistake(error, section)) from None
