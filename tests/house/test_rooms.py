"""Who may import whom."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADERS = (ROOT / "excise/inference/loading/models.py", ROOT / "excise/inference/loading/tokenizer.py")

GROUND = {"schemas", "plumbing"}
MODEL = GROUND | {"prompts", "checkpoint", "inference"}
ROOMS = {
    "schemas": {"schemas"},
    "plumbing": GROUND,
    "prompts": GROUND | {"prompts"},
    "checkpoint": GROUND | {"checkpoint"},
    "organism": GROUND | {"organism"},
    "inference": MODEL,
    "edit": MODEL | {"edit"},
    "discovery": MODEL | {"edit", "residual", "discovery"},
    "residual": MODEL | {"edit", "residual"},
    "trials": MODEL | {"edit", "residual", "discovery", "trials"},
    "judges": GROUND | {"judges"},
    "verdicts": GROUND | {"prompts", "judges", "verdicts"},
    "diagnosis": MODEL | {"edit", "residual", "trials", "diagnosis"},
    "evaluation": MODEL | {"organism", "judges", "verdicts", "evaluation"},
    "comparison": GROUND | {"comparison"},
    "report": GROUND | {"comparison", "report"},
    "gitops": MODEL | {"edit", "comparison", "report", "gitops"},
}
"""What each room may import. `evaluation` has the tasks of the organism, whose refusal it must recognize."""


def modules() -> list[Path]:
    return [path for folder in ("excise", "schemas", "stages") for path in sorted((ROOT / folder).rglob("*.py"))]


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
    return parts[1] if parts[0] == "excise" and len(parts) > 2 else parts[0]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_stand_on(path: Path) -> None:
    there = {room(module) for module in imported(path)}
    if room(path) in ("excise", "commands", "stages"):  # a stage or a command may call every room
        assert "stages" not in there - {room(path)}
    else:
        assert there - {"excise"} <= ROOMS[room(path)]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_import_in_no_circle(path: Path) -> None:
    assert path not in closure(path)


@pytest.mark.parametrize(
    "module",
    [
        "schemas.params.document",
        "schemas.model",
        "schemas.diagnosis",
        "schemas.model",
        "stages.params",
        "stages.report",
        "excise.cli",
        "excise.report.reading",
        "excise.plumbing.dependencies",
        "excise.gitops.models",
        "excise.gitops.comment",
        "excise.gitops.handover",
        "excise.gitops.models",
        "excise.gitops.releases",
        "excise.gitops.parameters",
        "excise.gitops.hub",
        "excise.gitops.storage",
        "excise.gitops.experiments.runs",
        "excise.gitops.experiments.tables",
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
