"""Which stages a change makes stale: exactly those whose results it can change."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from excise.plumbing.dependencies import LEFT_OUT, says_nothing
from excise.plumbing.graph import read_stages
from tests.projects import Project

pytestmark = pytest.mark.slow

BOTH_ANSWERS = {"answer@base", "answer@ablated"}
BOTH_RESULTS = {"evaluate@base", "evaluate@ablated"}
ALL = {"params", "organism", "prepare", "measure", "directions", "diagnose", "simulate", "ablate", "report"}
ALL |= BOTH_ANSWERS | BOTH_RESULTS
OF_THE_MODEL = {"measure", "diagnose", "simulate"} | BOTH_ANSWERS
"""Stages that run it."""


def key(old: str, new: str) -> Callable[[Project], None]:
    """A change of params.yaml."""
    return lambda project: project.replace(old, new)


def comment(path: str) -> Callable[[Project], None]:
    """A changed comment in a file of code."""

    def change(project: Project) -> None:
        with open(project.folder / path, "r+") as file:
            file.seek(0, 2)
            file.write("\n# a comment\n" if path.endswith((".py", ".yaml", ".lock")) else "\n")

    return change


def new(path: str, like: str) -> Callable[[Project], None]:
    """A new file that is like another."""

    def change(project: Project) -> None:
        shutil.copyfile(project.folder / like, project.folder / path)

    return change


def text(path: str, old: str, by: str) -> Callable[[Project], None]:
    return lambda project: project.replace(old, by, path)


PARAMS = {"params"}
CHANGES: dict[str, tuple[Callable[[Project], None], set[str]]] = {
    # Keys: `params`, and the stages that read them.
    "the device": (key("device: auto ", "device: cpu  "), PARAMS),
    "offloading": (key("offload: auto", "offload: on  "), PARAMS),
    "the dtype": (key("dtype: auto   ", "dtype: float32"), PARAMS | {"prepare"}),
    "the organism's steps": (key("pretrain_steps: 30", "pretrain_steps: 31"), PARAMS | {"organism"}),
    "the measured token": (key("position: -1", "position: -2"), PARAMS | {"measure"}),
    "the estimator": (key("estimator: mean ", "estimator: pca  "), PARAMS | {"directions"}),
    "winsorizing": (key("winsorize: null ", "winsorize: 0.99 "), PARAMS | {"directions"}),
    "a rule's scale": (key("scale: 1.4", "scale: 0.9"), PARAMS | {"simulate", "ablate", "report"}),
    "the method": (
        key("method: project   ", "method: preserve_column_norms"),
        PARAMS | {"diagnose", "simulate", "ablate", "report"},
    ),
    "the batch of answers": (
        key("batch_size: auto          # auto | samples", "batch_size: 7  #"),
        PARAMS | BOTH_ANSWERS,
    ),
    "the judge": (key("judge: keywords ", "judge: {api: {model: m}} "), PARAMS | BOTH_RESULTS),
    "a gate": (key("at_most: 0.15", "at_most: 0.2"), PARAMS | {"report"}),
    "a comment in params.yaml": (key("# What is removed from which", "# What is taken from which"), PARAMS),
    # Code and data.
    "a default of the estimator": (
        text("schemas/params/directions.py", 'default="mean"', 'default="median"'),
        PARAMS | {"directions"},
    ),
    "a default of a gate": (text("schemas/params/gates.py", "= 0.95", "= 0.9"), PARAMS | {"report"}),
    "a default of the judge": (comment("schemas/params/judge.py"), PARAMS | BOTH_RESULTS),
    "a judge's phrase": (comment("excise/judges/phrases.yaml"), PARAMS | BOTH_RESULTS),
    "the judge of loops": (comment("excise/verdicts/degenerate.py"), BOTH_RESULTS),
    "what an endpoint is asked that judges": (comment("excise/judges/judge.txt.j2"), PARAMS | BOTH_RESULTS),
    "how verdicts are counted": (comment("excise/evaluation/scoring/judging.py"), BOTH_RESULTS),
    "how a metric is aggregated": (comment("excise/plumbing/aggregations.py"), BOTH_RESULTS | {"report"}),
    "how tasks are scored": (comment("excise/evaluation/scoring/scores/verdicts.py"), BOTH_RESULTS),
    "the metrics of a task": (comment("excise/evaluation/scoring/scores/organism_facts.yaml"), BOTH_RESULTS),
    "what is asked": (comment("excise/evaluation/asking/tasks/prompts.py"), BOTH_ANSWERS | BOTH_RESULTS),
    "how answers are generated": (
        comment("excise/evaluation/asking/tasks/_organism.yaml"),
        BOTH_ANSWERS | BOTH_RESULTS,
    ),
    "the marks of reasoning": (comment("excise/prompts/reasoning.yaml"), BOTH_ANSWERS | BOTH_RESULTS),
    "drift": (comment("excise/evaluation/answering/drift.py"), BOTH_ANSWERS),
    "an estimator's code": (comment("excise/residual/estimators/pca.py"), PARAMS | {"directions"}),
    "the statistics of directions": (comment("excise/residual/directions.py"), {"directions"}),
    "a gate's limit": (comment("excise/comparison/limits/max_drop.py"), PARAMS | {"report"}),
    "how activations are taken": (comment("excise/residual/activations.py"), {"measure"}),
    "the layout of another family": (
        new("schemas/architectures/new.yaml", "schemas/architectures/llama.yaml"),
        {"prepare"},
    ),
    "the page's style": (comment("excise/report/templates/report.css"), {"report"}),
    "a plot's colour": (comment("excise/report/pictures.py"), {"report"}),
    "an interval": (comment("excise/comparison/intervals.py"), {"report"}),
    # `prepare` proves the layouts that it measures by edits, and by what their writers add.
    "how experts are counted": (comment("excise/residual/experts.py"), {"prepare", "measure", "diagnose", "simulate"}),
    "the card's template": (comment("excise/edit/templates/card.md.j2"), {"ablate", "prepare"}),
    "the edit's arithmetic": (comment("excise/edit/checkpoint.py"), {"ablate", "prepare"}),
    "the comment's renderer": (comment("excise/gitops/comment.py"), set()),
    "the comment's template": (comment("excise/gitops/templates/comment.md.j2"), set()),
    "a release's text": (comment("excise/gitops/releases.py"), set()),
    "the command line": (comment("excise/commands/runs.py"), set()),
    "the words of an error": (comment("schemas/wording.py"), set()),
    "a document": (comment("docs/edit.md"), set()),
    "a test": (comment("tests/projects.py"), set()),
    "a recipe": (comment("recipes/gpt-oss-20b-bf16.yaml"), set()),
    "a tool's version": (comment("requirements.lock"), set()),
    "a library that computes": (
        text("requirements-compute.lock", "transformers==", "transformers==5."),
        ALL,
    ),
    "what chooses a device, and how memory is used": (
        comment("excise/plumbing/machine.py"),
        PARAMS | OF_THE_MODEL | {"prepare", "ablate"} | BOTH_RESULTS,  # params: a judge chooses a device too
    ),
    "the number of threads of training": (
        text("excise/organism/training.py", "THREADS = 1", "THREADS = 2"),
        {"organism"},
    ),
}
"""What is changed, how, and the stages that DVC then finds changed. Stages after these run if the outputs differ."""


def stale(project: Project) -> set[str]:
    """The stages whose dependencies or outputs changed, whatever comes of it."""
    return set(json.loads(project.check("dvc", "status", "--json")))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_exactly_these_stages_stale(project: Project, change: str) -> None:
    apply, expected = CHANGES[change]
    apply(project)
    if change == "a library that computes":  # which is not installed, so that no stage runs
        assert "is installed" in project.stage("params").stderr
    elif "params" in expected or not expected:
        assert project.stage("params").returncode == 0
    assert stale(project) == expected


def test_a_new_layout_is_looked_at_and_reruns_nothing(project: Project) -> None:
    written = (project.folder / "schemas/architectures/llama.yaml").read_text()
    other = re.sub(r"model_types:.*\n(?:  ?- .*\n)*", "model_types: [new]\n", written)
    assert other != written
    (project.folder / "schemas/architectures/new.yaml").write_text(other)
    assert project.repro() == ["prepare"]


def test_another_phrase_is_judged_and_nothing_is_generated(project: Project) -> None:
    comment("excise/judges/phrases.yaml")(project)
    assert project.repro() == ["params", "evaluate@base", "evaluate@ablated"]  # the verdicts are the same: no report


@pytest.mark.parametrize("stage", sorted(ALL))
def test_dvc_knows_whatever_a_stage_imports_and_opens(project: Project, stage: str) -> None:
    reads, removed = declared(project.folder, stage)
    for path in removed:
        place = project.folder / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    module, *arguments = stage.split("@")
    seen = json.loads(project.check("python", "-c", AUDIT, module, *arguments).splitlines()[-1])
    known = reads | removed  # what was removed it made itself
    covered = {path for path in seen if any(path == one or path.startswith(f"{one}/") for one in known)}
    missing = {path for path in set(seen) - covered if not says_nothing(project.folder / path)}
    assert missing <= LEFT_OUT.keys() | UNDECLARED | (TO_WARN if stage == "ablate" else set())
    assert any(path.startswith(f"stages/{module}") for path in seen)


UNDECLARED = {"dvc.yaml", "artifacts/params/device.json", "requirements-compute.lock"}
"""Read by any stage, and no part of a result: where things are on this machine; what the stage itself depends on."""

TO_WARN = {"artifacts/simulation.json", "schemas/simulation.py", "schemas/diagnosis.py"}
"""What ablate reads only to warn of ruinous rules."""


def declared(folder: Path, name: str) -> tuple[set[str], set[str]]:
    """What a stage may read by dvc.yaml, outputs that outlive a rerun included; and which DVC removes before."""
    stage = read_stages((folder / "dvc.yaml").read_text())[name]
    reads, removed = set(stage.reads), set[str]()
    for path, options in stage.writes.items():
        (reads if options.get("persist") else removed).add(path)
    return reads, removed


AUDIT = """
import atexit, json, os, runpy, sys
root, seen = os.getcwd() + os.sep, set()
def hook(event, arguments):
    reads = event == "open" and isinstance(arguments[0], (str, bytes)) and not (arguments[2] or 0) & os.O_ACCMODE
    if reads:
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path.startswith(root) and os.path.isfile(path):
            relative = path[len(root):]
            folder, _, name = relative.rpartition("/")
            if folder.endswith("__pycache__"):
                relative = folder.removesuffix("__pycache__") + name.partition(".")[0] + ".py"
            if relative.partition("/")[0] in {"excise", "schemas", "stages", "data", "dvc.yaml", "artifacts"}:
                seen.add(relative)
