"""DVC's queue, as this project waits for it."""

from pathlib import Path

import pytest

from excise.gitops.experiments import queue
from excise.gitops.git import file_of
from tests.projects import Project, environment

GRAPH = """
stages:
  wait:
    cmd: |
      timeout 60 sh -c 'until test -e {told} || grep -q true params.yaml; do sleep 0.1; done' && touch out
    params: [quick]
    outs: [out]
"""


@pytest.mark.slow
def test_an_experiment_is_told_of_when_it_is_done_and_not_when_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow one ends only after it was told that the quick one has."""
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    told = tmp_path / "told"
    (project.folder / "dvc.yaml").write_text(GRAPH.format(told=told))
    (project.folder / "params.yaml").write_text("quick: null\n")
    project.check("git", "init", "--quiet")
    project.check("dvc", "init", "--quiet")
    project.commit("first")
    monkeypatch.chdir(project.folder)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    queue.queue("quick", ["quick=true"])
    queue.queue("slow", ["quick=false"])
    finished: list[str] = []

    def tell(name: str) -> None:
        finished.append(name)
        told.touch()

    queue.wait(["quick", "slow"], 1, tell)
    assert finished == ["quick", "slow"]
    for name in finished:
        assert file_of(Path(), queue.reference(queue.head(), name), "dvc.lock") is not None, queue.failure(name)
