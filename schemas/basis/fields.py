"""Kinds of value that Pydantic has no word for: how each is read, what its error says, and its JSON Schema."""

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from schemas.basis.text import show, suggest
from schemas.wording import WrongValue

LAST_LAYER = 9999
"""No model comes near it; without an end, `0-99999999999` would fill the memory."""

PATH = r"(?:(?!\.{1,2}/)[^/\\\x00-\x1f\x7f]+/)*[^/\\\x00-\x1f\x7f]+"
"""The pattern of a path that leaves no folder; its ending comes after it."""

POSITIVE_ZERO = AfterValidator(lambda number: number + 0.0)
"""Reads -0.0 as 0.0, so that the same number has one canonical text."""

_RANGE = re.compile(r"([0-9]{1,4})-([0-9]{1,4})")


@dataclass(frozen=True, eq=False)  # hashed as itself: unions hash their parts, and a dict has no hash
class Kind:
    """A value that `read` takes, as it is or as another one, or refuses; `document` is its JSON Schema."""

    document: dict[str, Any]
    read: Callable[[object], object]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**self.document}


def matches(pattern: str, allowed: str, words: tuple[str, ...] = ()) -> Kind:
    """A text that matches `pattern` as a whole; `allowed` says in words what that is, `words` are worth suggesting."""

    def read(given: object) -> str:
        if isinstance(given, str) and re.fullmatch(pattern, given):
            return given
        raise WrongValue(f"must be {allowed}, got {show(given)}{suggest(given, words)}")

    return Kind({"type": "string", "pattern": f"^(?:{pattern})$"}, read)


@dataclass(frozen=True)
class Items:
    """What holds for a list as a whole, checked once its items are right; `order` makes its order one and the same."""

    at_least_one: bool = False
    distinct: bool = False
    order: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        at_least = {"minItems": 1} if self.at_least_one else {}
        return handler(schema) | at_least | ({"uniqueItems": True} if self.distinct else {})

    def _check(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.at_least_one and not items:
            raise WrongValue("must not be empty, got []")
        for number, item in enumerate(items):
            if self.distinct and item in items[:number]:
                raise WrongValue(f"must be named once, got {show(item)} again", number)
        return tuple(sorted(items, key=self.order.index)) if self.order else items


class MayBeEmpty:
    """A section all of whose keys may be commented out: YAML then reads `null`, and the defaults stand."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda given: {} if given is None else given, handler(source)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "null"}]}


def _layers(given: object) -> tuple[int, ...] | str:
    items = given if isinstance(given, list | tuple) else [given]
    # Where the list is empty, [] itself is what is refused.
    numbers = {number for item in items or [[]] if item != "all" for number in _layer_or_range(item)}
    return "all" if "all" in items else tuple(sorted(numbers))


def _layer_or_range(given: object) -> range:
    if type(given) is int and 0 <= given <= LAST_LAYER:
        return range(given, given + 1)
    reason = ""
    if isinstance(given, str) and (ends := _RANGE.fullmatch(given)):
        first, last = int(ends[1]), int(ends[2])
        if first <= last:
            return range(first, last + 1)
        reason = ", which ends before it begins"
    raise WrongValue(
        f'must be a layer from 0 to {LAST_LAYER}, a range such as "10-35", "all", or a non-empty list of these, '
        f"got {show(given)}{reason}{suggest(given, ('all',))}"
    )


def _measurement(given: object) -> object:
    if given == "same":
        return given
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < math.inf:
        return int(given) if given == int(given) else given
    raise WrongValue(f'must be a finite number ≥ 0 or "same", got {show(given)}{suggest(given, ("same",))}')


def _batch_size(given: object) -> object:
    if given == "auto" or (type(given) is int and given >= 1):
        return given
    raise WrongValue(f'must be an integer ≥ 1 or "auto", got {show(given)}{suggest(given, ("auto",))}')


def _no_sparsity(given: object) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool) and given == 0:
        return 0.0
    raise WrongValue(f"is not offered here: it must be 0 or be left out, got {show(given)}")


def _day(given: object) -> str:
    with contextlib.suppress(ValueError):
        if isinstance(given, str) and date.fromisoformat(given).isoformat() == given:
            return given
    raise WrongValue(f'must be a day such as "2025-01-01", got {show(given)}')


_LAYER_OR_RANGE: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 0, "maximum": LAST_LAYER},
    {"type": "string", "pattern": f"^(?:all|{_RANGE.pattern})$"},
]
Layers = Annotated[
    tuple[int, ...] | Literal["all"],
    Kind({"anyOf": [*_LAYER_OR_RANGE, {"type": "array", "items": {"anyOf": _LAYER_OR_RANGE}, "minItems": 1}]}, _layers),
]
"""`18`, `"10-35"`, `"all"` or a list of these, read into "all" or sorted distinct numbers."""
Measurement = Annotated[
    float | Literal["same"], Kind({"anyOf": [{"type": "number", "minimum": 0}, {"const": "same"}]}, _measurement)
]
"""A number of at least 0, whole or between two measurements, or `same`."""
BatchSize = Annotated[
    int | Literal["auto"], Kind({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}, _batch_size)
]
NoSparsity = Annotated[float, Kind({"const": 0}, _no_sparsity)]
"""Zero: other tools can edit only the largest entries, this one does not."""
Day = Annotated[str, Kind({"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}, _day)]
"""As ISO 8601 writes it, kept as text."""
