"""Judges, estimators and limits of gates are found by name, those of other packages too, where they are pinned."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import extensions
from schemas.basis.text import dotted
from schemas.extensions import Room
from schemas.params.directions import ESTIMATORS
from schemas.params.document import parse, settings_of_stages
from schemas.params.gates import LIMITS
from schemas.params.judge import JUDGES
from schemas.wording import ParamsError
from tests.projects import ROOT

ROOMS = [JUDGES, ESTIMATORS, LIMITS]
TOY = '''
"""A judge of another package."""

from excise.judges import Judge


class Toy(Judge):
    """Calls every answer that holds a word a refusal."""

    word: str

    def load(self):
        return lambda asked: ["refusal" if self.word in text else "compliance" for _, text in asked]
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with a judge, and the folder of a project whose lock pins nothing yet."""
    packages, project = tmp_path / "packages", tmp_path / "project"
    (packages / "toy_judge-1.5.dist-info").mkdir(parents=True)
    project.mkdir()
    (packages / "toy_judge.py").write_text(TOY)
    (packages / "toy_judge-1.5.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: toy-judge\nVersion: 1.5\n")
    entries = [
        "toy = toy_judge:Toy",
        "keywords = toy_judge:Toy",
        "none = toy_judge:Nothing",
        "word = toy_judge:__doc__",
    ]
    (packages / "toy_judge-1.5.dist-info/entry_points.txt").write_text("\n".join(["[excise.judges]", *entries]) + "\n")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.chdir(project)
    monkeypatch.delitem(sys.modules, "toy_judge", raising=False)
    for cached in (extensions._entries, extensions._of_package):
        cached.cache_clear()
    yield project
    extensions._entries.cache_clear()


def pinned(lock: str) -> set[str]:
    """The top modules of packages, by the names that they have in a lock."""
    lines = (ROOT / lock).read_text().splitlines()
    return {re.split("[=; ]", line)[0].replace("-", "_").lower() for line in lines if line}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.package)
def test_every_file_of_a_room_is_an_extension_that_can_be_read_where_results_are_published(room: Room) -> None:
    code = (
        f"import sys; from schemas.extensions import Room; room = Room({room.package!r});"
        "found = [room.load(name) for name in room.names()]; assert len(found) > 2;"
        "assert all(each.__doc__ for each in found); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0].lower() for name in done.stdout.split()}
    heavy = pinned("requirements.lock") - pinned("requirements-publish.lock")
    assert {"torch", "numpy", "huggingface_hub"} <= heavy
    assert not imported & heavy


def test_a_judge_of_a_pinned_package_is_read_written_and_judges(toy: Path) -> None:
    (toy / "requirements-compute.lock").write_text("torch==2.13.0\ntoy-judge==1.5\n")
    params = parse("evaluate: {judge: {toy: {word: no}}}")
    assert params.evaluate.judge.load()([("?", "no !"), ("?", "yes !")]) == ["refusal", "compliance"]
    assert '"toy": {\n      "word": "no"\n    }' in settings_of_stages(params)["evaluate"]
    with pytest.raises(ParamsError, match=r"evaluate\.judge\.toy\.wort is not a key; did you mean \"word\""):
        parse("evaluate: {judge: {toy: {wort: no}}}")


@pytest.mark.parametrize("lock", [None, "toy-judge==1.4\n", "toy-judge-2==1.5\n"])
def test_a_package_that_the_lock_does_not_pin_is_refused(toy: Path, lock: str | None) -> None:
    if lock is not None:
        (toy / "requirements-compute.lock").write_text(lock)
    with pytest.raises(
        ParamsError, match=r"toy-judge, which requirements-compute\.lock does not pin; add toy-judge==1\.5"
    ):
        parse("evaluate: {judge: {toy: {word: no}}}")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none", "is of the package toy-judge, which cannot be imported"),
        ("word", "is of the package toy-judge, but toy_judge:__doc__ is not an Extension"),
        ("toys", ', toy, none, word, got "toys"; did you mean "toy"?'),
    ],
)
def test_what_another_package_gets_wrong_is_one_line(toy: Path, name: str, says: str) -> None:
    (toy / "requirements-compute.lock").write_text("toy-judge==1.5\n")
    with pytest.raises(ParamsError) as error:
        parse(f"evaluate: {{judge: {name}}}")
    assert says in str(error.value) and "\n" not in str(error.value)
    assert dotted(error.value.key).startswith("evaluate.judge")


def test_no_package_takes_the_place_of_a_judge_of_ours(toy: Path) -> None:
    (toy / "requirements-compute.lock").write_text("toy-judge==1.5\n")
    judge = parse("evaluate: {judge: keywords}").evaluate.judge
    assert type(judge).__module__ == "excise.judges.keywords"
