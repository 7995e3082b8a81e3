"""Kinds of value that Pydantic lacks: how each is read, its error, and its JSON Schema."""

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
"""No model comes near it; without a limit, `0-99999999999` would fill the memory."""
PATH = r"(?:(?!\.{1,2}/)[^/\\\x00-\x1f\x7f]+/)*[^/\\\x00-\x1f\x7f]+"
"""The pattern of a path that stays in its folder; a suffix may follow."""
POSITIVE_ZERO = AfterValidator(lambda number: number + 0.0)
"""Reads -0.0 as 0.0, so that the same number has one canonical text."""

_RANGE = re.compile(r"([0-9]{1,4})-([0-9]{1,4})")


@dataclass(frozen=True, eq=False)  # hashed as itself: unions hash their parts, and a dict has no hash
class Kind:
    """A value that `read` returns, converts or refuses; `document` is its JSON Schema."""

    document: dict[str, Any]
    read: Callable[[object], object]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**self.document}


def matches(pattern: str, allowed: str, words: tuple[str, ...] = ()) -> Kind:
    """A text that matches `pattern` as a whole; `allowed` describes it, and `words` are suggested for close ones."""

    def read(value: object) -> str:
        if isinstance(value, str) and re.fullmatch(pattern, value):
            return value
        raise WrongValue(f"must be {allowed}, got {show(value)}{suggest(value, words)}")

    return Kind({"type": "string", "pattern": f"^(?:{pattern})$"}, read)


@dataclass(frozen=True)
class Items:
    """Constraints of a list, checked after its items (Pydantic's own would count a wrong item as a missing one); it is
    sorted by `order`."""

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
    """A section whose keys may all be commented out: YAML then reads `null`, and the defaults hold."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda section: {} if section is None else section, handler(source)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "null"}]}


def _layers(value: object) -> tuple[int, ...] | str:
    items = value if isinstance(value, list | tuple) else [value]
    # An empty list is itself refused, as [].
    numbers = {number for item in items or [[]] if item != "all" for number in _layer_or_range(item)}
    return "all" if "all" in items else tuple(sorted(numbers))


def _layer_or_range(value: object) -> range:
    if type(value) is int and 0 <= value <= LAST_LAYER:
        return range(value, value + 1)
    reason = ""
    if isinstance(value, str) and (ends := _RANGE.fullmatch(value)):
        first, last = int(ends[1]), int(ends[2])
        if first <= last:
            return range(first, last + 1)
        reason = ", which ends before it begins"
    raise WrongValue(
        f'must be a layer from 0 to {LAST_LAYER}, a range such as "10-35", "all", or a non-empty list of these, '
        f"got {show(value)}{reason}{suggest(value, ('all',))}"
    )


def _measurement(value: object) -> object:
    if value == "same":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return int(value) if value == int(value) else value
    raise WrongValue(f'must be a finite number ≥ 0 or "same", got {show(value)}{suggest(value, ("same",))}')


def _batch_size(value: object) -> object:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise WrongValue(f'must be an integer ≥ 1 or "auto", got {show(value)}{suggest(value, ("auto",))}')


def _no_sparsity(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == 0:
        return 0.0
    raise WrongValue(f"is not supported: it must be 0 or left out, got {show(value)}")


def _day(value: object) -> str:
    with contextlib.suppress(ValueError):
        if isinstance(value, str) and date.fromisoformat(value).isoformat() == value:
            return value
    raise WrongValue(f'must be a day such as "2025-01-01", got {show(value)}')


_LAYER_OR_RANGE: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 0, "maximum": LAST_LAYER},
    {"type": "string", "pattern": f"^(?:all|{_RANGE.pattern})$"},
]
Layers = Annotated[
    tuple[int, ...] | Literal["all"],
    Kind({"anyOf": [*_LAYER_OR_RANGE, {"type": "array", "items": {"anyOf": _LAYER_OR_RANGE}, "minItems": 1}]}, _layers),
]
"""`18`, `"10-35"`, `"all"` or a list of these, read as "all" or as sorted distinct numbers."""
Measurement = Annotated[
    float | Literal["same"], Kind({"anyOf": [{"type": "number", "minimum": 0}, {"const": "same"}]}, _measurement)
]
"""An integer or fraction of at least 0, or `same`."""
BatchSize = Annotated[
    int | Literal["auto"], Kind({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}, _batch_size)
]
NoSparsity = Annotated[float, Kind({"const": 0}, _no_sparsity)]
Day = Annotated[str, Kind({"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}, _day)]
"""As ISO 8601 writes it, kept as text."""
