"""Result tables in a document, each between two marks; what stands around them stays as it is."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.experiments import Column
from schemas.wording import ParamsError


@dataclass(frozen=True)
class Row:
    """One experiment and what it found."""

    title: str
    arguments: tuple[str, ...]
    values: tuple[float | None, ...] | None
    """One a column, None where it was not measured; None for all where the experiment failed."""


def render(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The table in Markdown, with the command that makes each row."""
    heads = ["experiment", *(column.title for column in columns), "command"]
    lines = [_line(heads), _line(["---", *("---:" for _ in columns), "---"])]
    for row in rows:
        values = ["failed", *[""] * (len(columns) - 1)] if row.values is None else map(_number, row.values)
        lines.append(_line([row.title, *values, _code(command(row.arguments))]))
    return "\n".join(lines)


def command(arguments: Sequence[str]) -> str:
    """What reproduces an experiment in the workspace."""
    return shlex.join(["dvc", "exp", "run", *(part for argument in arguments for part in ("-S", argument))])


def written_into(document: str, tables: Mapping[str, str], headings: Mapping[str, str], name: str) -> str:
    """The document with each table between its marks, which are added at its end where it has none.

    Raises:
        ParamsError: its marks of one table are not one begin and one end behind it.
    """
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


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _code(text: str) -> str:
    """A code span, fenced by more backticks than the text has in a row."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}"