sys.addaudithook(hook)
module = sys.argv[1]
sys.argv = [module, *sys.argv[2:]]
sys.path.insert(0, "")
try:
    runpy.run_module(f"stages.{module}", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(seen)))
"""


def test_an_honest_branch_never_gets_another_branchs_model(project: Project, tmp_path: Path) -> None:
    """A branch changes a module on the way to the edit, and makes its model with a cache that all share."""
    honest = Project(tmp_path / "honest")
    shutil.copytree(project.folder, honest.folder, symlinks=True)
    for one in (project, honest):
        one.replace("scale: 1.4", "scale: 0.65")
    with open(project.folder / "excise/plumbing/machine.py", "a") as file:
        file.write(POISON)
    assert "ablate" in project.repro("ablate")
    assert "ablate" in honest.repro("ablate")
    (poisoned,), (made,) = ((one.folder / "models/ablated").glob("*.safetensors") for one in (project, honest))
    assert poisoned.read_bytes() != made.read_bytes()
    scales = {edit["scale"] for edit in json.loads((honest.folder / "models/ablated/edit.json").read_text())["plan"]}
    assert scales == {0.65}


POISON = """

import excise.edit.planning.projection as _projection

_honest = _projection._edit_rows
_projection._edit_rows = lambda matrix, projector, scale, *rest: _honest(matrix, projector, -scale, *rest)
"""
