"""Which files each stage depends on, computed and written to dvc.yaml (`python -m excise deps`): all modules that it
imports, the data that they read, and requirements-compute.lock if it computes. The rules are in docs/design.md."""

import ast
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from excise.plumbing.errors import StageError
from excise.plumbing.files import write_text
from excise.plumbing.graph import GRAPH

CODE = ("excise", "schemas", "stages")
COMPUTE_LOCK = "requirements-compute.lock"

LEFT_OUT = {
    "excise/edit/forecast.py": "what is foreseen of an edit, said where it is made",
    "excise/plumbing/errors.py": "how a stage fails: the one line and the exit code",
    "excise/plumbing/hub.py": "the words for what the Hub's library raises",
    "excise/plumbing/process.py": "how a process begins and is stopped, and that it may run at all",
    "excise/plumbing/progress.py": "how far a stage is, on the terminal",
    "stages/__init__.py": "the beginning of a process: that it may run at all",
    "schemas/wording.py": "the words for what is wrong in a parameter file",
}
"""Modules through which no result changes, each with its reason. Were they dependencies, a better error message would
rerun every model. Whatever chooses a device, a number of threads, a dtype or memory is not one of them."""

_STAGE = re.compile(r"python -m (stages\.\w+)")
_FUNCTION = re.compile(r"!function\s+(\w+)\.\w+")


def write() -> bool:
    """Bring dvc.yaml up to date. Returns whether it was out of date."""
    text = written()
    if changed := text != GRAPH.read_text(encoding="utf-8"):
        write_text(GRAPH, text)
    return changed


def check() -> None:
    """Raises `StageError` where dvc.yaml does not name what the code says."""
    yaml = _yaml()
    there, wanted = (_dependencies(yaml.load(text)) for text in (GRAPH.read_text(encoding="utf-8"), written()))
    for stage, names in wanted.items():
        for verb, paths in (("lacks", names - there[stage]), ("has no use for", there[stage] - names)):
            if paths:
                what = f"{stage} {verb} {', '.join(sorted(paths)[:3])}"
                raise StageError(f"dvc.yaml: {what}; run `python -m excise deps --write`")


def written() -> str:
    """dvc.yaml with the code that each stage depends on, after what people wrote."""
    yaml = _yaml()
    graph = yaml.load(GRAPH.read_text(encoding="utf-8"))
    for stage in graph["stages"].values():
        stage = stage.get("do", stage)
        module = _STAGE.search(stage["cmd"])
        assert module is not None, stage["cmd"]
        kept = [path for path in stage["deps"] if not _is_code(path)]
        stage["deps"][:] = [*kept, *of_module(module[1])]
    text = io.StringIO()
    yaml.dump(graph, text)
    return text.getvalue()


def of_module(name: str) -> list[str]:
    """The code and data that a module depends on, sorted, relative to the project."""
    seen: set[Path] = set()
    waiting = list(_files_of(name))
    data: set[Path] = set()
    libraries: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or path.as_posix() in LEFT_OUT or says_nothing(path):
            continue
        seen.add(path)
        modules, paths = _read(path)
        data |= set(paths)
        for module in modules:
            if module.partition(".")[0] in CODE:
                waiting += _files_of(module)
            else:
                libraries.add(module.partition(".")[0])
        # The modules that lm-eval imports for the `!function` of task files.
        for task_file in (each for folder in paths for each in folder.glob("*.yaml")):
            names = _FUNCTION.findall(task_file.read_text(encoding="utf-8"))
            waiting += [task_file.with_name(f"{name}.py") for name in names]
    found = _whole_folders(seen | data)
    if libraries & _compute_libraries():
        found.add(Path(COMPUTE_LOCK))
    return sorted(path.as_posix() for path in found)


def _whole_folders(paths: set[Path]) -> set[Path]:
    """The same, with a folder in place of its files where they are all of it: DVC then has less to look through."""
    found = {path for path in paths if not any(folder in paths for folder in path.parents)}
    for folder in sorted({folder for path in found for folder in path.parents if folder.parts}, reverse=True):
        there = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".swp")}
        kept = {path for path in found if folder in path.parents}
        if all(says_nothing(path) or any(one in (path, *path.parents) for one in kept) for path in there):
            found = found - kept | {folder}
    return found


@cache
def says_nothing(path: Path) -> bool:
    """Whether it is a package's file with nothing but a docstring."""
    return path.name == "__init__.py" and len(ast.parse(path.read_bytes()).body) <= 1


def _is_code(path: str) -> bool:
    return path.partition("/")[0] in CODE or path == COMPUTE_LOCK


def _dependencies(graph: Any) -> dict[str, set[str]]:
    stages = graph["stages"].items()
    return {name: {path for path in stage.get("do", stage)["deps"] if _is_code(path)} for name, stage in stages}


@cache
def _files_of(module: str) -> tuple[Path, ...]:
    """The files of a module, if it is one, and of the packages above it, which Python runs first."""
    parts = module.split(".")
    above = (Path(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1))
    itself = Path(*parts).with_suffix(".py")
    return tuple(path for path in (*above, itself) if path.is_file())


@cache
def _read(path: Path) -> tuple[frozenset[str], tuple[Path, ...]]:
    """The modules that a file imports, and the data that it reads. Raises `StageError`: it uses `__file__` oddly."""
    modules: set[str] = set()
    data: list[Path] = []
    places = 0
    for node in _nodes(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, f"{path}: imports are absolute here"
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.BinOp) and ast.unparse(node.left) == "Path(__file__).parent":
            assert isinstance(node.right, ast.Constant), f"{path}: the name of data is a literal"
            data.append(path.parent / str(node.right.value))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Room":
            # Extensions are found by name, so all of the room counts, and so do the packages that may add to it.
            room = ast.literal_eval(node.args[0])
            modules |= {f"{room}.{module.stem}" for module in Path(*room.split(".")).glob("*.py")}
            data.append(Path(COMPUTE_LOCK))
        elif isinstance(node, ast.Name) and node.id == "__file__":
            places += 1
    if places > sum(each.parent == path.parent for each in data):
        raise StageError(f'{path.as_posix()} must read its data as `Path(__file__).parent / "name"`')
    return frozenset(modules), tuple(data)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _nodes(node)


@cache
def _compute_libraries() -> frozenset[str]:
    """The modules of the packages that requirements-compute.lock pins."""
    lines = Path(COMPUTE_LOCK).read_text(encoding="utf-8").splitlines()
    return frozenset(line.partition("==")[0].replace("-", "_") for line in lines if line.strip())


def _yaml() -> YAML:
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 120
    return yaml
