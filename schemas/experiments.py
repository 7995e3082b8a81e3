"""A file of experiments: named overrides of params.yaml in groups, and the tables of their metrics. DVC reads overrides
by Hydra's grammar and OmegaConf's rules: a mapping is merged, a list is replaced, a key that the file lacks needs `++`,
and quoted text stays text. `applied` does the same, so that the result is checked before DVC runs."""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, JsonValue, model_validator

from schemas.basis import plain_yaml
from schemas.basis.document import Listed, Section, validated
from schemas.basis.fields import PATH, Items, MayBeEmpty, matches
from schemas.basis.text import dotted, show
from schemas.params.document import Params
from schemas.params.gates import MetricName, unknown_task
from schemas.wording import ParamsError, WrongValue

Name = Annotated[
    str,
    matches(
        r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*(?<!\.lock)",
        "letters and digits with single -, _ or . between them, not ending in .lock (git refuses others)",
    ),
]
# A title becomes Markdown: neither a tag nor the end of a table's markers.
Title = Annotated[str, matches(r"(?! *$)[^\x00-\x1f\x7f<>]+", "text on one line, without < and >")]
Document = Annotated[
    str, matches(rf"{PATH}\.md", "a Markdown file in the project (such as docs/moe.md, without . or ..)")
]
Overrides = Annotated[dict[str, JsonValue], MayBeEmpty()]

_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*|0|[1-9][0-9]*")
_PLAIN = re.compile(r"[a-z][a-z_]*|[0-9]+-[0-9]+")
"""What Hydra reads as text without quotes, except the words below."""
_WORDS = ("null", "true", "false", "inf", "nan")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_MISSING = object()

Override = tuple[tuple[str, ...], Any]
"""A key, from its section down, and its value."""


class Column(Section):
    """One metric of the table."""

    title: Title = Field(description="The head of the column.")
    metric: MetricName = Field(description="The metric that it shows, as metrics.json names it.")


class Experiment(Section):
    """One set of parameters with a name."""

    name: Name = Field(description="Its name; DVC's name for it is `<file's name>-<group's name>-<name>`.")
    title: Title | None = Field(default=None, description="The title of its row; `null`: its name.")
    set: Overrides = Field(default={}, description="Keys of params.yaml and their values, after those of its group.")


class Group(Section):
    """Experiments that share parameters and a table. The first one runs first; the others use what it made."""

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
        return f"{self.name}-{group.name}-{experiment.name}"


@dataclass(frozen=True)
class Planned:
    """One experiment, ready to be queued."""

    name: str
    title: str
    arguments: tuple[str, ...]
    """What `dvc exp run -S` takes, one for each override."""
    params: Params


def load(path: Path, params: Path) -> tuple[Experiments, list[list[Planned]]]:
    """The file, and the planned experiments of each group. Raises `ParamsError`: it or what it makes is wrong."""
    name = str(path)
    experiments = validated(Experiments, plain_yaml.parse_mapping(plain_yaml.read_text(path, name), name), name)
    overridden = plain_yaml.parse_mapping(plain_yaml.read_text(params, params.name), params.name)
    validated(Params, overridden, params.name)
    planned = [
        [_plan(experiments, group, experiment, overridden, name) for experiment in group.experiments]
        for group in experiments.groups
    ]
    # A column that no experiment could fill is a mistake, not an empty column.
    evaluated = [each.params.evaluate.tasks().items() for group in planned for each in group]
    known_tasks = sorted({f"{group}.{task}" for groups in evaluated for group, tasks in groups for task in tasks})
    for number, column in enumerate(experiments.columns):
        if wrong := unknown_task(column.metric, known_tasks, "no experiment evaluates"):
            raise ParamsError(name, wrong, ("columns", number, "metric"))
    return experiments, planned


