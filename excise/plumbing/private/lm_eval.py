"""What lm-eval 0.4.13 does not document, and asking and scoring its tasks needs."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from lm_eval.api.model import LM
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks._yaml_loader import load_yaml

Name = TypeVar("Name", bound=str)


def task_config(path: Path, with_functions: bool = True) -> dict[str, Any]:
    """The YAML of a task or group, with what it includes, without its functions where their code may not run yet."""
    return dict(load_yaml(path, resolve_func=with_functions))


def task_files(path: Path) -> list[Path]:
    """The file of a task or group, and those that it includes. Raises what reading YAML raises."""
    included = load_yaml(path, resolve_func=False, recursive=False).get("include", [])
    names = included if isinstance(included, list) else [included]
    return [path, *(file for name in names for file in task_files(path.parent / name))]


def generation_settings(given: dict[str, Any], most: int) -> dict[str, Any]:
    """A request's generation settings under lm-eval's names; `most` is the default of `max_gen_toks`."""
    return dict(normalize_gen_kwargs(given, most))


def name_of(aggregation: Callable[..., Any] | None, names: Iterable[Name]) -> Name | None:
    """Which of these names lm-eval has an aggregation by, or None: a task gives only the function."""
    known = (name for name in names if name in AGGREGATION_REGISTRY)
    return next((name for name in known if AGGREGATION_REGISTRY[name] is aggregation), None)


def config_of(lm: LM) -> Any:
    """The config of the model that vLLM loaded: lm-eval keeps it to itself."""
    return lm._config
