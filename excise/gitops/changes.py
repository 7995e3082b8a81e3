"""What differs between the parameters of two runs."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from schemas import plain_yaml
from schemas.evidence import ParameterChange
from schemas.params.document import parse
from schemas.wording import ParamsError

PLACES = {"model": {"device"}, "measure": {"stream"}}
"""By section, the keys that are no part of what a run is."""


def parameter_changes(before: str, after: str) -> list[ParameterChange]:
    """What differs between two texts of params.yaml, defaults filled in; as they are written where one is of a version
    whose keys are other ones. Of texts that are no YAML nothing is known."""
    readers: tuple[Callable[[str], dict[str, Any]], ...] = (_resolved, _written)
    for read in readers:
        try:
            old, new = dict(_flat(read(before))), dict(_flat(read(after)))
        except ParamsError:
            continue
        keys = list(dict.fromkeys([*old, *new]))
        return [
            ParameterChange(key=key, before=old.get(key), after=new.get(key))
            for key in keys
            if old.get(key) != new.get(key)
        ]
    return []


def _resolved(text: str) -> dict[str, Any]:
    resolved = parse(text).model_dump(mode="json", exclude=PLACES)
    return {
        name: dict(sorted(section.items())) if isinstance(section, dict) else section
        for name, section in resolved.items()
    }


def _written(text: str) -> dict[str, Any]:
    return plain_yaml.parse_mapping(text, "params.yaml")


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value of everything that is no mapping and no list of mappings."""
    parts: Iterable[tuple[object, Any]]
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = enumerate(value)
    else:
        yield key, json.dumps(value, ensure_ascii=False)
        return
    for name, part in parts:
        yield from _flat(part, f"{key}.{name}" if key else str(name))
