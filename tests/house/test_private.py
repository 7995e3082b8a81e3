"""What other packages keep to themselves is used in one module for each, and is there in the installed version."""

import ast
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from dvc.data_cloud import DataCloud
from dvc.dvcfile import Lockfile
from dvc.output import Output
from dvc.repo import Repo
from dvc.repo.experiments import Experiments
from dvc.stage import Stage
from dvc_data.hashfile.db import HashFileDB
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

import excise.plumbing.private.dvc
import excise.plumbing.private.dvc_remote
import excise.plumbing.private.lm_eval
import excise.plumbing.private.transformers  # noqa: F401  what they import is there
from tests.projects import ROOT

PRIVATE = ROOT / "excise/plumbing/private"
UNDOCUMENTED = (
    *("dvc", "dvc_data", "scmrepo", "lm_eval.api.registry", "lm_eval.models.utils"),
    *("transformers.conversion_mapping", "transformers.core_model_loading", "transformers.modeling_utils"),
)
"""Modules that their documentation does not offer, and what is in them."""
OVERRIDDEN = {
    TemplateLM: ("_encode_pair", "_loglikelihood_tokens"),
    HFLM: ("_model_generate", "_model_call"),
}
"""What lm-eval's models call, and ours do otherwise."""
USED: list[tuple[Any, tuple[str, ...]]] = [
    *OVERRIDDEN.items(),
    (PreTrainedModel, ("_adjust_missing_and_unexpected_keys", "_get_dtype_plan", "tie_weights")),
    (Repo, ("brancher", "config", "dvcfs", "drop_data_index", "index")),
    (DataCloud, ("get_remote", "get_remote_odb")),
    (HashFileDB, ("add", "exists", "makedirs", "move", "oid_to_path", "protect")),
    (Experiments, ("celery_queue",)),
    (Lockfile, ("load",)),
    (Output, ("cache", "status")),
    (Stage, ("changed_stage", "path_in_repo")),
]
"""Of classes, what is used and not documented, as far as the class has it."""
DOCUMENTED = {"_asdict", "_replace", "_exit"}
"""Names of the standard library that begin with an underscore and are documented."""


def modules() -> list[Path]:
    return [path for folder in ("excise", "schemas", "stages") for path in sorted((ROOT / folder).rglob("*.py"))]


def is_private(module: str) -> bool:
    own = module.partition(".")[0] in ("excise", "schemas", "stages", "__future__")
    hidden = any(part.startswith("_") for part in module.split("."))
    return not own and (hidden or any(f"{module}.".startswith(f"{name}.") for name in UNDOCUMENTED))


def taken(path: Path) -> Iterator[str]:
    """What a module imports or reads of another package's that this keeps to itself."""
    overridden = {name for names in OVERRIDDEN.values() for name in names}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from filter(is_private, (alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            yield from filter(is_private, (f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            whose = ast.unparse(node.value)
            if whose not in ("self", "cls") and not (whose == "super()" and node.attr in overridden):
                yield from {node.attr} - DOCUMENTED


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_private_parts_are_used_in_their_own_place_alone(path: Path) -> None:
    if PRIVATE not in path.parents:
        assert not [*taken(path)], "it belongs in excise/plumbing/private/"


def test_what_is_private_is_seen() -> None:
    seen = {name for path in PRIVATE.glob("*.py") for name in taken(path)}
    assert {"lm_eval.tasks._yaml_loader.load_yaml", "_config", "_get_dtype_plan", "dvc.repo.Repo"} <= seen


@pytest.mark.parametrize(("owner", "names"), USED, ids=lambda value: getattr(value, "__name__", ""))
def test_private_parts_are_there(owner: Any, names: tuple[str, ...]) -> None:
    """Otherwise another version renamed them. What is an attribute of an object only is asked by the tests that use
    it."""
    assert [name for name in names if not hasattr(owner, name)] == []


@pytest.mark.parametrize(
    ("module", "package"),
    [("dvc", "DVC"), ("dvc_remote", "DVC"), ("lm_eval", "lm-eval"), ("transformers", "transformers")],
)
def test_each_private_part_is_explained_for_the_installed_version(module: str, package: str) -> None:
    tree = ast.parse((PRIVATE / f"{module}.py").read_text())
    named = re.search(rf"{package} (\d+\.\d+[.\d]*\d)", ast.get_docstring(tree) or "")
    assert named and f"{version(package)}.".startswith(f"{named[1]}."), "read the module again for this version"
    for node in tree.body:
        assert not isinstance(node, ast.FunctionDef | ast.ClassDef) or ast.get_docstring(node), node.name
