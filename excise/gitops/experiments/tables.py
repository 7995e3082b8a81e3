"""What experiments found, as tables between marks in their file's document."""

import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from excise.gitops.git import file_of
from excise.plumbing.files import parse_document, write_text
from schemas.basis.plain_yaml import read_text
from schemas.basis.text import printable
from schemas.experiments import Column, Experiments, Planned
from schemas.params.document import parse
from schemas.results import Results
from schemas.wording import ParamsError

PARAMS = Path("params.yaml")
RESULTS = "results/ablated/results.json"
"""The edited model's metrics: what metrics.json would show of them."""


@dataclass(frozen=True)
class Row:
    """One experiment and what it found."""

    title: str
    arguments: tuple[str, ...]
    values: Sequence[float | None] | None
    """One a column, None where it was not measured; None for all where the experiment failed."""


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
    """Write the tables, then leave with exit code 1 if an experiment has no numbers. `revisions` are the experiments'
    commits by name, and `reason` says why one has none."""
    found = {each.name: _results(each, revisions.get(each.name), reason) for group in groups for each in group}
    failures = [f"{name}: {why}" for name, why in found.items() if isinstance(why, str)]
    values = {
        name: [value_of(results, column.metric) for column in file.columns]
        for name, results in found.items()
        if isinstance(results, Results)
    }
    for place, column in enumerate(file.columns):
        if values and all(row[place] is None for row in values.values()):
            failures.append(f"no experiment has the metric {column.metric}; {RESULTS} holds those that there are")
    rows = [[Row(each.title, each.arguments, values.get(each.name)) for each in group] for group in groups]
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


def render(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The table in Markdown, with the command that makes each row."""
    heads = ["experiment", *(column.title for column in columns), "command"]
    lines = [_line(heads), _line(["---", *("---:" for _ in columns), "---"])]
    for row in rows:
        values = ["failed", *[""] * (len(columns) - 1)]
        if row.values is not None:
            values = ["" if value is None else f"{value:.4f}" for value in row.values]
        lines.append(_line([row.title, *values, _code(command(row.arguments))]))
    return "\n".join(lines)


def command(arguments: Sequence[str]) -> str:
    """What reproduces an experiment in the workspace."""
    return shlex.join(["dvc", "exp", "run", *(part for argument in arguments for part in ("-S", argument))])


def written_into(document: str, tables: Mapping[str, str], headings: Mapping[str, str], name: str) -> str:
    """The document with each table between its marks, which are added at its end if missing. Raises `ParamsError`."""
    for table, text in tables.items():
        begin, end = f"<!-- table:begin {table} -->", f"<!-- table:end {table} -->"
        counts = document.count(begin), document.count(end)
        if counts == (0, 0):
            document = f"{document.rstrip()}\n\n## {headings[table]}\n\n{begin}\n{end}\n"
        elif counts != (1, 1) or document.index(begin) > document.index(end):
            raise ParamsError(name, f'must hold "{begin}" once and "{end}" once behind it, or neither')
        before, rest = document.split(begin)
        document = f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    return document


def empty_document(title: str, file: Path) -> str:
    """What a document begins with that is not there yet."""
    return f"# {title}\n\nThe tables are made by `make experiments FILE={shlex.quote(str(file))}`.\n"


def value_of(results: Results, metric: str) -> float | None:
    """The edited model's value of a metric; None where it was not measured."""
    group, _, rest = metric.partition(".")
    task, _, name = rest.rpartition(".")
    return results.drift.get(rest) if group == "drift" else results.metrics.get(group, {}).get(task, {}).get(name)


def _results(planned: Planned, revision: str | None, reason: Callable[[str], str]) -> Results | str:
    from excise.plumbing.private.dvc_remote import read  # slow to import, and needed only here

    if revision is None or file_of(Path(), revision, str(PARAMS)) is None:
        return reason(planned.name)
    if not is_of(revision, planned):
        return f"ran with other parameters; was {PARAMS} changed meanwhile?"
    if (data := read(Path(), revision, RESULTS)) is None:
        return f"its {RESULTS} is neither in DVC's cache nor in its remote"
    return parse_document(Results, data, f"{RESULTS} of {planned.name}", "run the experiment again")


def _document(file: Experiments, path: Path, tables: Sequence[str]) -> str:
    output = Path(file.output)
    document = read_text(output, file.output) if output.exists() else empty_document(file.name, path)
    headings = {group.name: group.title or group.name for group in file.groups}
    return written_into(document, dict(zip(headings, tables, strict=True)), headings, file.output)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _code(text: str) -> str:
    """A code span, fenced by more backticks than the text has in a row."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}"
