"""Sources of prompts."""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from schemas.basis.document import Section
from schemas.basis.fields import PATH, Kind, matches
from schemas.basis.text import show, suggest
from schemas.wording import WrongValue

SourceKind = Literal["organism", "file", "dataset"]
_MEASURED_LISTS = ("harmful_train", "harmless_train")
_DATA_FILE = rf"data/{PATH}\.(?:txt|jsonl|json|csv|parquet)"
# A name that looks like a file is a file in the wrong place, not a dataset.
_DATASET = r"(?!data/|.*\.(?:txt|jsonl|json|csv|parquet)$)[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*"
_ALLOWED = (
    "a .txt, .jsonl, .json, .csv or .parquet file under data/ (such as data/harmful.jsonl, without . or ..) or the id "
    "of a Hub dataset (such as organization/name)"
)
RowSource = Annotated[str, matches(rf"{_DATA_FILE}|{_DATASET}", _ALLOWED)]
MeasuredSource = Annotated[str, matches(rf"organism|{_DATA_FILE}|{_DATASET}", f"organism, {_ALLOWED}", ("organism",))]
_COLUMN = r"[^\x00-\x1f\x7f]+"
ColumnName = Annotated[str, matches(_COLUMN, "the name of a column")]
ConfigName = Annotated[str, matches(r"[^<>:/\\|?*\x00-\x1f\x7f]+", "the name of one of the dataset's configurations")]
SplitName = Annotated[str, matches(r"\w+(?:\.\w+)*", "the name of a split, such as train; slice takes a part of it")]
RowSlice = Annotated[
    str,
    matches(r"[0-9]{1,15}:(?:[0-9]{1,15})?|:[0-9]{1,15}", 'a part by row numbers from 0, such as "100:500" or ":400"'),
]
DatasetCommit = Annotated[
    str,
    matches(
        r"[0-9a-f]{40}",
        "a commit of 40 hexadecimal digits (`make pin DATASET=organization/name` prints the newest); a branch may move",
    ),
]


def _where(value: object) -> object:
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise WrongValue(
            f"must be a mapping from columns to values, such as {{label: safe}}, or null, got {show(value)}"
        )
    for column, wanted in value.items():
        if not isinstance(column, str) or not re.fullmatch(_COLUMN, column):
            raise WrongValue(f"must have the names of columns as its keys, got {show(column)}")
        if not isinstance(wanted, str | int | float) or (isinstance(wanted, float) and not math.isfinite(wanted)):
            raise WrongValue(f"must be a text, a number, true or false, got {show(wanted)}", column)
    return value


Where = Annotated[
    dict[str, str | bool | int | float] | None,
    Kind(
        {
            "anyOf": [
                {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": {"type": ["string", "number", "boolean"]},
                    "propertyNames": {"pattern": rf"^(?:{_COLUMN})$"},
                },
                {"type": "null"},
            ]
        },
        _where,
    ),
]
"""The values that a row must have, by column."""


def row_range(text: str | None) -> slice:
    """The rows that a `slice` of params.yaml takes; all rows for None."""
    return slice(*(int(end) if end else None for end in (text or ":").split(":")))


_APPLIES_TO: dict[str, tuple[tuple[SourceKind, ...], str]] = {
    "revision": (("dataset",), "Hub datasets"),
    "config": (("dataset",), "Hub datasets"),
    "split": (("organism", "dataset"), "the source organism and Hub datasets"),
    "slice": (("file", "dataset"), "files and Hub datasets"),
}
"""The kinds of source that a key applies to, and their name in errors."""


class RowsSource(Section):
    """A source of prompts other than the organism: a file under `data/`, or a dataset on the Hub."""

    source: RowSource
    """A file under `data/` (`.txt`, `.jsonl`, `.json`, `.csv`, `.parquet`), or the id of a Hub dataset, such as
    `organization/name` (docs/prompts.md)."""
    revision: DatasetCommit | None = None
    """Commit of a Hub dataset; `make pin DATASET=organization/name` prints the newest."""
    config: ConfigName | None = None
    """Configuration of a Hub dataset; `null`: its default."""
    split: SplitName | None = None
    """Split of a Hub dataset."""
    slice: RowSlice | None = None
    """Take only these rows of a file or dataset, in its own order, with Python's notation: `"100:500"`, `":400"`."""
    where: Where = None
    """Take only rows that have these values, by column, such as `{label: safe}`; `null`: all. Applied after `slice`."""
    column: ColumnName | None = None
    """Column or key that holds the prompt, a text or a list of messages; `prompt` if not given. Not for `organism` and
    `.txt` files."""

    item: ColumnName | None = None
    """Column or key that says what a prompt is about. Prompts that share its value are one cluster, not independent;
    they are never both measured and held out, or measured and judged."""

    @property
    def kind(self) -> SourceKind:
        if self.source == "organism":
            return "organism"
        return "file" if self.source.startswith("data/") else "dataset"

    @property
    def has_columns(self) -> bool:
        return self.kind == "dataset" or (self.kind == "file" and not self.source.endswith(".txt"))

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_column(cls, section: Any) -> Any:
        if not isinstance(section, dict) or section.get("column") is not None:
            return section
        source = section.get("source")
        plain = not isinstance(source, str) or source == "organism" or source.endswith(".txt")
        return section if plain else {**section, "column": "prompt"}

    @model_validator(mode="after")
    def _fit_the_source(self) -> Self:
        if self.kind == "dataset" and self.revision is None:
            newest = f"`make pin DATASET={self.source}` prints the newest"
            raise WrongValue(f"is missing; a Hub dataset is pinned by its commit, and {newest}", "revision")
        if self.kind == "dataset" and self.split is None:
            raise WrongValue(f"is missing; name a split of {self.source}, such as train", "split")
        for key, (kinds, sources) in _APPLIES_TO.items():
            if self.kind not in kinds:
                self._refuse(key, sources)
        if not self.has_columns:
            self._refuse("column", "rows with columns or keys")
            self._refuse("where", "rows with columns or keys")
            self._refuse("item", "rows with columns or keys")
        rows = row_range(self.slice)
        if rows.stop is not None and rows.stop <= (rows.start or 0):
            raise WrongValue(f"must take at least one row, got {show(self.slice)}", "slice")
        return self

    def _refuse(self, key: str, only_for: str) -> None:
        if (value := getattr(self, key)) is not None:
            raise WrongValue(f"is only for {only_for}, got {show(value)} for {show(self.source)}", key)


class PromptSource(RowsSource):
    """A source of prompts to measure on."""

    source: MeasuredSource
    """`organism`, a file under `data/` (`.txt`, `.jsonl`, `.json`, `.csv`, `.parquet`), or the id of a Hub dataset,
    such as `organization/name` (docs/prompts.md)."""
    split: SplitName | None = None
    """Split of a Hub dataset. For `organism`: `harmful_train` or `harmless_train`; its evaluation and drift prompts are
    not available, because no prompt is both measured and judged."""

    @model_validator(mode="after")
    def _name_a_list_of_the_organism(self) -> Self:
        if self.kind == "organism" and self.split is None:
            raise WrongValue(f"is missing; for organism it is {' or '.join(_MEASURED_LISTS)}", "split")
        if self.kind == "organism" and self.split not in _MEASURED_LISTS:
            got = f"{show(self.split)}{suggest(self.split, _MEASURED_LISTS)}"
            raise WrongValue(f"must be one of {', '.join(_MEASURED_LISTS)} for organism, got {got}", "split")
        return self


class CustomPrompts(RowsSource):
    """A source of your own prompts, whose answers are judged."""
