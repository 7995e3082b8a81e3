"""Evidence of a run that never happened, as somebody would forge it: what stages wrote, changed by hand or taken from
another run. It is refused in a commit, in a folder, and where a run is published."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from excise.gitops.sides import Commit, WorkingTree, check_ran
from excise.plumbing.errors import StageError
from tests.gitops.fake_github import fake_github
from tests.gitops.published import Published, lock, prepare
from tests.projects import ROOT, Project, one_line

RECORD = ("dvc.lock", "gates.json", "metrics.json", "report/report.md", "report/comparison.json")
"""What a run writes into git: in this very project it is that of a run of other parameters."""
Forge = Callable[[Path], None]


def gates_by_hand(folder: Path) -> None:
    """The verdict that somebody would like."""
    path = folder / "gates.json"
    path.write_text(re.sub('"verdict": "[a-z]+"', '"verdict": "pass"', path.read_text()).replace("0.15", "0.95"))


def metrics_of_another_commit(folder: Path) -> None:
    shutil.copyfile(ROOT / "metrics.json", folder / "metrics.json")


def lock_of_another_branch(folder: Path) -> None:
    shutil.copyfile(ROOT / "dvc.lock", folder / "dvc.lock")


def everything_of_another_branch(folder: Path) -> None:
    for path in RECORD:
        shutil.copyfile(ROOT / path, folder / path)


def report_of_another_branch(folder: Path) -> None:
    """The last stage's entry and files, beside the other stages' own."""
    path = folder / "dvc.lock"
    text = path.read_text()
    everything_of_another_branch(folder)
    path.write_text(text.replace(entry(text, "report"), entry(path.read_text(), "report")))


def outputs_swapped_in_the_lock(folder: Path) -> None:
    """The base's results are called the edited model's, and the other way round."""
    path = folder / "dvc.lock"
    text = path.read_text()
    report = entry(text, "report")
    base, ablated = (md5_of(report, f"results/{which}") for which in ("base", "ablated"))
    path.write_text(swapped(text, base, ablated).replace(swapped(report, base, ablated), report))


def results_swapped_in_place(folder: Path) -> None:
    for source, target in (("base", "aside"), ("ablated", "base"), ("aside", "ablated")):
        (folder / "results" / source).rename(folder / "results" / target)


def model_that_is_the_base(folder: Path) -> None:
    for path in (folder / "models/ablated").glob("*.safetensors"):
        path.unlink()
        shutil.copyfile(folder / "models/base/model.safetensors", path)


FORGED: dict[Forge, str] = {
    gates_by_hand: "gates.json is not what report wrote",
    metrics_of_another_commit: "metrics.json is not what report wrote",
    lock_of_another_branch: "",
    everything_of_another_branch: "",
    report_of_another_branch: "was made again after report ran",
    outputs_swapped_in_the_lock: "was made again after report ran",
}
"""What is committed, and what is said of it; nothing where that depends on what else differs."""
IN_PLACE: dict[Forge, str] = {
    results_swapped_in_place: "results/base is not what evaluate@base wrote",
    model_that_is_the_base: "models/ablated is not what ablate wrote",
}
"""What only a folder has."""


def entry(lock: str, stage: str) -> str:
    found = re.search(rf"^  {stage}:\n(?:    .*\n)+", lock, re.MULTILINE)
    assert found
    return found[0]


def md5_of(text: str, path: str) -> str:
    found = re.search(rf"path: {path}\n(?: .*\n)*?\s+md5: (\S+)", text)
    assert found
    return found[1]


def swapped(text: str, one: str, other: str) -> str:
    return text.replace(one, "…").replace(other, one).replace("…", other)


def refusal(side: Commit | WorkingTree) -> str:
    with pytest.raises(StageError) as caught:
        check_ran(side)
    line = str(caught.value)
    assert len(line) <= 400
    return line


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        pytest.param(forge, says, id=forge.__name__, marks=[pytest.mark.slow] if number % 3 else [])
        for number, (forge, says) in enumerate(FORGED.items())
    ],
)
def test_forged_evidence_is_refused_in_a_commit_and_in_a_folder(project: Project, forge: Forge, says: str) -> None:
    folder = project.folder
    check_ran(Commit(folder, project.check("git", "rev-parse", "HEAD").strip()))
    forge(folder)
    commit = project.commit("forged")
    assert says in refusal(Commit(folder, commit))
    refusal(WorkingTree(folder))


def test_a_link_to_evidence_is_none_in_a_commit(project: Project) -> None:
    """Where it leads may change after the commit was read."""
    gates = project.folder / "gates.json"
    gates.rename(project.folder / "elsewhere.json")
    gates.symlink_to("elsewhere.json")
    assert "is not a regular file" in refusal(Commit(project.folder, project.commit("a link")))


@pytest.mark.parametrize(("forge", "says"), IN_PLACE.items(), ids=lambda value: getattr(value, "__name__", "-"))
def test_outputs_that_were_swapped_in_their_places_are_refused(project: Project, forge: Forge, says: str) -> None:
    forge(project.folder)
    assert says in refusal(WorkingTree(project.folder))


@pytest.mark.slow
@pytest.mark.parametrize("command", [("gate",), ("gate", "--show"), ("comment", "--base", "HEAD"), ("report",)])
def test_no_command_shows_forged_evidence(project: Project, command: tuple[str, ...]) -> None:
    gates_by_hand(project.folder)
    project.commit("forged")
    done = project.excise(*command)
    assert "gates.json is not what report wrote" in one_line(done) and not done.stdout


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Published]:
    with fake_github() as hub:
        yield prepare(tmp_path, hub)


def _lock_of_the_base(run: Published) -> None:
    """A run of the base's parameters is called one of the branch."""
    path, (head, base) = run.handover / "dvc.lock", (digest(run, commit) for commit in (run.head, run.base))
    path.write_text(path.read_text().replace(head, base))


