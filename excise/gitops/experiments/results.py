"""What experiments found: read from their commits, and written into their file's document as tables."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from excise.gitops.experiments.table import Row, empty_document, render, written_into
from excise.gitops.git import file_of
from excise.plumbing.artifacts import MAPPING, parse_document
from excise.plumbing.files import write_text
from schemas.experiments import Column, Experiments, Planned
from schemas.params.document import parse
from schemas.plain_yaml import read_text
from schemas.text import printable

PARAMS = Path("params.yaml")
METRICS = "metrics.json"


def check_document(file: Experiments, path: Path) -> None:
    """Find out, before anything runs, whether the tables can be written. Raises `ParamsError` where not."""
    _document(file, path, ["" for _ in file.groups])


def tabulate(
    file: Experiments,
    path: Path,
    groups: Sequence[Sequence[Planned]],
    revisions: Mapping[str, str],
    reason: Callable[[str], str],
) -> None:
    """Write the tables, then leave with exit code 1 if an experiment has no numbers, each named in one line.

    Args:
        path: where `file` was read from.
        revisions: an experiment's name and the commit that it made.
        reason: why one has made none.
    """
    failures: list[str] = []
    rows = [
        [_row(each, file.columns, revisions.get(each.name), reason, failures) for each in group] for group in groups
    ]
    failures += blank(file.columns, [row for group in rows for row in group])
    write_text(Path(file.output), _document(file, path, [render(file.columns, group) for group in rows]))
    print(f"{file.output}: {sum(map(len, groups))} experiments")
    for failure in failures:
        print("ERROR: " + printable(failure), file=sys.stderr)
    if failures:
        sys.exit(1)


def is_of(revision: str, planned: Planned) -> bool:
    """Whether a commit was made with the parameters that are planned for an experiment."""
    params = file_of(Path(), revision, str(PARAMS))
    return params is not None and parse(params) == planned.params


def blank(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """What is wrong with columns that no experiment fills, although some succeeded."""
    ran = [row.values for row in rows if row.values is not None]
    return [
        f"no experiment has the metric {column.metric}; metrics.json holds those that there are"
        for place, column in enumerate(columns)
        if ran and all(values[place] is None for values in ran)
    ]


def value_of(metrics: Any, name: str) -> float | None:
    """A metric by its dotted name; None where it was not measured."""
    for part in name.split("."):
        metrics = metrics.get(part) if isinstance(metrics, dict) else None
    return metrics if isinstance(metrics, float | int) else None


def _row(
    planned: Planned,
    columns: Sequence[Column],
    revision: str | None,
    reason: Callable[[str], str],
    failures: list[str],
) -> Row:
    metrics = None if revision is None else file_of(Path(), revision, METRICS)
    if revision is None or metrics is None:
        failures.append(f"{planned.name}: {reason(planned.name)}")
        return Row(planned.title, planned.arguments, None)
    if not is_of(revision, planned):
        failures.append(f"{planned.name}: ran with other parameters; was {PARAMS} changed meanwhile?")
        return Row(planned.title, planned.arguments, None)
    measured = parse_document(MAPPING, metrics, f"{METRICS} of {revision[:12]}", "run the experiment again")
    values = tuple(value_of(measured, column.metric) for column in columns)
    return Row(planned.title, planned.arguments, values)


def _document(file: Experiments, path: Path, tables: Sequence[str]) -> str:
    output = Path(file.output)
    document = read_text(output, file.output) if output.exists() else empty_document(file.name, path)
    headings = {group.name: group.title or group.name for group in file.groups}
    return written_into(document, dict(zip(headings, tables, strict=True)), headings, file.output)
