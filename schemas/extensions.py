"""Extensions: classes that params.yaml chooses by name, such as a judge. Each is one file of its room; the name of the
file is its name in params.yaml, and the fields of the class are its parameters. Another package adds one through an
entry point whose group is the room, such as `excise.judges`, if requirements-compute.lock pins that package."""

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from schemas.basis.document import Section
from schemas.basis.text import show, suggest
from schemas.wording import WrongValue, first_mistake

LOCK = Path("requirements-compute.lock")
_OF_OTHERS: dict[type, str] = {}
"""Names of the classes of other packages that were loaded."""


class Extension(Section):
    """What every extension is: its fields are its parameters in params.yaml, its methods what it does."""


@dataclass(frozen=True)
class Room:
    """A package whose modules are extensions. As the annotation of a field, it reads a name, or a mapping from one name
    to its parameters, into the extension; what has no parameters is written as its name only."""

    package: str

    def names(self) -> list[str]:
        """All of them: this project's own, then those of other packages."""
        return list(_found(self.package))

    def load(self, name: Any) -> type[Any]:
        """The class of that name. Raises `WrongValue`: there is none, or it is of a package that is not pinned."""
        if name not in (found := _found(self.package)):
            raise WrongValue(f"must be one of {', '.join(found)}, got {show(name)}{suggest(name, found)}")
        entry = found[name]
        return _own(f"{self.package}.{name}") if entry is None else _of_package(entry)

    def read(self, given: object) -> Extension:
        """The extension that a value of params.yaml chooses. Raises `WrongValue`."""
        match given:
            case Extension():
                return given
            case str():
                return self.make(given, {})
            case dict() if len(given) == 1:
                ((name, parameters),) = given.items()
                return self.make(name, {} if parameters is None else parameters)
        known = ", ".join(self.names())
        raise WrongValue(f"must be one of {known}, or {{name: {{parameter: value}}}} of one, got {show(given)}")

    def make(self, name: Any, parameters: Any) -> Extension:
        """The extension of that name with these parameters. Raises `WrongValue`, below the name."""
        extension: type[Extension] = self.load(name)
        try:
            return extension.model_validate(parameters)
        except ValidationError as error:
            message, key = first_mistake(error, extension)
            raise WrongValue(message, name, *key) from None

    def name_of(self, extension: Extension) -> str:
        """How params.yaml names an extension."""
        kind = type(extension)
        return _OF_OTHERS.get(kind, kind.__module__.rpartition(".")[2])

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read, serialization=core_schema.plain_serializer_function_ser_schema(self._written)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # Open: which names there are, and what parameters they take, depends on the packages that are installed.
        choice = [{"type": "string"}, {"type": "object", "minProperties": 1, "maxProperties": 1}]
        return {"anyOf": choice, "$comment": f"extension of {self.package}"}

    def _written(self, extension: Extension) -> str | dict[str, Any]:
        parameters, name = extension.model_dump(mode="json"), self.name_of(extension)
        return {name: parameters} if parameters else name


@cache
def _found(package: str) -> dict[str, EntryPoint | None]:
    """Extensions by name; None is a module of the room itself, whose place no other package takes."""
    own = sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))
    others = {entry.name: entry for entry in entry_points(group=package)}
    return {**dict.fromkeys(own), **{name: entry for name, entry in others.items() if name not in own}}


@cache
def _own(module: str) -> type[Extension]:
    """The one extension that a module defines."""
    there = vars(importlib.import_module(module)).values()
    (found,) = (each for each in there if _is_extension(each) and each.__module__ == module)
    return found


@cache
def _of_package(entry: EntryPoint) -> type[Extension]:
    assert entry.dist is not None  # of what is installed
    pin, where = f"{entry.dist.name}=={entry.dist.version}", f"is of the package {entry.dist.name}"
    pinned = LOCK.read_text(encoding="utf-8").split() if LOCK.is_file() else []
    if pin not in pinned:
        raise WrongValue(f"{where}, which {LOCK} does not pin; add {pin} to it and to requirements.lock", entry.name)
    try:
        found = entry.load()
    except Exception as error:  # of another package's code
        raise WrongValue(f"{where}, which cannot be imported: {show(str(error))}", entry.name) from None
    if not _is_extension(found):
        raise WrongValue(f"{where}, and {entry.value} there is not an Extension", entry.name)
    _OF_OTHERS[found] = entry.name
    return found


def _is_extension(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Extension)