def _plan(file: Experiments, group: Group, experiment: Experiment, overridden: Mapping[str, Any], name: str) -> Planned:
    full = file.full_name(group, experiment)
    try:
        overrides = combined(read_overrides(group.set) + read_overrides(experiment.set))
        document, arguments = applied(overridden, overrides)
    except WrongValue as wrong:
        raise ParamsError(f"{name}: {full}", wrong.message) from None
    params = validated(Params, document, f"{name}: {full}")
    return Planned(full, experiment.title or experiment.name, tuple(arguments), params)


def read_overrides(mapping: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[Override]:
    """What a `set:` holds below a key: dotted keys, nested mappings or both. Raises `WrongValue`."""
    overrides: list[Override] = []
    for name, value in mapping.items():
        parts = name.split(".")
        if not all(map(_PART.fullmatch, parts)):
            raise WrongValue(f'{show(name)} is not a key, or keys joined by dots, such as "ablate.rules.0.scale"')
        key = (*above, *parts)
        if not isinstance(value, dict):
            overrides.append((key, value))
        elif value:
            overrides += read_overrides(value, key)
        else:
            raise WrongValue(f"{dotted(key)} is an empty mapping, which would change nothing")
    return overrides


def combined(overrides: Sequence[Override]) -> list[Override]:
    """The same without those that a later one overwrites."""
    return [
        (key, value)
        for number, (key, value) in enumerate(overrides, 1)
        if not any(key[: len(later)] == later for later, _ in overrides[number:])
    ]


def applied(document: Mapping[str, Any], overrides: Sequence[Override]) -> tuple[dict[str, Any], list[str]]:
    """The document with its overrides, and those that change it as `-S` takes them. Raises `WrongValue`: one names an
    item that a list does not have, or cannot be written for DVC."""
    changed: dict[str, Any] = copy.deepcopy(dict(document))
    arguments = []
    for key, value in overrides:
        argument = f"{'.'.join(key)}={_literal(value)}"
        before = _put(changed, key, value)
        if before is _MISSING or _literal(before) != _literal(value):
            arguments.append(f"++{argument}" if before is _MISSING else argument)
    return changed, arguments


def _put(document: dict[str, Any], key: tuple[str, ...], value: Any) -> Any:
    """Set the value in place, and return the one before it."""
    before: Any = _MISSING
    node: Any = document
    for depth, part in enumerate(key):
        index: Any = part
        if isinstance(node, list):
            if not (part.isdigit() and int(part) < len(node)):
                length = f"{dotted(key[:depth])} has {len(node)}, from 0"
                raise WrongValue(f"{dotted(key)} names an item that does not exist: {length}")
            index = int(part)
        before = node[index] if isinstance(node, list) else node.get(part, _MISSING)
        if depth == len(key) - 1:
            node[index] = copy.deepcopy(value)
        elif not isinstance(before, dict | list):
            node[index] = {}
        node = node[index]
    return before


def _literal(value: Any) -> str:
    """A value in Hydra's grammar, which is nearly YAML on one line."""
    match value:
        case None | bool():
            return json.dumps(value)
        case int() | float():
            return repr(value)
        case str():
            return value if _PLAIN.fullmatch(value) and value not in _WORDS else _quoted(value)
        case list():
            return f"[{', '.join(map(_literal, value))}]"
        case dict() if not value:
            raise WrongValue("an empty mapping in a list cannot be given to DVC, which misreads what follows it")
        case dict():
            return f"{{{', '.join(f'{_name(name)}: {_literal(item)}' for name, item in value.items())}}}"
    raise AssertionError(f"{type(value)} is not a value of YAML as this project reads it")


def _name(name: str) -> str:
    if _PART.fullmatch(name):
        return name
    raise WrongValue(f"{show(name)} cannot be the key of an override: use letters, digits, _ and -")


def _quoted(text: str) -> str:
    if "${" in text or text == "???" or _CONTROL.search(text):
        raise WrongValue(f"{show(text)} cannot be given to DVC: it has a control character, or is looked up (${{, ???)")
    # A backslash stands for itself, except before the closing quote and before one that is escaped.
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text) + "'"
