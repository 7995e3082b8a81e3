"""A tag becomes a release, by the jobs of release.yml: each runs its own commands in a checkout of its own, and they
share only the cache, the artifact, GitHub and the Hub. Code of the tag writes down where it runs, and what it can read.

The origin is a bare repository, the DVC remote a folder, GitHub and the Hub are servers on this machine. The tests are
one story, told in order.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from excise.plumbing.dependencies import LEFT_OUT
from tests.gitops.fake_github import FakeGitHub, fake_github
from tests.gitops.fake_hub import NAME, Hub, fake_hub
from tests.pipeline.test_reproduction import model_bytes
from tests.projects import Project, stages_run
from tests.workflows import Machine, allowed, git, job, lend_environment

pytestmark = pytest.mark.slow

SPY_IN = "excise/plumbing/process.py"
"""A module with which every command and every stage begins, and on which none depends."""
SPY = """

import json as _json

with open({path!r}, "a") as _file:
    _file.write(_json.dumps([" ".join(sys.orig_argv), dict(os.environ)]) + "\\n")
"""
SECRETS = {
    "github.token": "ghs_secretOfGitHub",
    "secrets.DVC_ACCESS_KEY_ID": "AKIAsecret",
    "secrets.DVC_SECRET_ACCESS_KEY": "secretOfTheRemote",
    "secrets.HF_TOKEN": "hf_secretOfTheHub",
}
HOLDERS = {"HF_TOKEN", "GITHUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
"""Variables in which the other jobs have them."""
LOCKS = {"rebuild": "requirements.lock", "attach": "requirements-publish.lock"}
FILES = {"card.md", "edit.json", "edit.json.sha256", "report.html"}


@dataclass
class Story:
    """Everything that the jobs share, and what the tag's code wrote down."""

    folder: Path
    origin: Path
    github: FakeGitHub
    hub: Hub
    model: dict[str, bytes]
    """What the tag recorded."""
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def context(self) -> dict[str, str]:
        """What GitHub says of a pushed tag."""
        return {
            **SECRETS,
            "github.event_name": "push",
            "github.event.repository.default_branch": "main",
            "github.ref_name": "model-1",
            "vars.DVC_CACHE": str(self.folder / "cache"),
        }

    @property
    def by_hand(self) -> dict[str, str]:
        """What it says where somebody names the tag, and a repository of the Hub."""
        return {**self.context, "github.ref_name": "main", "inputs.tag": "model-1", "inputs.hub": NAME}

    def run(self, which: str, context: dict[str, str]) -> "subprocess.CompletedProcess[str]":
        """A job on a machine that knows nothing, but has the packages installed: its last step."""
        part = job("release", which)
        assert allowed(part, context)
        folder = self.folder / f"{which}-{next(self.numbers)}"
        within = folder / part.get("defaults", {}).get("run", {}).get("working-directory", ".")
        git(self.folder, "clone", "--quiet", str(self.origin), str(within))
        lend_environment(within, Path(sys.prefix), LOCKS.get(which, "requirements-remote.lock"))
        for step in part["steps"]:
            if "checkout" in step.get("uses", ""):
                step["with"]["clean"] = False  # it would remove the packages, which were installed only once
        home = self.hub.environment(self.folder / "home")
        machine = Machine(folder, self.origin, self.folder / "runs" / which, {**self.github.environment, **home})
        return machine.run(part, context)[-1]

    def check(self, which: str, context: dict[str, str]) -> str:
        """The same job when it must succeed: what its last step printed."""
        done = self.run(which, context)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not [text for text in SECRETS.values() if text in done.stdout + done.stderr]
        return done.stdout

    @property
    def seen(self) -> list[tuple[str, dict[str, str]]]:
        """The command of each process that the tag's code ran in, and its environment."""
        lines = (self.folder / "seen").read_text().splitlines()
        return [(command, variables) for command, variables in map(json.loads, lines)]

    @property
    def cached(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (self.folder / "cache/files").rglob("*") if path.is_file()}

    @property
    def artifact(self) -> dict[str, str]:
        folder = self.folder / "runs/artifacts/release"
        return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def story(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A commit on main, and a tag of another one, whose code is curious; the remote has what the tag recorded."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(finished.folder, folder / "laptop", symlinks=True)
    laptop, origin = Project(folder / "laptop"), folder / "origin.git"
    laptop.check("dvc", "remote", "add", "--default", "storage", str(folder / "storage"))
    laptop.check("git", "branch", "--move", "main")
    laptop.commit("a remote")
    laptop.check("python", "-m", "excise", "push")
    laptop.check("git", "clone", "--quiet", "--bare", ".", str(origin))
    assert SPY_IN in LEFT_OUT
    with open(laptop.folder / SPY_IN, "a") as file:
        file.write(SPY.format(path=str(folder / "seen")))
    laptop.commit("a curious commit")
    laptop.check("git", "tag", "model-1")
    laptop.check("git", "push", "--quiet", str(origin), "model-1")
    (folder / "seen").touch()
    with fake_github() as github, fake_hub() as hub:
        yield Story(folder, origin, github, hub, model_bytes(laptop))


def test_what_the_tag_recorded_is_fetched_by_code_that_is_not_the_tags(story: Story) -> None:
    story.check("fetch", story.context)
    pushed = {path.name for path in (story.folder / "storage").rglob("*") if path.is_file()}
    assert pushed == {os.path.basename(path) for path in story.cached}
    before = story.cached
    story.check("fetch", story.context)
    assert story.cached == before and not story.seen


def test_the_model_is_made_again_where_no_secret_is(story: Story) -> None:
    fetched = story.cached
    printed = story.check("rebuild", story.context)
    assert stages_run(printed) == ["ablate"], printed
    for module in ("excise restore", "excise release", "stages.ablate"):
        assert [command for command, _ in story.seen if f" -m {module}" in command], module
    for command, variables in story.seen:
        assert not HOLDERS & variables.keys(), command
        assert not [text for text in SECRETS.values() if text in str(variables)], command
    made = {data for path, data in story.cached.items() if path not in fetched}
    assert made >= {data for data in story.model.values() if data not in fetched.values()}

    first, cached = story.artifact, story.cached
    assert set(first) == FILES and "It was rebuilt" in first["card.md"]
    # Again, and by hand: the code is that of main, and the model is there.
    assert stages_run(story.check("rebuild", story.by_hand)) == []
    again = story.artifact
    assert "It was taken from DVC's cache." in again["card.md"] and story.cached == cached
    assert {name: text for name, text in again.items() if name != "card.md"} == {
        name: text for name, text in first.items() if name != "card.md"
    }


def test_the_release_holds_each_file_once_however_often_it_is_attached(story: Story) -> None:
    ran = len(story.seen)
    for context in (story.context, story.by_hand):
        story.check("attach", context)
        release = story.github.published("model-1")
        assert len(story.github.releases) == 1 and release["body"] == story.artifact["card.md"]
        assert sorted(asset["name"] for asset in release["assets"]) == sorted(FILES)
        assert story.github.assets == {name: text.encode() for name, text in story.artifact.items()}
    assert story.github.assets["edit.json"] == story.model["edit.json"]
    assert story.github.tokens == {f"Bearer {SECRETS['github.token']}"}
    assert len(story.seen) == ran


def test_nothing_is_uploaded_unless_somebody_names_a_repository(story: Story) -> None:
    assert not allowed(job("release", "upload"), story.context)
    assert allowed(job("release", "upload"), story.by_hand)


def test_a_model_that_is_not_in_the_cache_is_not_made_where_the_token_is(story: Story) -> None:
    ran = len(story.seen)
    done = story.run("upload", {**story.by_hand, "vars.DVC_CACHE": str(story.folder / "empty")})
    assert done.returncode != 0 and "rebuild it with `make model` on a machine that may run" in done.stderr
    assert not story.hub.asked and len(story.seen) == ran


def test_the_model_is_uploaded_out_of_the_shared_cache_and_no_code_of_the_tag_runs(story: Story) -> None:
    ran, cached = len(story.seen), story.cached
    for _ in range(2):
        story.check("upload", story.by_hand)
        assert story.hub.files == {".gitattributes": b"", **story.model} and story.hub.private
    assert story.hub.tokens - {None} == {f"Bearer {SECRETS['secrets.HF_TOKEN']}"}
    assert len(story.seen) == ran and story.cached == cached
