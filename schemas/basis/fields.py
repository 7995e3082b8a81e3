"""Kinds of value that Pydantic has no word for: how each is read, what its error says, and its JSON Schema."""

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from schemas.basis.text import show, suggest
from schemas.wording import WrongValue

LAST_LAYER = 9999
"""No model comes near it; without an end, `0-99999999999` would fill the memory."""

_RANGE = re.compile(r"([0-9]{1,4})-([0-9]{1,4})")


@dataclass(frozen=True)
class Matches:
    """A text that matches `pattern` as a whole; `allowed` says in words what that is, `words` are worth suggesting."""

    pattern: str
    allowed: str
    words: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^(?:{self.pattern})$"}

    def _read(self, given: object) -> str:
        if isinstance(given, str) and re.fullmatch(self.pattern, given):
            return given
        raise WrongValue(f"must be {self.allowed}, got {show(given)}{suggest(given, self.words)}")


@dataclass(frozen=True)
class Items:
    """What holds for a list as a whole, checked once its items are right; `order` makes its order one and the same."""

    at_least_one: bool = False
    distinct: bool = False
    order: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        document = handler(schema)
        if self.at_least_one:
            document["minItems"] = 1
        if self.distinct:
            document["uniqueItems"] = True
        return document

    def _check(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.at_least_one and not items:
            raise WrongValue("must not be empty, got []")
        if self.distinct:
            for number, item in enumerate(items):
                if item in items[:number]:
                    raise WrongValue(f"must be named once, got {show(item)} again", number)
        return tuple(sorted(items, key=self.order.index)) if self.order else items


class LayerNumbers:
    """`18`, `"10-35"`, `"all"` or a list of these, read into "all" or sorted distinct numbers."""

    _ALLOWED = f'a layer from 0 to {LAST_LAYER}, a range such as "10-35", "all", or a non-empty list of these'

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        one = [
            {"type": "integer", "minimum": 0, "maximum": LAST_LAYER},
            {"type": "string", "pattern": f"^(?:all|{_RANGE.pattern})$"},
        ]
        return {"anyOf": [*one, {"type": "array", "items": {"anyOf": one}, "minItems": 1}]}

    def _read(self, given: object) -> tuple[int, ...] | str:
        if not isinstance(given, list | tuple):
            given = [given]
        elif not given:
            raise WrongValue(f"must be {self._ALLOWED}, got []")
        numbers = {number for item in given if item != "all" for number in self._one(item)}
        return "all" if "all" in given else tuple(sorted(numbers))

    def _one(self, given: object) -> range:
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= LAST_LAYER:
            return range(given, given + 1)
        reason = ""
        if isinstance(given, str) and (ends := _RANGE.fullmatch(given)):
            first, last = int(ends[1]), int(ends[2])
            if first <= last:
                return range(first, last + 1)
            reason = ", which ends before it begins"
        raise WrongValue(f"must be {self._ALLOWED}, got {show(given)}{reason}{suggest(given, ('all',))}")


class MeasurementNumber:
    """A number of at least 0, whole or between two measurements, or `same`."""

    _ALLOWED = 'a finite number ≥ 0 or "same"'

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "number", "minimum": 0}, {"const": "same"}]}

    def _read(self, given: object) -> float | str:
        if given == "same":
            return "same"
        if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < math.inf:
            return int(given) if given == int(given) else given
        raise WrongValue(f"must be {self._ALLOWED}, got {show(given)}{suggest(given, ('same',))}")


class BatchSize:
    """A whole number of at least 1, or `auto`."""

    _ALLOWED = 'an integer ≥ 1 or "auto"'

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}

    def _read(self, given: object) -> int | str:
        if given == "auto":
            return "auto"
        if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
            return given
        raise WrongValue(f"must be {self._ALLOWED}, got {show(given)}{suggest(given, ('auto',))}")


class NoSparsity:
    """Zero: other tools can edit only the largest entries, this one does not."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"const": 0}

    def _read(self, given: object) -> float:
        if isinstance(given, int | float) and not isinstance(given, bool) and given == 0:
            return 0.0
        raise WrongValue(f"is not offered here: it must be 0 or be left out, got {show(given)}")


class PositiveZero:
    """Reads -0.0 as 0.0, so that the same number has one canonical text."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(lambda number: number + 0.0, handler(source))


class RealDate:
    """A day as ISO 8601 writes it, kept as text."""

    _PATTERN = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{self._PATTERN}$"}

    def _read(self, given: object) -> str:
        if isinstance(given, str) and re.fullmatch(self._PATTERN, given):
            with contextlib.suppress(ValueError):
                return date.fromisoformat(given).isoformat()
        raise WrongValue(f'must be a day such as "2025-01-01", got {show(given)}')


class MayBeEmpty:
    """A section all of whose keys may be commented out: YAML then reads `null`, and the defaults stand."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "null"}]}

    def _read(self, given: object) -> object:
        return {} if given is None else given


def two_names(name: str, other: str) -> Callable[[dict[str, Any]], None]:
    """For a model's JSON Schema: `other` is read as `name`, and one of them must be there."""

    def extend(document: dict[str, Any]) -> None:
        alias = {"description": f"Another name for `{name}`.", "$comment": "alias"}
        document["properties"][other] = document["properties"][name] | alias
        document["required"].remove(name)
        document["oneOf"] = [{"required": [name]}, {"required": [other]}]

    return extend


def one_of(*names: str) -> Callable[[dict[str, Any]], None]:
    """For a model's JSON Schema: exactly one of these keys holds a number, the others are absent or null."""

    def extend(document: dict[str, Any]) -> None:
        document["oneOf"] = [{"required": [name], "properties": {name: {"type": "number"}}} for name in names]

    return extend
