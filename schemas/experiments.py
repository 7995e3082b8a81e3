"""A file of experiments: named overrides of params.yaml in groups, and the table that their metrics make.

`load` reads it and checks every experiment's parameters as a whole, or raises a `ParamsError` of one line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from schemas.basis import plain_yaml
from schemas.basis.document import Listed, Section, validated
from schemas.basis.fields import PATH, Items, MayBeEmpty, matches
from schemas.basis.text import dotted
from schemas.overrides import applied, combined, read_overrides
from schemas.params.document import Params
from schemas.params.gates import MetricName, unknown_task
from schemas.wording import ParamsError, WrongValue, first_mistake

Name = Annotated[
    str,
    matches(
        r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*(?<!\.lock)",
        "letters and digits with single -, _ or . between them, not ending in .lock (git refuses others)",
    ),
]
# A title becomes Markdown: neither a tag nor the end of a table's markers.
_CHARACTER = r"[^\x00-\x1f\x7f<>]"
Title = Annotated[str, matches(rf"(?! *$){_CHARACTER}+", "text on one line, without < and >")]
Document = Annotated[
    str, matches(rf"{PATH}\.md", "a Markdown file in the project (such as docs/moe.md, without . or ..)")
]
Overrides = Annotated[dict[str, JsonValue], MayBeEmpty()]


class Column(Section):
    """One metric of the table."""

    title: Title = Field(description="The head of the column.")
    metric: MetricName = Field(description="Whose value it shows, as metrics.json names it.")


class Experiment(Section):
    """One set of parameters with a name."""

    name: Name = Field(description="Its name; DVC knows it as `<file's name>-<group's name>-<name>`.")
    title: Title | None = Field(default=None, description="What its row is called; `null`: its name.")
    set: Overrides = Field(default={}, description="Keys of params.yaml and their values, after those of its group.")


class Group(Section):
    """Experiments that share parameters and a table. The first one runs first, and what it made serves the others."""

    name: Name = Field(description="The name of its table's markers, and a part of its experiments' names.")
    title: Title | None = Field(default=None, description="The heading above a new table; `null`: its name.")
    set: Overrides = Field(default={}, description="Keys of params.yaml and their values, for every experiment.")
    experiments: Annotated[Listed[Experiment], Items(at_least_one=True)] = Field(description="Its rows, in order.")


class Experiments(Section):
    """The file."""

    name: Name = Field(description="What the names of its experiments begin with.")
    output: Document = Field(description="The document that holds the tables.")
    columns: Annotated[Listed[Column], Items(at_least_one=True)] = Field(description="What the tables show.")
    groups: Annotated[Listed[Group], Items(at_least_one=True)] = Field(description="One table each.")

    @model_validator(mode="after")
    def _name_everything_once(self) -> Self:
        names: set[str] = set()
        for number, group in enumerate(self.groups):
            if group.name in (other.name for other in self.groups[:number]):
                raise WrongValue(f"is the name of two groups, {group.name}", "groups", number, "name")
            for place, experiment in enumerate(group.experiments):
                if (full := self.full_name(group, experiment)) in names:
                    at = ("groups", number, "experiments", place, "name")
                    raise WrongValue(f"is the name of two experiments, {full}", *at)
                names.add(full)
        return self

    def full_name(self, group: Group, experiment: Experiment) -> str:
        """What DVC knows an experiment by."""
        return f"{self.name}-{group.name}-{experiment.name}"


@dataclass(frozen=True)
class Planned:
    """One experiment, ready to be queued."""

    name: str
    title: str
    arguments: tuple[str, ...]
    """What `dvc exp run -S` takes, one an override."""
    params: Params


def load(path: Path, params: Path) -> tuple[Experiments, list[list[Planned]]]:
    """The file, and the planned experiments of each of its groups, which override the params.yaml `params`.

    Raises `ParamsError`: either file is wrong, or an experiment's parameters are.
    """
    name = str(path)
    experiments = validated(Experiments, plain_yaml.parse_mapping(plain_yaml.read_text(path, name), name), name)
    overridden = plain_yaml.parse_mapping(plain_yaml.read_text(params, params.name), params.name)
    _parameters(overridden, params.name, "")
    planned = [
        [_plan(experiments, group, experiment, overridden, name) for experiment in group.experiments]
        for group in experiments.groups
    ]
    _check_columns(experiments, [each.params for group in planned for each in group], name)
    return experiments, planned


def _plan(file: Experiments, group: Group, experiment: Experiment, overridden: Mapping[str, Any], name: str) -> Planned:
    full = file.full_name(group, experiment)
    try:
        overrides = combined(read_overrides(group.set) + read_overrides(experiment.set))
        document, arguments = applied(overridden, overrides)
    except WrongValue as wrong:
        raise ParamsError(name, f"{full}: {wrong.message}") from None
    checked = _parameters(document, name, f"{full}: ")
    return Planned(full, experiment.title or experiment.name, tuple(arguments), checked)


def _parameters(document: dict[str, Any], name: str, prefix: str) -> Params:
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        message, key = first_mistake(error, Params)
        raise ParamsError(name, f"{prefix}{dotted(key)} {message}") from None


def _check_columns(file: Experiments, all_params: Sequence[Params], name: str) -> None:
    """A column that no experiment could fill is a mistake, not an empty column."""
    evaluated = [params.evaluate.tasks().items() for params in all_params]
    there = sorted({f"{group}.{task}" for groups in evaluated for group, tasks in groups for task in tasks})
    for number, column in enumerate(file.columns):
        if wrong := unknown_task(column.metric, there, "no experiment evaluates"):
            raise ParamsError(name, wrong, ("columns", number, "metric"))
