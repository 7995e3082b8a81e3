"""dvc.yaml: its stages as DVC reads them, each item of a `foreach` a stage of its own."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.basis.plain_yaml import parse_mapping
from schemas.wording import ParamsError

GRAPH = Path("dvc.yaml")
_VARIABLE = re.compile(r"\$\{([a-z_.]+)\}")


@dataclass(frozen=True)
class Stage:
    """A stage, with paths as dvc.yaml writes them."""

    command: str
    reads: list[str]
    writes: dict[str, Any]
    """By path, its options, such as `cache`."""

    @property
    def committed(self) -> set[str]:
        """What it writes that git keeps, and not DVC's cache."""
        return {path for path, options in self.writes.items() if not options.get("cache", True)}


def read_stages(text: str) -> dict[str, Stage]:
    """The stages of a dvc.yaml's text, by the names that DVC's commands take. Raises `ParamsError`."""
    found: dict[str, Stage] = {}
    try:
        for name, stage in parse_mapping(text, GRAPH.name)["stages"].items():
            if "foreach" in stage:
                for key, item in stage["foreach"].items():
                    values = {"key": key, **{f"item.{field}": value for field, value in item.items()}}
                    found[f"{name}@{key}"] = _stage(stage["do"], values)
            else:
                found[name] = _stage(stage, {})
    except (KeyError, TypeError, AttributeError):
        raise ParamsError(GRAPH.name, "does not define stages as this project does") from None
    return found


def _stage(stage: Mapping[str, Any], values: Mapping[str, Any]) -> Stage:
    def filled(text: str) -> str:
        return _VARIABLE.sub(lambda found: values[found[1]], text)

    given = [one for kind in ("outs", "metrics", "plots") for one in stage.get(kind, ())]
    options = {path: of for one in given for path, of in (one.items() if isinstance(one, dict) else [(one, {})])}
    writes = {filled(path): of or {} for path, of in options.items()}
    return Stage(filled(stage["cmd"]), [filled(path) for path in stage.get("deps", ())], writes)