def _lock_without_the_stage(run: Published) -> None:
    (run.handover / "dvc.lock").write_text("stages: {}\n")


def _swapped(run: Published) -> None:
    path = run.handover / "dvc.lock"
    text = path.read_text()
    gates, metrics = (re.search(rf"path: {name}, md5: (\w+)", text) for name in ("gates.json", "metrics.json"))
    assert gates and metrics
    path.write_text(swapped(text, gates[1], metrics[1]))


def _gates_by_hand(run: Published) -> None:
    gates = json.loads((run.handover / "gates.json").read_text())
    gates["gates"][0]["value"] = 0.0
    (run.handover / "gates.json").write_text(json.dumps(gates))


def _metrics_of_another_run(run: Published) -> None:
    (run.handover / "metrics.json").write_text('{"refusal": {}}')


def digest(run: Published, commit: str) -> str:
    """The MD5 that dvc.lock would record of a commit's parameters."""
    other = Published(run.clone, run.origin, run.handover.parent / "other", run.hub, run.base, commit)
    shutil.copytree(run.handover, other.handover)
    lock(other)
    found = re.search(r"path: params\.yaml, md5: (\w+)", (other.handover / "dvc.lock").read_text())
    shutil.rmtree(other.handover)
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (_lock_of_the_base, "params.yaml changed since report ran"),
        (_lock_without_the_stage, "report is in dvc.yaml and not in dvc.lock"),
        (_swapped, "json is not what report wrote"),
        (_gates_by_hand, "gates.json is not what report wrote"),
        (_metrics_of_another_run, "metrics.json is not what report wrote"),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("_"),
)
def test_forged_evidence_is_not_published(run: Published, forge: Callable[[Published], None], says: str) -> None:
    forge(run)
    done = run.publish()
    line = one_line(done)
    assert done.returncode == 1 and "the stages have not run for what lies here" in line and says in line
    assert run.tip == run.head and not run.hub.asked
