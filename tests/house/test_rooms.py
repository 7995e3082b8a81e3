"""Who may import whom, and that DVC knows of every file that a stage's outputs depend on."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
LOADERS = (ROOT / "excise/inference/models.py", ROOT / "excise/inference/tokenizer.py")
STAGES = ("params", "prepare", "measure", "ablate", "diagnose", "evaluate", "report")

ROOMS = {
    "schemas": {"schemas"},
    "base": {"schemas", "base"},
    "sources": {"schemas", "base", "sources"},
    "organism": {"schemas", "base", "organism"},
    "residual": {"schemas", "base", "residual"},
    "edit": {"schemas", "base", "edit"},
    "diagnosis": {"schemas", "base", "residual", "edit", "diagnosis"},
    "evidence": {"schemas", "base", "sources", "evidence", "organism"},
    "gitops": {"schemas", "base", "gitops"},
    "rendering": {"schemas", "rendering"},
    "experiments": {"schemas", "base", "gitops", "experiments"},
}
"""What each room may import. `evidence` has the tasks of the organism, whose refusal it must recognise."""

PLUMBING = {
    "schemas/artifacts.py",
    "schemas/evidence.py",
    "schemas/fields.py",
    "schemas/params.py",
    "schemas/plain_yaml.py",
    "schemas/wording.py",
    "excise/plumbing/artifacts.py",
    "excise/plumbing/device.py",
    "excise/plumbing/digests.py",
    "excise/plumbing/files.py",
    "excise/plumbing/hub.py",
    "excise/plumbing/memory.py",
    "excise/plumbing/progress.py",
    "excise/checkpoint/quantization.py",
    "excise/checkpoint/snapshots.py",
    "excise/plumbing/errors.py",
    "excise/report/terminal.py",
    "excise/report/verdicts.py",
}
"""Modules through which no result changes: a stage reads its resolved parameters, fetches what is pinned, runs
somewhere, says how far it is. Were they dependencies, a better error message would train every model again.
(`artifacts.py` and `evidence.py` are ones, where a stage writes them; `snapshots.py`, where a model is pinned;
`verdicts.py`, where they are rendered.)"""


def modules() -> list[Path]:
    return [path for folder in ("experiments", "schemas", "stages") for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def imported(path: Path) -> frozenset[Path]:
    """The project's own modules that a module imports, at the top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            candidate = ROOT / (name.replace(".", "/") + ".py")
            if candidate.is_file():
                found.add(candidate)
    return frozenset(found)


def closure(path: Path) -> set[Path]:
    """Everything that a module imports, directly or not."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        for module in imported(waiting.pop()) - seen:
            seen.add(module)
            waiting.append(module)
    return seen


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if parts[0] != "stages" else parts[1] if len(parts) > 2 else "stages"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_stand_on(path: Path) -> None:
    if room(path) == "stages":
        return  # a stage's file may call every room
    assert {room(module) for module in imported(path)} <= ROOMS[room(path)]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_import_in_no_circle(path: Path) -> None:
    assert path not in closure(path)


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_every_module_that_a_stage_imports(stage: str) -> None:
    graph = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    known = [ROOT / dependency for dependency in graph.get("do", graph)["deps"] if "$" not in dependency]
    needed = {ROOT / f"stages/{stage}.py", *closure(ROOT / f"stages/{stage}.py")}
    unknown = {
        str(module.relative_to(ROOT))
        for module in needed
        if not any(module == place or place in module.parents for place in known)
    }
    assert unknown <= PLUMBING


@pytest.mark.parametrize(
    "module",
    [
        "schemas.params",
        "schemas.artifacts",
        "schemas.diagnosis",
        "schemas.layout",
        "stages.report",
        "excise.gitops.show",
        "excise.gitops.comment",
        "excise.gitops.publish",
        "excise.gitops.model",
        "excise.gitops.release",
        "excise.gitops.upload",
        "excise.gitops.pin",
        "excise.gitops.use",
        "excise.gitops.experiments.run",
        "excise.gitops.experiments.one",
        "excise.gitops.experiments.collect",
    ],
)
def test_what_needs_no_torch_imports_none(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_nothing_is_pickled_and_no_code_of_a_model_runs_but_where_the_machine_allows_it() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "joblib"} & set(names), path
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                allowed = {"False", "remote_code_is_trusted(folder)"} if path in LOADERS else {"False"}
                assert ast.unparse(node.value) in allowed, path
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
                raise AssertionError(f"{path} uses {ast.unparse(node)}")
