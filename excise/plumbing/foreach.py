"""The stages of dvc.yaml that stand there once for several items, as DVC reads them."""

import re
from collections.abc import Mapping
from typing import Any

_VARIABLE = re.compile(r"\$\{([a-z_.]+)\}")


def variables(key: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """What the texts under a stage's `do` may name, for one item of its `foreach`."""
    return {"key": key, **{f"item.{name}": value for name, value in item.items()}}


def filled(text: str, values: Mapping[str, Any]) -> str:
    """A text with its variables replaced. Raises `KeyError` where it names another."""
    return _VARIABLE.sub(lambda found: values[found[1]], text)
