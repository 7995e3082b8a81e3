"""Extensions: classes that params.yaml chooses by the name of their file, such as a judge. Another package adds one
through an entry point whose group is the room, such as `excise.judges`, if requirements-compute.lock pins it."""

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
_NAMES: dict[type, str] = {}
"""Names of the loaded classes of other packages."""


class Extension(Section):
    """The base class of all: fields are parameters in params.yaml."""


@dataclass(frozen=True)
class Room:
    """A package of extensions; as a field's annotation it reads a name, or `{name: {parameter: value}}`."""

    package: str

    def own(self) -> list[str]:
        """The names of this project's own extensions: the modules of the package."""
        return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__))

    def names(self) -> list[str]:
        """All names: this project's own, then those of other packages."""
        return list(_entries(self))

    def load(self, name: Any) -> type[Any]:
        """The class of that name. Raises `WrongValue`: there is none, or its package is not pinned."""
        if name not in (entries := _entries(self)):
            raise WrongValue(f"must be one of {', '.join(entries)}, got {show(name)}{suggest(name, entries)}")
        entry = entries[name]
        return _own(f"{self.package}.{name}") if entry is None else _of_package(entry)

    def read(self, value: object) -> Extension:
        """The extension that a value of params.yaml chooses. Raises `WrongValue`."""
        match value:
            case Extension():
                return value
            case str():
                return self.make(value, {})
            case dict() if len(value) == 1:
                ((name, parameters),) = value.items()
                return self.make(name, {} if parameters is None else parameters)
        known = ", ".join(self.names())
        raise WrongValue(f"must be one of {known}, or {{name: {{parameter: value}}}} of one, got {show(value)}")

    def make(self, name: Any, parameters: Any) -> Extension:
        """The extension of that name with these parameters. Raises `WrongValue`, at a key below the name."""
        extension: type[Extension] = self.load(name)
        try:
            return extension.model_validate(parameters)
        except ValidationError as error:
            message, key = first_mistake(error, extension)
            raise WrongValue(message, name, *key) from None

    def name_of(self, extension: Extension) -> str:
        return _NAMES.get(type(extension), type(extension).__module__.rpartition(".")[2])

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read, serialization=core_schema.plain_serializer_function_ser_schema(self._written)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # Open: names and parameters depend on the packages that are installed.
        choice = [{"type": "string"}, {"type": "object", "minProperties": 1, "maxProperties": 1}]
        return {"anyOf": choice, "$comment": f"extension of {self.package}"}

    def _written(self, extension: Extension) -> str | dict[str, Any]:
        parameters, name = extension.model_dump(mode="json"), self.name_of(extension)
        return {name: parameters} if parameters else name


@cache
def _entries(room: Room) -> dict[str, EntryPoint | None]:
    """Extensions by name; None for a module of the room itself, which no other package can replace."""
    own, others = room.own(), entry_points(group=room.package)
    return dict.fromkeys(own) | {entry.name: entry for entry in others if entry.name not in own}


@cache
def _own(module: str) -> type[Extension]:
    """The one extension that a module defines."""
    members = vars(importlib.import_module(module)).values()
    (extension,) = (member for member in members if _is_extension(member) and member.__module__ == module)
    return extension


@cache
def _of_package(entry: EntryPoint) -> type[Extension]:
    assert entry.dist is not None  # it is installed
    where = f"is of the package {entry.dist.name}"
    extension = load_pinned(entry)
    if not _is_extension(extension):
        raise WrongValue(f"{where}, but {entry.value} is not an Extension", entry.name)
    _NAMES[extension] = entry.name
    return extension


def load_pinned(entry: EntryPoint) -> Any:
    """What an entry point of another package names. Raises `WrongValue`: no lock pins it, or its code fails."""
    assert entry.dist is not None  # it is installed
    pin, where = f"{entry.dist.name}=={entry.dist.version}", f"is of the package {entry.dist.name}"
    pinned = LOCK.read_text(encoding="utf-8").split() if LOCK.is_file() else []
    if pin not in pinned:
        raise WrongValue(f"{where}, which {LOCK} does not pin; add {pin} to it and to requirements.lock", entry.name)
    try:
        return entry.load()
    except Exception as error:  # of another package's code
        raise WrongValue(f"{where}, which cannot be imported: {show(str(error))}", entry.name) from None


def _is_extension(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Extension)
