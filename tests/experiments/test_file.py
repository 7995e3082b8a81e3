"""A file of experiments: what it may say, and how a mistake is answered before anything is queued."""

from pathlib import Path

import pytest

from schemas.experiments import load
from schemas.wording import ParamsError
from tests.projects import Project, one_line

ROOT = Path(__file__).resolve().parents[2]
PARAMS = ROOT / "params.yaml"
GOOD = """
name: mine
output: docs/mine.md
columns:
  - {title: refusal, metric: refusal.organism_harmful.refusal_rate}
groups:
  - name: first
    set: {ablate.rules.0.scale: 0.5}
    experiments:
      - {name: a}
      - {name: b, title: all layers, set: {ablate.rules.0.layers: all}}
"""

MISTAKES = [
    ("name: mine", "nmae: mine", 'nmae is not a key; did you mean "name"?'),
    ("name: mine", "name: my own", "name must be letters and digits"),
    ("name: mine", "name: a..b", "name must be letters and digits"),
    ("{name: a}", "{name: a.lock}", "groups.0.experiments.0.name must be letters and digits"),
    ("name: first", "name: -first", "groups.0.name must be letters and digits"),
    ("{name: a}", "{name: a, sets: {}}", 'groups.0.experiments.0.sets is not a key; did you mean "set"?'),
    ("{name: b,", "{name: a,", "groups.0.experiments.1.name is the name of two experiments, mine-first-a"),
    ("output: docs/mine.md", "output: ../mine.md", "output must be a Markdown file in the project"),
    ("output: docs/mine.md", "output: /tmp/mine.md", "output must be a Markdown file in the project"),
    ("columns:", "column:", 'column is not a key; did you mean "columns"?'),
    ("refusal_rate}", "refusal_rate, title: x}", "given twice"),
    ("metric: refusal.organism_harmful.", "metric: organism_harmful.", "columns.0.metric must be refusal.<task>"),
    ("organism_harmful", "organism_harmfull", 'did you mean "refusal.organism_harmful"?'),
    ("0.scale: 0.5", "0.scal: 0.5", 'mine-first-a: ablate.rules.0.scal is not a key; did you mean "scale"?'),
    ("0.scale: 0.5", "0.scale: half", 'mine-first-a: ablate.rules.0.scale must be a finite number, got "half"'),
    ("ablate.rules.0.scale", "ablation.rules.0.scale", 'ablation is not a key; did you mean "ablate"?'),
    ("ablate.rules.0.layers: all", "ablate.rules.1.layers: all", "mine-first-b: ablate.rules.1.layers names an item"),
    ("ablate.rules.0.layers: all", "evaluate.refusal: []", "mine-first-b: gates.0.metric names refusal.organism_harm"),
    ("ablate.rules.0.layers: all", "prompts.chat_template_kwargs: {}", "is an empty mapping"),
]


def refused(text: str, folder: Path) -> str:
    """The one line that answers a bad file."""
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(ParamsError) as caught:
        load(folder / "mine.yaml", PARAMS)
    line = str(caught.value)
    assert line.isprintable() and "mine.yaml: " in line
    return line


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=[new for _, new, _ in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_key(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert GOOD.count(old) == 1
    assert message in refused(GOOD.replace(old, new), tmp_path)


def test_two_groups_need_two_names(tmp_path: Path) -> None:
    twice = GOOD + GOOD[GOOD.index("  - name: first") :]
    assert "groups.1.name is the name of two groups, first" in refused(twice, tmp_path)


def test_names_that_join_to_the_same_are_two_of_one(tmp_path: Path) -> None:
    text = GOOD + GOOD[GOOD.index("  - name: first") :].replace("name: first", "name: first-a")
    text = text.replace("{name: a}", "{name: a-b}", 1)
    assert "is the name of two experiments, mine-first-a-b" in refused(text, tmp_path)


def test_overrides_of_a_group_come_before_those_of_an_experiment(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    file, ((a, b),) = load(tmp_path / "mine.yaml", PARAMS)
    assert (a.name, a.title, a.arguments) == ("mine-first-a", "a", ("ablate.rules.0.scale=0.5",))
    assert (b.title, b.params.ablate.rules[0].layers, b.params.ablate.rules[0].scale) == ("all layers", "all", 0.5)
    assert file.output == "docs/mine.md"


def test_the_shipped_experiments_are_valid_and_have_their_tables() -> None:
    file, groups = load(ROOT / "experiments/moe.yaml", PARAMS)
    assert {name for group in groups for each in group if (name := each.params.organism.architecture)} == {
        "glm4_moe",
        "llama",
    }
    document = (ROOT / file.output).read_text()
    assert all(f"<!-- table:begin {group.name} -->" in document for group in file.groups)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.scale: 0.5", "0.scal: 0.5", 'did you mean "scale"?'),
        ("output: docs/mine.md", "output: docs/half.md", 'half.md: must hold "<!-- table:begin first -->" once'),
    ],
)
def test_nothing_is_queued_after_a_mistake(project: Project, old: str, new: str, message: str) -> None:
    (project.folder / "mine.yaml").write_text(GOOD.replace(old, new))
    (project.folder / "docs/half.md").write_text("<!-- table:begin first -->\n")
    done = project.run("python", "-m", "excise", "experiments", "mine.yaml")
    assert done.returncode == 2
    assert message in one_line(done)
    assert "No experiment tasks in the queue" in project.check("dvc", "queue", "status")


def test_a_params_yaml_that_is_wrong_itself_is_named(project: Project) -> None:
    (project.folder / "mine.yaml").write_text(GOOD)
    project.replace("scale: 1.4", "scal: 1.0")
    done = project.run("python", "-m", "excise", "experiments", "mine.yaml")
    assert done.returncode == 2
    assert one_line(done).startswith("ERROR: params.yaml: ablate.rules.0.scal is not a key")
