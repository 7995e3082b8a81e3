"""The packages that compute are an input: a pull request that pins another version shows what that changes."""

import shutil
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.projects import Project, one_line, stages_run

pytestmark = pytest.mark.slow

LOCK = "requirements-compute.lock"
OTHER = "99.1.0"


@pytest.fixture
def other_jinja(tmp_path: Path) -> str:
    """A folder with another version of jinja2, which renders chats otherwise."""
    packages, folder = Path(sysconfig.get_path("purelib")), tmp_path / "packages"
    shutil.copytree(packages / "jinja2", folder / "jinja2")
    (information,) = packages.glob("[Jj]inja2-*.dist-info")
    shutil.copytree(information, folder / f"jinja2-{OTHER}.dist-info")
    metadata = folder / f"jinja2-{OTHER}.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace(f"Version: {version('jinja2')}", f"Version: {OTHER}"))
    with open(folder / "jinja2/environment.py", "a") as file:
        file.write(
            "\n_render = Template.render\n"
            "def _other(self, *arguments, **values):\n"
            "    text = _render(self, *arguments, **values)\n"
            "    return f'{text} mix' if text.endswith('<|assistant|>') else text\n"
            "Template.render = _other\n"
        )
    return str(folder)


@pytest.mark.nightly
def test_another_pinned_version_is_shown_with_the_metrics_that_it_changes(project: Project, other_jinja: str) -> None:
    refused = one_line(project.run("python", "-m", "stages.prepare", PYTHONPATH=other_jinja))
    assert f"jinja2 is installed as {OTHER}" in refused and LOCK in refused

    project.replace(f"jinja2=={version('jinja2')}", f"jinja2=={OTHER}", LOCK)
    done = project.run("dvc", "repro", PYTHONPATH=other_jinja)
    assert done.returncode == 0, done.stderr
    ran = stages_run(done.stdout)
    assert {"prepare", "measure", "ablate", "answer@base", "answer@ablated", "report"} <= set(ran)
    project.commit("another version of jinja2")

    written = project.run("python", "-m", "excise", "comment", "--base", "HEAD~1", "--out", "comment.md")
    assert written.returncode == 0, written.stderr
    comment = (project.folder / "comment.md").read_text()
    assert f"`{LOCK}`" in comment.split("Stages that ran")[1]
    # Of a model that was trained for a moment, what moves may be within noise, but all of it is shown.
    before, now = project.check("git", "show", "HEAD~1:metrics.json"), (project.folder / "metrics.json").read_text()
    assert before != now and "`drift.first_token_kl`" in comment.split("### Metrics")[1]
